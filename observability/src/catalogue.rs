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
