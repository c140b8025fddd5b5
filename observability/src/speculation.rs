//! Speculation: what was drafted, what was accepted, what was thrown away.
//!
//! *Invariant:* every drafted token that reaches the target is counted in a round, and every other one as discarded.

use metrics::Counter;
use outrider_plans::mode::DRAFT_TOKENS_MAX;

use crate::catalogue::{Metric, MetricKind};
use crate::instrument::Instruments;
use crate::label::{LabelledCounters, label_values};

pub(crate) const DRAFTS: Metric = Metric {
    name: "outrider_spec_decode_num_drafts_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Verification passes that had drafted tokens to check.",
};
pub(crate) const DRAFT_TOKENS: Metric = Metric {
    name: "outrider_spec_decode_num_draft_tokens_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Drafted tokens that the target checked.",
};
pub(crate) const ACCEPTED_TOKENS: Metric = Metric {
    name: "outrider_spec_decode_num_accepted_tokens_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Drafted tokens that were the target's own.",
};
pub(crate) const ACCEPTED_PER_POSITION: Metric = Metric {
    name: "outrider_spec_decode_num_accepted_tokens_per_pos_total",
    kind: MetricKind::Counter,
    labels: &["position"],
    help: "Accepted tokens by their place in the draft, from 0.",
};
pub(crate) const DISCARDED_TOKENS: Metric = Metric {
    name: "outrider_spec_decode_discarded_draft_tokens_total",
    kind: MetricKind::Counter,
    labels: &["reason"],
    help: "Drafted tokens that the target never checked.",
};

/// Why a drafted token was never checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardReason {
    /// It followed a token that was rejected.
    Diverged,
    /// It came in for an epoch that was over.
    Stale,
    /// The text ended before it.
    Finished,
    /// Its request was cancelled.
    Cancelled,
}
label_values!(DiscardReason {
    Diverged => "diverged",
    Stale => "stale",
    Finished => "finished",
    Cancelled => "cancelled",
});

/// Metrics of speculation.
#[derive(Clone, Debug)]
pub struct SpeculationMetrics {
    drafts: Counter,
    draft_tokens: Counter,
    accepted_tokens: Counter,
    accepted_per_position: Vec<Counter>,
    /// Drafted in vain.
    pub discarded: LabelledCounters<DiscardReason>,
}

impl SpeculationMetrics {
    pub(crate) fn new(instruments: &Instruments) -> Self {
        let position = |p: u32| instruments.counter(&ACCEPTED_PER_POSITION, &[&p.to_string()]);
        Self {
            drafts: instruments.counter(&DRAFTS, &[]),
            draft_tokens: instruments.counter(&DRAFT_TOKENS, &[]),
            accepted_tokens: instruments.counter(&ACCEPTED_TOKENS, &[]),
            accepted_per_position: (0..DRAFT_TOKENS_MAX).map(position).collect(),
            discarded: LabelledCounters::new(instruments, &DISCARDED_TOKENS),
        }
    }

    /// Counts one verification pass of one sequence: of `drafted` tokens the first `accepted` were right. A pass without
    /// drafted tokens is not counted.
    ///
    /// Panics if more were accepted than drafted.
    pub fn round(&self, drafted: u32, accepted: u32) {
        assert!(accepted <= drafted, "{accepted} accepted of {drafted} drafted");
        if drafted == 0 {
            return;
        }
        self.drafts.increment(1);
        self.draft_tokens.increment(u64::from(drafted));
        self.accepted_tokens.increment(u64::from(accepted));
        for counter in self.accepted_per_position.iter().take(accepted as usize) {
            counter.increment(1);
        }
    }
}
