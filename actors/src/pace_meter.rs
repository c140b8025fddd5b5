//! Hands what the scheduler's pacer has done to the metrics, and keeps the clock that the scheduler is told of.
//!
//! *Invariant:* every change of the pacer's counts is counted once, also if the scheduler is replaced by a new one.

use std::time::Instant;

use outrider_observability::{DiscardReason, GuardLabel, GuardSwitch, SpeculationMetrics};
use outrider_pipeline::pacing::{GuardState, PacingView};
use outrider_pipeline::scheduler::Statistics;

/// Clock and counts of the pacing of one coordinator.
pub(crate) struct PaceMeter {
    metrics: SpeculationMetrics,
    epoch: Instant,
    seen: Option<PacingView>,
}

impl PaceMeter {
    pub(crate) fn new(metrics: SpeculationMetrics) -> Self {
        Self { metrics, epoch: Instant::now(), seen: None }
    }

    /// Nanoseconds since the coordinator was made.
    pub(crate) fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// A round has offered drafted tokens to the target.
    pub(crate) fn round(&self, offered: u32, accepted: u32) {
        self.metrics.round(offered, accepted);
    }

    /// A sequence is over: what it drafted in vain.
    pub(crate) fn finished(&self, statistics: &Statistics) {
        let discarded = statistics.discarded;
        for (reason, tokens) in [
            (DiscardReason::Diverged, discarded.diverged),
            (DiscardReason::Stale, discarded.stale),
            (DiscardReason::Policy, discarded.policy),
            (DiscardReason::Finished, discarded.finished),
        ] {
            self.metrics.discarded.add(reason, u64::from(tokens));
        }
    }

    /// Counts what has changed since the last view.
    pub(crate) fn show(&mut self, view: PacingView) {
        let before = self.seen.take().unwrap_or_default();
        for (depth, (now, before)) in view.depths.iter().zip(before.depths).enumerate() {
            if let Some(passes) = now.checked_sub(before).filter(|passes| *passes > 0) {
                self.metrics.passes(depth, passes);
            }
        }
        for (bin, (now, before)) in view.bins.iter().zip(before.bins).enumerate() {
            let judged = now.judged.saturating_sub(before.judged);
            if judged > 0 {
                let agreed = now.accepted.saturating_sub(before.accepted);
                self.metrics.judged(bin, judged, agreed);
            }
        }
        let switches = &self.metrics.guard_switches;
        switches.add(GuardSwitch::Off, view.switched_off.saturating_sub(before.switched_off));
        switches.add(GuardSwitch::On, view.switched_on.saturating_sub(before.switched_on));
        if view.guard != before.guard {
            self.metrics.guard(match view.guard {
                GuardState::On => GuardLabel::On,
                GuardState::Off => GuardLabel::Off,
                GuardState::Trial => GuardLabel::Trial,
            });
        }
        self.seen = Some(view);
    }
}
