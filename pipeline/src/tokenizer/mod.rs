//! Text to token ids and back.
//!
//! Encoding is the `tokenizers` crate's, set up from a `tokenizer.json` or from GGUF metadata. Decoding is done here, on
//! bytes: a token is a piece of UTF-8 that need not end where a character does.
//!
//! *Invariant:* decoding all tokens at once and one at a time give the same text.

mod detokenizer;
mod error;
pub(crate) mod from_gguf;
pub(crate) mod from_json;
mod sentencepiece;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::OnceLock;

use crate::text::TextStart;

pub use detokenizer::Detokenizer;
pub use error::TokenizerError;
pub use vocabulary::{Token, TokenKind, Vocabulary};

/// What the text of a control token in a prompt, such as `</s>`, stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// The token: for text that a template made.
    Parse,
    /// Its characters: for text that a user wrote, who must not be able to end a turn with it.
    Plain,
}

/// Whether a prompt without a template begins with the token that begins a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddBos {
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// How tokens spell text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerKind {
    /// Byte pairs over an alphabet of 256 characters that stand for bytes (GPT-2, Llama 3, Qwen 2).
    ByteLevel,
    /// Characters with `U+2581` for a space, and byte tokens for characters that are not in the vocabulary (Llama 2).
    SentencePiece,
}

impl fmt::Display for TokenizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenizerKind::ByteLevel => "byte-level BPE",
            TokenizerKind::SentencePiece => "SentencePiece BPE",
        })
    }
}

/// Tokenizer of a checkpoint.
pub struct Tokenizer {
    encoder: tokenizers::Tokenizer,
    /// The encoder that reads control tokens as text; made when a text first holds one.
    plain: OnceLock<tokenizers::Tokenizer>,
    vocabulary: Vocabulary,
    bos: Option<u32>,
    eos: BTreeSet<u32>,
    add_bos: AddBos,
}

/// What a tokenizer is made of.
pub(crate) struct Parts {
    pub(crate) encoder: tokenizers::Tokenizer,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: BTreeSet<u32>,
    pub(crate) add_bos: AddBos,
}

/// Control tokens that end a turn in the families that are read here, whether or not the checkpoint says so.
const TURN_ENDS: [&str; 5] =
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>"];

impl Tokenizer {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { encoder, vocabulary, bos, mut eos, add_bos } = parts;
        eos.extend(vocabulary.special_ids().filter(|&id| TURN_ENDS.contains(&vocabulary.text(id))));
        Self { encoder, plain: OnceLock::new(), vocabulary, bos, eos, add_bos }
    }

    /// Token ids of `text`. The token that begins a text is never added: see [`Self::bos`].
    ///
    /// # Errors
    /// What the `tokenizers` crate says; for the tokenizers that are read here it has no case in which it does.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, TokenizerError> {
        let encoder = match special {
            SpecialTokens::Plain if self.holds_special_token(text) => {
                self.plain.get_or_init(|| {
                    let mut plain = self.encoder.clone();
                    plain.set_encode_special_tokens(true);
                    plain
                })
            }
            _ => &self.encoder,
        };
        let encoding = encoder
            .encode_fast(text, false)
            .map_err(|e| TokenizerError::Unreadable { detail: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    fn holds_special_token(&self, text: &str) -> bool {
        self.vocabulary.special_ids().any(|id| {
            let token = self.vocabulary.text(id);
            !token.is_empty() && text.contains(token)
        })
    }

    /// Text of `ids`, as a text of its own: control tokens are left out, and so is the space that SentencePiece puts
    /// before the first word. Bytes that are not UTF-8 become `U+FFFD`.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = Detokenizer::at_start(self);
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// How the text after a prompt without a template begins: on its own after a control token, else where the prompt
    /// ends.
    pub fn begins_after(&self, prompt: &[u32]) -> TextStart {
        let mut bytes = Vec::new();
        if let Some(&last) = prompt.last() {
            self.vocabulary.append_bytes(last, &mut bytes);
        }
        if bytes.is_empty() { TextStart::Anew } else { TextStart::Continues }
    }

    /// All tokens.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The token's text in the vocabulary, with its own spelling of spaces and bytes; empty for ids beyond it.
    pub fn token_text(&self, id: u32) -> &str {
        self.vocabulary.text(id)
    }

    /// Token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Tokens that end a text or a turn, ascending.
    pub fn eos_ids(&self) -> &BTreeSet<u32> {
        &self.eos
    }

    /// Whether a prompt without a template begins with [`Self::bos`].
    pub fn add_bos(&self) -> AddBos {
        self.add_bos
    }

    /// How tokens spell text.
    pub fn kind(&self) -> TokenizerKind {
        self.vocabulary.kind()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} tokens", self.kind(), self.vocabulary.len())
    }
}
