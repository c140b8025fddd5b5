//! What happens to a row before the argmax: bias and penalties change logits, top-k, top-p and min-p choose candidates.
//!
//! *Invariant:* candidates are ordered by (logit falling, token rising), so a cut through equals is always the same.

use std::cmp::Ordering;

use super::Sampling;
use super::lanes::{LANES, exp, sum_exp};

/// A token that may be picked, with its scaled logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) logit: f32,
    pub(super) token: u32,
}

/// The likelier candidate first.
pub(super) fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// How often each token occurs; all zero between two rows.
#[derive(Clone, Debug, Default)]
pub(super) struct Occurrences {
    /// By token: 1 + number of occurrences in the output, or 0 if it is in neither prompt nor output.
    marks: Vec<u32>,
    seen: Vec<u32>,
}

impl Occurrences {
    fn count(&mut self, history: &[u32], sampling: &Sampling, vocabulary: usize) {
        self.marks.resize(vocabulary, 0);
        for (position, &token) in history.iter().enumerate() {
            let Some(mark) = self.marks.get_mut(token as usize) else { continue };
            if *mark == 0 {
                *mark = 1;
                self.seen.push(token);
            }
            *mark += u32::from(position >= sampling.prompt_len as usize);
        }
    }
}

/// Adds the biases to `row`, then applies the penalties for the tokens of `history`.
pub(super) fn adjust(
    row: &mut [f32],
    history: &[u32],
    sampling: &Sampling,
    occurrences: &mut Occurrences,
) {
    for &(token, bias) in &sampling.logit_bias {
        if let Some(logit) = row.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if !sampling.uses_history() {
        return;
    }
    occurrences.count(history, sampling, row.len());
    let repetition = sampling.repetition_penalty;
    for token in occurrences.seen.drain(..) {
        let logit = &mut row[token as usize];
        *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        let in_output = std::mem::take(&mut occurrences.marks[token as usize]) - 1;
        if in_output > 0 {
            *logit -= in_output as f32 * sampling.frequency_penalty;
            *logit -= sampling.presence_penalty;
        }
    }
}

/// Leaves in `kept` the tokens of the scaled `row` that pass top-k, top-p and min-p; at least one if any logit is finite.
/// `max` is the row's largest logit.
pub(super) fn select(row: &[f32], max: f32, sampling: &Sampling, kept: &mut Vec<Candidate>) {
    kept.clear();
    let k = sampling.top_k as usize;
    let (floor, nucleus) = (min_p_floor(max, sampling), sampling.top_p < 1.0);
    if k > 0 && k < row.len() {
        collect(row, top_k_floor(row, k, kept), kept);
        if kept.len() > k {
            kept.select_nth_unstable_by(k - 1, likelier);
            kept.truncate(k);
        }
    } else if nucleus {
        collect(row, nucleus_floor(row, max, sampling), kept);
    } else {
        collect(row, floor, kept);
    }
    if nucleus {
        let mass = if k > 0 && k < row.len() {
            kept.sort_unstable_by(likelier);
            kept.iter().map(|c| f64::from(exp(c.logit - max))).sum()
        } else {
            kept.sort_unstable_by(likelier);
            sum_exp(row, max)
        };
        keep_nucleus(kept, max, f64::from(sampling.top_p) * mass);
    }
    kept.retain(|c| c.logit >= floor);
}

/// Truncates sorted candidates to the shortest prefix with at least `wanted` of (unnormalised) probability.
fn keep_nucleus(kept: &mut Vec<Candidate>, max: f32, wanted: f64) {
    let mut sum = 0.0;
    let enough = kept.iter().position(|c| {
        sum += f64::from(exp(c.logit - max));
        sum >= wanted
    });
    if let Some(last) = enough {
        kept.truncate(last + 1);
    }
}

fn collect(row: &[f32], floor: f32, kept: &mut Vec<Candidate>) {
    kept.clear();
    for (token, &logit) in row.iter().enumerate() {
        if logit >= floor && logit > f32::NEG_INFINITY {
            kept.push(Candidate { logit, token: token as u32 });
        }
    }
}

/// No token below this is at least `min_p` times as likely as the likeliest.
fn min_p_floor(max: f32, sampling: &Sampling) -> f32 {
    if sampling.min_p <= 0.0 {
        return f32::NEG_INFINITY;
    }
    max + super::noise::ln(f64::from(sampling.min_p.max(f32::MIN_POSITIVE))) as f32
}

/// A logit that at least k tokens reach: the k-th largest of the maxima of small groups.
fn top_k_floor(row: &[f32], k: usize, groups: &mut Vec<Candidate>) -> f32 {
    if k > row.len() / LANES {
        return f32::NEG_INFINITY;
    }
    groups.clear();
    groups.extend(row.chunks_exact(LANES).map(|group| {
        let logit = group.iter().fold(f32::NEG_INFINITY, |max, &logit| max.max(logit));
        Candidate { logit, token: 0 }
    }));
    groups.select_nth_unstable_by(k - 1, likelier).1.logit
}

/// A logit below which all tokens together have less than `1 - top_p` of the probability, so none is in the nucleus.
fn nucleus_floor(row: &[f32], max: f32, sampling: &Sampling) -> f32 {
    // Half of the exact bound, so that rounding cannot exclude a token of the nucleus.
    let share = 0.5 * (1.0 - f64::from(sampling.top_p)) / row.len() as f64;
    max + super::noise::ln(share * sum_exp(row, max)) as f32
}

#[cfg(test)]
mod tests {
    use super::{Candidate, Occurrences, adjust, likelier, select};
    use crate::sampling::Sampling;
    use crate::sampling::noise::word;

    fn row(len: u32, seed: u64) -> Vec<f32> {
        (0..len).map(|i| (word(seed, 0, i) % 97) as f32 / 11.0 - 6.0).collect()
    }

    fn kept(row: &[f32], sampling: &Sampling) -> Vec<u32> {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut kept = Vec::new();
        select(row, max, sampling, &mut kept);
        kept.sort_by(likelier);
        kept.iter().map(|c| c.token).collect()
    }

    /// The definition, by sorting everything.
    fn by_definition(row: &[f32], s: &Sampling) -> Vec<u32> {
        let mut all: Vec<Candidate> = row
            .iter()
            .enumerate()
            .map(|(i, &logit)| Candidate { logit, token: i as u32 })
            .collect();
        all.sort_by(likelier);
        if s.top_k > 0 {
            all.truncate(s.top_k as usize);
        }
        let p = |c: &Candidate| f64::from(c.logit).exp();
        let mass: f64 = all.iter().map(p).sum();
        let mut before = 0.0;
        let first = p(&all[0]);
        all.into_iter()
            .take_while(|c| {
                let take = before < f64::from(s.top_p) * mass;
                before += p(c);
                take
            })
            .filter(|c| p(c) >= f64::from(s.min_p) * first)
            .map(|c| c.token)
            .collect()
    }

    #[test]
    fn filters_keep_what_their_definition_keeps() {
        for seed in 0..40 {
            for len in [5, 64, 700] {
                for (top_k, top_p, min_p) in [
                    (1, 1.0, 0.0),
                    (3, 1.0, 0.0),
                    (30, 1.0, 0.0),
                    (0, 0.61, 0.0),
                    (0, 0.97, 0.0),
                    (0, 1.0, 0.103),
                    (20, 0.83, 0.0),
                    (20, 0.95, 0.203),
                    (0, 0.95, 0.0107),
                ] {
                    let s = Sampling { top_k, top_p, min_p, ..Sampling::default() };
                    let row = row(len, seed);
                    assert_eq!(
                        kept(&row, &s),
                        by_definition(&row, &s),
                        "seed {seed}, {len} logits, {s:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_likeliest_token_always_stays() {
        for (top_k, top_p, min_p) in [(1, 0.0, 1.0), (0, 0.0, 0.0), (0, 1.0, 1.0)] {
            let s = Sampling { top_k, top_p, min_p, ..Sampling::default() };
            assert_eq!(kept(&[1.0, 3.0, 2.0], &s), [1]);
        }
    }

    #[test]
    fn penalties_and_bias_follow_their_definitions() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            prompt_len: 2,
            logit_bias: vec![(0, 1.0), (5, -8.0), (99, 1.0)],
            ..Sampling::default()
        };
        let mut row = [3.0, -1.0, 4.0, 1.0, 0.5, 0.0];
        let mut occurrences = Occurrences::default();
        // Prompt: 0 and 1; output: 2 three times, 1 once. A token beyond the vocabulary is passed over.
        adjust(&mut row, &[0, 1, 2, 2, 1, 2, 77], &sampling, &mut occurrences);
        assert_eq!(row, [2.0, -2.0 - 0.75, 2.0 - 1.25, 1.0, 0.5, -8.0]);
        assert!(occurrences.marks.iter().all(|&mark| mark == 0) && occurrences.seen.is_empty());
    }
}
