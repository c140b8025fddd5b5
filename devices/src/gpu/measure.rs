//! Measures what a cost model needs to know of a GPU: the price of a dispatch, a submission and a read-back, the
//! bandwidth of its memory, and how long a pass or a draft of an executable takes.
//!
//! *Invariant:* each figure is the least of its repetitions, so that a disturbance can only be missed, not added.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::GpuDevice;
use super::context::{Context, Doing};
use super::kernels::{Bind, Shader, Writer};
use super::pipelines::Pipelines;
use super::record::Scripter;
use super::stage::{Reach, Stage, Step};
use crate::DeviceError;
use crate::batch::{Batch, DraftBatch, DraftSegment, Segment, SequenceId, Want};
use crate::device::{Executable, SlotLimits};
use crate::graph::Subgraph;
use crate::sampling::Sampling;

/// What talking to a GPU costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuCosts {
    /// One more small dispatch that depends on the one before.
    pub dispatch: Duration,
    /// A submission of one small dispatch, and waiting for it.
    pub submit_and_wait: Duration,
    /// As `submit_and_wait`, with 64 bytes copied out, mapped and read.
    pub read_back: Duration,
    /// Bytes a second of a kernel that only reads.
    pub bandwidth_bytes_per_s: u64,
}

/// How to time: by which clock, and how often.
#[derive(Clone, Copy)]
pub struct Timer<'a> {
    clock: &'a dyn Fn() -> Duration,
    repetitions: u32,
}

impl fmt::Debug for Timer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "least of {}", self.repetitions)
    }
}

impl<'a> Timer<'a> {
    /// The least of `repetitions` by `clock`, which tells the time since any fixed moment.
    pub fn new(clock: &'a dyn Fn() -> Duration, repetitions: u32) -> Self {
        Self { clock, repetitions: repetitions.max(1) }
    }

    /// The least time that `work` takes, after one run that is not counted.
    fn least(
        &self,
        mut work: impl FnMut() -> Result<(), DeviceError>,
    ) -> Result<Duration, DeviceError> {
        work()?;
        (0..self.repetitions).try_fold(Duration::MAX, |least, _| {
            let begin = (self.clock)();
            work()?;
            Ok(least.min((self.clock)().saturating_sub(begin)))
        })
    }
}

/// Time of one kernel of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelTime {
    /// What it computes.
    pub label: &'static str,
    /// One dispatch of it, among others of its kind.
    pub time: Duration,
}

/// Dispatches of one chain.
const CHAIN: u32 = 256;
/// Lanes of the reading kernel's workgroup, and workgroups.
const READERS: (u32, u32) = (64, 1024);

/// A kernel bound to a buffer.
struct Probe {
    pipeline: Arc<wgpu::ComputePipeline>,
    bindings: [wgpu::BindGroup; 2],
    groups: u32,
}

impl Probe {
    fn new(
        context: &Context,
        shader: &Shader,
        buffers: [&wgpu::Buffer; 2],
        groups: u32,
    ) -> Result<Self, DeviceError> {
        let mut pipelines = Pipelines::new(context, "a probe");
        let resources = vec![buffers[0].as_entire_binding()];
        let bindings = [
            pipelines.bind(&shader.binds, resources)?,
            pipelines.bind(&[shader.state], vec![buffers[1].as_entire_binding()])?,
        ];
        Ok(Self { pipeline: pipelines.compile(shader)?, bindings, groups })
    }

    /// Records `count` runs of it, then a copy if asked, and waits.
    fn run(
        &self,
        context: &Context,
        count: u32,
        copy: Option<(&wgpu::Buffer, &wgpu::Buffer)>,
    ) -> Result<(), DeviceError> {
        let mut encoder = context.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.pipeline);
            for (group, bindings) in (0..).zip(&self.bindings) {
                pass.set_bind_group(group, bindings, &[]);
            }
            for _ in 0..count {
                pass.dispatch_workgroups(self.groups, 1, 1);
            }
        }
        let Some((from, to)) = copy else {
            return context.wait(context.submit(vec![context.finish(encoder)?])?);
        };
        encoder.copy_buffer_to_buffer(from, 0, to, 0, 64);
        let submission = context.submit(vec![context.finish(encoder)?])?;
        to.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        context.wait(submission)?;
        let view = to.slice(..).get_mapped_range().map_err(|e| context.lost(e.to_string()))?;
        std::hint::black_box(view[0]);
        drop(view);
        to.unmap();
        Ok(())
    }
}

