//! How often drafted tokens are right, learnt while decoding: by the draft's own confidence, and by place in the draft.
//!
//! Every estimate is a share of fading counts, with a prior of a few imagined tokens, so that one judged token says little
//! and old text is forgotten. *Invariant:* the memory is fixed, and estimates depend on the order of outcomes alone.

use outrider_plans::mode::DRAFT_TOKENS_MAX;
use outrider_plans::{Acceptance, CONFIDENCE_BINS, CONFIDENCE_ENDS, confidence_bin};

/// Places in a draft that are told apart; later ones count as the last.
const PLACES: usize = DRAFT_TOKENS_MAX as usize;

/// One drafted token that the target has judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Right tokens before it since the text was last the target's own alone.
    pub place: u32,
    /// Probability that the draft gave it.
    pub confidence: f32,
    /// Whether the target picked it too.
    pub accepted: bool,
}

/// How the draft's tokens are picked. Shared noise makes models agree on tokens that either holds unlikely, so confidence
/// means something else there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise {
    /// The likeliest token.
    Greedy,
    /// With noise.
    Sampled,
}

/// A share of successes among fading counts.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    right: f64,
    all: f64,
}

impl Share {
    /// Most tokens that are remembered: older ones fade.
    const MEMORY: f64 = 96.0;

    fn note(&mut self, accepted: bool) {
        let kept = (Self::MEMORY / (self.all + 1.0)).min(1.0);
        self.right = (self.right + f64::from(u8::from(accepted))) * kept;
        self.all = (self.all + 1.0) * kept;
    }

    fn fade(&mut self, kept: f64) {
        self.right *= kept;
        self.all *= kept;
    }

    fn estimate(self, prior: f64, weight: f64) -> f64 {
        (self.right + prior * weight) / (self.all + weight)
    }
}

/// Counts of one bin since the start, for whoever watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BinCounts {
    /// Tokens judged.
    pub judged: u64,
    /// Tokens that were right.
    pub accepted: u64,
}

/// What is known of a draft model.
#[derive(Clone, Debug)]
pub struct Calibration {
    bins: [[Share; CONFIDENCE_BINS]; 2],
    places: [Share; PLACES],
    counts: [BinCounts; CONFIDENCE_BINS],
}

impl Default for Calibration {
    fn default() -> Self {
        Self {
            bins: [[Share::default(); CONFIDENCE_BINS]; 2],
            places: [Share::default(); PLACES],
            counts: [BinCounts::default(); CONFIDENCE_BINS],
        }
    }
}

impl Calibration {
    /// Imagined tokens of a bin, as many right as the draft claims.
    const BIN_PRIOR: f64 = 3.0;
    /// Imagined tokens of a place, and the share of them that is right.
    const PLACE_PRIOR: (f64, f64) = (0.7, 4.0);

    /// Learns from one outcome.
    pub fn note(&mut self, noise: Noise, outcome: Outcome) {
        let bin = confidence_bin(outcome.confidence);
        self.bins[noise as usize][bin].note(outcome.accepted);
        self.places[(outcome.place as usize).min(PLACES - 1)].note(outcome.accepted);
        self.counts[bin].judged += 1;
        self.counts[bin].accepted += u64::from(outcome.accepted);
    }

    /// `tokens` of text were decoded without drafts: what was learnt by place says less about what follows.
    pub fn fade(&mut self, tokens: u32) {
        let kept = outrider_plans::cost::formula::power(0.99, tokens);
        self.places.iter_mut().for_each(|share| share.fade(kept));
    }

    /// Probability that a token which the draft holds this likely is right.
    pub fn of_confidence(&self, noise: Noise, confidence: f32) -> f64 {
        self.of_bin(noise, confidence_bin(confidence))
    }

    fn of_bin(&self, noise: Noise, bin: usize) -> f64 {
        let start = bin.checked_sub(1).map_or(0.0, |before| CONFIDENCE_ENDS[before]);
        let claimed = f64::from(start + CONFIDENCE_ENDS[bin]) / 2.0;
        self.bins[noise as usize][bin].estimate(claimed, Self::BIN_PRIOR)
    }

    /// Probability that a token at this place is right if those before it were, whatever its confidence.
    pub fn of_place(&self, place: u32) -> f64 {
        let (prior, weight) = Self::PLACE_PRIOR;
        // A place that was rarely reached is believed to be like the one before.
        let last = (place as usize).min(PLACES - 1);
        self.places[..=last].iter().fold(prior, |before, share| share.estimate(before, weight))
    }

