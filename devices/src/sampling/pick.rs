//! Picks a token from one row of logits.
//!
//! The noise of a token costs two logarithms, so few tokens get that far: with v = 1 - u, `G = -ln(-ln(1 - v))` is at
//! most `-ln v`, so a token of scaled logit x whose v is not below `exp(x - best)` cannot beat the best score so far.
//! Random words and bounds of all tokens are computed in lanes; in practice a handful of tokens a row survives.
//!
//! *Invariant:* the bound only skips tokens that lose, so the pick is that of the definition.

use super::Sampling;
use super::filter::{Candidate, Occurrences, adjust, likelier, select};
use super::lanes::{LANES, argmax, clean, exp, sum_exp};
use super::noise::{NOISE_MAX, gumbel, key, ln, philox_lanes, word};
use crate::Pick;

/// Buffers that are reused from row to row; nothing in them outlives a call.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    adjusted: Vec<f32>,
    scaled: Vec<f32>,
    candidates: Vec<Candidate>,
    occurrences: Occurrences,
}

/// Picks the token at `position` (one more than the position of the row that gave the `logits`), and says how likely
/// it was. `history` holds the tokens at positions 0 to `position - 1`; it may be empty if
/// [`Sampling::uses_history`] is false.
///
/// Panics if there are no logits.
pub fn pick(
    logits: &[f32],
    position: u32,
    history: &[u32],
    sampling: &Sampling,
    scratch: &mut Scratch,
) -> Pick {
    assert!(!logits.is_empty(), "a pick from no logits");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, the only feature that the function is compiled for.
        return unsafe { pick_avx2(logits, position, history, sampling, scratch) };
    }
    pick_here(logits, position, history, sampling, scratch)
}

/// As [`pick`], without the softmax: for rows whose probability nobody asks for.
pub fn pick_token(
    logits: &[f32],
    position: u32,
    history: &[u32],
    sampling: &Sampling,
    scratch: &mut Scratch,
) -> u32 {
    assert!(!logits.is_empty(), "a pick from no logits");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, the only feature that the function is compiled for.
        return unsafe { token_avx2(logits, position, history, sampling, scratch) };
    }
    token_here(logits, position, history, sampling, scratch)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn pick_avx2(
    logits: &[f32],
    position: u32,
    history: &[u32],
    sampling: &Sampling,
    scratch: &mut Scratch,
) -> Pick {
    pick_here(logits, position, history, sampling, scratch)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn token_avx2(
    logits: &[f32],
    position: u32,
    history: &[u32],
    sampling: &Sampling,
    scratch: &mut Scratch,
) -> u32 {
    token_here(logits, position, history, sampling, scratch)
}

#[inline(always)]
fn pick_here(
    logits: &[f32],
    position: u32,
    history: &[u32],
    sampling: &Sampling,
    scratch: &mut Scratch,
) -> Pick {
    let likeliest = argmax(logits);
    let token = if sampling.is_plain_argmax() {
        likeliest as u32
    } else {
        token_here(logits, position, history, sampling, scratch)
    };
    let max = clean(logits[likeliest]);
    if max == f32::NEG_INFINITY {
        return Pick { token, probability: 0.0, top: Vec::new() };
    }
    let sum = sum_exp(logits, max);
    let probability = (f64::from(exp(clean(logits[token as usize]) - max)) / sum) as f32;
    let log_sum = ln(sum) as f32;
    let top = likeliest_tokens(logits, sampling.top_logprobs as usize)
        .into_iter()
        .map(|c| (c.token, c.logit - max - log_sum))
        .collect();
    Pick { token, probability, top }
}

#[inline(always)]
fn token_here(
    logits: &[f32],
    position: u32,
    history: &[u32],
    sampling: &Sampling,
    scratch: &mut Scratch,
) -> u32 {
    let Scratch { adjusted, scaled, candidates, occurrences } = scratch;
    let logits = if sampling.uses_history() || !sampling.logit_bias.is_empty() {
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        adjust(adjusted, history, sampling, occurrences);
        &adjusted[..]
    } else {
        logits
    };
    let likeliest = argmax(logits);
    if sampling.is_greedy() || clean(logits[likeliest]) == f32::NEG_INFINITY {
        return likeliest as u32;
    }
    let inverse = 1.0 / sampling.temperature;
    scaled.clear();
    scaled.extend(logits.iter().map(|&logit| clean(clean(logit) * inverse)));
    let noise = Noise { seed: sampling.seed, position };
    let mut race = Race::new(scaled, likeliest as u32, noise);
    if sampling.filters() {
        select(scaled, race.max, sampling, candidates);
        race.run_candidates(candidates);
    } else {
        race.run_row(scaled);
    }
    race.best.token
}

/// The `count` likeliest tokens with their cleaned logits, most likely first.
fn likeliest_tokens(logits: &[f32], count: usize) -> Vec<Candidate> {
    let mut top: Vec<Candidate> = Vec::with_capacity(count + 1);
    if count == 0 {
        return top;
    }
    for (token, &logit) in logits.iter().enumerate() {
        let candidate = Candidate { logit: clean(logit), token: token as u32 };
        if top.len() == count && likelier(&candidate, &top[count - 1]).is_ge() {
            continue;
        }
        let place = top.partition_point(|c| likelier(c, &candidate).is_lt());
        top.insert(place, candidate);
        top.truncate(count);
    }
    top.retain(|c| c.logit > f32::NEG_INFINITY);
    top
}

/// Where the noise of one row comes from.
#[derive(Clone, Copy)]
struct Noise {
    seed: u64,
    position: u32,
}

/// The best score so far, relative to the largest scaled logit.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    token: u32,
}

