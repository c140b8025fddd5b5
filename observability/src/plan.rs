//! The running plan, its swaps, and how well the cost model foresaw it.
//!
//! *Invariant:* `plan_info` shows one plan, the running one; earlier ones leave no series behind.

use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram};
use outrider_plans::PartitionPlan;

use crate::buckets;
use crate::catalogue::{Metric, MetricKind};
use crate::exposition::Info;
use crate::instrument::Instruments;
use crate::label::{LabelledCounters, label_values};

pub(crate) const INFO: Metric = Metric {
    name: "outrider_plan_info",
    kind: MetricKind::Info,
    labels: &["plan", "id", "mode", "generation"],
    help: "The running plan; the value is always 1.",
};
pub(crate) const SWAPS: Metric = Metric {
    name: "outrider_plan_swaps_total",
    kind: MetricKind::Counter,
    labels: &["result"],
    help: "Plan swaps by how they ended.",
};
pub(crate) const SWAP_TIME: Metric = Metric {
    name: "outrider_plan_swap_duration_seconds",
    kind: MetricKind::Histogram(buckets::REQUEST),
    labels: &[],
    help: "Time from a plan's proposal to the end of its swap.",
};
pub(crate) const STALE: Metric = Metric {
    name: "outrider_plan_stale_replies_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Replies of units to rounds that had been given up, or of a plan that had ended.",
};
pub(crate) const PREDICTED: Metric = Metric {
    name: "outrider_cost_model_predicted_tokens_per_second",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Speed that the cost model foresees for the running plan.",
};
pub(crate) const ERROR_RATIO: Metric = Metric {
    name: "outrider_cost_model_error_ratio",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Foreseen over measured speed of the running plan, less 1: positive if the model hoped for too much.",
};

/// How a plan swap ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapResult {
    /// The new plan runs.
    Committed,
    /// It was not begun: a conflict, or it would not fit.
    Refused,
    /// An installation failed; the old plan runs on.
    Failed,
}
label_values!(SwapResult { Committed => "committed", Refused => "refused", Failed => "failed" });

/// The plan that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningPlan {
    name: String,
    id: String,
    mode: &'static str,
    generation: u64,
}

impl RunningPlan {
    /// Describes `plan`, the `generation`-th that runs in this process.
    pub fn new(plan: &PartitionPlan, generation: u64) -> Self {
        Self {
            name: plan.name.clone(),
            id: plan.fingerprint().to_string(),
            mode: plan.mode.kind().as_str(),
            generation,
        }
    }
}

/// Metrics of plans.
#[derive(Clone, Debug)]
pub struct PlanMetrics {
    running: Arc<Mutex<Option<RunningPlan>>>,
    /// Swaps by result.
    pub swaps: LabelledCounters<SwapResult>,
    /// Proposal to end, seconds.
    pub swap_duration: Histogram,
    /// Replies that came too late to count.
    pub stale_replies: Counter,
    /// Foreseen tokens per second.
    pub predicted_tokens_per_second: Gauge,
    /// Foreseen over measured speed, less 1.
    pub error_ratio: Gauge,
}

impl PlanMetrics {
    pub(crate) fn new(instruments: &Instruments) -> Self {
        Self {
            running: Arc::default(),
            swaps: LabelledCounters::new(instruments, &SWAPS),
            swap_duration: instruments.histogram(&SWAP_TIME, &[]),
            stale_replies: instruments.counter(&STALE, &[]),
            predicted_tokens_per_second: instruments.gauge(&PREDICTED, &[]),
            error_ratio: instruments.gauge(&ERROR_RATIO, &[]),
        }
    }

    /// Shows `plan` as the running one, in place of the one before.
    pub fn running(&self, plan: RunningPlan) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(plan);
    }

    pub(crate) fn info(&self) -> Option<Info> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let RunningPlan { name, id, mode, generation } = running;
        let values = vec![name, id, mode.to_owned(), generation.to_string()];
        Some(Info { metric: &INFO, values })
    }
}
