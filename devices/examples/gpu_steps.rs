//! Prints what a GPU costs, and how long its passes and drafts of synthetic models take beside the least that they could:
//! `cargo run --release -p outrider-devices --example gpu_steps -- [shape ..] [format] [tuning=numbers ..] [sweep | quick]
//! [rows=1,2,4,8]`.
//!
//! A shape is `target` or `draft` (of the shipped pair's sizes), `63m`, `350m`, or six numbers with commas between:
//! layers, width, heads, heads for keys, feed-forward width, vocabulary. The floor of a pass is what its dispatches cost
//! when they do nothing, and what reading its weights costs at the measured bandwidth. `sweep` varies the tuning, one
//! number at a time, `quick` prints one line a model. On a software rasteriser set `LP_NUM_THREADS=1`; times are the CPU's there, of the whole process.

use std::time::{Duration, Instant};

use outrider_devices::gpu::measure::{self, GpuCosts, Timer};
use outrider_devices::gpu::{
    AdapterKind, Backing, GpuDevice, GpuOptions, GpuSelector, Sums, Tuning,
};
use outrider_devices::graph::{Graph, WeightFormat};
use outrider_devices::{CacheFormat, Device, DeviceError, SlotLimits, Subgraph, synthetic};

const LIMITS: SlotLimits =
    SlotLimits { sequences_max: 2, positions_max: 1024, rows_max: 64, cache: CacheFormat::F16 };
/// Positions that are cached when a pass begins.
const BASE: u32 = 64;

fn main() -> Result<(), DeviceError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let shapes: Vec<_> = args.iter().filter_map(|a| Some((a.as_str(), shape(a)?))).collect();
    let format = match args.iter().map(String::as_str).find(|a| a.starts_with(['Q', 'F'])) {
        Some("Q4_0") => WeightFormat::Q4_0,
        Some("Q4_K") => WeightFormat::Q4_K,
        Some("F16") => WeightFormat::F16,
        _ => WeightFormat::Q8_0,
    };
    let opened = GpuDevice::open(&GpuSelector::Best, GpuOptions::default())?;
    let software = opened.adapter().kind == AdapterKind::Software;
    let tuning = tuned(opened.tuning(), &args);
    let asked = args.iter().find_map(|a| a.strip_prefix("rows="));
    let rows: Vec<usize> =
        asked.unwrap_or("1,2,4,8").split(',').map_while(|n| n.parse().ok()).collect();
    drop(opened);
    let begin = Instant::now();
    let wall = || begin.elapsed();
    let timer = Timer::new(if software { &measure::cpu_time } else { &wall }, 30);
    report(if software { "Times are CPU times." } else { "Times are by the wall clock." });
    let device = open(&tuning)?;
    report(&format!("{}\n{tuning:?}", device.adapter()));
    let costs = measure::costs(&device, if software { 16 } else { 512 } << 20, timer)?;
    report(&format!("{costs:?}"));
    for (name, shape) in &shapes {
        let model = synthetic::llama(&synthetic::shape(*shape), format, 1);
        let parameters: usize = model.weights.iter().map(|w| w.elements()).sum();
        report(&format!("\n{name}: {:.1} M parameters, {format}", parameters as f64 / 1e6));
        if args.iter().any(|a| a == "quick") {
            report(&summary(&tuning, (&model, shape[0]), &rows, timer)?);
        } else if args.iter().any(|a| a == "sweep") {
            for (what, tuning) in variations(&tuning) {
                match summary(&tuning, (&model, shape[0]), &rows, timer) {
                    Ok(line) => report(&format!("{what:<28} {line}")),
                    Err(error) => report(&format!("{what:<28} {error}")),
                }
            }
        } else {
            table(&tuning, (&model, shape[0]), costs, timer)?;
        }
    }
    Ok(())
}

