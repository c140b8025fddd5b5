//! Tokenizers from the metadata of a GGUF file.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::normalizers::{NFC, NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::vocabulary::byte_token;
use super::{
    AddBos, Parts, Token, TokenKind, Tokenizer, TokenizerError, TokenizerKind, Vocabulary,
    sentencepiece,
};
use crate::checkpoint::{CheckpointError, Metadata, SpecialIds, whole};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// Words of Llama 3: contractions, letters with what stands before them, numbers of up to three digits.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of Qwen 2: the same with single digits.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Ways of cutting text into words before bytes are merged, by the families that use them.
#[derive(Clone, Copy)]
enum Words {
    Gpt2,
    Llama3,
    Qwen2,
    SmolLm,
}

impl Words {
    const KNOWN: [(&'static str, Words); 9] = [
        ("gpt-2", Words::Gpt2),
        ("gpt2", Words::Gpt2),
        ("llama-bpe", Words::Llama3),
        ("llama3", Words::Llama3),
        ("llama-v3", Words::Llama3),
        ("falcon3", Words::Llama3),
        ("qwen2", Words::Qwen2),
        ("deepseek-r1-qwen", Words::Qwen2),
        ("smollm", Words::SmolLm),
    ];

    fn named(name: &str) -> Result<Self, TokenizerError> {
        let known = Self::KNOWN.iter().find(|(known, _)| *known == name);
        known.map(|&(_, words)| words).ok_or_else(|| TokenizerError::UnsupportedPreTokenizer {
            found: crate::checkpoint::shortened(name),
            expected: Self::KNOWN.map(|(known, _)| known).join(", "),
        })
    }

    /// Whether a word that is a token as a whole is taken without merging up to it.
    fn takes_whole_words(self) -> bool {
        matches!(self, Words::Llama3)
    }

    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, TokenizerError> {
        let split = |words: &str| {
            let pattern = SplitPattern::Regex(words.to_owned());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map(PreTokenizerWrapper::from)
                .map_err(unreadable)
        };
        let first = match self {
            Words::Gpt2 => return Ok(ByteLevel::new(false, true, true).into()),
            Words::Llama3 => split(LLAMA3_WORDS)?,
            Words::Qwen2 => split(QWEN2_WORDS)?,
            Words::SmolLm => {
                let digits = Digits::new(true).into();
                let words = ByteLevel::new(false, true, true).into();
                return Ok(PreSequence::new(vec![digits, words]).into());
            }
        };
        let bytes = ByteLevel::new(false, true, false).into();
        Ok(PreSequence::new(vec![first, bytes]).into())
    }
}

/// Builds the tokenizer that `metadata` describes.
///
/// # Errors
/// Kinds that are not supported, lists that are missing or contradict each other.
pub(crate) fn build(
    metadata: &Metadata,
    special: &SpecialIds,
) -> Result<Tokenizer, CheckpointError> {
    let key = "tokenizer.ggml.model";
    let model = metadata.text(key)?.ok_or_else(|| metadata.missing(key))?;
    let in_file = |source| CheckpointError::Tokenizer { file: metadata.file.clone(), source };
    let kind = match model {
        "gpt2" => TokenizerKind::ByteLevel,
        "llama" => TokenizerKind::SentencePiece,
        other => {
            return Err(in_file(TokenizerError::UnsupportedModel {
                found: crate::checkpoint::shortened(other),
                expected: "\"gpt2\" (byte-level BPE) or \"llama\" (SentencePiece BPE)",
            }));
        }
    };
    let tokens = tokens(metadata)?;
    let encoder = match kind {
        TokenizerKind::ByteLevel => byte_level(metadata, &tokens)?,
        TokenizerKind::SentencePiece => sentence_piece(metadata, &tokens)?,
    };
    let encoder = with_added_tokens(encoder, &tokens).map_err(in_file)?;
    let add_bos = match (metadata.flag("tokenizer.ggml.add_bos_token")?, kind) {
        (Some(true), _) | (None, TokenizerKind::SentencePiece) => AddBos::Yes,
        (Some(false), _) | (None, TokenizerKind::ByteLevel) => AddBos::No,
    };
    let (bos, eos) = (special.bos, special.eos.clone());
    let vocabulary = Vocabulary::new(kind, tokens);
    Ok(Tokenizer::new(Parts { encoder, vocabulary, bos, eos, add_bos }))
}

fn unreadable(e: impl ToString) -> TokenizerError {
    TokenizerError::Unreadable { detail: e.to_string() }
}

/// The spellings and kinds of all tokens.
fn tokens(metadata: &Metadata) -> Result<Vec<Token>, CheckpointError> {
    let texts =
        metadata.array(TOKENS, "a list of texts", text)?.ok_or_else(|| metadata.missing(TOKENS))?;
    let kinds = metadata.array(TYPES, "a list of numbers", whole)?;
    let kinds = kinds.unwrap_or_else(|| vec![1; texts.len()]);
    same_length(metadata, "the list of token types", texts.len(), kinds.len())?;
    let kind = |text: &str, kind: u64| match kind {
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        6 => byte_token(text).map_or(TokenKind::Normal, TokenKind::Byte),
        _ => TokenKind::Normal,
    };
    let token = |(text, number)| Token { text: String::from(text), kind: kind(text, number) };
    Ok(texts.into_iter().zip(kinds).map(token).collect())
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text.as_str()),
        _ => None,
    }
}

