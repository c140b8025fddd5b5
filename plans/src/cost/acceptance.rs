//! How often drafted tokens are right, by their distance from the last token that was the target's own.
//!
//! *Invariant:* every probability is at least 0 and at most [`ACCEPTANCE_MAX`].

use super::formula::power;

/// Acceptance is taken to be no higher than this, so that expected lengths stay finite.
pub const ACCEPTANCE_MAX: f64 = 0.9999;

/// Probability of acceptance by position.
#[derive(Clone, Debug, PartialEq)]
pub struct Acceptance {
    /// Of the first drafted token after a correction, the second if the first was right, and so on.
    by_position: Vec<f64>,
}

impl Acceptance {
    /// The same at every position. Values out of range are taken as the nearest within.
    pub fn constant(a: f64) -> Self {
        Self::by_position(vec![a])
    }

    /// Position by position; the last one holds for all after it. Values out of range are taken as the nearest within.
    ///
    /// Panics if there are none.
    pub fn by_position(by_position: Vec<f64>) -> Self {
        assert!(!by_position.is_empty(), "acceptance of at least one position");
        let clamp = |a: f64| if a > 0.0 { a.min(ACCEPTANCE_MAX) } else { 0.0 };
        Self { by_position: by_position.into_iter().map(clamp).collect() }
    }

    /// Measured from counts: `accepted[i]` times the draft was right up to and including position `i`, of `drafts`
    /// drafts that all were longer. Positions that never came to be are left out.
    pub fn from_counts(drafts: u64, accepted: &[u64]) -> Option<Self> {
        let mut reached = drafts;
        let mut by_position = Vec::new();
        for &right in accepted {
            if reached == 0 {
                break;
            }
            by_position.push(right.min(reached) as f64 / reached as f64);
            reached = right;
        }
        (!by_position.is_empty()).then(|| Self::by_position(by_position))
    }

    /// Probability that the first `tokens` drafted tokens are all right.
    pub fn survival(&self, tokens: u32) -> f64 {
        let known = self.by_position.len().min(tokens as usize);
        let product: f64 = self.by_position[..known].iter().product();
        product * power(self.last(), tokens - known as u32)
    }

    /// Expected number of right tokens at the front of a draft of `tokens`.
    pub fn expected(&self, tokens: u32) -> f64 {
        (1..=tokens).map(|count| self.survival(count)).sum()
    }

    /// Expected number of tokens from one rejection to the next, the target's own one included.
    pub fn run_length(&self) -> f64 {
        let known = self.by_position.len() as u32;
        let tail = self.survival(known) * self.last() / (1.0 - self.last());
        1.0 + self.expected(known) + tail
    }

    /// Expected number of passes after the first between two rejections, if the first verifies `first` drafts and each
    /// later one takes `each`: the sum over `k` of `survival(first + 1 + k each)`. For `each` of at least 1.
    pub fn later_passes(&self, first: u32, each: u32) -> f64 {
        assert!(each > 0, "a pass takes at least one draft");
        let known = self.by_position.len() as u32;
        let (mut sum, mut position) = (0.0, first + 1);
        while position < known {
            sum += self.survival(position);
            position += each;
        }
        sum + self.survival(position) / (1.0 - power(self.last(), each))
    }

    fn last(&self) -> f64 {
        *self.by_position.last().expect("there is at least one position")
    }
}

#[cfg(test)]
mod tests {
    use super::Acceptance;

    fn close(one: f64, two: f64) -> bool {
        (one - two).abs() <= 1e-9 * two.abs().max(1.0)
    }

    #[test]
    fn constant_acceptance_has_the_closed_forms() {
        let acceptance = Acceptance::constant(0.8);
        assert!(close(acceptance.survival(3), 0.512));
        assert!(close(acceptance.expected(2), 0.8 + 0.64));
        assert!(close(acceptance.run_length(), 5.0));
        assert!(close(acceptance.later_passes(1, 3), 0.64 / (1.0 - 0.512)));
    }

    #[test]
    fn positions_are_multiplied_and_the_last_one_goes_on() {
        let acceptance = Acceptance::by_position(vec![0.9, 0.5]);
        assert!(close(acceptance.survival(3), 0.225));
        assert!(close(acceptance.run_length(), 1.0 + 0.9 + 0.45 + 0.45));
        let long: f64 = (0..200).map(|k| acceptance.survival(1 + 2 * k)).sum();
        assert!(close(acceptance.later_passes(0, 2), long));
    }

    #[test]
    fn counts_become_conditional_probabilities() {
        let measured = Acceptance::from_counts(100, &[80, 40, 0, 0]);
        assert_eq!(measured, Some(Acceptance::by_position(vec![0.8, 0.5, 0.0])));
        assert_eq!(Acceptance::from_counts(0, &[0]), None);
    }

    #[test]
    fn nonsense_is_brought_within_bounds() {
        let bounded = Acceptance::by_position(vec![f64::NAN, -1.0, 2.0]);
        assert_eq!(bounded.survival(1), 0.0);
        assert!(Acceptance::constant(1.0).run_length().is_finite());
    }
}
