//! Tokenizers against vectors that other implementations made.

#![expect(clippy::unwrap_used, reason = "tests")]

use serde::Deserialize;

use super::{AddBos, Detokenizer, SpecialTokens, Tokenizer, TokenizerKind};
use crate::checkpoint::fixture::{self, Gguf};
use crate::checkpoint::{Metadata, SpecialIds, metadata_of};
use crate::text::TextStart;

/// A tokenizer from the metadata of a GGUF file, which need not hold a model.
fn from_gguf(bytes: &[u8]) -> Tokenizer {
    let metadata: Metadata = metadata_of(bytes).unwrap();
    let special = SpecialIds { bos: Some(1), eos: [2].into(), pad: None };
    super::from_gguf::build(&metadata, &special).unwrap()
}

/// A SentencePiece vocabulary: unknown, control and byte tokens, then pieces with falling scores.
fn pieces() -> Gguf {
    let pieces = [
        "\u{2581}t",
        "he",
        "\u{2581}the",
        "\u{2581}",
        "t",
        "h",
        "e",
        "n",
        "\u{2581}then",
        "\u{2581}\u{2581}",
        "hen",
    ];
    let bytes: Vec<String> = (0..=255u8).map(|b| format!("<0x{b:02X}>")).collect();
    let tokens = || {
        let first = ["<unk>", "<s>", "</s>"].into_iter();
        first.chain(bytes.iter().map(String::as_str)).chain(pieces)
    };
    let kind = |id: usize| match id {
        0 => 2i32,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    };
    let numbers: Vec<_> = (0..tokens().count()).collect();
    let mut file = Gguf { entries: Vec::new(), tensors: Vec::new() };
    file.set_text("tokenizer.ggml.model", "llama");
    file.set_texts("tokenizer.ggml.tokens", tokens());
    let kinds: Vec<_> = numbers.iter().map(|&id| kind(id).to_le_bytes().to_vec()).collect();
    file.set("tokenizer.ggml.token_type", 9, fixture::array(5, &kinds));
    let scores: Vec<_> = numbers.iter().map(|&id| (-(id as f32)).to_le_bytes().to_vec()).collect();
    file.set("tokenizer.ggml.scores", 9, fixture::array(6, &scores));
    file
}

fn spelt(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, SpecialTokens::Parse).unwrap();
    ids.into_iter().map(|id| tokenizer.token_text(id).to_owned()).collect()
}

#[test]
fn pieces_merge_by_score_and_fall_back_to_bytes() {
    let tokenizer = from_gguf(&pieces().bytes());
    assert_eq!(
        (tokenizer.kind(), tokenizer.add_bos()),
        (TokenizerKind::SentencePiece, AddBos::Yes)
    );
    assert_eq!(spelt(&tokenizer, "then"), ["\u{2581}then"]);
    assert_eq!(spelt(&tokenizer, "the  ten"), ["\u{2581}the", "\u{2581}", "\u{2581}t", "e", "n"]);
    assert_eq!(spelt(&tokenizer, "é"), ["\u{2581}", "<0xC3>", "<0xA9>"]);
    assert_eq!(spelt(&tokenizer, "</s>then"), ["</s>", "\u{2581}then"]);
    assert!(tokenizer.encode("", SpecialTokens::Plain).unwrap().is_empty());
    let plain = tokenizer.encode("</s>", SpecialTokens::Plain).unwrap();
    assert!(!plain.contains(&2) && plain.len() > 3, "{plain:?}");
}

#[test]
fn the_first_space_of_pieces_goes_only_at_the_start_of_a_text() {
    let tokenizer = from_gguf(&pieces().bytes());
    let ids = tokenizer.encode("the then é", SpecialTokens::Plain).unwrap();
    assert_eq!(tokenizer.decode(&ids), "the then é");
    assert_eq!(tokenizer.decode(&[&[1], ids.as_slice(), &[2]].concat()), "the then é");
    let mut continuing = Detokenizer::continuing(&tokenizer);
    let text: String = ids.iter().map(|&id| continuing.push(id)).collect();
    assert_eq!(text, " the then é");
    assert_eq!(tokenizer.decode(&tokenizer.encode(" the", SpecialTokens::Plain).unwrap()), " the");
}

#[test]
fn a_completion_goes_on_where_its_prompt_ended() {
    let tokenizer = from_gguf(&pieces().bytes());
    let prompt = tokenizer.encode("the", SpecialTokens::Plain).unwrap();
    assert_eq!(tokenizer.begins_after(&[&[1], prompt.as_slice()].concat()), TextStart::Continues);
    let after_control = [prompt.as_slice(), &[2]].concat();
    assert_eq!(tokenizer.begins_after(&after_control), TextStart::Anew);
    assert_eq!(tokenizer.begins_after(&[]), TextStart::Anew);
    assert_eq!(tokenizer.begins_after(&[9_999_999]), TextStart::Anew);
}

#[test]
fn a_file_may_say_that_no_space_goes_first() {
    let mut file = pieces();
    file.set("tokenizer.ggml.add_space_prefix", 7, vec![0]);
    file.set("tokenizer.ggml.add_bos_token", 7, vec![0]);
    let tokenizer = from_gguf(&file.bytes());
    assert_eq!(spelt(&tokenizer, "hen the"), ["hen", "\u{2581}the"]);
    assert_eq!(tokenizer.add_bos(), AddBos::No);
}

#[test]
fn an_id_beyond_the_vocabulary_is_no_text() {
    let tokenizer = from_gguf(&pieces().bytes());
    assert_eq!(tokenizer.decode(&[u32::MAX, 262]), " ".trim_start());
    assert_eq!(tokenizer.token_text(u32::MAX), "");
}