/// Measures `device`; the bandwidth over a buffer of `bytes`, at most the adapter's
/// limit, which should exceed its caches.
pub fn costs(device: &GpuDevice, bytes: u64, timer: Timer<'_>) -> Result<GpuCosts, DeviceError> {
    let context = device.context();
    let limits = &context.limits;
    let words = bytes.min(limits.max_storage_buffer_binding_size).min(limits.max_buffer_size) / 16;
    let lanes = u64::from(READERS.0) * u64::from(READERS.1);
    let rounds = (words / lanes).max(1);
    let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let big = make(context, storage, rounds * lanes * 16)?;
    let small = make(context, storage, lanes.max(64) * 4)?;
    let answer = make(context, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST, 64)?;

    let chained = Probe::new(context, &chain_shader(), [&big, &small], 1)?;
    let one = timer.least(|| chained.run(context, 1, None))?;
    let many = timer.least(|| chained.run(context, 1 + CHAIN, None))?;
    let read_back = timer.least(|| chained.run(context, 1, Some((&small, &answer))))?;
    let reader = Probe::new(context, &read_shader(rounds as u32), [&big, &small], READERS.1)?;
    let once = timer.least(|| reader.run(context, 1, None))?;
    let five = timer.least(|| reader.run(context, 5, None))?;
    let per_read = five.saturating_sub(once).as_secs_f64() / 4.0;
    Ok(GpuCosts {
        dispatch: many.saturating_sub(one) / CHAIN,
        submit_and_wait: one,
        read_back,
        bandwidth_bytes_per_s: ((rounds * lanes * 16) as f64 / per_read.max(1e-9)) as u64,
    })
}

fn make(
    context: &Context,
    usage: wgpu::BufferUsages,
    size: u64,
) -> Result<wgpu::Buffer, DeviceError> {
    context.scoped(Doing::Allocating("a probe"), || {
        context.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("probe"),
            size,
            usage,
            mapped_at_creation: false,
        })
    })
}

/// Each dispatch adds to what the one before wrote.
fn chain_shader() -> Shader {
    let mut w = Writer::new("chain", Bind::Write);
    w.read("unused", "vec4<u32>");
    w.line("state[0] = state[0] + unused[0];");
    w.finish(8)
}

/// Reads a whole buffer once, `rounds` words a lane.
fn read_shader(rounds: u32) -> Shader {
    let mut w = Writer::new("read", Bind::Write);
    let all = READERS.0 * READERS.1;
    w.read("words", "vec4<u32>");
    w.line(format!("let first = group.x * {}u + lane;", READERS.0));
    w.line("var sum = vec4<u32>(0u);");
    w.line(format!("for (var i = 0u; i < {rounds}u; i += 1u) {{"));
    w.line(format!("sum ^= words[first + i * {all}u];"));
    w.line("}");
    w.line("let one = (sum.x ^ sum.y) ^ (sum.z ^ sum.w);");
    w.line("if (one == 0x12345678u) { state[group.x] = sum; }");
    w.finish(READERS.0)
}

fn batch(base: u32, rows: usize, want: Want) -> Segment {
    let sampling = Arc::new(Sampling::default());
    let tokens = (0..rows as u32).map(|i| i % 7).collect();
    Segment { sequence: SequenceId(u64::MAX), base, tokens, want, sampling }
}

