//! How fast a unit runs a model, beside how fast it could read the weights: what `bench kernels` and the benches print.
//!
//! *Invariant:* numbers are of whole forwards through the public interface, interleaved over the row counts, so that a noise
//! on the machine meets all of them alike.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::CpuDevice;
use super::memory::Pages;
use crate::batch::{Batch, Segment, SequenceId, Want};
use crate::device::{Device, DeviceError, SlotLimits};
use crate::graph::Subgraph;
use crate::sampling::Sampling;

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Numbers of rows of one sequence in a forward.
    pub rows: Vec<usize>,
    /// Which of the rows run through the head.
    pub head: HeadRows,
    /// Positions cached before the rows.
    pub context: usize,
    /// Forwards of each number of rows.
    pub repeats: usize,
}

/// Which rows of a measured forward run through the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadRows {
    /// All, as when a draft is verified.
    All,
    /// The last, as when a prompt is read.
    Last,
}

/// The time of a forward of some rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForwardTime {
    /// Rows of the forward.
    pub rows: usize,
    /// The fastest.
    pub best: Duration,
    /// The middle one.
    pub median: Duration,
    /// Bytes of packed weights that a forward reads at least once.
    pub weight_bytes: u64,
}

impl ForwardTime {
    /// Bytes of weights per second of the fastest forward.
    pub fn bytes_per_second(&self) -> f64 {
        self.weight_bytes as f64 / self.best.as_secs_f64()
    }
}

/// Times forwards of a whole model on a unit.
///
/// # Errors
/// Those of `prepare` and `run`.
pub fn forward_times(
    device: &mut CpuDevice,
    model: &Subgraph,
    ask: &Ask,
) -> Result<Vec<ForwardTime>, DeviceError> {
    assert!(model.is_whole_model(), "only whole models are measured");
    let most = ask.rows.iter().copied().fold(1, usize::max);
    let limits =
        SlotLimits { sequences_max: 1, positions_max: ask.context + most, rows_max: most.max(64) };
    let mut executable = device.prepare(model, limits)?;
    let sampling = Arc::new(Sampling::default());
    let segment = |base: usize, count: usize, want: Want| Batch {
        segments: vec![Segment {
            sequence: SequenceId(0),
            base: base as u32,
            tokens: (0..count).map(|i| ((base + i) % 32) as u32).collect(),
            want,
            sampling: sampling.clone(),
        }],
    };
    for base in (0..ask.context).step_by(64) {
        executable.run(&segment(base, 64.min(ask.context - base), Want::Nothing), None)?;
    }
    let mut times = vec![Vec::with_capacity(ask.repeats); ask.rows.len()];
    for _ in 0..=ask.repeats {
        for (times, &rows) in times.iter_mut().zip(&ask.rows) {
            let wanted = match ask.head {
                HeadRows::All => rows,
                HeadRows::Last => 1,
            };
            let batch = segment(ask.context, rows, Want::Picks(wanted as u32));
            let start = Instant::now();
            executable.run(&batch, None)?;
            times.push(start.elapsed());
        }
    }
    let weight_bytes = executable.memory().weights;
    let time = |(times, &rows): (&mut Vec<Duration>, &usize)| {
        // The first round warms up.
        let times = &mut times[1..];
        times.sort_unstable();
        let (best, median) = match times {
            [] => (Duration::ZERO, Duration::ZERO),
            times => (times[0], times[times.len() / 2]),
        };
        ForwardTime { rows, best, median, weight_bytes }
    };
    Ok(times.iter_mut().zip(&ask.rows).map(time).collect())
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
    let mut array = Pages::<u64>::zeroed(bytes / 8).ok_or_else(|| DeviceError::OutOfMemory {
        device: device.name.to_string(),
        detail: format!("{bytes} bytes to measure the bandwidth of reading them"),
    })?;
    for (i, x) in array.iter_mut().enumerate() {
        *x = i as u64;
    }
    let lines = array.as_chunks::<16>().0;
    let mut best = Duration::MAX;
    for _ in 0..=repeats {
        let start = Instant::now();
        device.team.run(&|member| {
            let mut sums = [0u64; 16];
            for line in &lines[member.share(lines.len())] {
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
