//! Merges of a SentencePiece BPE vocabulary, which stores only a score for each token.
//!
//! SentencePiece merges the neighbours whose union has the highest score. The `tokenizers` crate wants the pairs that
//! may merge in the order in which to try them, so each token is cut in two in every way that leaves two tokens.

use std::collections::HashMap;

use super::{Token, TokenKind, TokenizerError};

/// SentencePiece's own default is 16 characters; a bound, since the work grows with the square of the length.
const TOKEN_BYTES_MAX: usize = 256;

/// Pairs of tokens that merge, the first to try first. `ids` maps the spelling of each token of text to its id.
///
/// # Errors
/// A token that is longer than any real one.
pub(crate) fn merges(
    tokens: &[Token],
    scores: &[f32],
    ids: &HashMap<&str, u32>,
) -> Result<Vec<(String, String)>, TokenizerError> {
    let mut pairs = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        if token.kind != TokenKind::Normal {
            continue;
        }
        let text = token.text.as_str();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenizerError::TooLarge {
                what: "the length of a token".to_owned(),
                found: text.len() as u64,
                max: TOKEN_BYTES_MAX as u64,
            });
        }
        for (cut, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(cut);
            if ids.contains_key(left) && ids.contains_key(right) {
                pairs.push((score, left, right));
            }
        }
    }
    // Where scores are equal, longer parts first, as Hugging Face's converter does; the sort is stable.
    pairs.sort_by(|a, b| {
        let key = |pair: &(f32, &str, &str)| (pair.1.chars().count(), pair.2.chars().count());
        b.0.total_cmp(&a.0).then_with(|| key(b).cmp(&key(a)))
    });
    Ok(pairs.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect())
}
