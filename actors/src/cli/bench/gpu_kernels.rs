//! `outrider bench kernels --gpu`: what a GPU costs, and how long its passes and drafts take beside the least that they could.
//!
//! *Invariant:* the floor of a pass is what its dispatches cost when they do nothing, and what reading its weights costs at the
//! measured bandwidth; nothing else is taken off. On a software rasteriser times are CPU times of the process.

use std::fmt;
use std::time::{Duration, Instant};

use outrider_devices::gpu::measure::{self, GpuCosts, Timer};
use outrider_devices::gpu::{AdapterKind, GpuDevice, GpuSelector};
use outrider_devices::{CacheFormat, Device, SlotLimits, Subgraph};
use serde::Serialize;

use crate::cli::CliError;
use crate::gpu_tuning;

/// Rows whose times are taken.
const ROWS: [usize; 4] = [1, 2, 4, 8];
/// Bytes that the bandwidth is measured over: more than caches hold.
const STREAM_BYTES: u64 = 512 << 20;
const SOFTWARE_STREAM_BYTES: u64 = 16 << 20;

/// All figures.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    gpu: String,
    /// Of the processor's cores, on a software rasteriser; else of the wall clock.
    cpu_times: bool,
    dispatch_us: f64,
    submit_and_wait_us: f64,
    read_back_us: f64,
    bandwidth_gb_per_s: f64,
    models: Vec<ModelReport>,
}

/// One model's figures.
#[derive(Debug, Serialize)]
struct ModelReport {
    model: String,
    weight_bytes: u64,
    dispatches: usize,
    floor_us: f64,
    passes: Vec<PassReport>,
    /// A prompt of this many rows, and its time.
    prompt_rows: usize,
    prompt_us: f64,
    draft_of_4_us: f64,
    /// What one more step of a draft costs.
    draft_step_us: f64,
    /// A draft of 4 over four such steps.
    draft_of_4_over_steps: f64,
}

/// One pass.
#[derive(Debug, Serialize)]
struct PassReport {
    rows: usize,
    us: f64,
    over_floor: f64,
    over_one_row: f64,
}

/// Measures models on the GPU that `selector` names.
pub(super) struct Bench {
    device: GpuDevice,
    costs: GpuCosts,
    runs: u32,
    begun: Instant,
}

impl Bench {
    pub(super) fn open(selector: &GpuSelector, runs: u32) -> Result<Self, CliError> {
        let device = gpu_tuning::open(selector)?;
        let costs = GpuCosts {
            dispatch: Duration::ZERO,
            submit_and_wait: Duration::ZERO,
            read_back: Duration::ZERO,
            bandwidth_bytes_per_s: 0,
        };
        let mut bench = Self { device, costs, runs, begun: Instant::now() };
        let bytes = if bench.is_software() { SOFTWARE_STREAM_BYTES } else { STREAM_BYTES };
        bench.costs = bench.timed(|timer| measure::costs(&bench.device, bytes, timer))?;
        Ok(bench)
    }

    fn is_software(&self) -> bool {
        self.device.adapter().kind == AdapterKind::Software
    }

