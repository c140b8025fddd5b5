//! One suite for every device: what it must do alike to the bit, and how near its numbers must be to the reference's.
//!
//! *Invariant:* a device passes or fails by what it answers through [`Device`] and [`Executable`] alone; nothing here
//! knows which device it is. Models are synthetic, so the suite needs no file.
//!
//! ```no_run
//! use outrider_devices::conformance::{Tolerance, check};
//! use outrider_devices::reference::ReferenceDevice;
//!
//! let report = check(&mut ReferenceDevice, &Tolerance::exact()).expect("the oracle agrees with itself");
//! println!("{report}");
//! ```

mod contract;
mod models;
mod numbers;
mod runs;

use std::fmt;

use crate::device::{CacheFormat, Device, DeviceDescriptor, DeviceError, Executable, SlotLimits};
use crate::graph::{Subgraph, WeightFormat};
use crate::reference::ReferenceDevice;

use models::Model;

/// How far a device's numbers may be from the reference's: the largest difference in a row of logits or activations,
/// divided by the root mean square of the reference's row, by weight format. Formats that are not listed are not
/// checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// Formats that the device runs, with the largest relative difference.
    pub formats: Vec<(WeightFormat, f32)>,
}

/// Every format that a synthetic model can be quantised to.
pub const FORMATS: [WeightFormat; 13] = [
    WeightFormat::F32,
    WeightFormat::F16,
    WeightFormat::BF16,
    WeightFormat::Q8_0,
    WeightFormat::Q4_0,
    WeightFormat::Q4_1,
    WeightFormat::Q5_0,
    WeightFormat::Q5_1,
    WeightFormat::Q2_K,
    WeightFormat::Q3_K,
    WeightFormat::Q4_K,
    WeightFormat::Q5_K,
    WeightFormat::Q6_K,
];

impl Tolerance {
    /// Every format, equal to the reference to the bit.
    pub fn exact() -> Self {
        Self::uniform(0.0)
    }

    /// Every format within the same relative difference.
    pub fn uniform(relative: f32) -> Self {
        Self { formats: FORMATS.iter().map(|&format| (format, relative)).collect() }
    }
}

/// How near a device came to the reference.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// One line a model.
    pub measured: Vec<Measured>,
}

/// How near a device came to the reference on one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Shape and format.
    pub model: String,
    /// Largest relative difference of the first block's activations.
    pub activations: f32,
    /// Largest relative difference of the logits.
    pub logits: f32,
    /// What was allowed.
    pub tolerance: f32,
}

/// What a device does not do as it must.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{claim}, but not on {model}: {detail}")]
pub struct Failure {
    /// The claim that does not hold.
    pub claim: &'static str,
    /// Shape and format of the model.
    pub model: String,
    /// What was seen.
    pub detail: String,
}

/// Why a claim does not hold.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device answered something else than it must.
    #[error("{0}")]
    Answer(String),
}

/// Checks the numbers of a device on models of every listed format, and its contract on one of the first format.
///
/// Panics only where the device panics.
pub fn check(device: &mut dyn Device, tolerance: &Tolerance) -> Result<Report, Failure> {
    check_with_cache(device, tolerance, CacheFormat::F16)
}

/// The same with caches of another format, the reference's too.
///
/// Panics only where the device panics.
pub fn check_with_cache(
    device: &mut dyn Device,
    tolerance: &Tolerance,
    cache: CacheFormat,
) -> Result<Report, Failure> {
    let device = &mut Keeping { device, cache };
    let mut report = Report::default();
    for (model, tolerance) in models::all(tolerance) {
        let claim = "logits and activations are near the reference's, whatever the batch";
        let oracle = &mut Keeping { device: &mut ReferenceDevice, cache };
        let measured = numbers::compare((device, oracle), &model, tolerance)
            .map_err(|trouble| failure(claim, &model, &trouble))?;
        report.measured.push(measured);
    }
    if let Some(&(format, _)) = tolerance.formats.first() {
        check_contract(device, format)?;
    }
    Ok(report)
}

/// Checks what needs no reference: caches, batches, stages, slots, drafts and picks. A device that computes no real
/// model must keep these too.
pub fn check_contract(device: &mut dyn Device, format: WeightFormat) -> Result<(), Failure> {
    let model = models::small(format);
    contract::CLAIMS.iter().try_for_each(|(claim, holds)| {
        holds(device, &model).map_err(|trouble| failure(claim, &model, &trouble))
    })
}

/// A device that keeps its caches in a given format.
struct Keeping<'a> {
    device: &'a mut dyn Device,
    cache: CacheFormat,
}

