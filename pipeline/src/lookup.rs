//! Drafts from earlier text: where the last few tokens occurred before, what followed them then is proposed again.
//!
//! *Invariant:* a pure function of the text; the longest match wins, the latest among equals.

/// Lengths of the suffix that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ngrams {
    /// Shortest match that is believed; at least 1.
    pub min: usize,
    /// Longest match that is preferred.
    pub max: usize,
}

impl Default for Ngrams {
    fn default() -> Self {
        Self { min: 2, max: 4 }
    }
}

/// The tokens, `count` at most, that followed the best earlier occurrence of the end of `text`; none if even the last
/// `ngrams.min` tokens are new. A continuation that runs into the end of the text goes on periodically.
pub fn continuation(text: &[u32], ngrams: Ngrams, count: usize) -> Vec<u32> {
    let mut best = (0, 0);
    for end in (1..text.len()).rev() {
        let matched = common_suffix(&text[..end], text, ngrams.max);
        if matched > best.0 {
            best = (matched, end);
            if matched == ngrams.max {
                break;
            }
        }
    }
    let (matched, end) = best;
    if matched < ngrams.min.max(1) {
        return Vec::new();
    }
    text[end..].iter().copied().cycle().take(count).collect()
}

fn common_suffix(earlier: &[u32], text: &[u32], max: usize) -> usize {
    earlier.iter().rev().zip(text.iter().rev()).take(max).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::{Ngrams, continuation};

    fn check(text: &[u32], expected: &[u32]) {
        assert_eq!(continuation(text, Ngrams { min: 2, max: 3 }, 3), expected, "after {text:?}");
    }

    #[test]
    fn the_longest_match_wins_and_the_latest_among_equals() {
        check(&[1, 2, 3, 7, 7, 7, 9, 2, 3, 8, 8, 8, 1, 2, 3], &[7, 7, 7]);
        check(&[2, 3, 7, 7, 7, 2, 3, 8, 8, 8, 2, 3], &[8, 8, 8]);
    }

    #[test]
    fn a_match_that_is_too_short_proposes_nothing() {
        check(&[], &[]);
        check(&[1], &[]);
        check(&[1, 2, 9, 2], &[]);
        check(&[1, 2, 3, 4, 5], &[]);
    }

    #[test]
    fn a_period_is_continued() {
        check(&[4, 5, 4, 5, 4], &[5, 4, 5]);
        check(&[6, 6, 6], &[6, 6, 6]);
    }
}
