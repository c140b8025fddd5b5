//! Chooses the shape of an adapter's kernels by measuring a few, starting from what its kind suggests.
//!
//! *Invariant:* only times decide, so two runs may choose differently, and bits with them: a caller that wants the same text
//! after a restart keeps the [`Tuning`] and gives it to [`super::GpuOptions`].

use std::time::Duration;

use super::adapter::AdapterKind;
use super::measure::{self, Timer};
use super::tuning::{Backing, Sums, Tuning};
use super::{GpuDevice, GpuOptions, GpuSelector};
use crate::DeviceError;
use crate::device::{CacheFormat, Device, SlotLimits};
use crate::graph::{Graph, Subgraph, WeightFormat};
use crate::synthetic;

/// A choice for one or two numbers of a tuning.
type Change = fn(&mut Tuning);

/// What is tried, in turns: the best of a line is kept for the lines after it.
const TURNS: &[&[Change]] = &[
    &[|t| t.backing = Backing::Texture],
    &[|t| t.sums = Sums::Whole],
    &[|t| t.chunk = 16, |t| t.chunk = 32],
    &[|t| t.lanes = t.lanes_max, |t| t.lanes_max = t.lanes, |t| t.lanes_max = t.lanes * 2],
    &[|t| t.tiles = [1, 1, 2, 2], |t| t.tiles = [2, 2, 2, 2]],
    &[|t| t.unroll = [8, 8, 4, 4], |t| t.unroll = [4; 4], |t| t.unroll = [2; 4]],
    &[|t| t.attention_subgroups = 1],
    &[|t| t.submit_dispatches = 12, |t| t.submit_dispatches = 48],
];

/// The smallest gain that a change is kept for: less is noise.
const GAIN: f64 = 0.97;

/// The best tuning found for the adapter that `selector` names. A software rasteriser keeps what its kind suggests: it
/// takes seconds to compile each candidate.
pub fn autotune(selector: &GpuSelector, timer: Timer<'_>) -> Result<Tuning, DeviceError> {
    let opened = GpuDevice::open(selector, GpuOptions::default())?;
    let mut best = opened.tuning().clone();
    if opened.adapter().kind == AdapterKind::Software {
        return Ok(best);
    }
    drop(opened);
    let layers = 2;
    let shape = synthetic::shape([layers, 512, 8, 4, 1536, 8192]);
    let model = synthetic::llama(&shape, WeightFormat::Q8_0, 1);
    let trial = Trial { selector, model, layers, timer };
    let mut least = trial.time(&best)?;
    for turn in TURNS {
        for change in *turn {
            let mut tuning = best.clone();
            change(&mut tuning);
            if tuning == best || tuning.check().is_err() {
                continue;
            }
            // A driver may not take a candidate; that is a reason to leave it, not to fail.
            let Ok(time) = trial.time(&tuning) else { continue };
            if time.as_secs_f64() < least.as_secs_f64() * GAIN {
                (best, least) = (tuning, time);
            }
        }
    }
    Ok(best)
}

/// What every candidate runs.
struct Trial<'a> {
    selector: &'a GpuSelector,
    model: Graph,
    layers: usize,
    timer: Timer<'a>,
}

impl Trial<'_> {
    /// A decoding step, and passes that verify 3 and 7 drafted tokens.
    fn time(&self, tuning: &Tuning) -> Result<Duration, DeviceError> {
        let options = GpuOptions { tuning: Some(tuning.clone()), ..GpuOptions::default() };
        let mut device = GpuDevice::open(self.selector, options)?;
        let whole = Subgraph::cut("trial", &self.model, 0, self.layers)
            .map_err(|error| device.context().unsupported(error.to_string()))?;
        let limits = SlotLimits {
            sequences_max: 1,
            positions_max: 256,
            rows_max: 16,
            cache: CacheFormat::F16,
        };
        let mut executable = device.prepare(&whole, limits)?;
        let mut pass = |rows| measure::pass(&mut *executable, (64, rows), self.timer);
        Ok(2 * pass(1)? + pass(4)? + pass(8)?)
    }
}
