//! A unit of real cores that is lost or slowed down when a test says so, in a service that runs as a process of its own.
//!
//! *Invariant:* until it is told, and after it was rebuilt, it is a CPU unit like any other.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrider::cli::OwnUnits;
use outrider_devices::cpu::{CpuDevice, CpuOptions};
use outrider_devices::{
    Activations, Batch, Device, DeviceDescriptor, DeviceError, DraftBatch, Drafted, Executable,
    MemoryUse, Output, SequenceId, SlotLimits, Subgraph,
};
use outrider_plans::UnitId;

/// The unit's name in plans.
pub const FRAIL: &str = "frail";
/// Variable with the folder in which a test tells the unit, by files, what shall become of it.
pub const FOLDER: &str = "OUTRIDER_FRAIL_FOLDER";
/// The file that breaks the unit: the unit takes it away, and is lost.
pub const LOSE: &str = "lose";
/// The file that slows the unit down for as long as it is there: each job then takes [`PAUSE`] longer.
pub const BRAKE: &str = "brake";
/// What a job takes longer under the brake. A text of hundreds of tokens then takes many seconds on any machine, so that
/// a test can look at a request that is certainly open.
pub const PAUSE: Duration = Duration::from_millis(100);
/// Variable with the unit's cores, separated by commas.
pub const CORES: &str = "OUTRIDER_FRAIL_CORES";

/// The frail unit, if the environment asks for one.
///
/// Panics if its cores are not numbers.
pub fn units_from_environment() -> OwnUnits {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return OwnUnits::new() };
    let cores = std::env::var(CORES).unwrap_or_else(|_| "0".into());
    let cores: Vec<usize> =
        cores.split(',').map(|core| core.parse().expect("a core's number")).collect();
    let factory = move || {
        let options = CpuOptions { cores: cores.clone(), ..CpuOptions::default() };
        let whole = CpuDevice::new(options)?;
        Ok(Box::new(Frail { whole, folder: folder.clone() }) as Box<dyn Device>)
    };
    OwnUnits::from([(UnitId::new(FRAIL), Arc::new(factory) as _)])
}

struct Frail {
    whole: CpuDevice,
    folder: PathBuf,
}

impl Device for Frail {
    fn descriptor(&self) -> DeviceDescriptor {
        self.whole.descriptor()
    }

    fn prepare(
        &mut self,
        subgraph: &Subgraph,
        limits: SlotLimits,
    ) -> Result<Box<dyn Executable>, DeviceError> {
        let whole = self.whole.prepare(subgraph, limits)?;
        let (lose, brake) = (self.folder.join(LOSE), self.folder.join(BRAKE));
        Ok(frail_stage(whole, move || {
            if brake.exists() {
                std::thread::sleep(PAUSE);
            }
            // One stage takes the file away, and its unit goes with it.
            match std::fs::remove_file(&lose) {
                Ok(()) => Err(DeviceError::Lost {
                    device: FRAIL.into(),
                    detail: format!("{} was there", lose.display()),
                }),
                Err(_) => Ok(()),
            }
        }))
    }
}

/// `whole`, which before every job asks `stands` whether there is still a device, and fails with what that says.
pub fn frail_stage(
    whole: Box<dyn Executable>,
    stands: impl FnMut() -> Result<(), DeviceError> + Send + 'static,
) -> Box<dyn Executable> {
    Box::new(FrailStage { whole, stands })
}

struct FrailStage<S> {
    whole: Box<dyn Executable>,
    stands: S,
}

impl<S: FnMut() -> Result<(), DeviceError> + Send> Executable for FrailStage<S> {
    fn run(&mut self, batch: &Batch, input: Option<Activations>) -> Result<Output, DeviceError> {
        (self.stands)()?;
        self.whole.run(batch, input)
    }

    fn draft(&mut self, batch: &DraftBatch) -> Result<Vec<Drafted>, DeviceError> {
        (self.stands)()?;
        self.whole.draft(batch)
    }

    fn cached(&self, sequence: SequenceId) -> u32 {
        self.whole.cached(sequence)
    }

    fn release(&mut self, sequence: SequenceId) {
        self.whole.release(sequence);
    }

    fn memory(&self) -> MemoryUse {
        self.whole.memory()
    }
}