#[test]
fn families_cut_words_as_they_were_trained() {
    // One token for each character and whole words beside, so that only the cuts decide.
    let cuts = |pre: &str, text: &str| {
        let mut file = Gguf::llama();
        file.set_text("tokenizer.ggml.pre", pre);
        let words = ["12", "123", "1", "2", "3", "4", "'S", "12345"];
        let tokens: Vec<String> = fixture::vocabulary()
            .into_iter()
            .chain(words[..2].iter().map(|w| (*w).to_owned()))
            .collect();
        file.set_texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
        file.set_texts("tokenizer.ggml.merges", ["1 2", "12 3"].into_iter());
        file.remove("tokenizer.ggml.token_type");
        spelt(&from_gguf(&file.bytes()), text)
    };
    assert_eq!(cuts("gpt-2", "123123"), ["123", "123"]);
    assert_eq!(cuts("llama-bpe", "4123"), ["4", "12", "3"]);
    assert_eq!(cuts("gpt-2", "4123"), ["4", "123"]);
    assert_eq!(cuts("qwen2", "4123"), ["4", "1", "2", "3"]);
    assert_eq!(cuts("smollm", "123"), ["1", "2", "3"]);
}

#[derive(Deserialize)]
struct Vector {
    text: String,
    parse: Vec<u32>,
    plain: Option<Vec<u32>>,
}

/// The vectors were made with the PyPI package `tokenizers` 0.23 from the pair's own `tokenizer.json`.
#[test]
#[cfg(feature = "embedded-models")]
fn the_shipped_tokenizer_gives_the_ids_that_it_was_trained_with() {
    use outrider_plans::ModelRole;
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("en_de_vectors.json")).unwrap();
    assert!(vectors.len() > 50);
    for role in [ModelRole::Target, ModelRole::Draft] {
        let tokenizer = crate::shipped::open(role).unwrap().tokenizer().unwrap();
        for Vector { text, parse, plain } in &vectors {
            assert_eq!(&tokenizer.encode(text, SpecialTokens::Parse).unwrap(), parse, "{text:?}");
            let plain = plain.as_ref().unwrap_or(parse);
            assert_eq!(&tokenizer.encode(text, SpecialTokens::Plain).unwrap(), plain, "{text:?}");
            assert_eq!(&tokenizer.decode(plain), text);
            let mut detokenizer = Detokenizer::at_start(&tokenizer);
            let streamed: String = plain.iter().map(|&id| detokenizer.push(id)).collect();
            assert_eq!(streamed + &detokenizer.finish(), *text);
        }
    }
}

/// Vectors of other projects, which are not a part of this one: a directory of vocabularies `NAME.gguf` with texts in
/// `NAME.gguf.inp`, separated by lines of `__ggml_vocab_test__`, and a line of ids for each in `NAME.gguf.out`.
#[test]
#[ignore = "needs files of other projects in OUTRIDER_COMPAT_DIR"]
fn vocabularies_of_other_projects_give_their_ids() {
    let directory = std::env::var("OUTRIDER_COMPAT_DIR").unwrap();
    let mut checked = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let beside = |suffix: &str| std::fs::read_to_string(format!("{}.{suffix}", path.display()));
        let (Ok(texts), Ok(ids)) = (beside("inp"), beside("out")) else { continue };
        let tokenizer = from_gguf(&std::fs::read(&path).unwrap());
        for (text, ids) in texts.split("\n__ggml_vocab_test__\n").zip(ids.lines()) {
            let expected: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let found = tokenizer.encode(text, SpecialTokens::Plain).unwrap();
            assert_eq!(found, expected, "{}: {text:?}", path.display());
            assert_eq!(tokenizer.decode(&found), text, "{}", path.display());
            checked += 1;
        }
    }
    assert!(checked > 0, "no vectors found");
}

/// A `tokenizer.json` and a GGUF file of the same tokenizer, over the texts of tab-separated files.
#[test]
#[ignore = "needs OUTRIDER_TOKENIZER_JSON, OUTRIDER_TOKENIZER_GGUF and OUTRIDER_TEXTS (paths, separated by commas)"]
fn both_formats_give_the_same_ids() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let special = SpecialIds { bos: Some(1), eos: [2].into(), pad: None };
    let json = std::fs::read(variable("OUTRIDER_TOKENIZER_JSON")).unwrap();
    let json = super::from_json::build(&json, &special).unwrap();
    let gguf = from_gguf(&std::fs::read(variable("OUTRIDER_TOKENIZER_GGUF")).unwrap());
    assert_eq!(json.vocabulary(), gguf.vocabulary());
    let (mut texts, mut tokens) = (0, 0);
    for file in variable("OUTRIDER_TEXTS").split(',') {
        let content = std::fs::read_to_string(file).unwrap();
        for text in content.lines().flat_map(|line| line.split('\t')) {
            for special in [SpecialTokens::Plain, SpecialTokens::Parse] {
                let ids = gguf.encode(text, special).unwrap();
                assert_eq!(ids, json.encode(text, special).unwrap(), "{text:?}");
                assert_eq!(gguf.decode(&ids), text);
                assert_eq!(json.decode(&ids), text);
                (texts, tokens) = (texts + 1, tokens + ids.len());
            }
        }
    }
    assert!(texts > 0);
    #[expect(clippy::print_stderr, reason = "the count is what one runs this for")]
    {
        eprintln!("{texts} texts of {tokens} tokens agree");
    }
}
