//! Requests as their clients feel them: how many, how long, how they ended.
//!
//! *Invariant:* counters only grow; every rate is left to PromQL.

use metrics::{Counter, Gauge, Histogram};

use crate::buckets;
use crate::catalogue::{Metric, MetricKind};
use crate::instrument::Instruments;
use crate::label::{LabelledCounters, label_values};

pub(crate) const RUNNING: Metric = Metric {
    name: "outrider_num_requests_running",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Requests that are being prefilled or decoded.",
};
pub(crate) const WAITING: Metric = Metric {
    name: "outrider_num_requests_waiting",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Requests that are admitted and wait for a place.",
};
pub(crate) const SUCCESS: Metric = Metric {
    name: "outrider_request_success_total",
    kind: MetricKind::Counter,
    labels: &["finished_reason"],
    help: "Requests that were answered, by what ended the text.",
};
pub(crate) const FAILURES: Metric = Metric {
    name: "outrider_request_failures_total",
    kind: MetricKind::Counter,
    labels: &["reason"],
    help: "Requests that were admitted and not answered to their end.",
};
pub(crate) const REJECTIONS: Metric = Metric {
    name: "outrider_admission_rejections_total",
    kind: MetricKind::Counter,
    labels: &["reason"],
    help: "Requests that were turned away before any work was done for them.",
};
pub(crate) const FIRST_TOKEN_TIME: Metric = Metric {
    name: "outrider_time_to_first_token_seconds",
    kind: MetricKind::Histogram(buckets::FIRST_TOKEN),
    labels: &[],
    help: "Time from a request's arrival to its first token.",
};
pub(crate) const INTER_TOKEN_TIME: Metric = Metric {
    name: "outrider_inter_token_latency_seconds",
    kind: MetricKind::Histogram(buckets::PER_TOKEN),
    labels: &[],
    help: "Time between two tokens of one text as they are sent; tokens accepted in one round follow at once.",
};
pub(crate) const PER_TOKEN_TIME: Metric = Metric {
    name: "outrider_request_time_per_output_token_seconds",
    kind: MetricKind::Histogram(buckets::PER_TOKEN),
    labels: &[],
    help: "Mean time per token of one request, after its first token.",
};
pub(crate) const E2E_TIME: Metric = Metric {
    name: "outrider_e2e_request_latency_seconds",
    kind: MetricKind::Histogram(buckets::REQUEST),
    labels: &[],
    help: "Time from a request's arrival to its last token.",
};
pub(crate) const QUEUE_TIME: Metric = Metric {
    name: "outrider_request_queue_time_seconds",
    kind: MetricKind::Histogram(buckets::REQUEST),
    labels: &[],
    help: "Time that a request waited for a place.",
};
pub(crate) const PREFILL_TIME: Metric = Metric {
    name: "outrider_request_prefill_time_seconds",
    kind: MetricKind::Histogram(buckets::REQUEST),
    labels: &[],
    help: "Time from a request's place to its first token.",
};
pub(crate) const DECODE_TIME: Metric = Metric {
    name: "outrider_request_decode_time_seconds",
    kind: MetricKind::Histogram(buckets::REQUEST),
    labels: &[],
    help: "Time from a request's first token to its last.",
};
pub(crate) const PROMPT_TOKENS: Metric = Metric {
    name: "outrider_prompt_tokens_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Prompt tokens that were prefilled.",
};
pub(crate) const PREFIX_HITS: Metric = Metric {
    name: "outrider_prefix_cache_hits_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Prompt tokens that were found in a cache that an earlier request had left.",
};
pub(crate) const GENERATION_TOKENS: Metric = Metric {
    name: "outrider_generation_tokens_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Tokens that were generated.",
};
pub(crate) const CACHE_USAGE: Metric = Metric {
    name: "outrider_kv_cache_usage_ratio",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Share of the target's cache positions that are in use, 0 to 1.",
};

