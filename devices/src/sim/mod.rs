//! A simulated unit: a toy language model in place of the weights, latencies from a table, faults on demand.
//!
//! It runs any [`Subgraph`] (only the number of layers, the vocabulary and the name count), so the plans that run on
//! real units run on it. *Invariant:* it keeps every contract of [`Executable`] by content: it stores the tokens
//! themselves, and activations between stages say which rows of which model they are, so a batch that was routed
//! wrongly panics.

mod delay;
mod executable;
mod language;
mod options;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{Device, DeviceDescriptor, DeviceError, DeviceKind, Executable, SlotLimits};
use crate::graph::Subgraph;

pub use delay::{Delay, RealDelay, RecordedDelay};
pub use options::{Faults, Follower, Latency, SimOptions, Slow};

use executable::{SimExecutable, Stage};

/// A simulated unit.
pub struct SimDevice {
    shared: Arc<Shared>,
    prepared: u64,
}

/// What a device and its executables have in common.
struct Shared {
    options: SimOptions,
    delay: Arc<dyn Delay>,
    runs: AtomicU64,
}

impl SimDevice {
    /// A unit that behaves as `options` say and lets time pass through `delay`.
    pub fn new(options: SimOptions, delay: Arc<dyn Delay>) -> Self {
        let shared = Shared { options, delay, runs: AtomicU64::new(0) };
        Self { shared: Arc::new(shared), prepared: 0 }
    }
}

impl Device for SimDevice {
    fn descriptor(&self) -> DeviceDescriptor {
        let name = self.shared.options.name.clone();
        DeviceDescriptor { kind: DeviceKind::Simulated, name, threads: 1 }
    }

    fn prepare(
        &mut self,
        subgraph: &Subgraph,
        limits: SlotLimits,
    ) -> Result<Box<dyn Executable>, DeviceError> {
        let Shared { options, .. } = &*self.shared;
        self.prepared += 1;
        if options.faults.out_of_memory_at_prepare == Some(self.prepared) {
            return Err(DeviceError::OutOfMemory {
                device: options.name.clone(),
                detail: format!("{}: prepare {} was told to fail", subgraph.name, self.prepared),
            });
        }
        let stage = Stage::of(subgraph, options)?;
        Ok(Box::new(SimExecutable::new(self.shared.clone(), stage, limits)))
    }
}

