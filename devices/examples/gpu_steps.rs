//! Prints what a GPU costs and how long its passes and drafts of a synthetic model take:
//! `cargo run --release -p outrider-devices --example gpu_steps -- [layers width heads kv_heads ffn vocabulary [format]]`.
//! On a software rasteriser set `LP_NUM_THREADS=1`; the CPU time is that of the whole process.

use std::time::Duration;

use outrider_devices::gpu::{GpuDevice, GpuOptions, GpuSelector, measure};
use outrider_devices::graph::WeightFormat;
use outrider_devices::{Device, DeviceError, SlotLimits, Subgraph, synthetic};

fn main() -> Result<(), DeviceError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let sizes: Vec<usize> = args.iter().map_while(|a| a.parse().ok()).collect();
    let shape = sizes.try_into().unwrap_or([8, 768, 12, 12, 2048, 8192]);
    let format = match args.last().map(String::as_str) {
        Some("Q4_0") => WeightFormat::Q4_0,
        Some("F16") => WeightFormat::F16,
        _ => WeightFormat::Q8_0,
    };
    let mut device = GpuDevice::open(&GpuSelector::Best, GpuOptions::default())?;
    report(&format!("{}\n{:?}", device.adapter(), device.tuning()));
    report(&format!("{:?}", measure::costs(&device, 256 << 20, 5)?));
    let model = synthetic::llama(&synthetic::shape(shape), format, 1);
    let parameters: usize = model.weights.iter().map(|w| w.elements()).sum();
    let whole = Subgraph::cut("model", &model, 0, shape[0]).expect("all layers");
    let begin = std::time::Instant::now();
    let limits = SlotLimits { sequences_max: 2, positions_max: 1024, rows_max: 64 };
    let mut executable = device.prepare(&whole, limits)?;
    let memory = executable.memory();
    report(&format!(
        "{} M parameters, {format}: prepared in {:?}, {memory:?}",
        parameters / 1_000_000,
        begin.elapsed()
    ));
    for rows in [1, 2, 4, 8, 32] {
        let (repetitions, before) = (20, cpu_time());
        let time = measure::pass(&mut *executable, (64, rows), repetitions)?;
        let each = (cpu_time() - before) / (repetitions + 1);
        report(&format!("{rows:>3} rows: {time:?}, with {each:?} of the CPU on average"));
    }
    for steps in [1, 4, 8] {
        let time = measure::draft(&mut *executable, (64, steps), 10)?;
        report(&format!("draft of {steps}: {time:?}"));
    }
    Ok(())
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
