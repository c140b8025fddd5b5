//! Two toy models whose logits are a hash of the whole prefix, so that one wrong token in a cache changes all that
//! follows; and the plain text that they define.

use std::collections::BTreeMap;

use outrider_devices::sampling::{Scratch, pick};
use outrider_devices::{Pick, Sampling};

/// Tokens of the toy models; 0 ends a text.
pub(crate) const VOCABULARY: u32 = 20;

/// The token that ends a text.
pub(crate) const END_OF_TEXT: u32 = 0;

/// A generator for test cases (SplitMix64).
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub(crate) fn tokens(&mut self, count: u64) -> Vec<u32> {
        (0..count).map(|_| 1 + self.below(u64::from(VOCABULARY) - 1) as u32).collect()
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A pair of models: the draft's logits are the target's after `agreement` percent of all prefixes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) salt: u64,
    pub(crate) agreement: u64,
    /// Tokens before the last so many do not matter, so that texts repeat themselves.
    pub(crate) memory: usize,
}

/// How a toy can misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Rows are appended without the cache being cut first.
    NoTruncate,
}

/// One of the two models on its unit, with the caches of its sequences.
pub(crate) struct Toy {
    pub(crate) pair: Pair,
    is_draft: bool,
    pub(crate) fault: Fault,
    pub(crate) caches: BTreeMap<u64, Vec<u32>>,
    scratch: Scratch,
}

impl Toy {
    pub(crate) fn target(pair: Pair) -> Self {
        let (caches, scratch) = Default::default();
        Self { pair, is_draft: false, fault: Fault::None, caches, scratch }
    }

    pub(crate) fn draft(pair: Pair) -> Self {
        Self { is_draft: true, ..Self::target(pair) }
    }

    /// Runs rows and picks after the last `wanted` of them.
    pub(crate) fn run(
        &mut self,
        (sequence, base): (u64, u32),
        tokens: &[u32],
        wanted: usize,
        sampling: &Sampling,
    ) -> Vec<Pick> {
        let cache = self.caches.entry(sequence).or_default();
        assert!(base as usize <= cache.len(), "base {base} beyond {} cached", cache.len());
        assert!(wanted <= tokens.len(), "more picks than rows");
        if self.fault != Fault::NoTruncate {
            cache.truncate(base as usize);
        }
        let mut picks = Vec::new();
        for (i, &token) in tokens.iter().enumerate() {
            cache.push(token);
            if i + wanted >= tokens.len() {
                let logits = logits(self.pair, self.is_draft, cache);
                let position = cache.len() as u32;
                picks.push(pick(&logits, position, cache, sampling, &mut self.scratch));
            }
        }
        picks
    }

    /// Runs rows, then feeds picks back.
    pub(crate) fn extend(
        &mut self,
        (sequence, base): (u64, u32),
        tokens: &[u32],
        steps: u32,
        sampling: &Sampling,
    ) -> Vec<Pick> {
        let mut picks = self.run((sequence, base), tokens, 1, sampling);
        while picks.len() < steps as usize && picks.last().unwrap().token != END_OF_TEXT {
            let position = self.caches[&sequence].len() as u32;
            let last = picks.last().unwrap().token;
            picks.extend(self.run((sequence, position), &[last], 1, sampling));
        }
        picks
    }
}

fn logits(pair: Pair, is_draft: bool, prefix: &[u32]) -> Vec<f32> {
    let recent = &prefix[prefix.len().saturating_sub(pair.memory)..];
    let hash = recent.iter().fold(pair.salt, |hash, &token| mix(hash ^ u64::from(token) << 7));
    let differs = is_draft && mix(hash ^ 0xD) % 100 >= pair.agreement;
    let hash = if differs { mix(hash) } else { hash };
    (0..VOCABULARY).map(|t| (mix(hash ^ u64::from(t) << 20) % 4096) as f32 / 1000.0).collect()
}

/// The output that the target alone gives, one token after the other.
pub(crate) fn plain_text(
    pair: Pair,
    prompt: &[u32],
    length_max: usize,
    (sampling, stop_tokens): (&Sampling, &[u32]),
) -> Vec<u32> {
    let mut text = prompt.to_vec();
    let mut scratch = Scratch::default();
    while text.len() < length_max {
        let logits = logits(pair, false, &text);
        let next = pick(&logits, text.len() as u32, &text, sampling, &mut scratch).token;
        text.push(next);
        if stop_tokens.contains(&next) {
            break;
        }
    }
    text.split_off(prompt.len())
}

/// Parameters of every kind: greedy, sampled, filtered, penalised.
pub(crate) fn any_sampling(random: &mut Random, prompt_len: usize) -> Sampling {
    let base =
        Sampling { seed: random.next(), prompt_len: prompt_len as u32, ..Sampling::default() };
    match random.below(5) {
        0 | 1 => base,
        2 => Sampling { temperature: 0.8, ..base },
        3 => Sampling { temperature: 1.3, top_k: 6, top_p: 0.9, min_p: 0.02, ..base },
        _ => Sampling {
            temperature: 0.7,
            repetition_penalty: 1.2,
            presence_penalty: 0.4,
            frequency_penalty: 0.2,
            ..base
        },
    }
}
