//! Prints what a GPU costs and how long its passes and drafts of a synthetic model take:
//! `cargo run --release -p outrider-devices --example gpu_steps -- [layers width heads kv_heads ffn vocabulary] [format] [tuning=numbers ..]`.
//! On a software rasteriser set `LP_NUM_THREADS=1`; the CPU time is that of the whole process.

use std::time::Duration;

use outrider_devices::gpu::measure::{self, Timer};
use outrider_devices::gpu::{AdapterKind, Backing, GpuDevice, GpuOptions, GpuSelector, Tuning};
use outrider_devices::graph::WeightFormat;
use outrider_devices::{Device, DeviceError, SlotLimits, Subgraph, synthetic};

fn main() -> Result<(), DeviceError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let sizes: Vec<usize> = args.iter().map_while(|a| a.parse().ok()).collect();
    let shape = sizes.try_into().unwrap_or([8, 768, 12, 12, 2048, 8192]);
    let format = match args.iter().map(String::as_str).find(|a| a.starts_with(['Q', 'F'])) {
        Some("Q4_0") => WeightFormat::Q4_0,
        Some("F16") => WeightFormat::F16,
        _ => WeightFormat::Q8_0,
    };
    let software = GpuDevice::open(&GpuSelector::Best, GpuOptions::default())?.adapter().kind
        == AdapterKind::Software;
    let begin = std::time::Instant::now();
    let wall = || begin.elapsed();
    let timer = Timer::new(if software { &cpu_time } else { &wall }, 20);
    report(if software { "Times are CPU times." } else { "Times are by the wall clock." });
    let tuning = tuned(GpuDevice::open(&GpuSelector::Best, GpuOptions::default())?.tuning(), &args);
    let options = GpuOptions { tuning: Some(tuning), ..GpuOptions::default() };
    let mut device = GpuDevice::open(&GpuSelector::Best, options)?;
    report(&format!("{}\n{:?}", device.adapter(), device.tuning()));
    report(&format!("{:?}", measure::costs(&device, 256 << 20, timer)?));
    let model = synthetic::llama(&synthetic::shape(shape), format, 1);
    let parameters: usize = model.weights.iter().map(|w| w.elements()).sum();
    let whole = Subgraph::cut("model", &model, 0, shape[0]).expect("all layers");
    let limits = SlotLimits { sequences_max: 2, positions_max: 1024, rows_max: 64 };
    let before = begin.elapsed();
    let mut executable = device.prepare(&whole, limits)?;
    let (taken, memory) = (begin.elapsed() - before, executable.memory());
    let millions = parameters as f64 / 1e6;
    report(&format!("{millions:.1} M parameters, {format}: prepared in {taken:?}, {memory:?}"));
    for rows in [1, 2, 4, 8] {
        let time = measure::pass(&mut *executable, (64, rows), timer)?;
        report(&format!("{rows:>3} rows: {time:?}"));
    }
    for steps in [1, 4, 8] {
        let time = measure::draft(&mut *executable, (64, steps), timer)?;
        report(&format!("draft of {steps}: {time:?}"));
    }
    for rows in [1, 8] {
        let kernels = measure::kernels(&device, (&whole, limits), rows, timer)?;
        let count = kernels.len();
        for (index, kernel) in kernels.iter().enumerate() {
            if index < 6 || index + 3 >= count {
                report(&format!("{rows} rows: {:>24} {:?}", kernel.label, kernel.time));
            }
        }
    }
    Ok(())
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
            "attention" => tuning.attention_subgroups = numbers[0],
            "span" => tuning.pick_span = numbers[0],
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

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        total += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Duration::from_nanos(total)
}
