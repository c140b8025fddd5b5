//! All metrics of one service, and their text for Prometheus.
//!
//! *Invariant:* the text is a function of the values; metrics without labels from outside are there from the start.

use metrics::Counter;
use metrics_exporter_prometheus::PrometheusHandle;
use outrider_plans::{UnitId, UnitKind};

use crate::catalogue::{ALIASES, ALL, Metric, MetricKind};
use crate::exposition::{self, Info};
use crate::http::HttpMetrics;
use crate::instrument::Instruments;
use crate::plan::PlanMetrics;
use crate::requests::RequestMetrics;
use crate::speculation::SpeculationMetrics;
use crate::timeline::SharedTimeline;
use crate::units::{UnitMetrics, UnitMetricsMaker};

pub(crate) const BUILD: Metric = Metric {
    name: "outrider_build_info",
    kind: MetricKind::Info,
    labels: &["version", "target"],
    help: "The running program; the value is always 1.",
};

/// Events that the timeline remembers: a few minutes of a busy service.
const TIMELINE_EVENTS_MAX: usize = 16_384;

/// What was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// Version of the program.
    pub version: String,
    /// What it was built for, such as `x86_64-linux`.
    pub target: String,
}

/// The metrics of one service. Whoever measures takes a clone of a part.
#[derive(Clone, Debug)]
pub struct Registry {
    /// Requests.
    pub requests: RequestMetrics,
    /// Speculation.
    pub speculation: SpeculationMetrics,
    /// The running plan.
    pub plan: PlanMetrics,
    /// HTTP.
    pub http: HttpMetrics,
    /// The last jobs of every unit, and plan swaps.
    pub timeline: SharedTimeline,
    units: UnitMetricsMaker,
    build: BuildInfo,
    handle: PrometheusHandle,
}

impl Registry {
    /// A registry in which nothing has happened yet.
    pub fn new(build: BuildInfo) -> Self {
        let instruments = Instruments::new();
        Self {
            requests: RequestMetrics::new(&instruments),
            speculation: SpeculationMetrics::new(&instruments),
            plan: PlanMetrics::new(&instruments),
            http: HttpMetrics::new(&instruments),
            timeline: SharedTimeline::new(TIMELINE_EVENTS_MAX),
            units: UnitMetricsMaker::new(&instruments),
            handle: instruments.recorder.handle(),
            build,
        }
    }

    /// Metrics of a unit. Asked for twice, the same values are counted on.
    pub fn unit(&self, unit: &UnitId, kind: UnitKind) -> UnitMetrics {
        self.units.unit(unit, kind)
    }

    /// Bytes sent from one unit to another.
    pub fn transfer_bytes(&self, from: &UnitId, to: &UnitId) -> Counter {
        self.units.transfer(from, to)
    }

    /// All values in the Prometheus text format (version 0.0.4), families and series in alphabetical order.
    pub fn render(&self) -> String {
        let BuildInfo { version, target } = self.build.clone();
        let build = Info { metric: &BUILD, values: vec![version, target] };
        let infos: Vec<Info> = [Some(build), self.plan.info()].into_iter().flatten().collect();
        exposition::finish(&self.handle.render(), (ALL, ALIASES), &infos)
    }

    /// Moves recorded samples into their buckets. To be called every few seconds: between two calls, and two
    /// [`Registry::render`]s, every sample takes memory.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }
}
