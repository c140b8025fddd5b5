//! The makers of metric handles, and the handles that the `metrics` crate does not have.
//!
//! *Invariant:* a handle is made from a [`Metric`] of the catalogue with exactly its labels.

use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label as KeyLabel, Level, Metadata, Recorder,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

use crate::catalogue::{ALL, Metric, MetricKind};

const METADATA: Metadata<'static> = Metadata::new("outrider", Level::INFO, None);

/// Makes handles. Two handles of one metric with the same labels share their value.
#[derive(Clone, Debug)]
pub(crate) struct Instruments {
    pub(crate) recorder: Arc<PrometheusRecorder>,
}

impl Instruments {
    /// A recorder that knows the meaning and the buckets of every metric, and has no values yet.
    pub(crate) fn new() -> Self {
        let mut builder = PrometheusBuilder::new();
        for metric in ALL {
            if let MetricKind::Histogram(bounds) = metric.kind {
                let name = Matcher::Full(metric.name.to_owned());
                builder = builder
                    .set_buckets_for_metric(name, bounds)
                    .expect("every histogram of the catalogue has bounds");
            }
        }
        let recorder = Arc::new(builder.build_recorder());
        for metric in ALL {
            let (name, help) = (KeyName::from_const_str(metric.name), metric.help.into());
            match metric.kind {
                MetricKind::Counter | MetricKind::SecondsCounter => {
                    recorder.describe_counter(name, None, help);
                }
                MetricKind::Gauge | MetricKind::Info => recorder.describe_gauge(name, None, help),
                MetricKind::Histogram(_) => recorder.describe_histogram(name, None, help),
            }
        }
        Self { recorder }
    }

    /// `values` in the order of the metric's labels.
    pub(crate) fn counter(&self, metric: &Metric, values: &[&str]) -> Counter {
        assert_eq!(metric.kind, MetricKind::Counter, "{}", metric.name);
        self.recorder.register_counter(&key(metric, values), &METADATA)
    }

    pub(crate) fn seconds(&self, metric: &Metric, values: &[&str]) -> SecondsCounter {
        assert_eq!(metric.kind, MetricKind::SecondsCounter, "{}", metric.name);
        SecondsCounter(self.recorder.register_counter(&key(metric, values), &METADATA))
    }

    pub(crate) fn gauge(&self, metric: &Metric, values: &[&str]) -> Gauge {
        assert_eq!(metric.kind, MetricKind::Gauge, "{}", metric.name);
        self.recorder.register_gauge(&key(metric, values), &METADATA)
    }

    pub(crate) fn histogram(&self, metric: &Metric, values: &[&str]) -> Histogram {
        assert!(matches!(metric.kind, MetricKind::Histogram(_)), "{}", metric.name);
        self.recorder.register_histogram(&key(metric, values), &METADATA)
    }
}

fn key(metric: &Metric, values: &[&str]) -> Key {
    assert_eq!(metric.labels.len(), values.len(), "labels of {}", metric.name);
    let labels = metric.labels.iter().zip(values);
    let labels = labels.map(|(&name, &value)| KeyLabel::new(name, value.to_owned()));
    Key::from_parts(metric.name, labels.collect::<Vec<_>>())
}

/// A counter of time. It counts whole nanoseconds, so that nothing is lost however short the spans are, and is shown in
/// seconds. It overflows after 584 years.
#[derive(Clone, Debug)]
pub struct SecondsCounter(Counter);

impl SecondsCounter {
    /// Adds a span.
    pub fn add(&self, span: Duration) {
        self.add_ns(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds a span of `span_ns` nanoseconds.
    pub fn add_ns(&self, span_ns: u64) {
        self.0.increment(span_ns);
    }
}

/// Adds 1 to a gauge for as long as it lives: what it stands for cannot be forgotten on any way out.
#[derive(Debug)]
#[must_use = "the gauge falls again when this is dropped"]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Raises `gauge` by 1 until the guard is dropped.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