impl Shared {
    /// Counts a run, and lets it take its time or go wrong.
    fn run(&self, time_ns: u64) -> Result<(), DeviceError> {
        let run = 1 + self.runs.fetch_add(1, Ordering::Relaxed);
        let Faults { lost_at_run, hang_at_run, slow, .. } = self.options.faults;
        let lost = |detail: String| DeviceError::Lost { device: self.options.name.clone(), detail };
        if lost_at_run.is_some_and(|at| run >= at) {
            return Err(lost(format!("run {run} was told to fail")));
        }
        if hang_at_run == Some(run) {
            self.delay.hang();
            return Err(lost(format!("run {run} was told to hang")));
        }
        let factor = slow.map_or(1.0, |s| if run >= s.from_run { s.factor } else { 1.0 });
        self.delay.pass(std::time::Duration::from_nanos(time_ns).mul_f64(factor));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::batch::{Activations, Batch, Output, Segment, SequenceId, Want};
    use crate::graph::{Graph, WeightFormat};
    use crate::synthetic;

    const LIMITS: SlotLimits = SlotLimits {
        sequences_max: 2,
        positions_max: 64,
        rows_max: 32,
        cache: crate::CacheFormat::F16,
    };

    fn model() -> Graph {
        synthetic::llama(&synthetic::tiny(4), WeightFormat::F32, 1)
    }

    fn unit(options: SimOptions) -> (SimDevice, Arc<RecordedDelay>) {
        let delay = Arc::new(RecordedDelay::default());
        (SimDevice::new(options, delay.clone()), delay)
    }

    fn stage(device: &mut SimDevice, name: &str, layers: [usize; 2]) -> Box<dyn Executable> {
        let subgraph = Subgraph::cut(name, &model(), layers[0], layers[1]).expect("it exists");
        device.prepare(&subgraph, LIMITS).expect("nothing was told to fail")
    }

    fn rows(sequence: u64, base: u32, tokens: &[u32]) -> Batch {
        let segment = Segment {
            sequence: SequenceId(sequence),
            base,
            tokens: tokens.to_vec(),
            want: Want::Picks(1),
            sampling: Arc::default(),
        };
        Batch { segments: vec![segment] }
    }

    fn pass_on(stage: &mut dyn Executable, batch: &Batch) -> Activations {
        match stage.run(batch, None).expect("nothing was told to fail") {
            Output::Activations(activations) => activations,
            Output::Picked(_) => panic!("the stage ends inside the model"),
        }
    }

    #[test]
    fn stages_of_a_split_model_speak_as_the_whole_one() {
        let (mut device, _) = unit(SimOptions::default());
        let mut first = stage(&mut device, "target[0..1]", [0, 1]);
        let mut second = stage(&mut device, "target[1..4]", [1, 4]);
        let mut whole = stage(&mut device, "target[0..4]", [0, 4]);
        let batch = rows(1, 0, &[3, 4, 5]);
        let between = pass_on(&mut *first, &batch);
        let split = second.run(&batch, Some(between)).expect("nothing was told to fail");
        assert_eq!(split, whole.run(&batch, None).expect("nothing was told to fail"));
    }

    #[test]
    #[should_panic(expected = "comes from another text")]
    fn rows_of_another_text_are_noticed() {
        let (mut device, _) = unit(SimOptions::default());
        let mut first = stage(&mut device, "target[0..1]", [0, 1]);
        let mut second = stage(&mut device, "target[1..4]", [1, 4]);
        let between = pass_on(&mut *first, &rows(1, 0, &[3, 4]));
        let _ = second.run(&rows(2, 0, &[3, 5]), Some(between));
    }

    #[test]
    #[should_panic(expected = "comes from another model")]
    fn rows_of_another_model_are_noticed() {
        let (mut device, _) = unit(SimOptions::default());
        let mut first = stage(&mut device, "draft[0..1]", [0, 1]);
        let mut second = stage(&mut device, "target[1..4]", [1, 4]);
        let between = pass_on(&mut *first, &rows(1, 0, &[3, 4]));
        let _ = second.run(&rows(1, 0, &[3, 4]), Some(between));
    }

    #[test]
    #[should_panic(expected = "comes from another layer")]
    fn a_skipped_stage_is_noticed() {
        let (mut device, _) = unit(SimOptions::default());
        let mut first = stage(&mut device, "target[0..1]", [0, 1]);
        let mut third = stage(&mut device, "target[2..4]", [2, 4]);
        let between = pass_on(&mut *first, &rows(1, 0, &[3, 4]));
        let _ = third.run(&rows(1, 0, &[3, 4]), Some(between));
    }

    #[test]
    #[should_panic(expected = "base 5 lies beyond the 2 cached positions")]
    fn a_gap_is_noticed() {
        let (mut device, _) = unit(SimOptions::default());
        let mut whole = stage(&mut device, "target[0..4]", [0, 4]);
        let _ = whole.run(&rows(1, 0, &[3, 4]), None);
        let _ = whole.run(&rows(1, 5, &[3, 4]), None);
    }

    #[test]
    fn faults_come_when_they_are_told_to() {
        let latency =
            Latency { subgraph: String::new(), run_ns: 100, layer_ns: vec![(1, 10), (2, 15)] };
        let faults = Faults {
            out_of_memory_at_prepare: Some(2),
            slow: Some(Slow { from_run: 2, factor: 3.0 }),
            hang_at_run: Some(3),
            lost_at_run: Some(4),
        };
        let (mut device, delay) =
            unit(SimOptions { latencies: vec![latency], faults, ..SimOptions::default() });
        let mut whole = stage(&mut device, "target[0..4]", [0, 4]);
        let subgraph = Subgraph::cut("again", &model(), 0, 4).expect("it exists");
        let second = device.prepare(&subgraph, LIMITS);
        assert!(matches!(second.err(), Some(DeviceError::OutOfMemory { .. })));
        let mut run = |tokens: &[u32]| (whole.run(&rows(1, 0, tokens), None), delay.take());
        assert_eq!(run(&[3]).1, Duration::from_nanos(140));
        assert_eq!(run(&[3, 4]).1, Duration::from_nanos(480));
        assert!(matches!(run(&[3]), (Err(DeviceError::Lost { .. }), Duration::ZERO)));
        assert!(delay.hung());
        assert!(matches!(run(&[3]), (Err(DeviceError::Lost { .. }), Duration::ZERO)));
        assert!(run(&[3]).0.is_err());
    }
}
