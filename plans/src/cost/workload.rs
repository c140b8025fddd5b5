//! What is decoded: texts with what a draft said at each of their positions.
//!
//! All drafted tokens before a position being right, the draft continues the true text; so whether it is right there does not
//! depend on where its job began. One pass of the draft over a finished text therefore tells how *every* plan would fare
//! with it, whatever its depth: nothing about acceptance needs to be fitted. *Invariant:* a text has a prompt and an output, and one
//! guess for each token of the output.

use serde::{Deserialize, Serialize};

use super::acceptance::Acceptance;

/// What the draft says where the text before is the target's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guess {
    /// The token that it drafts.
    pub token: u32,
    /// Its probability under the draft, in thousandths.
    pub probability_permille: u16,
}

/// A finished text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleText {
    /// The tokens that were given.
    pub prompt: Vec<u32>,
    /// The target's tokens, with the one that ended the text.
    pub output: Vec<u32>,
    /// The draft's guess of each of them; empty if there is no draft.
    pub guesses: Vec<Guess>,
}

impl SampleText {
    /// Whether the draft is right about each token of the output.
    pub fn hits(&self) -> impl Iterator<Item = bool> + '_ {
        self.output.iter().zip(&self.guesses).map(|(token, guess)| *token == guess.token)
    }
}

/// Texts to decode, and how many at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// The texts; in order, and from the front again where more are needed.
    pub texts: Vec<SampleText>,
    /// Requests that are open at one time: whenever one ends the next begins. At least 1.
    pub concurrent: usize,
}

/// Of drafted tokens whose probability lay in a range: how many there were, and how many were right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConfidenceBin {
    /// Lower end of the range, thousandths.
    pub from_permille: u16,
    /// Tokens drafted.
    pub drafted: u64,
    /// Of them right.
    pub right: u64,
}

impl Workload {
    /// One text after the other.
    pub fn single(texts: Vec<SampleText>) -> Self {
        Self { texts, concurrent: 1 }
    }

    /// The same texts, `concurrent` at a time.
    pub fn with_concurrency(&self, concurrent: usize) -> Self {
        Self { texts: self.texts.clone(), concurrent: concurrent.max(1) }
    }

    /// Texts of `prompt` and `output` tokens, drafted right with the probability `acceptance` gives each position after a
    /// correction, evenly spread: the runs of right tokens have the lengths that the distribution asks for, in an order that
    /// only looks random. For machines that are not here.
    pub fn made_up(
        acceptance: &Acceptance,
        (prompt, output): (usize, usize),
        texts: usize,
    ) -> Self {
        assert!(prompt > 0 && output > 0 && texts > 0, "texts of some tokens");
        let runs = runs(acceptance, texts * output);
        let mut hits = runs.into_iter().flat_map(|run| (0..=run).map(move |i| i < run)).cycle();
        let text = |index: usize| {
            let position = |i: usize| 10 + ((index * 7919 + i * 31) % 4001) as u32;
            let output: Vec<u32> = (prompt..prompt + output).map(position).collect();
            let guess = |token: &u32| Guess {
                token: if hits.next() == Some(true) { *token } else { 1 },
                probability_permille: 900,
            };
            let guesses = output.iter().map(guess).collect();
            SampleText { prompt: (0..prompt).map(position).collect(), output, guesses }
        };
        Self::single((0..texts).map(text).collect())
    }

    /// Tokens of output of all texts.
    pub fn output_tokens(&self) -> usize {
        self.texts.iter().map(|text| text.output.len()).sum()
    }

    /// Share of output tokens that the draft is right about, in thousandths; 0 without guesses.
    pub fn acceptance_permille(&self) -> u32 {
        let (mut all, mut right) = (0u64, 0u64);
        for hit in self.texts.iter().flat_map(SampleText::hits) {
            all += 1;
            right += u64::from(hit);
        }
        (right * 1000).checked_div(all).unwrap_or(0) as u32
    }

