//! The toy language: logits for the next token as a pure function of the last few tokens.
//!
//! *Invariant:* two models with the same seed that agree on a context have the same logits there, bit for bit.

use super::options::Follower;

/// The tokens that the next one depends on: few, so that text repeats itself now and then.
const CONTEXT: usize = 3;

/// A toy model: the language itself, or a follower that knows it by halves.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Language {
    pub(super) seed: u64,
    pub(super) vocabulary: usize,
    pub(super) follower: Option<Follower>,
}

impl Language {
    /// Logits (vocabulary) of the token after `seen`.
    pub(super) fn logits(&self, seen: &[u32]) -> Vec<f32> {
        let context = &seen[seen.len().saturating_sub(CONTEXT)..];
        let truth = hash_tokens(self.seed, context);
        let mind = match &self.follower {
            Some(follower) if !agrees(follower, truth) => mix(truth ^ follower.seed, 1),
            _ => truth,
        };
        (0..self.vocabulary).map(|token| logit(mix(mind, token as u64))).collect()
    }
}

/// Whether the follower thinks as the language does in the context of this hash.
fn agrees(follower: &Follower, truth: u64) -> bool {
    unit(mix(truth, follower.seed.wrapping_add(0x5eed))) < follower.agreement
}

/// From a hash to a logit: a few tokens stand out, most do not.
fn logit(hash: u64) -> f32 {
    (12.0 * unit(hash).powi(8)) as f32
}

/// Uniform in 0..1.
fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// Hash of a sequence of tokens.
pub(super) fn hash_tokens(seed: u64, tokens: &[u32]) -> u64 {
    tokens.iter().fold(mix(seed, tokens.len() as u64), |hash, &t| mix(hash, u64::from(t)))
}

/// Hash of a name.
pub(super) fn hash_name(name: &str) -> u64 {
    name.bytes().fold(mix(0, name.len() as u64), |hash, byte| mix(hash, u64::from(byte)))
}

/// One step of a hash: the finaliser of SplitMix64 over both words.
fn mix(hash: u64, word: u64) -> u64 {
    let mut z = hash.rotate_left(23) ^ word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_agrees_about_as_often_as_it_is_told() {
        let language = Language { seed: 1, vocabulary: 50, follower: None };
        let follower = Follower { subgraph: String::new(), agreement: 0.7, seed: 2 };
        let follower = Language { follower: Some(follower), ..language.clone() };
        let same = (0..1000u32).filter(|&t| {
            let seen = [t, t / 2, 7];
            language.logits(&seen) == follower.logits(&seen)
        });
        let same = same.count();
        assert!((650..750).contains(&same), "{same} of 1000");
    }

    #[test]
    fn only_the_last_tokens_count() {
        let language = Language { seed: 1, vocabulary: 50, follower: None };
        assert_eq!(language.logits(&[1, 2, 3, 4]), language.logits(&[9, 2, 3, 4]));
        assert_ne!(language.logits(&[1, 2, 3, 4]), language.logits(&[1, 9, 3, 4]));
    }
}
