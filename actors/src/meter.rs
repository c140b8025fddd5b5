//! Clocks the work of units and hands it to the metrics.
//!
//! *Invariant:* the only place where a unit's time is read, so busy time, overlap and stage times always agree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use outrider_devices::{Activations, Batch, DraftBatch, Drafted, MemoryUse};
use outrider_observability::{
    Counter, MemoryPurpose, PlanMetrics, Registry, SharedTimeline, UnitJob, UnitMetrics,
};
use outrider_plans::{StageId, UnitId, UnitKind};

/// The size of a unit's job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows of the batch; of a draft job, of its first step.
    pub rows: u32,
    /// Rows that run through the head, if the stage has one.
    pub head_rows: u32,
    /// Steps that a draft job has run, those of all sequences together; 0 for a pass.
    pub steps: u32,
    /// Mean number of positions cached before.
    pub context: u32,
}

impl Work {
    /// A pass over a batch.
    pub fn of_batch(batch: &Batch) -> Self {
        let bases: u64 = batch.segments.iter().map(|s| u64::from(s.base)).sum();
        Self {
            rows: batch.rows() as u32,
            head_rows: batch.head_rows() as u32,
            steps: 0,
            context: (bases / batch.segments.len().max(1) as u64) as u32,
        }
    }

    /// A draft job, and what came of it; all of its steps where nobody knows.
    pub fn of_draft(batch: &DraftBatch, drafted: Option<&[Drafted]>) -> Self {
        let segments = batch.segments.iter();
        let asked = || segments.clone().map(|segment| segment.steps).sum();
        let bases: u64 = segments.clone().map(|s| u64::from(s.segment.base)).sum();
        Self {
            rows: segments.clone().map(|s| s.segment.tokens.len() as u32).sum(),
            head_rows: batch.segments.len() as u32,
            steps: drafted.map_or_else(asked, |all| all.iter().map(|drafted| drafted.steps).sum()),
            context: (bases / batch.segments.len().max(1) as u64) as u32,
        }
    }
}

/// A job that a unit has done, for whoever compares it with what was foreseen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageTiming {
    /// The unit.
    pub unit: UnitId,
    /// The stage.
    pub stage: StageId,
    /// How much it was.
    pub work: Work,
    /// When it ran, in nanoseconds of one clock that all units of the fleet share.
    pub at_ns: std::ops::Range<u64>,
}

/// Where stage timings go. They may be lost: a unit never waits for whoever reads them.
pub type TimingTap = Sender<StageTiming>;

/// Makes the meters of a fleet's units.
#[derive(Clone)]
pub struct FleetMeter {
    registry: Arc<Registry>,
    epoch: Instant,
    timings: Option<TimingTap>,
}

impl FleetMeter {
    /// Meters whose spans are counted from now.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, epoch: Instant::now(), timings: None }
    }

    /// Also tells `tap` of every job.
    pub fn with_timings(self, tap: Option<TimingTap>) -> Self {
        Self { timings: tap, ..self }
    }

    /// The meter of one unit.
    pub fn unit(&self, unit: &UnitId, kind: UnitKind) -> UnitMeter {
        UnitMeter {
            unit: unit.clone(),
            metrics: self.registry.unit(unit, kind),
            timeline: self.registry.timeline.clone(),
            epoch: self.epoch,
            timings: self.timings.clone(),
            registry: Arc::clone(&self.registry),
            sent: BTreeMap::new(),
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
    timings: Option<TimingTap>,
    registry: Arc<Registry>,
    /// What counts the bytes sent to each unit.
    sent: BTreeMap<UnitId, Counter>,
}

impl UnitMeter {
    /// The unit has sent a batch's activations, and its tokens with them, to unit `to`.
    pub fn sent(&mut self, to: &UnitId, activations: &Activations, batch: &Batch) {
        let bytes = (size_of_val(&*activations.data) + batch.rows() * size_of::<u32>()) as u64;
        if let Some(counter) = self.sent.get(to) {
            counter.increment(bytes);
            return;
        }
        let counter = self.registry.transfer_bytes(&self.unit, to);
        counter.increment(bytes);
        self.sent.insert(to.clone(), counter);
    }

    /// This many jobs are accepted and not finished.
    pub fn queued(&self, jobs: usize) {
        self.metrics.queue_depth.set(jobs as f64);
    }

    /// Runs a job of a stage on the clock; `work` tells from its answer how much it was.
    pub fn time<T>(
        &mut self,
        stage: StageId,
        work: impl FnOnce(&T) -> Work,
        job: impl FnOnce() -> T,
    ) -> T {
        let start_ns = self.now_ns();
        let result = job();
        let at_ns = start_ns..self.now_ns();
        self.timeline.span(self.unit.as_str(), stage.to_string(), at_ns.clone());
        if let Some(tap) = &self.timings {
            // A tap that nobody empties is full: then this timing is lost, as it may be.
            let _ = tap.try_send(StageTiming {
                unit: self.unit.clone(),
                stage,
                work: work(&result),
                at_ns: at_ns.clone(),
            });
        }
        self.metrics.job(&UnitJob { stage, at_ns });
        result
    }

    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}