    /// The confidence from which on every token is right with at least this probability; above 1 if none is.
    pub fn confidence_for(&self, noise: Noise, probability: f64) -> f32 {
        let right = |bin: &usize| self.of_bin(noise, *bin) >= probability;
        let lowest = (0..CONFIDENCE_BINS).rev().take_while(right).last();
        match lowest {
            Some(0) => 0.0,
            Some(bin) => CONFIDENCE_ENDS[bin - 1],
            None => 2.0,
        }
    }

    /// Acceptance by place, as forecasts take it.
    pub fn acceptance(&self) -> Acceptance {
        Acceptance::by_position((0..DRAFT_TOKENS_MAX).map(|place| self.of_place(place)).collect())
    }

    /// Tokens judged since the start.
    pub(super) fn judged(&self) -> u64 {
        self.counts.iter().map(|bin| bin.judged).sum()
    }

    /// What was judged since the start, by bin of confidence.
    pub fn counts(&self) -> &[BinCounts; CONFIDENCE_BINS] {
        &self.counts
    }
}

/// How one request's text compares with what its drafts' confidence lets expect.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trust {
    right: f64,
    expected: f64,
}

impl Trust {
    const PRIOR: f64 = 4.0;
    const MEMORY: f64 = 48.0;

    /// A token that was expected to be right with this probability was judged.
    pub fn note(&mut self, expected: f64, accepted: bool) {
        let kept = (Self::MEMORY / (self.expected + 1.0)).min(1.0);
        self.right = (self.right + f64::from(u8::from(accepted))) * kept;
        self.expected = (self.expected + expected) * kept;
    }

    /// `tokens` of text were decoded without drafts.
    pub fn fade(&mut self, tokens: u32) {
        let kept = outrider_plans::cost::formula::power(0.98, tokens);
        self.right *= kept;
        self.expected *= kept;
    }

    /// What an expected probability is to be multiplied with for this request.
    pub fn factor(self) -> f64 {
        ((self.right + Self::PRIOR) / (self.expected + Self::PRIOR)).clamp(0.05, 1.25)
    }
}

#[cfg(test)]
mod tests {
    use super::{Calibration, Noise, Outcome, Trust};

    fn learn(calibration: &mut Calibration, confidence: f32, right: impl Fn(u32) -> bool) {
        for i in 0..200 {
            let outcome = Outcome { place: i % 4, confidence, accepted: right(i) };
            calibration.note(Noise::Greedy, outcome);
        }
    }

    #[test]
    fn a_draft_is_believed_until_it_was_judged() {
        let fresh = Calibration::default();
        assert!((fresh.of_confidence(Noise::Greedy, 0.55) - 0.55).abs() < 1e-6);
        assert!((fresh.of_place(3) - 0.7).abs() < 1e-9);
        assert_eq!(fresh.confidence_for(Noise::Greedy, 0.5), 0.5);
    }

    #[test]
    fn an_overconfident_draft_is_seen_through() {
        let mut calibration = Calibration::default();
        learn(&mut calibration, 0.999, |i| i % 4 == 0);
        let found = calibration.of_confidence(Noise::Greedy, 0.999);
        assert!((found - 0.25).abs() < 0.05, "{found}");
        assert!(calibration.confidence_for(Noise::Greedy, 0.6) > 1.0, "no confidence is enough");
        assert!(calibration.of_confidence(Noise::Sampled, 0.999) > 0.9, "the other way of picking");
        assert_eq!(calibration.counts()[13].judged, 200);
        assert_eq!(calibration.counts()[13].accepted, 50);
    }

    #[test]
    fn what_was_learnt_is_replaced_by_what_comes_after() {
        let mut calibration = Calibration::default();
        learn(&mut calibration, 0.6, |_| false);
        assert!(calibration.of_confidence(Noise::Greedy, 0.6) < 0.05);
        learn(&mut calibration, 0.6, |_| true);
        assert!(calibration.of_confidence(Noise::Greedy, 0.6) > 0.8);
        learn(&mut calibration, 0.6, |_| false);
        calibration.fade(1000);
        assert!((calibration.of_place(0) - 0.7).abs() < 0.01, "places fade towards the prior");
    }

    #[test]
    fn nonsense_is_no_confidence() {
        let calibration = Calibration::default();
        assert!(calibration.of_confidence(Noise::Greedy, f32::NAN) < 0.1);
        assert!(calibration.of_confidence(Noise::Greedy, 7.0) > 0.9);
    }

    #[test]
    fn a_hard_text_loses_trust_and_gets_it_back() {
        let mut trust = Trust::default();
        assert_eq!(trust.factor(), 1.0);
        (0..20).for_each(|_| trust.note(0.9, false));
        assert!(trust.factor() < 0.25, "{trust:?}");
        trust.fade(200);
        assert!(trust.factor() > 0.8, "{trust:?}");
    }
}
