//! Token ids to text, as they come.
//!
//! *Invariant:* what was handed out is never taken back: a character is handed out once all its bytes are there.

use std::ops::Deref;

use super::{Tokenizer, TokenizerKind};
use crate::text::Detokenize;

/// Text of a growing sequence of tokens. `T` is how the tokenizer is held: a reference, or an `Arc` of one's own.
pub struct Detokenizer<T> {
    tokenizer: T,
    /// Bytes that are not a whole character yet; at most three between calls.
    pending: Vec<u8>,
    first_space: FirstSpace,
}

/// Whether the next byte is the first of a text, before which SentencePiece puts a space.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FirstSpace {
    Drop,
    Keep,
}

impl<T: Deref<Target = Tokenizer>> Detokenizer<T> {
    /// Text that begins with the first token pushed.
    pub fn at_start(tokenizer: T) -> Self {
        let first_space = match tokenizer.kind() {
            TokenizerKind::SentencePiece => FirstSpace::Drop,
            TokenizerKind::ByteLevel => FirstSpace::Keep,
        };
        Self { tokenizer, pending: Vec::new(), first_space }
    }

    /// Text that goes on where other text, such as a prompt to complete, ended: a leading space is a space.
    pub fn continuing(tokenizer: T) -> Self {
        Self { tokenizer, pending: Vec::new(), first_space: FirstSpace::Keep }
    }

    /// Adds a token; the text that became complete with it, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        let before = self.pending.len();
        self.tokenizer.vocabulary().append_bytes(id, &mut self.pending);
        if self.pending.len() > before && self.first_space == FirstSpace::Drop {
            self.first_space = FirstSpace::Keep;
            if self.pending.first() == Some(&b' ') {
                self.pending.remove(0);
            }
        }
        let mut text = String::new();
        let kept = append_complete(&self.pending, &mut text);
        self.pending.drain(..self.pending.len() - kept);
        text
    }

    /// What is left when no more tokens come: an incomplete character becomes `U+FFFD`.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

impl<T: Deref<Target = Tokenizer> + Send> Detokenize for Detokenizer<T> {
    fn push(&mut self, token: u32) -> String {
        Detokenizer::push(self, token)
    }

    fn finish(&mut self) -> String {
        Detokenizer::finish(self)
    }
}

/// Appends the text of `bytes` but for an incomplete character at the end, of which the length is returned. Bytes that
/// cannot become UTF-8 turn into `U+FFFD` as [`String::from_utf8_lossy`] does it.
fn append_complete(bytes: &[u8], text: &mut String) -> usize {
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let invalid = chunk.invalid();
        if invalid.is_empty() {
            continue;
        }
        let last = chunks.peek().is_none();
        let incomplete = std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
        if last && incomplete {
            return invalid.len();
        }
        text.push('\u{fffd}');
    }
    0
}

#[cfg(test)]
mod tests {
    use super::append_complete;
    use proptest::prelude::{Strategy, any, proptest};

    /// Pushes bytes in pieces as `push` and `finish` do.
    fn streamed(pieces: &[Vec<u8>]) -> String {
        let (mut pending, mut text) = (Vec::new(), String::new());
        for piece in pieces {
            pending.extend_from_slice(piece);
            let kept = append_complete(&pending, &mut text);
            assert!(kept < 4);
            pending.drain(..pending.len() - kept);
        }
        text + &String::from_utf8_lossy(&pending)
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        let mut text = String::new();
        assert_eq!(append_complete("a\u{1f999}".as_bytes().split_at(3).0, &mut text), 2);
        assert_eq!(text, "a");
    }

    proptest! {
        #[test]
        fn pieces_of_any_bytes_give_the_text_of_the_whole(
            pieces in proptest::collection::vec(
                proptest::collection::vec(any::<u8>().prop_map(|b| b | 0x80 >> (b % 3)), 0..5), 0..20),
        ) {
            let whole: Vec<u8> = pieces.concat();
            assert_eq!(streamed(&pieces), String::from_utf8_lossy(&whole));
        }

        #[test]
        fn pieces_of_text_give_the_text(text in ".*", cut in 1usize..4) {
            let pieces: Vec<Vec<u8>> = text.as_bytes().chunks(cut).map(<[u8]>::to_vec).collect();
            assert_eq!(streamed(&pieces), text);
        }
    }
}
