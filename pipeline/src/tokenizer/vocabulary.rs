//! The tokens of a vocabulary, and the bytes that each stands for.

use super::TokenizerKind;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for what cannot be spelt; no text.
    Unknown,
    /// Steers the model, such as the end of a text; no text.
    Control,
    /// A piece of text that is found before all others.
    UserDefined,
    /// One byte of a character that is not in the vocabulary.
    Byte(u8),
}

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its spelling in the vocabulary.
    pub text: String,
    /// What it is for.
    pub kind: TokenKind,
}

/// All tokens of a model; a token's id is its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    kind: TokenizerKind,
    tokens: Vec<Token>,
    special: Vec<u32>,
}

impl Vocabulary {
    pub(crate) fn new(kind: TokenizerKind, tokens: Vec<Token>) -> Self {
        let special = (0u32..)
            .zip(&tokens)
            .filter(|(_, token)| matches!(token.kind, TokenKind::Control | TokenKind::Unknown))
            .map(|(id, _)| id)
            .collect();
        Self { kind, tokens, special }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// All tokens in the order of their ids.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// How tokens spell text.
    pub fn kind(&self) -> TokenizerKind {
        self.kind
    }

    /// Spelling of a token; empty for ids beyond the vocabulary, which padded embeddings have.
    pub fn text(&self, id: u32) -> &str {
        self.tokens.get(id as usize).map_or("", |token| token.text.as_str())
    }

    /// Tokens that stand for no text, control tokens and the unknown one, ascending.
    pub fn special_ids(&self) -> impl Iterator<Item = u32> {
        self.special.iter().copied()
    }

    /// Appends the bytes that a token stands for; none for control tokens and ids beyond the vocabulary.
    pub fn append_bytes(&self, id: u32, bytes: &mut Vec<u8>) {
        let Some(token) = self.tokens.get(id as usize) else { return };
        match (token.kind, self.kind) {
            (TokenKind::Control | TokenKind::Unknown, _) => {}
            (TokenKind::Byte(byte), _) => bytes.push(byte),
            (TokenKind::UserDefined, TokenizerKind::ByteLevel) => {
                bytes.extend_from_slice(token.text.as_bytes());
            }
            (TokenKind::Normal, TokenizerKind::ByteLevel) => append_byte_level(&token.text, bytes),
            (TokenKind::Normal | TokenKind::UserDefined, TokenizerKind::SentencePiece) => {
                bytes.extend_from_slice(token.text.replace('\u{2581}', " ").as_bytes());
            }
        }
    }
}

/// Appends the bytes that a byte-level spelling stands for; a spelling with other characters stands for itself.
fn append_byte_level(text: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(text.as_bytes());
                return;
            }
        }
    }
}

/// The byte that a character of the byte-level alphabet stands for. The alphabet is GPT-2's: a byte that is a printable
/// character of Latin-1 stands for itself; the other 68, in ascending order, are the characters from `U+0100`.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The byte of a SentencePiece byte token, which is spelt `<0x0A>`.
pub(crate) fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if hexadecimal { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::{byte_of, byte_token};
    use std::collections::BTreeSet;

    #[test]
    fn the_byte_level_alphabet_has_every_byte_once() {
        let found: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(found.len(), 256);
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>().len(), 256);
        for (c, byte) in
            [('Ġ', b' '), ('Ċ', b'\n'), ('ĉ', b'\t'), ('a', b'a'), ('Ã', 0xc3), ('Ń', 0xad)]
        {
            assert_eq!(byte_of(c), Some(byte), "{c}");
        }
    }

    #[test]
    fn byte_tokens_are_two_hexadecimal_digits() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        assert_eq!(byte_token("<0xff>"), Some(255));
        for text in ["<0x+A>", "<0x1>", "<0x123>", "0x0A", "<0xäß>"] {
            assert_eq!(byte_token(text), None, "{text}");
        }
    }
}
