//! The two traits behind which every unit hides: a [`Device`] compiles a subgraph, an [`Executable`] runs batches of it.
//!
//! An executable owns the KV caches of its sequences itself (there is no session object), because one ragged batch
//! touches many of them at once and a GPU keeps them in one arena. *Invariant:* device and executables live on one
//! thread, the unit's worker; nothing here locks.

use std::fmt;

use crate::batch::{Activations, Batch, DraftBatch, Drafted, Output, Segment, SequenceId, Want};
use crate::graph::Subgraph;

/// The kinds of compute unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A group of CPU cores.
    Cpu,
    /// A GPU through wgpu.
    Gpu,
    /// The plain-loop oracle.
    Reference,
    /// A toy model with latencies from a table and faults on demand.
    Simulated,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Gpu => "gpu",
            DeviceKind::Reference => "reference",
            DeviceKind::Simulated => "sim",
        })
    }
}

/// What a device says of itself.
#[derive(Clone, Debug)]
pub struct DeviceDescriptor {
    /// Kind of unit.
    pub kind: DeviceKind,
    /// Human-readable name: processor and instruction set, or adapter and driver.
    pub name: String,
    /// Worker threads or, for a GPU, 1.
    pub threads: usize,
}

/// How a unit keeps keys and values between runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheFormat {
    /// 16-bit floats. (The reference keeps them whole.)
    #[default]
    F16,
    /// Bytes with a 16-bit scale for each 16 consecutive elements of a head.
    Q8,
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CacheFormat::F16 => "f16",
            CacheFormat::Q8 => "q8",
        })
    }
}

/// How many sequences an executable keeps caches for, in which format, and how long each may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLimits {
    /// Most sequences with a cache at one time.
    pub sequences_max: usize,
    /// Most positions of one sequence.
    pub positions_max: usize,
    /// Most rows of one batch; `run` splits nothing itself.
    pub rows_max: usize,
    /// How keys and values are kept.
    pub cache: CacheFormat,
}

/// Bytes that an executable holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Packed weights.
    pub weights: u64,
    /// KV caches of all slots.
    pub caches: u64,
    /// Intermediate buffers.
    pub scratch: u64,
}

impl MemoryUse {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.caches + self.scratch
    }
}

/// Why a device could not do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// No room: memory of the device, or all cache slots are taken.
    #[error("{device}: out of memory: {detail}")]
    OutOfMemory {
        /// The device.
        device: String,
        /// What did not fit, with sizes.
        detail: String,
    },
    /// The device cannot run this subgraph or batch at all.
    #[error("{device}: unsupported: {detail}")]
    Unsupported {
        /// The device.
        device: String,
        /// The op, format or size that is not supported.
        detail: String,
    },
    /// Compilation for the device failed.
    #[error("{device}: could not compile {subgraph}: {detail}")]
    Compile {
        /// The device.
        device: String,
        /// The subgraph's name.
        subgraph: String,
        /// The compiler's words.
        detail: String,
    },
    /// The device is gone, hung, or answered nonsense; its caches are lost.
    #[error("{device}: lost: {detail}")]
    Lost {
        /// The device.
        device: String,
        /// What was seen.
        detail: String,
    },
}

/// A compute unit that turns subgraphs into executables.
pub trait Device {
    /// What this device is.
    fn descriptor(&self) -> DeviceDescriptor;

    /// Compiles a stage for this device: packs its weights, chooses kernels, allocates slots and scratch.
    fn prepare(
        &mut self,
        subgraph: &Subgraph,
        limits: SlotLimits,
    ) -> Result<Box<dyn Executable>, DeviceError>;
}

/// A stage that is ready to run, with the KV caches of its sequences.
pub trait Executable {
    /// Runs a ragged batch. `input` carries the previous stage's activations, one row for each row of the batch, and
    /// is `None` exactly if the stage begins with the token embedding. A sequence seen for the first time (its base
    /// is 0) takes a free slot.
    ///
    /// Panics if a segment's base lies beyond the cached length, or a batch exceeds the [`SlotLimits`]: the caller
    /// broke its contract.
    fn run(&mut self, batch: &Batch, input: Option<Activations>) -> Result<Output, DeviceError>;

    /// Drafts: runs each segment, then feeds its last pick back, up to `steps` times. Returns what came of each
    /// segment in order. The cache afterwards holds the segment's rows and at least all returned tokens but the last
    /// (after a stop by probability it may hold that one too).
    ///
    /// Only for an executable of a whole model (tokens in, picks out).
    fn draft(&mut self, batch: &DraftBatch) -> Result<Vec<Drafted>, DeviceError> {
        draft_step_by_step(self, batch)
    }

    /// Gets ready for what it will be asked for, so that the first job of each size is as quick as those that follow. Nothing
    /// but time depends on it.
    fn rehearse(&mut self, _purpose: Purpose) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Positions cached for `sequence`; 0 if it has no slot.
    fn cached(&self, sequence: SequenceId) -> u32;

    /// Frees the slot of `sequence`, if it has one.
    fn release(&mut self, sequence: SequenceId);

    /// Bytes held.
    fn memory(&self) -> MemoryUse;
}

/// What an executable will be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Passes: verifications of few rows, and pieces of prompts.
    Passes,
    /// Drafts of a whole model.
    Drafts,
}

/// Drafts with one `run` per step: right for every executable, best where a run costs little to start.
pub fn draft_step_by_step<E: Executable + ?Sized>(
    executable: &mut E,
    batch: &DraftBatch,
) -> Result<Vec<Drafted>, DeviceError> {
    let mut drafted = vec![Drafted::default(); batch.segments.len()];
    let mut live: Vec<(usize, Segment)> = batch
        .segments
        .iter()
        .enumerate()
        .map(|(i, draft)| {
            assert!(draft.steps > 0, "a draft of no steps was asked for");
            (i, Segment { want: Want::Picks(1), ..draft.segment.clone() })
        })
        .collect();
    while !live.is_empty() {
        let step = Batch { segments: live.iter().map(|(_, s)| s.clone()).collect() };
        let Output::Picked(picked) = executable.run(&step, None)? else {
            panic!("a draft was asked of a stage that does not end in the output head");
        };
        let mut next = Vec::with_capacity(live.len());
        for ((i, segment), pick) in live.into_iter().zip(picked.picks) {
            let (ask, so_far) = (&batch.segments[i], &mut drafted[i]);
            so_far.steps += 1;
            if so_far.steps > 1 && pick.probability < ask.probability_min {
                continue;
            }
            let token = pick.token;
            so_far.picks.push(pick);
            if so_far.steps < ask.steps && !batch.stop_tokens.contains(&token) {
                let base = segment.base + segment.tokens.len() as u32;
                next.push((i, Segment { base, tokens: vec![token], ..segment }));
            }
        }
        live = next;
    }
    Ok(drafted)
}