impl Device for Keeping<'_> {
    fn descriptor(&self) -> DeviceDescriptor {
        self.device.descriptor()
    }

    fn prepare(
        &mut self,
        subgraph: &Subgraph,
        limits: SlotLimits,
    ) -> Result<Box<dyn Executable>, DeviceError> {
        self.device.prepare(subgraph, SlotLimits { cache: self.cache, ..limits })
    }
}

fn failure(claim: &'static str, model: &Model, trouble: &Trouble) -> Failure {
    Failure { claim, model: model.name.clone(), detail: trouble.to_string() }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Measured { model, activations, logits, tolerance } in &self.measured {
            writeln!(
                f,
                "{model:<52} activations {activations:.1e}, logits {logits:.1e} of {tolerance:.1e}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::batch::{Activations, Batch, Output, SequenceId, Want};
    use crate::device::{MemoryUse, Purpose};
    use crate::sim::{RecordedDelay, SimDevice, SimOptions};

    #[test]
    fn the_reference_runs_fused_graphs_as_plain_ones() {
        let report =
            check(&mut ReferenceDevice, &Tolerance::exact()).unwrap_or_else(|e| panic!("{e}"));
        assert!(report.measured.len() > FORMATS.len());
    }

    #[test]
    fn the_simulated_unit_keeps_the_contract() {
        let mut device = SimDevice::new(SimOptions::default(), Arc::new(RecordedDelay::default()));
        check_contract(&mut device, WeightFormat::F32).unwrap_or_else(|e| panic!("{e}"));
    }

    #[test]
    fn the_reference_with_caches_of_bytes_runs_fused_graphs_as_plain_ones() {
        let tolerance = Tolerance { formats: vec![(WeightFormat::F32, 0.0)] };
        check_with_cache(&mut ReferenceDevice, &tolerance, CacheFormat::Q8)
            .unwrap_or_else(|e| panic!("{e}"));
    }

    /// The reference with a fault.
    struct Faulty(Fault);

    #[derive(Clone, Copy, Debug)]
    enum Fault {
        /// The third logit is a little off.
        Logit,
        /// Results depend a little on the number of rows.
        Batch,
        /// A release is forgotten.
        Release,
        /// Every pick is the token after the right one.
        Pick,
        /// Activations between stages are rounded.
        Stage,
        /// What was cached is written over to get ready.
        Ready,
    }

    struct FaultyExecutable(Fault, Box<dyn Executable>);

    impl Device for Faulty {
        fn descriptor(&self) -> DeviceDescriptor {
            ReferenceDevice.descriptor()
        }

        fn prepare(
            &mut self,
            subgraph: &Subgraph,
            limits: SlotLimits,
        ) -> Result<Box<dyn Executable>, DeviceError> {
            Ok(Box::new(FaultyExecutable(self.0, ReferenceDevice.prepare(subgraph, limits)?)))
        }
    }

    impl Executable for FaultyExecutable {
        fn run(
            &mut self,
            batch: &Batch,
            input: Option<Activations>,
        ) -> Result<Output, DeviceError> {
            let mut output = self.1.run(batch, input)?;
            match (self.0, &mut output) {
                (Fault::Logit, Output::Picked(picked)) if picked.logits.len() > 2 => {
                    picked.logits[2] += 1e-3;
                }
                (Fault::Batch, Output::Picked(picked)) if batch.rows() > 4 => {
                    picked.logits.iter_mut().for_each(|l| *l *= 1.0 + f32::EPSILON);
                }
                (Fault::Pick, Output::Picked(picked)) => {
                    picked.picks.iter_mut().for_each(|p| p.token = (p.token + 1) % 97);
                }
                (Fault::Stage, Output::Activations(between)) => {
                    between.data.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32());
                }
                _ => {}
            }
            Ok(output)
        }

        fn rehearse(&mut self, _: Purpose) -> Result<(), DeviceError> {
            let rows = self.1.cached(SequenceId(0)) as usize;
            if matches!(self.0, Fault::Ready) && rows > 0 {
                let segments = vec![runs::segment(0, 0, &vec![1; rows], Want::Nothing)];
                self.1.run(&Batch { segments }, None)?;
            }
            Ok(())
        }

        fn cached(&self, sequence: SequenceId) -> u32 {
            self.1.cached(sequence)
        }

        fn release(&mut self, sequence: SequenceId) {
            if !matches!(self.0, Fault::Release) {
                self.1.release(sequence);
            }
        }

        fn memory(&self) -> MemoryUse {
            self.1.memory()
        }
    }

    #[test]
    fn each_fault_is_noticed() {
        let tolerance = Tolerance { formats: vec![(WeightFormat::F32, 1e-5)] };
        let faults =
            [Fault::Logit, Fault::Batch, Fault::Release, Fault::Pick, Fault::Stage, Fault::Ready];
        for fault in faults {
            assert!(check(&mut Faulty(fault), &tolerance).is_err(), "{fault:?}");
        }
    }
}
