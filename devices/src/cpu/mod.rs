//! The CPU unit: a team of pinned threads that runs fused stages over repacked weights.
//!
//! A stage is compiled once: weights become tiles of 16 outputs, each core's share one contiguous stream, and the fused ops
//! become steps between barriers. A forward is one parallel region. *Invariant:* a row's bits depend on its own
//! sequence alone: not on the batch, the number of threads, the core or the instruction set.

mod cache;
mod compile;
mod executable;
mod forward;
mod isa;
mod kernels;
pub mod measure;
mod memory;
mod pack;
mod rope;
mod scratch;
mod stored;
mod team;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use crate::conformance::{self, Tolerance};
use crate::device::{
    CacheFormat, Device, DeviceDescriptor, DeviceError, DeviceKind, Executable, SlotLimits,
};
use crate::graph::{Subgraph, WeightFormat};
use executable::CpuExecutable;
use kernels::Kernels;
use team::{Team, pin_caller};

pub use isa::Isa;

/// How a CPU unit is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Core ids to pin the threads to, the caller's first; empty pins nothing.
    pub cores: Vec<usize>,
    /// Threads; 0 is one for each core named, or one.
    pub threads: usize,
    /// Instruction set; `None` is the best that the machine has.
    pub isa: Option<Isa>,
}

/// A group of CPU cores as one unit.
pub struct CpuDevice {
    name: Rc<str>,
    team: Rc<Team>,
    threads: usize,
    kernels: &'static Kernels,
}

impl CpuDevice {
    /// Starts the unit's threads. **The calling thread becomes the team's first member** and is pinned to the first core
    /// named: call this on the thread that will prepare and run, the unit's worker.
    ///
    /// # Errors
    /// `Unsupported` if the machine lacks the instruction set, a core is not there or not allowed, or fewer cores than
    /// threads are named.
    pub fn new(options: CpuOptions) -> Result<Self, DeviceError> {
        let CpuOptions { cores, threads, isa } = options;
        let threads = if threads == 0 { cores.len().max(1) } else { threads };
        let name: Rc<str> = match cores.as_slice() {
            [] => "cpu".into(),
            cores => {
                let ids: Vec<_> = cores.iter().map(usize::to_string).collect();
                format!("cpu[{}]", ids.join(",")).into()
            }
        };
        let unsupported =
            |detail: String| DeviceError::Unsupported { device: name.to_string(), detail };
        if !cores.is_empty() && cores.len() < threads {
            let detail = format!("{threads} threads on {} cores; name a core each", cores.len());
            return Err(unsupported(detail));
        }
        let isa = isa.unwrap_or_else(|| Isa::available()[0]);
        let kernels = Kernels::of(isa)
            .ok_or_else(|| unsupported(format!("{isa} instructions on this machine")))?;
        let pinned = cores.first().map_or(Ok(()), |&core| pin_caller(core));
        let team = pinned
            .and_then(|()| Team::new(threads, &cores))
            .map_err(|e| unsupported(format!("threads pinned to cores {cores:?}: {e}")))?;
        Ok(Self { name, team: Rc::new(team), threads, kernels })
    }

    /// The format in which this unit computes with weights of `format`: the same, or the one that they are converted to
    /// at load.
    pub fn stored_format(format: WeightFormat) -> WeightFormat {
        stored::stored_format(format)
    }

    /// How near this unit comes to the reference with the same cache: halves have 11 significant bits, where bytes are
    /// rounded is a matter of the last bits before, and activations that meet quantised weights have 8.
    pub fn tolerance(cache: CacheFormat) -> Tolerance {
        let exact = match cache {
            CacheFormat::F16 => 5e-3,
            CacheFormat::Q8 => 5e-2,
        };
        let of = |format| if stored::packing(format).is_quantised() { 0.15 } else { exact };
        let formats = conformance::FORMATS;
        Tolerance { formats: formats.map(|f| (f, of(stored::stored_format(f)))).to_vec() }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }
}

impl Device for CpuDevice {
    fn descriptor(&self) -> DeviceDescriptor {
        let name = format!("{} ({})", self.name, self.kernels.isa());
        DeviceDescriptor { kind: DeviceKind::Cpu, name, threads: self.threads }
    }

    fn prepare(
        &mut self,
        subgraph: &Subgraph,
        limits: SlotLimits,
    ) -> Result<Box<dyn Executable>, DeviceError> {
        let program = compile::compile(&self.name, subgraph, limits)?;
        let team = (self.team.clone(), self.threads);
        Ok(Box::new(CpuExecutable::new(self.name.clone(), team, self.kernels, program, limits)?))
    }
}
