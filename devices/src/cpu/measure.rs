//! How fast a unit runs a model, beside how fast it could read the weights: what `bench kernels` and the benches print.
//!
//! *Invariant:* numbers are of whole forwards through the public interface, interleaved over the passes, so that a noise
//! on the machine meets all of them alike.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::CpuDevice;
use super::kernels::fetch_ahead;
use super::memory::Pages;
use crate::batch::{Batch, Segment, SequenceId, Want};
use crate::device::{CacheFormat, Device, DeviceError, Executable, MemoryUse, SlotLimits};
use crate::graph::Subgraph;
use crate::sampling::Sampling;

/// A forward to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Rows of one sequence.
    pub rows: usize,
    /// Which of them run through the head.
    pub head: HeadRows,
    /// Positions cached before the rows.
    pub context: usize,
}

/// Which rows of a measured forward run through the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadRows {
    /// All, as when a draft is verified.
    All,
    /// The last, as when a prompt is read.
    Last,
}

/// The time of a forward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PassTime {
    /// What ran.
    pub pass: Pass,
    /// The fastest.
    pub best: Duration,
    /// The middle one.
    pub median: Duration,
}

/// A model that is ready to be timed on a unit.
pub struct Bench {
    executable: Box<dyn Executable>,
    sampling: Arc<Sampling>,
}

impl Bench {
    /// Prepares a whole model for these passes, with such a cache.
    ///
    /// # Errors
    /// Those of `prepare`.
    pub fn new(
        device: &mut CpuDevice,
        model: &Subgraph,
        (passes, cache): (&[Pass], CacheFormat),
    ) -> Result<Self, DeviceError> {
        assert!(model.is_whole_model(), "only whole models are measured");
        let most = |of: fn(&Pass) -> usize| passes.iter().map(of).max().unwrap_or(1);
        let limits = SlotLimits {
            sequences_max: 1,
            positions_max: most(|p| p.context + p.rows),
            rows_max: most(|p| p.rows.max(p.context)),
            cache,
        };
        let sampling = Arc::new(Sampling::default());
        Ok(Self { executable: device.prepare(model, limits)?, sampling })
    }

    /// Bytes held.
    pub fn memory(&self) -> MemoryUse {
        self.executable.memory()
    }

    /// Runs every pass once, in turns, `rounds` times and once more to warm up.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn times(&mut self, passes: &[Pass], rounds: usize) -> Result<Vec<PassTime>, DeviceError> {
        let mut times = vec![Vec::with_capacity(rounds); passes.len()];
        for round in 0..=rounds {
            for (times, pass) in times.iter_mut().zip(passes) {
                self.cache(pass.context)?;
                let head = match pass.head {
                    HeadRows::All => pass.rows,
                    HeadRows::Last => 1,
                };
                let batch = self.batch(pass.context, pass.rows, Want::Picks(head as u32));
                let start = Instant::now();
                self.executable.run(&batch, None)?;
                if round > 0 {
                    times.push(start.elapsed());
                }
            }
        }
        let time = |(times, pass): (&mut Vec<Duration>, &Pass)| {
            times.sort_unstable();
            let at = |i: usize| times.get(i).copied().unwrap_or_default();
            PassTime { pass: *pass, best: at(0), median: at(times.len() / 2) }
        };
        Ok(times.iter_mut().zip(passes).map(time).collect())
    }

    /// Fills the cache up to a position.
    fn cache(&mut self, context: usize) -> Result<(), DeviceError> {
        let cached = self.executable.cached(SequenceId(0)) as usize;
        if cached < context {
            let batch = self.batch(cached, context - cached, Want::Nothing);
            self.executable.run(&batch, None)?;
        }
        Ok(())
    }

    fn batch(&self, base: usize, count: usize, want: Want) -> Batch {
        let segment = Segment {
            sequence: SequenceId(0),
            base: base as u32,
            tokens: (0..count).map(|i| ((base + i) % 32) as u32).collect(),
            want,
            sampling: Arc::clone(&self.sampling),
        };
        Batch { segments: vec![segment] }
    }
}

/// Bytes per second at which all threads of a unit together read an array of `bytes`, each its own contiguous part:
/// the limit of a forward whose weights are as large. The best of `repeats`.
///
/// # Errors
/// `OutOfMemory` if there is no room for the array.
pub fn read_bandwidth(
    device: &CpuDevice,
    bytes: usize,
    repeats: usize,
) -> Result<f64, DeviceError> {
    let mut array = Pages::<u64>::stream(bytes / 8).ok_or_else(|| DeviceError::OutOfMemory {
        device: device.name.to_string(),
        detail: format!("{bytes} bytes to measure the bandwidth of reading them"),
    })?;
    for (i, x) in array.iter_mut().enumerate() {
        *x = i as u64;
    }
    let lines = array.as_chunks::<8>().0;
    let mut best = Duration::MAX;
    for _ in 0..=repeats {
        let start = Instant::now();
        device.team.run(&|member| {
            let mut sums = [0u64; 8];
            for line in &lines[member.share(lines.len())] {
                fetch_ahead(line);
                for (sum, x) in sums.iter_mut().zip(line) {
                    *sum ^= x;
                }
            }
            std::hint::black_box(sums);
        });
        best = best.min(start.elapsed());
    }
    Ok(size_of_val(lines) as f64 / best.as_secs_f64())
}