    fn timed<T>(&self, work: impl FnOnce(Timer<'_>) -> T) -> T {
        let wall = || self.begun.elapsed();
        let clock: &dyn Fn() -> Duration =
            if self.is_software() { &measure::cpu_time } else { &wall };
        work(Timer::new(clock, self.runs))
    }

    /// All figures of these models, each a name and the whole of it, with `context` positions cached.
    pub(super) fn report(
        mut self,
        models: impl Iterator<Item = (String, Result<Subgraph, CliError>)>,
        (context, prompt): (usize, usize),
    ) -> Result<Report, CliError> {
        let mut reports = Vec::new();
        for (name, model) in models {
            reports.push(self.model(name, &model?, (context, prompt))?);
        }
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        Ok(Report {
            gpu: self.device.adapter().to_string(),
            cpu_times: self.is_software(),
            dispatch_us: us(self.costs.dispatch),
            submit_and_wait_us: us(self.costs.submit_and_wait),
            read_back_us: us(self.costs.read_back),
            bandwidth_gb_per_s: self.costs.bandwidth_bytes_per_s as f64 / 1e9,
            models: reports,
        })
    }

    fn model(
        &mut self,
        model: String,
        whole: &Subgraph,
        (context, prompt): (usize, usize),
    ) -> Result<ModelReport, CliError> {
        let positions_max = (context + 64).max(prompt);
        let rows_max = prompt.max(64);
        let limits =
            SlotLimits { sequences_max: 2, positions_max, rows_max, cache: CacheFormat::F16 };
        let mut executable = self.device.prepare(whole, limits)?;
        let weight_bytes = executable.memory().weights;
        let dispatches = measure::dispatches(&self.device, (whole, limits))?;
        let read = weight_bytes as f64 / self.costs.bandwidth_bytes_per_s.max(1) as f64;
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let floor_us = dispatches as f64 * us(self.costs.dispatch) + read * 1e6;
        let base = context as u32;
        let mut passes: Vec<PassReport> = Vec::new();
        for rows in ROWS {
            let time =
                us(self.timed(|timer| measure::pass(&mut *executable, (base, rows), timer))?);
            let one = passes.first().map_or(time, |first| first.us);
            let (over_floor, over_one_row) = (time / floor_us, time / one);
            passes.push(PassReport { rows, us: time, over_floor, over_one_row });
        }
        let mut draft = |steps| {
            self.timed(|timer| measure::draft(&mut *executable, (base, steps), timer)).map(us)
        };
        let (four, eight) = (draft(4)?, draft(8)?);
        let step = (eight - four) / 4.0;
        let prompt_us = match prompt {
            0 => 0.0,
            rows => us(self.timed(|timer| measure::prompt(&mut *executable, rows, timer))?),
        };
        Ok(ModelReport {
            model,
            weight_bytes,
            dispatches,
            floor_us,
            passes,
            prompt_rows: prompt,
            prompt_us,
            draft_of_4_us: four,
            draft_step_us: step,
            draft_of_4_over_steps: four / (4.0 * step),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = if self.cpu_times { "CPU times of the process" } else { "wall clock" };
        writeln!(f, "gpu {}; {clock}", self.gpu)?;
        writeln!(
            f,
            "a dispatch costs {:.2} us, to submit and wait {:.1} us, to read back {:.1} us; memory is read at {:.1} GB/s",
            self.dispatch_us, self.submit_and_wait_us, self.read_back_us, self.bandwidth_gb_per_s
        )?;
        for model in &self.models {
            writeln!(
                f,
                "\n{}: {:.1} MB of packed weights, {} dispatches: floor of a pass {:.0} us",
                model.model,
                model.weight_bytes as f64 / 1e6,
                model.dispatches,
                model.floor_us
            )?;
            writeln!(f, "{:>6} {:>11} {:>10} {:>10}", "rows", "us", "of floor", "over 1 row")?;
            for PassReport { rows, us, over_floor, over_one_row } in &model.passes {
                writeln!(f, "{rows:>6} {us:>11.1} {over_floor:>10.2} {over_one_row:>10.2}")?;
            }
            writeln!(
                f,
                "a draft of 4 in one submission: {:.1} us; one more step {:.1} us; 4 are {:.2} of 4 steps",
                model.draft_of_4_us, model.draft_step_us, model.draft_of_4_over_steps
            )?;
            if model.prompt_rows > 0 {
                let speed = model.prompt_rows as f64 / model.prompt_us * 1e6;
                writeln!(
                    f,
                    "a prompt of {}: {:.1} us, {speed:.0} tokens/s",
                    model.prompt_rows, model.prompt_us
                )?;
            }
        }
        Ok(())
    }
}