    /// Acceptance by distance from the last token that the draft had wrong, up to `positions`.
    pub fn acceptance_by_position(&self, positions: usize) -> Option<Acceptance> {
        let (mut starts, mut right) = (0, vec![0; positions]);
        for text in &self.texts {
            let hits: Vec<bool> = text.hits().collect();
            // Only starts that the text is long enough for, so that every position was possible.
            for window in hits.windows(positions) {
                starts += 1;
                let run = window.iter().take_while(|hit| **hit).count();
                right[..run].iter_mut().for_each(|count| *count += 1);
            }
        }
        Acceptance::from_counts(starts, &right)
    }

    /// How often drafted tokens are right by the probability that the draft gave them, in ten equal ranges.
    pub fn confidence(&self) -> Vec<ConfidenceBin> {
        let bin = |i: u16| ConfidenceBin { from_permille: i * 100, ..ConfidenceBin::default() };
        let mut bins: Vec<ConfidenceBin> = (0..10).map(bin).collect();
        for text in &self.texts {
            for (hit, guess) in text.hits().zip(&text.guesses) {
                let bin = &mut bins[usize::from(guess.probability_permille / 100).min(9)];
                bin.drafted += 1;
                bin.right += u64::from(hit);
            }
        }
        bins
    }
}

/// Lengths of the runs of right tokens before each wrong one, for about `tokens` tokens, spread evenly over the
/// distribution's quantiles and then shuffled by a fixed rule.
fn runs(acceptance: &Acceptance, tokens: usize) -> Vec<u32> {
    let count = (tokens as f64 / acceptance.run_length()).ceil().max(1.0) as usize;
    let length = |i: usize| {
        let quantile = (i as f64 + 0.5) / count as f64;
        (1..=tokens as u32).take_while(|run| acceptance.survival(*run) > quantile).count() as u32
    };
    let mut lengths: Vec<u32> = (0..count).map(length).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for i in (1..count).rev() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        lengths.swap(i, (state >> 33) as usize % (i + 1));
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::{Guess, SampleText, Workload};
    use crate::cost::Acceptance;

    fn text(hits: &[bool]) -> SampleText {
        let output: Vec<u32> = (0..hits.len() as u32).map(|i| 100 + i).collect();
        let guess = |(token, hit): (&u32, &bool)| Guess {
            token: if *hit { *token } else { 0 },
            probability_permille: if *hit { 950 } else { 420 },
        };
        let guesses = output.iter().zip(hits).map(guess).collect();
        SampleText { prompt: vec![1], output, guesses }
    }

    #[test]
    fn acceptance_is_counted_from_every_start() {
        let workload = Workload::single(vec![text(&[true, true, false, true])]);
        assert_eq!(workload.acceptance_permille(), 750);
        let expected = Acceptance::from_counts(3, &[2, 1]);
        assert_eq!(workload.acceptance_by_position(2), expected);
        let bins = workload.confidence();
        assert_eq!((bins[9].drafted, bins[9].right, bins[4].drafted, bins[4].right), (3, 3, 1, 0));
    }

    #[test]
    fn made_up_texts_have_the_acceptance_asked_for() {
        for a in [0.0, 0.17, 0.58, 0.9, 0.94] {
            let workload = Workload::made_up(&Acceptance::constant(a), (60, 200), 40);
            let found = f64::from(workload.acceptance_permille()) / 1000.0;
            assert!((found - a).abs() < 0.01, "{found} instead of {a}");
            let runs = workload.acceptance_by_position(3).map(|a| a.survival(3));
            assert!(
                runs.is_some_and(|found| (found - a * a * a).abs() < 0.02),
                "{runs:?}, a = {a}"
            );
        }
    }

    #[test]
    fn without_guesses_nothing_is_accepted() {
        let bare = SampleText { prompt: vec![1], output: vec![2, 3], guesses: Vec::new() };
        let workload = Workload::single(vec![bare]);
        assert_eq!((workload.acceptance_permille(), workload.output_tokens()), (0, 2));
        assert_eq!(workload.acceptance_by_position(2), None);
    }
}