/// The least time of a pass of `executable`, a whole model, over `rows` rows at `base`, all picked. Fills and frees a
/// slot of its own.
pub fn pass(
    executable: &mut dyn Executable,
    (base, rows): (u32, usize),
    timer: Timer<'_>,
) -> Result<Duration, DeviceError> {
    fill(executable, base)?;
    let batch = Batch { segments: vec![batch(base, rows, Want::Picks(rows as u32))] };
    let time = timer.least(|| executable.run(&batch, None).map(drop));
    executable.release(SequenceId(u64::MAX));
    time
}

/// The least time of a draft of `steps` tokens at `base`, as [`pass`].
pub fn draft(
    executable: &mut dyn Executable,
    (base, steps): (u32, u32),
    timer: Timer<'_>,
) -> Result<Duration, DeviceError> {
    fill(executable, base)?;
    let segment = batch(base, 1, Want::Picks(1));
    let ask = DraftSegment { segment, steps, probability_min: 0.0 };
    let ask = DraftBatch { segments: vec![ask], stop_tokens: Arc::new([]) };
    let time = timer.least(|| executable.draft(&ask).map(drop));
    executable.release(SequenceId(u64::MAX));
    time
}

/// The least time of a prompt of `rows` rows, of which the last is picked, as [`pass`].
pub fn prompt(
    executable: &mut dyn Executable,
    rows: usize,
    timer: Timer<'_>,
) -> Result<Duration, DeviceError> {
    let batch = Batch { segments: vec![batch(0, rows, Want::Picks(1))] };
    let time = timer.least(|| executable.run(&batch, None).map(drop));
    executable.release(SequenceId(u64::MAX));
    time
}

/// Dispatches of a pass of one row of `subgraph`.
pub fn dispatches(
    device: &GpuDevice,
    (subgraph, limits): (&Subgraph, SlotLimits),
) -> Result<usize, DeviceError> {
    let stage = Stage::build(device.context(), subgraph, limits)?;
    let near = |step: &&Step| matches!(step.reach, Reach::Any | Reach::Near);
    let body = stage.steps.body.iter().filter(near).count();
    Ok(body + stage.steps.head.len() + stage.steps.merge.len().min(1))
}

/// CPU time of this process so far, all its threads together: the clock of a software rasteriser. Zero where the system does
/// not tell.
pub fn cpu_time() -> Duration {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        total += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Duration::from_nanos(total)
}

/// Caches `base` positions, 8 rows at a time.
fn fill(executable: &mut dyn Executable, base: u32) -> Result<(), DeviceError> {
    for first in (0..base).step_by(8) {
        let rows = (base - first).min(8) as usize;
        executable.run(&Batch { segments: vec![batch(first, rows, Want::Nothing)] }, None)?;
    }
    Ok(())
}

/// Times every kernel of `subgraph` on its own, in the order of a pass over `rows` rows that all run through the head.
/// The rows hold nothing: attention is that of an empty cache.
pub fn kernels(
    device: &GpuDevice,
    (subgraph, limits): (&Subgraph, SlotLimits),
    rows: usize,
    timer: Timer<'_>,
) -> Result<Vec<KernelTime>, DeviceError> {
    const RUNS: u32 = 8;
    let context = device.context();
    let stage = Stage::build(context, subgraph, limits)?;
    let time = |step: &Step, state: &wgpu::BindGroup| {
        let run = |count: u32| {
            let mut scripter = Scripter::new(&context.tuning);
            scripter.bind_state(state);
            (0..count).for_each(|_| scripter.dispatch(step, (rows, 1)));
            let script = scripter.finish([]);
            context.wait_for_compiler(script.submit(context, Vec::new())?)
        };
        let (one, many) = (timer.least(|| run(1))?, timer.least(|| run(1 + RUNS))?);
        Ok(KernelTime { label: step.label, time: many.saturating_sub(one) / RUNS })
    };
    let (first, both) = (&stage.buffers.first, &stage.buffers.both);
    let near = |step: &&Step| matches!(step.reach, Reach::Any | Reach::Near);
    let body = stage.steps.body.iter().filter(near).chain(&stage.steps.head);
    let body = body.map(|step| time(step, first));
    body.chain(stage.steps.merge.first().map(|step| time(step, both))).collect()
}