fn same_length(
    metadata: &Metadata,
    list: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), CheckpointError> {
    if expected == found {
        return Ok(());
    }
    let source = TokenizerError::Lengths { list, expected, found };
    Err(CheckpointError::Tokenizer { file: metadata.file.clone(), source })
}

/// Ids by spelling. Of two tokens with one spelling the first is meant.
fn ids(tokens: &[Token]) -> HashMap<&str, u32> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in (0u32..).zip(tokens) {
        ids.entry(token.text.as_str()).or_insert(id);
    }
    ids
}

fn model(
    builder: BpeBuilder,
    ids: &HashMap<&str, u32>,
    merges: Vec<(String, String)>,
) -> Result<BPE, TokenizerError> {
    // The builder has a buffer of the longest token's length and panics where two parts are longer.
    for (index, (left, right)) in merges.iter().enumerate() {
        let whole = format!("{left}{right}");
        if ![left, right, &whole].iter().all(|part| ids.contains_key(part.as_str())) {
            let merge = crate::checkpoint::shortened(&format!("{left} {right}"));
            return Err(TokenizerError::Merge { index, merge });
        }
    }
    let vocabulary = ids.iter().map(|(&text, &id)| (text.to_owned(), id));
    builder.vocab_and_merges(vocabulary.collect::<Vocab>(), merges).build().map_err(unreadable)
}

fn byte_level(
    metadata: &Metadata,
    tokens: &[Token],
) -> Result<tokenizers::Tokenizer, CheckpointError> {
    let in_file = |source| CheckpointError::Tokenizer { file: metadata.file.clone(), source };
    let key = "tokenizer.ggml.pre";
    let words = metadata.text(key)?.ok_or_else(|| metadata.missing(key))?;
    let words = Words::named(words).map_err(in_file)?;
    let merges =
        metadata.array(MERGES, "a list of texts", text)?.ok_or_else(|| metadata.missing(MERGES))?;
    let pairs: Result<Vec<_>, _> = merges
        .into_iter()
        .enumerate()
        .map(|(index, merge)| {
            let pair = merge.split_once(' ').map(|(l, r)| (l.to_owned(), r.to_owned()));
            let merge = crate::checkpoint::shortened(merge);
            pair.ok_or(TokenizerError::Merge { index, merge })
        })
        .collect();
    let builder = BPE::builder().ignore_merges(words.takes_whole_words());
    let model = pairs.and_then(|pairs| model(builder, &ids(tokens), pairs)).map_err(in_file)?;
    let mut encoder = tokenizers::Tokenizer::new(model);
    if matches!(words, Words::Qwen2) {
        encoder
            .with_normalizer(Some(NormalizerWrapper::from(NFC)))
            .map_err(|e| in_file(unreadable(e)))?;
    }
    encoder.with_pre_tokenizer(Some(words.pre_tokenizer().map_err(in_file)?));
    Ok(encoder)
}

fn sentence_piece(
    metadata: &Metadata,
    tokens: &[Token],
) -> Result<tokenizers::Tokenizer, CheckpointError> {
    let in_file = |source| CheckpointError::Tokenizer { file: metadata.file.clone(), source };
    let score = |value: &Value| match value {
        Value::F32(score) => Some(*score),
        _ => None,
    };
    let scores = metadata
        .array(SCORES, "a list of 32-bit floats", score)?
        .ok_or_else(|| metadata.missing(SCORES))?;
    same_length(metadata, "the list of scores", tokens.len(), scores.len())?;
    let all = ids(tokens);
    // Control tokens must not come out of text, and byte tokens are what is left when nothing merges.
    let of_text =
        |id: u32| matches!(tokens[id as usize].kind, TokenKind::Normal | TokenKind::UserDefined);
    let mergeable = all.iter().filter(|&(_, &id)| of_text(id)).map(|(&text, &id)| (text, id));
    let merges = sentencepiece::merges(tokens, &scores, &mergeable.collect()).map_err(in_file)?;
    let mut builder = BPE::builder().byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = tokens.iter().find(|token| token.kind == TokenKind::Unknown) {
        builder = builder.unk_token(unknown.text.clone());
    }
    let model = model(builder, &all, merges).map_err(in_file)?;
    let mut encoder = tokenizers::Tokenizer::new(model);
    let spaces = Replace::new(" ", "\u{2581}").map_err(|e| in_file(unreadable(e)))?;
    let mut steps: Vec<NormalizerWrapper> = vec![spaces.into()];
    if metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
        steps.insert(0, Prepend::new("\u{2581}".to_owned()).into());
    }
    encoder
        .with_normalizer(Some(NormalizerWrapper::from(Sequence::new(steps))))
        .map_err(|e| in_file(unreadable(e)))?;
    Ok(encoder)
}

/// Tells the encoder which tokens are found in the text before it is cut into words.
fn with_added_tokens(
    mut encoder: tokenizers::Tokenizer,
    tokens: &[Token],
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let added = tokens.iter().filter(|token| !token.text.is_empty()).filter_map(|token| {
        let special = match token.kind {
            TokenKind::Control | TokenKind::Unknown => true,
            TokenKind::UserDefined => false,
            TokenKind::Normal | TokenKind::Byte(_) => return None,
        };
        Some(AddedToken::from(token.text.clone(), special).normalized(false))
    });
    encoder.add_tokens(added.collect::<Vec<_>>()).map_err(unreadable)?;
    Ok(encoder)
}
