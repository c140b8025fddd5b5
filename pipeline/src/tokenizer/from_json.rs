//! Tokenizers from a `tokenizer.json`.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde_json::Value;

use super::vocabulary::byte_token;
use super::{
    AddBos, Parts, Token, TokenKind, Tokenizer, TokenizerError, TokenizerKind, Vocabulary,
};
use crate::checkpoint::SpecialIds;

/// Sixteen times the largest vocabularies in use; a bound, since tokens are placed by their ids.
const IDS_MAX: u32 = 1 << 22;

/// What is looked at before the file is handed to the `tokenizers` crate.
#[derive(Deserialize)]
struct Peeked<M> {
    model: M,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default, rename = "type")]
    name: String,
}

#[derive(Deserialize)]
struct BytePairs {
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// A merge is a pair, in older files with a space between.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

/// Builds the tokenizer that the bytes of a `tokenizer.json` describe.
///
/// # Errors
/// Kinds that are not supported, and files that contradict themselves.
pub(crate) fn build(bytes: &[u8], special: &SpecialIds) -> Result<Tokenizer, TokenizerError> {
    let peeked: Peeked<Kind> = serde_json::from_slice(bytes).map_err(unreadable)?;
    if peeked.model.name != "BPE" {
        return Err(TokenizerError::UnsupportedModel {
            found: crate::checkpoint::shortened(&peeked.model.name),
            expected: "\"BPE\"",
        });
    }
    let kind = kind(&peeked.decoder)?;
    check(&serde_json::from_slice::<Peeked<BytePairs>>(bytes).map_err(unreadable)?.model)?;
    let mut encoder = parse(bytes)?;
    encoder.with_truncation(None).map_err(unreadable)?;
    encoder.with_padding(None);
    let vocabulary = Vocabulary::new(kind, tokens(&encoder, kind)?);
    // Files differ in how they say that a text begins with a token; all agree on what happens then.
    let begun = encoder.encode_fast("a", true).map_err(unreadable)?;
    let add_bos = match (begun.get_ids().first(), special.bos) {
        (Some(&first), Some(bos)) if first == bos => AddBos::Yes,
        _ => AddBos::No,
    };
    let (bos, eos) = (special.bos, special.eos.clone());
    Ok(Tokenizer::new(Parts { encoder, vocabulary, bos, eos, add_bos }))
}

fn unreadable(e: impl ToString) -> TokenizerError {
    TokenizerError::Unreadable { detail: crate::checkpoint::shortened(&e.to_string()) }
}

/// Refuses what would change the text of a request from one run to the next, and what the `tokenizers` crate's builder
/// panics on: a merge that is longer than the longest token.
fn check(model: &BytePairs) -> Result<(), TokenizerError> {
    if model.dropout.is_some_and(|p| p != 0.0) {
        return Err(unreadable("dropout makes tokens random, expected null"));
    }
    for affix in [&model.continuing_subword_prefix, &model.end_of_word_suffix] {
        if affix.as_ref().is_some_and(|affix| !affix.is_empty()) {
            return Err(unreadable("subword prefixes and suffixes are not supported"));
        }
    }
    for (index, merge) in model.merges.iter().enumerate() {
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
            Merge::Text(text) => text.split_once(' ').unwrap_or((text.as_str(), "")),
        };
        let whole = format!("{left}{right}");
        if ![left, right, &whole].iter().all(|&part| model.vocab.contains_key(part)) {
            let merge = crate::checkpoint::shortened(&format!("{left} {right}"));
            return Err(TokenizerError::Merge { index, merge });
        }
    }
    Ok(())
}

/// Hands the file to the `tokenizers` crate. Its documentation says that some malformed files make it panic; such a
/// panic has touched nothing but the value under construction, and is an unreadable file.
fn parse(bytes: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let parsed = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(bytes)));
    parsed.unwrap_or_else(|_| Err("the reader panicked".into())).map_err(unreadable)
}

/// How the decoder reads tokens: byte-level, or with `U+2581` for spaces.
fn kind(decoder: &Value) -> Result<TokenizerKind, TokenizerError> {
    let steps = match decoder["type"].as_str() {
        Some("Sequence") => decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice),
        _ => std::slice::from_ref(decoder),
    };
    let has = |name: &str| steps.iter().any(|step| step["type"] == name);
    let spaces =
        steps.iter().any(|s| s["type"] == "Replace" && s["pattern"]["String"] == "\u{2581}");
    match (has("ByteLevel"), has("Metaspace") || spaces) {
        (true, false) => Ok(TokenizerKind::ByteLevel),
        (false, true) => Ok(TokenizerKind::SentencePiece),
        _ => Err(TokenizerError::UnsupportedModel {
            found: crate::checkpoint::shortened(&decoder.to_string()),
            expected: "a decoder of the type ByteLevel, Metaspace, or a sequence that replaces \"\u{2581}\"",
        }),
    }
}

/// All tokens in the order of their ids; an id that no token has stands for no text.
fn tokens(
    encoder: &tokenizers::Tokenizer,
    kind: TokenizerKind,
) -> Result<Vec<Token>, TokenizerError> {
    let added = encoder.get_added_tokens_decoder();
    let texts: BTreeMap<u32, String> =
        encoder.get_vocab(true).into_iter().map(|(text, id)| (id, text)).collect();
    let last = texts.keys().next_back().copied().unwrap_or(0);
    if last >= IDS_MAX {
        return Err(TokenizerError::TooLarge {
            what: "a token id".to_owned(),
            found: last.into(),
            max: (IDS_MAX - 1).into(),
        });
    }
    let absent = Token { text: String::new(), kind: TokenKind::Normal };
    let mut tokens = vec![absent; if texts.is_empty() { 0 } else { last as usize + 1 }];
    for (id, text) in texts {
        let kind = match (added.get(&id), kind) {
            (Some(added), _) if added.special => TokenKind::Control,
            (Some(_), _) => TokenKind::UserDefined,
            (None, TokenizerKind::SentencePiece) => {
                byte_token(&text).map_or(TokenKind::Normal, TokenKind::Byte)
            }
            (None, TokenizerKind::ByteLevel) => TokenKind::Normal,
        };
        tokens[id as usize] = Token { text, kind };
    }
    Ok(tokens)
}
