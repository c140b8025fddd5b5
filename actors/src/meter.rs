//! Clocks the work of units and hands it to the metrics.
//!
//! *Invariant:* the only place where a unit's time is read, so busy time, overlap and stage times always agree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use outrider_devices::MemoryUse;
use outrider_observability::{MemoryPurpose, Registry, UnitJob, UnitMetrics};
use outrider_plans::{PartitionPlan, StageId, UnitId, UnitSpec};

/// Makes the meters of a plan's units.
#[derive(Clone)]
pub struct FleetMeter {
    registry: Arc<Registry>,
    units: BTreeMap<UnitId, UnitSpec>,
    epoch: Instant,
}

impl FleetMeter {
    /// Meters for the units of `plan`; spans are counted from now.
    pub fn new(plan: &PartitionPlan, registry: Arc<Registry>) -> Self {
        Self { registry, units: plan.units.clone(), epoch: Instant::now() }
    }

    /// The meter of one unit of the plan.
    pub fn unit(&self, unit: &UnitId) -> UnitMeter {
        let metrics = self.registry.unit(unit, self.units[unit].kind());
        UnitMeter { metrics, epoch: self.epoch }
    }

    /// A unit holds these bytes for all its stages.
    pub fn memory(&self, unit: &UnitId, memory: MemoryUse) {
        let metrics = self.registry.unit(unit, self.units[unit].kind());
        metrics.memory(MemoryPurpose::Weights, memory.weights);
        metrics.memory(MemoryPurpose::Caches, memory.caches);
        metrics.memory(MemoryPurpose::Scratch, memory.scratch);
    }

    /// A unit was lost.
    pub fn lost(&self, unit: &UnitId) {
        self.registry.unit(unit, self.units[unit].kind()).lost.increment(1);
    }
}

/// Clocks one unit, on its worker thread.
pub struct UnitMeter {
    metrics: UnitMetrics,
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
        self.metrics.job(&UnitJob { stage, at_ns });
        result
    }

    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}
