//! Clocks the work of units and hands it to the metrics.
//!
//! *Invariant:* the only place where a unit's time is read, so busy time, overlap and stage times always agree.

use std::sync::Arc;
use std::time::Instant;

use outrider_devices::MemoryUse;
use outrider_observability::{
    MemoryPurpose, PlanMetrics, Registry, SharedTimeline, UnitJob, UnitMetrics,
};
use outrider_plans::{StageId, UnitId, UnitKind};

/// Makes the meters of a fleet's units.
#[derive(Clone)]
pub struct FleetMeter {
    registry: Arc<Registry>,
    epoch: Instant,
}

impl FleetMeter {
    /// Meters whose spans are counted from now.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, epoch: Instant::now() }
    }

    /// The meter of one unit.
    pub fn unit(&self, unit: &UnitId, kind: UnitKind) -> UnitMeter {
        UnitMeter {
            unit: unit.clone(),
            metrics: self.registry.unit(unit, kind),
            timeline: self.registry.timeline.clone(),
            epoch: self.epoch,
        }
    }

    /// A unit holds these bytes for all its stages.
    pub fn memory(&self, unit: &UnitId, kind: UnitKind, memory: MemoryUse) {
        let metrics = self.registry.unit(unit, kind);
        metrics.memory(MemoryPurpose::Weights, memory.weights);
        metrics.memory(MemoryPurpose::Caches, memory.caches);
        metrics.memory(MemoryPurpose::Scratch, memory.scratch);
    }

    /// A unit was lost.
    pub fn lost(&self, unit: &UnitId, kind: UnitKind) {
        self.registry.unit(unit, kind).lost.increment(1);
    }

    /// What swaps and the running plan report to.
    pub fn plan(&self) -> &PlanMetrics {
        &self.registry.plan
    }

    /// Shows a span of the plan's lane, from `start` until now.
    pub fn swap(&self, name: String, start: Instant) {
        let start_ns = start.saturating_duration_since(self.epoch).as_nanos() as u64;
        let end_ns = self.epoch.elapsed().as_nanos() as u64;
        self.registry.timeline.span("plan", name, start_ns..end_ns);
    }
}

/// Clocks one unit, on its worker thread.
pub struct UnitMeter {
    unit: UnitId,
    metrics: UnitMetrics,
    timeline: SharedTimeline,
    epoch: Instant,
}

impl UnitMeter {
    /// This many jobs wait for the unit.
    pub fn queued(&self, jobs: usize) {
        self.metrics.queue_depth.set(jobs as f64);
    }

    /// Runs a job of a stage on the clock.
    pub fn time<T>(&mut self, stage: StageId, job: impl FnOnce() -> T) -> T {
        let start_ns = self.now_ns();
        let result = job();
        let at_ns = start_ns..self.now_ns();
        self.timeline.span(self.unit.as_str(), stage.to_string(), at_ns.clone());
        self.metrics.job(&UnitJob { stage, at_ns });
        result
    }

    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}
