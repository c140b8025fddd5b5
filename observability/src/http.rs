//! HTTP requests by route and answer.
//!
//! *Invariant:* a path is the route's pattern, written in the program, never what a client sent.

use std::time::Duration;

use crate::buckets;
use crate::catalogue::{Metric, MetricKind};
use crate::instrument::Instruments;
use crate::label::{Label, label_values};

pub(crate) const REQUESTS: Metric = Metric {
    name: "outrider_http_requests_total",
    kind: MetricKind::Counter,
    labels: &["method", "path", "status"],
    help: "HTTP requests by method, route and status of the answer.",
};
pub(crate) const REQUEST_TIME: Metric = Metric {
    name: "outrider_http_request_duration_seconds",
    kind: MetricKind::Histogram(buckets::HTTP),
    labels: &["method", "path"],
    help: "Time from an HTTP request's arrival to the end of its answer, streams included.",
};

/// The methods that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the methods' own")]
pub enum HttpMethod {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    /// Any other.
    Other,
}
label_values!(HttpMethod {
    Get => "GET",
    Head => "HEAD",
    Post => "POST",
    Put => "PUT",
    Delete => "DELETE",
    Options => "OPTIONS",
    Other => "other",
});

impl From<&str> for HttpMethod {
    fn from(method: &str) -> Self {
        let found = Self::ALL.iter().find(|known| known.as_str() == method);
        found.copied().unwrap_or(HttpMethod::Other)
    }
}

/// Metrics of HTTP requests.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    instruments: Instruments,
}

impl HttpMetrics {
    pub(crate) fn new(instruments: &Instruments) -> Self {
        Self { instruments: instruments.clone() }
    }

    /// Counts an answer. `path` is the route's pattern, such as `/v1/requests/{id}`, or `other` if no route fits;
    /// `status` outside of 100 to 599 is shown as `other`.
    pub fn answered(&self, method: HttpMethod, path: &'static str, status: u16, took: Duration) {
        let status = match status {
            100..=599 => status.to_string(),
            _ => "other".to_owned(),
        };
        let method = method.as_str();
        self.instruments.counter(&REQUESTS, &[method, path, &status]).increment(1);
        self.instruments.histogram(&REQUEST_TIME, &[method, path]).record(took);
    }
}
