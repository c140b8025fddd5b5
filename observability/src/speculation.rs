//! Speculation: what was drafted, what was accepted, what was thrown away.
//!
//! *Invariant:* every drafted token that reaches the target is counted in a round, and every other one as discarded.

use metrics::{Counter, Gauge};
use outrider_plans::CONFIDENCE_ENDS;
use outrider_plans::mode::DRAFT_TOKENS_MAX;

use crate::catalogue::{Metric, MetricKind};
use crate::instrument::Instruments;
use crate::label::{Label, LabelledCounters, label_values};

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

pub(crate) const PASSES: Metric = Metric {
    name: "outrider_spec_decode_passes_total",
    kind: MetricKind::Counter,
    labels: &["depth"],
    help: "Verification passes of a sequence by the number of drafted tokens that had a row in them.",
};
pub(crate) const JUDGED: Metric = Metric {
    name: "outrider_spec_decode_judged_tokens_total",
    kind: MetricKind::Counter,
    labels: &["confidence"],
    help: "Drafted tokens that were compared, by the upper end of the draft's probability of them.",
};
pub(crate) const AGREED: Metric = Metric {
    name: "outrider_spec_decode_agreed_tokens_total",
    kind: MetricKind::Counter,
    labels: &["confidence"],
    help: "Those of them that were the target's own.",
};
pub(crate) const GUARD_STATE: Metric = Metric {
    name: "outrider_spec_decode_guard_state",
    kind: MetricKind::Gauge,
    labels: &["state"],
    help: "1 for the state of the never-slower guard, 0 for the others.",
};
pub(crate) const GUARD_SWITCHES: Metric = Metric {
    name: "outrider_spec_decode_guard_switches_total",
    kind: MetricKind::Counter,
    labels: &["to"],
    help: "Times that the never-slower guard switched drafting off, and on again.",
};

/// Why a drafted token was never checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardReason {
    /// It followed a token that was rejected.
    Diverged,
    /// It came in for an epoch that was over.
    Stale,
    /// The rules for drafting had changed.
    Policy,
    /// The text ended before it, by itself or because its request was cancelled.
    Finished,
}
label_values!(DiscardReason {
    Diverged => "diverged",
    Stale => "stale",
    Policy => "policy",
    Finished => "finished",
});

/// What the never-slower guard lets happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardLabel {
    /// Drafts are made.
    On,
    /// The target decodes alone.
    Off,
    /// One request tries whether drafts pay again.
    Trial,
}
label_values!(GuardLabel {
    On => "on",
    Off => "off",
    Trial => "trial",
});

/// What the guard switched to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardSwitch {
    /// No drafts.
    Off,
    /// Drafts again.
    On,
}
label_values!(GuardSwitch {
    Off => "off",
    On => "on",
});

/// Metrics of speculation.
#[derive(Clone, Debug)]
pub struct SpeculationMetrics {
    drafts: Counter,
    draft_tokens: Counter,
    accepted_tokens: Counter,
    accepted_per_position: Vec<Counter>,
    passes: Vec<Counter>,
    judged: Vec<Counter>,
    agreed: Vec<Counter>,
    guard: Vec<(GuardLabel, Gauge)>,
    /// What the never-slower guard did.
    pub guard_switches: LabelledCounters<GuardSwitch>,
    /// Drafted in vain.
    pub discarded: LabelledCounters<DiscardReason>,
}

impl SpeculationMetrics {
    pub(crate) fn new(instruments: &Instruments) -> Self {
        let position = |p: u32| instruments.counter(&ACCEPTED_PER_POSITION, &[&p.to_string()]);
        let by_bin = |metric: &Metric| -> Vec<Counter> {
            let ends = CONFIDENCE_ENDS.iter();
            ends.map(|end| instruments.counter(metric, &[&end.to_string()])).collect()
        };
        let state =
            |&label: &GuardLabel| (label, instruments.gauge(&GUARD_STATE, &[label.as_str()]));
        let metrics = Self {
            drafts: instruments.counter(&DRAFTS, &[]),
            draft_tokens: instruments.counter(&DRAFT_TOKENS, &[]),
            accepted_tokens: instruments.counter(&ACCEPTED_TOKENS, &[]),
            accepted_per_position: (0..DRAFT_TOKENS_MAX).map(position).collect(),
            passes: (0..=DRAFT_TOKENS_MAX)
                .map(|depth| instruments.counter(&PASSES, &[&depth.to_string()]))
                .collect(),
            judged: by_bin(&JUDGED),
            agreed: by_bin(&AGREED),
            guard: GuardLabel::ALL.iter().map(state).collect(),
            guard_switches: LabelledCounters::new(instruments, &GUARD_SWITCHES),
            discarded: LabelledCounters::new(instruments, &DISCARDED_TOKENS),
        };
        metrics.guard(GuardLabel::On);
        metrics
    }

    /// Shows the guard's state.
    pub fn guard(&self, state: GuardLabel) {
        self.guard
            .iter()
            .for_each(|(label, gauge)| gauge.set(f64::from(u8::from(*label == state))));
    }

    /// Counts `passes` of a sequence with so many drafted tokens in them; more than a pass takes count as the most.
    pub fn passes(&self, depth: usize, passes: u64) {
        self.passes[depth.min(self.passes.len() - 1)].increment(passes);
    }

    /// Counts drafted tokens of a bin of confidence that were compared, and those of them that were right.
    ///
    /// Panics if there is no such bin.
    pub fn judged(&self, bin: usize, judged: u64, agreed: u64) {
        self.judged[bin].increment(judged);
        self.agreed[bin].increment(agreed);
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
