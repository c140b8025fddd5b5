//! The list of all metrics: name, type, labels and meaning, each defined once beside the struct that records it.
//!
//! *Invariant:* what is not in [`ALL`] cannot be registered, so `/metrics`, this list and `METRICS.md` agree.

use crate::{http, plan, registry, requests, speculation, units};

/// What a metric measures, and how it is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricKind {
    /// A number of events; only grows.
    Counter,
    /// A span of time that adds up; shown in seconds, counted in whole nanoseconds.
    SecondsCounter,
    /// A value that goes up and down.
    Gauge,
    /// A gauge that is always 1 and says something in its labels; only the current labels are shown.
    Info,
    /// A distribution, with the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

impl MetricKind {
    /// The type in the Prometheus text format.
    pub fn type_name(self) -> &'static str {
        match self {
            MetricKind::Counter | MetricKind::SecondsCounter => "counter",
            MetricKind::Gauge | MetricKind::Info => "gauge",
            MetricKind::Histogram(_) => "histogram",
        }
    }
}

/// A metric's definition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Full name.
    pub name: &'static str,
    /// What it measures.
    pub kind: MetricKind,
    /// Label names, in the order that values are given.
    pub labels: &'static [&'static str],
    /// One line for people.
    pub help: &'static str,
}

/// A histogram that is shown once more under the name that OpenTelemetry's conventions for generative models give it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alias {
    /// The metric whose values are shown.
    pub of: Metric,
    /// The other name, and the meaning in the conventions' words.
    pub shown: Metric,
}

/// Every second name.
pub const ALIASES: &[Alias] = &[
    alias(
        requests::E2E_TIME,
        "gen_ai_server_request_duration_seconds",
        "Generative AI server request duration; outrider_e2e_request_latency_seconds under OpenTelemetry's name.",
    ),
    alias(
        requests::PER_TOKEN_TIME,
        "gen_ai_server_time_per_output_token_seconds",
        "Time per output token after the first; outrider_request_time_per_output_token_seconds under OpenTelemetry's name.",
    ),
    alias(
        requests::FIRST_TOKEN_TIME,
        "gen_ai_server_time_to_first_token_seconds",
        "Time to the first token; outrider_time_to_first_token_seconds under OpenTelemetry's name.",
    ),
];

const fn alias(of: Metric, name: &'static str, help: &'static str) -> Alias {
    Alias { shown: Metric { name, help, ..of }, of }
}

/// Every metric, in the order of `METRICS.md`.
pub const ALL: &[Metric] = &[
    requests::RUNNING,
    requests::WAITING,
    requests::SUCCESS,
    requests::FAILURES,
    requests::REJECTIONS,
    requests::FIRST_TOKEN_TIME,
    requests::INTER_TOKEN_TIME,
    requests::PER_TOKEN_TIME,
    requests::E2E_TIME,
    requests::QUEUE_TIME,
    requests::PREFILL_TIME,
    requests::DECODE_TIME,
    requests::PROMPT_TOKENS,
    requests::PREFIX_HITS,
    requests::GENERATION_TOKENS,
    requests::CACHE_USAGE,
    speculation::DRAFTS,
    speculation::DRAFT_TOKENS,
    speculation::ACCEPTED_TOKENS,
    speculation::ACCEPTED_PER_POSITION,
    speculation::DISCARDED_TOKENS,
    speculation::PASSES,
    speculation::JUDGED,
    speculation::AGREED,
    speculation::GUARD_STATE,
    speculation::GUARD_SWITCHES,
    units::BUSY,
    units::OVERLAP,
    units::QUEUE_DEPTH,
    units::MEMORY,
    units::STAGE_TIME,
    units::TRANSFER,
    units::LOST,
    plan::INFO,
    plan::SWAPS,
    plan::SWAP_TIME,
    plan::STALE,
    plan::PREDICTED,
    plan::ERROR_RATIO,
    registry::BUILD,
    http::REQUESTS,
    http::REQUEST_TIME,
];