/// What ended an answered request's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishedReason {
    /// The end-of-text token or a stop string.
    Stop,
    /// The request's token limit or the end of the context.
    Length,
}
label_values!(FinishedReason { Stop => "stop", Length => "length" });

/// Why an admitted request was not answered to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    /// The client left or cancelled.
    Cancelled,
    /// The deadline passed.
    Timeout,
    /// No unit was left that could serve it.
    UnitLost,
    /// The service was shut down.
    Shutdown,
    /// A fault of the service.
    Internal,
}
label_values!(FailureReason {
    Cancelled => "cancelled",
    Timeout => "timeout",
    UnitLost => "unit_lost",
    Shutdown => "shutdown",
    Internal => "internal",
});

/// Why a request was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionReason {
    /// The queue was full.
    QueueFull,
    /// Prompt and answer do not fit into the context.
    ContextTooLong,
    /// The request was malformed or asked for what is not offered.
    Invalid,
    /// No or a wrong API key.
    Unauthorised,
    /// Models were loading, or no unit could serve.
    NotReady,
    /// The service was about to stop.
    Draining,
}
label_values!(RejectionReason {
    QueueFull => "queue_full",
    ContextTooLong => "context_too_long",
    Invalid => "invalid",
    Unauthorised => "unauthorised",
    NotReady => "not_ready",
    Draining => "draining",
});

/// Metrics of requests.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    /// Being prefilled or decoded; raise it through a [`crate::GaugeGuard`].
    pub running: Gauge,
    /// Waiting for a place; raise it through a [`crate::GaugeGuard`].
    pub waiting: Gauge,
    /// Answered.
    pub success: LabelledCounters<FinishedReason>,
    /// Admitted, not answered to the end.
    pub failures: LabelledCounters<FailureReason>,
    /// Turned away.
    pub rejections: LabelledCounters<RejectionReason>,
    /// Arrival to first token, seconds.
    pub time_to_first_token: Histogram,
    /// Between two tokens, seconds.
    pub inter_token_latency: Histogram,
    /// Mean of one request, seconds a token.
    pub time_per_output_token: Histogram,
    /// Arrival to last token, seconds.
    pub e2e_latency: Histogram,
    /// Arrival to place, seconds.
    pub queue_time: Histogram,
    /// Place to first token, seconds.
    pub prefill_time: Histogram,
    /// First token to last, seconds.
    pub decode_time: Histogram,
    /// Prompt tokens prefilled.
    pub prompt_tokens: Counter,
    /// Prompt tokens found in a cache.
    pub prefix_cache_hits: Counter,
    /// Tokens generated.
    pub generation_tokens: Counter,
    /// Share of cache positions in use, 0 to 1.
    pub kv_cache_usage: Gauge,
}

impl RequestMetrics {
    pub(crate) fn new(instruments: &Instruments) -> Self {
        let histogram = |metric: &Metric| instruments.histogram(metric, &[]);
        Self {
            running: instruments.gauge(&RUNNING, &[]),
            waiting: instruments.gauge(&WAITING, &[]),
            success: LabelledCounters::new(instruments, &SUCCESS),
            failures: LabelledCounters::new(instruments, &FAILURES),
            rejections: LabelledCounters::new(instruments, &REJECTIONS),
            time_to_first_token: histogram(&FIRST_TOKEN_TIME),
            inter_token_latency: histogram(&INTER_TOKEN_TIME),
            time_per_output_token: histogram(&PER_TOKEN_TIME),
            e2e_latency: histogram(&E2E_TIME),
            queue_time: histogram(&QUEUE_TIME),
            prefill_time: histogram(&PREFILL_TIME),
            decode_time: histogram(&DECODE_TIME),
            prompt_tokens: instruments.counter(&PROMPT_TOKENS, &[]),
            prefix_cache_hits: instruments.counter(&PREFIX_HITS, &[]),
            generation_tokens: instruments.counter(&GENERATION_TOKENS, &[]),
            kv_cache_usage: instruments.gauge(&CACHE_USAGE, &[]),
        }
    }
}