fn shape(name: &str) -> Option<[usize; 6]> {
    match name {
        "target" => Some([8, 512, 8, 4, 1536, 8192]),
        "draft" => Some([3, 256, 4, 2, 704, 8192]),
        "63m" => Some([8, 768, 12, 12, 2048, 8192]),
        "350m" => Some([24, 1024, 16, 16, 2816, 32000]),
        "350m-part" => Some([4, 1024, 16, 16, 2816, 32000]),
        _ => name
            .split(',')
            .map_while(|n| n.parse().ok())
            .collect::<Vec<_>>()
            .try_into()
            .ok()
            .filter(|_| name.contains(',')),
    }
}

fn open(tuning: &Tuning) -> Result<GpuDevice, DeviceError> {
    let options = GpuOptions { tuning: Some(tuning.clone()), ..GpuOptions::default() };
    GpuDevice::open(&GpuSelector::Best, options)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Everything about one model.
fn table(
    tuning: &Tuning,
    (model, layers): (&Graph, usize),
    costs: GpuCosts,
    timer: Timer<'_>,
) -> Result<(), DeviceError> {
    let mut device = open(tuning)?;
    let whole = Subgraph::cut("model", model, 0, layers).expect("all layers");
    let before = Instant::now();
    let mut executable = device.prepare(&whole, LIMITS)?;
    let memory = executable.memory();
    report(&format!("prepared in {:?}, {memory:?}", before.elapsed()));
    let kernels = measure::kernels(&device, (&whole, LIMITS), 1, timer)?;
    let bytes = memory.weights as f64 / costs.bandwidth_bytes_per_s as f64 * 1e6;
    let floor = kernels.len() as f64 * micros(costs.dispatch) + bytes;
    report(&format!(
        "floor of a pass {floor:.0} us: {} dispatches, {bytes:.0} us of bytes",
        kernels.len()
    ));
    let mut first = None;
    for rows in 1..=8 {
        let time = micros(measure::pass(&mut *executable, (BASE, rows), timer)?);
        let one = *first.get_or_insert(time);
        let (by_floor, by_one) = (time / floor, time / one);
        report(&format!("{rows} rows: {time:>7.0} us, {by_floor:.2} floors, t/t(1) {by_one:.2}"));
    }
    let mut draft = |steps| measure::draft(&mut *executable, (BASE, steps), timer).map(micros);
    let (one, four, eight) = (draft(1)?, draft(4)?, draft(8)?);
    let step = (eight - four) / 4.0;
    report(&format!(
        "draft of 1, 4, 8: {one:.0}, {four:.0}, {eight:.0} us; marginal step {step:.0} us; 4 are {:.2} of 4 steps",
        four / (4.0 * step)
    ));
    for rows in [1, 8] {
        let kernels = measure::kernels(&device, (&whole, LIMITS), rows, timer)?;
        let count = kernels.len();
        let total: f64 = kernels.iter().map(|k| micros(k.time)).sum();
        report(&format!("{rows} rows, kernels one by one: {total:.0} us"));
        for (index, kernel) in kernels.iter().enumerate() {
            if index < 6 || index + 3 >= count {
                report(&format!("  {:>24} {:.1} us", kernel.label, micros(kernel.time)));
            }
        }
    }
    Ok(())
}

/// Times of passes of these `rows` and a draft of 4, in one line.
fn summary(
    tuning: &Tuning,
    (model, layers): (&Graph, usize),
    rows: &[usize],
    timer: Timer<'_>,
) -> Result<String, DeviceError> {
    let whole = Subgraph::cut("model", model, 0, layers).expect("all layers");
    let mut executable = open(tuning)?.prepare(&whole, LIMITS)?;
    let mut line = String::new();
    for &rows in rows {
        let time = measure::pass(&mut *executable, (BASE, rows), timer)?;
        line.push_str(&format!("{rows}: {:.0} ", micros(time)));
    }
    let draft = micros(measure::draft(&mut *executable, (BASE, 4), timer)?);
    Ok(format!("{line}draft of 4: {draft:.0} us"))
}

/// `base`, and `base` with one number changed.
fn variations(base: &Tuning) -> Vec<(String, Tuning)> {
    let mut all = vec![("as it is".to_owned(), base.clone())];
    let mut vary = |what: &str, change: &dyn Fn(&mut Tuning)| {
        let mut tuning = base.clone();
        change(&mut tuning);
        if tuning != *base {
            all.push((what.to_owned(), tuning));
        }
    };
    let lanes = base.lanes;
    vary("texture", &|t| t.backing = Backing::Texture);
    vary("buffer", &|t| t.backing = Backing::Buffer);
    vary("attention 2", &|t| t.attention_subgroups = 2);
    vary("whole sums", &|t| t.sums = Sums::Whole);
    vary("sums by halves", &|t| t.sums = Sums::Halves);
    vary("lanes_max 1x", &|t| t.lanes_max = lanes);
    vary("lanes_max 2x", &|t| t.lanes_max = 2 * lanes);
    vary("lanes 2x", &|t| t.lanes = 2 * lanes);
    vary("lanes 4x", &|t| t.lanes = 4 * lanes);
    vary("lanes 4x, chunk 16", &|t| (t.lanes, t.chunk) = (4 * lanes, 16));
    vary("lanes 4x, chunk 8", &|t| (t.lanes, t.chunk) = (4 * lanes, 8));
    vary("chunk 32", &|t| t.chunk = 32);
    vary("chunk 16", &|t| t.chunk = 16);
    vary("chunk 8", &|t| t.chunk = 8);
    vary("tiles 2 1 1 1", &|t| t.tiles = [2, 1, 1, 1]);
    vary("tiles 2 2 2 2", &|t| t.tiles = [2; 4]);
    vary("tiles 1 1 2 2", &|t| t.tiles = [1, 1, 2, 2]);
    vary("tiles 1 1 1 2", &|t| t.tiles = [1, 1, 1, 2]);
    vary("unroll 4", &|t| t.unroll = [4; 4]);
    vary("unroll 2", &|t| t.unroll = [2; 4]);
    vary("unroll 8 8 4 2", &|t| t.unroll = [8, 8, 4, 2]);
    vary("attention 1", &|t| t.attention_subgroups = 1);
    vary("attention 8", &|t| t.attention_subgroups = 8);
    vary("span 256", &|t| t.pick_span = 256);
    vary("span 4096", &|t| t.pick_span = 4096);
    vary("submit at the end", &|t| t.submit_dispatches = usize::MAX);
    vary("submit every 12", &|t| t.submit_dispatches = 12);
    vary("submit every 48", &|t| t.submit_dispatches = 48);
    vary("no spinning", &|t| t.spin = Duration::ZERO);
    all
}

/// `base` with the arguments of the form `name=numbers` put in its place.
fn tuned(base: &Tuning, args: &[String]) -> Tuning {
    let mut tuning = base.clone();
    for (name, value) in args.iter().filter_map(|a| a.split_once('=')) {
        let numbers: Vec<u32> = value.split(',').map_while(|n| n.parse().ok()).collect();
        let four = || numbers.clone().try_into().expect("four numbers");
        match name {
            "tiles" => tuning.tiles = four(),
            "unroll" => tuning.unroll = four(),
            "chunk" => tuning.chunk = numbers[0],
            "lanes" => tuning.lanes = numbers[0],
            "lanes_max" => tuning.lanes_max = numbers[0],
            "attention" => tuning.attention_subgroups = numbers[0],
            "attention_span" => tuning.attention_span = numbers[0],
            "span" => tuning.pick_span = numbers[0],
            "submit" => tuning.submit_dispatches = numbers[0] as usize,
            "spin" => tuning.spin = Duration::from_micros(numbers[0].into()),
            "rows" => {}
            "sums" if value == "whole" => tuning.sums = Sums::Whole,
            "sums" if value == "halves" => tuning.sums = Sums::Halves,
            "backing" if value == "texture" => tuning.backing = Backing::Texture,
            "backing" if value == "buffer" => tuning.backing = Backing::Buffer,
            _ => panic!("unknown tuning {name}={value}"),
        }
    }
    tuning
}

#[expect(clippy::print_stdout, reason = "its purpose")]
fn report(line: &str) {
    println!("{line}");
}
