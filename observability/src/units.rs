//! Compute units: how busy each is, and how often two are busy at once.
//!
//! *Invariant:* a unit's busy time never grows faster than time passes, and the overlap never faster than the second
//! busiest unit's busy time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram};
use outrider_plans::{ModelRole, StageId, UnitId, UnitKind};

use crate::bound::LabelBound;
use crate::buckets;
use crate::catalogue::{Metric, MetricKind};
use crate::instrument::{Instruments, SecondsCounter};
use crate::label::{Label, label_values};
use crate::overlap::OverlapMeter;

pub(crate) const BUSY: Metric = Metric {
    name: "outrider_device_busy_seconds_total",
    kind: MetricKind::SecondsCounter,
    labels: &["device", "kind", "role"],
    help: "Time that a unit spent computing for one of the models; its rate is the unit's utilisation.",
};
pub(crate) const OVERLAP: Metric = Metric {
    name: "outrider_device_overlap_seconds_total",
    kind: MetricKind::SecondsCounter,
    labels: &[],
    help: "Time during which at least two units were computing.",
};
pub(crate) const QUEUE_DEPTH: Metric = Metric {
    name: "outrider_device_queue_depth",
    kind: MetricKind::Gauge,
    labels: &["device"],
    help: "Jobs that a unit has accepted and not finished.",
};
pub(crate) const MEMORY: Metric = Metric {
    name: "outrider_device_memory_bytes",
    kind: MetricKind::Gauge,
    labels: &["device", "kind", "purpose"],
    help: "Bytes that a unit's stages hold.",
};
pub(crate) const STAGE_TIME: Metric = Metric {
    name: "outrider_stage_duration_seconds",
    kind: MetricKind::Histogram(buckets::JOB),
    labels: &["device", "stage", "role"],
    help: "Time that a unit took for one job of a stage.",
};
pub(crate) const TRANSFER: Metric = Metric {
    name: "outrider_device_transfer_bytes_total",
    kind: MetricKind::Counter,
    labels: &["from", "to"],
    help: "Bytes of activations and tokens that one unit sent to another.",
};
pub(crate) const LOST: Metric = Metric {
    name: "outrider_device_lost_total",
    kind: MetricKind::Counter,
    labels: &["device"],
    help: "Times that a unit was lost: its device was gone, hung or answered nonsense.",
};

/// Most units with series of their own; the rest share the name `other`.
pub const UNITS_SHOWN_MAX: usize = 64;
/// Most stages with series of their own on all units together; the rest share the name `other`.
pub const STAGES_SHOWN_MAX: usize = 256;

/// What a unit holds memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPurpose {
    /// Packed weights.
    Weights,
    /// Keys and values.
    Caches,
    /// Intermediate buffers.
    Scratch,
}
label_values!(MemoryPurpose { Weights => "weights", Caches => "caches", Scratch => "scratch" });

/// Makes the metrics of units; shared by all of one registry.
#[derive(Clone, Debug)]
pub(crate) struct UnitMetricsMaker {
    instruments: Instruments,
    units: Arc<LabelBound>,
    stages: Arc<LabelBound>,
    activity: Arc<Activity>,
}

#[derive(Debug)]
struct Activity {
    meter: Mutex<OverlapMeter>,
    overlap: SecondsCounter,
}

impl UnitMetricsMaker {
    pub(crate) fn new(instruments: &Instruments) -> Self {
        let overlap = instruments.seconds(&OVERLAP, &[]);
        Self {
            instruments: instruments.clone(),
            units: Arc::new(LabelBound::new(UNITS_SHOWN_MAX)),
            stages: Arc::new(LabelBound::new(STAGES_SHOWN_MAX)),
            activity: Arc::new(Activity { meter: Mutex::default(), overlap }),
        }
    }

    pub(crate) fn unit(&self, unit: &UnitId, kind: UnitKind) -> UnitMetrics {
        let (device, kind) = (self.units.admit(unit.as_str()), kind.as_str());
        let make = &self.instruments;
        let busy = |role: ModelRole| make.seconds(&BUSY, &[device, kind, role.as_str()]);
        let memory =
            |purpose: &MemoryPurpose| make.gauge(&MEMORY, &[device, kind, purpose.as_str()]);
        UnitMetrics {
            maker: self.clone(),
            unit: unit.clone(),
            busy_draft: busy(ModelRole::Draft),
            busy_target: busy(ModelRole::Target),
            stages: BTreeMap::new(),
            queue_depth: make.gauge(&QUEUE_DEPTH, &[device]),
            memory: MemoryPurpose::ALL.iter().map(memory).collect(),
            lost: make.counter(&LOST, &[device]),
        }
    }

    pub(crate) fn transfer(&self, from: &UnitId, to: &UnitId) -> Counter {
        let [from, to] = [from, to].map(|unit| self.units.admit(unit.as_str()));
        self.instruments.counter(&TRANSFER, &[from, to])
    }
}

/// A job that a unit has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitJob {
    /// The stage that ran.
    pub stage: StageId,
    /// When it ran, in nanoseconds of one clock that all units share.
    pub at_ns: Range<u64>,
}

/// Metrics of one unit. A unit runs one job at a time.
#[derive(Clone, Debug)]
pub struct UnitMetrics {
    maker: UnitMetricsMaker,
    unit: UnitId,
    busy_draft: SecondsCounter,
    busy_target: SecondsCounter,
    stages: BTreeMap<StageId, Histogram>,
    /// Jobs accepted and not finished.
    pub queue_depth: Gauge,
    memory: Vec<Gauge>,
    /// Times lost.
    pub lost: Counter,
}

impl UnitMetrics {
    /// Counts a finished job. Jobs of different units may come in in any order, those of one unit as they were done.
    pub fn job(&mut self, job: &UnitJob) {
        let activity = &self.maker.activity;
        let mut meter = activity.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let added = meter.record(&self.unit, job.at_ns.clone());
        drop(meter);
        activity.overlap.add_ns(added.overlap_ns);
        match job.stage.role {
            ModelRole::Draft => self.busy_draft.add_ns(added.busy_ns),
            ModelRole::Target => self.busy_target.add_ns(added.busy_ns),
        }
        let seconds = job.at_ns.end.saturating_sub(job.at_ns.start) as f64 / 1e9;
        self.stage_time(job.stage).record(seconds);
    }

    /// Shows the bytes held for `purpose`.
    pub fn memory(&self, purpose: MemoryPurpose, bytes: u64) {
        let index = MemoryPurpose::ALL.iter().position(|p| *p == purpose);
        self.memory[index.expect("ALL lists every purpose")].set(bytes as f64);
    }

    fn stage_time(&mut self, stage: StageId) -> &Histogram {
        let UnitMetrics { maker, unit, stages, .. } = self;
        stages.entry(stage).or_insert_with(|| {
            let name = stage.to_string();
            let (device, shown) = (maker.units.admit(unit.as_str()), maker.stages.admit(&name));
            maker.instruments.histogram(&STAGE_TIME, &[device, shown, stage.role.as_str()])
        })
    }
}