/// `argmax(x + G)` over a row or some candidates. It starts with the likeliest token, which always takes part.
struct Race {
    max: f32,
    noise: Noise,
    best: Best,
}

impl Race {
    fn new(row: &[f32], likeliest: u32, noise: Noise) -> Self {
        let score = gumbel(word(noise.seed, noise.position, likeliest));
        Self { max: row[likeliest as usize], noise, best: Best { score, token: likeliest } }
    }

    fn enter(&mut self, logit: f32, token: u32, word: u32) {
        let score = f64::from(logit) - f64::from(self.max) + gumbel(word);
        let Best { score: best, token: holder } = self.best;
        if score > best || (score == best && token < holder) {
            self.best = Best { score, token };
        }
    }

    fn run_candidates(&mut self, candidates: &[Candidate]) {
        for c in candidates {
            let lead = f64::from(c.logit) - f64::from(self.max);
            if lead + NOISE_MAX >= self.best.score {
                self.enter(c.logit, c.token, word(self.noise.seed, self.noise.position, c.token));
            }
        }
    }

    #[inline(always)]
    fn run_row(&mut self, row: &[f32]) {
        const GROUP: usize = 4 * LANES;
        let (groups, rest) = row.as_chunks::<GROUP>();
        for (i, group) in groups.iter().enumerate() {
            let first = (i * GROUP) as u32;
            let words = self.words(first);
            if self.any_may_win(group, &words) {
                for lane in 0..GROUP {
                    if self.may_win(group[lane], words[lane]) {
                        self.enter(group[lane], first + lane as u32, words[lane]);
                    }
                }
            }
        }
        for (i, &logit) in rest.iter().enumerate() {
            let token = (groups.len() * GROUP + i) as u32;
            self.enter(logit, token, word(self.noise.seed, self.noise.position, token));
        }
    }

    /// The random words of the tokens `first..first + 64`; `first` is a multiple of 4.
    #[inline(always)]
    fn words(&self, first: u32) -> [u32; 4 * LANES] {
        let quarters = std::array::from_fn(|lane| first / 4 + lane as u32);
        let counters = [quarters, [self.noise.position; LANES], [0; LANES], [0; LANES]];
        let outputs = philox_lanes(counters, key(self.noise.seed));
        let mut words = [0; 4 * LANES];
        for lane in 0..LANES {
            for part in 0..4 {
                words[4 * lane + part] = outputs[part][lane];
            }
        }
        words
    }

    #[inline(always)]
    fn any_may_win(&self, logits: &[f32; 4 * LANES], words: &[u32; 4 * LANES]) -> bool {
        let mut any = false;
        for (&logit, &word) in logits.iter().zip(words) {
            any |= self.may_win(logit, word);
        }
        any
    }

    /// False only if the token's score is below the best. The factor covers every rounding: `logit - max` is off by
    /// 6e-8 of at most 110 (beyond that no word wins), the rest by less.
    #[inline(always)]
    fn may_win(&self, logit: f32, word: u32) -> bool {
        let bound = exp(logit - self.max - self.best.score as f32) * 1.0001;
        // Half of the word in signed arithmetic, for which processors have a vector conversion.
        let complement = (!word >> 1) as i32 as f32;
        complement * (1.0 / 2_147_483_648.0) < bound
    }
}

#[cfg(test)]
mod tests {
    use super::{Sampling, Scratch, pick, pick_here, word};

    /// Compiled for the least of instruction sets and for the one at hand.
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let mut scratch = Scratch::default();
        for seed in 0..200 {
            let logits: Vec<f32> = (0..1000).map(|i| word(seed, 1, i) as f32 / 3e8).collect();
            for temperature in [0.0, 0.9] {
                let s = Sampling { temperature, seed, top_logprobs: 3, ..Sampling::default() };
                let here = pick_here(&logits, 8, &[], &s, &mut scratch);
                assert_eq!(pick(&logits, 8, &[], &s, &mut scratch), here, "seed {seed}");
            }
        }
    }
}
