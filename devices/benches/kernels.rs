//! Forwards of synthetic models on one core, by rows of a verification batch: where a change of the kernels shows.
//!
//! *Invariant:* weights are synthetic, so the benches need no file. `cargo bench -p outrider-devices`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use outrider_devices::cpu::{CpuDevice, CpuOptions};
use outrider_devices::graph::{Subgraph, WeightFormat};
use outrider_devices::{
    Batch, CacheFormat, Device, Executable, Sampling, Segment, SequenceId, SlotLimits, Want,
    synthetic,
};

/// Positions cached before the timed rows.
const CONTEXT: u32 = 64;
const LIMITS: SlotLimits =
    SlotLimits { sequences_max: 1, positions_max: 96, rows_max: 64, cache: CacheFormat::F16 };

fn batch(base: u32, rows: u32, want: Want) -> Batch {
    let segment = Segment {
        sequence: SequenceId(0),
        base,
        tokens: (0..rows).map(|i| (base + i) % 32).collect(),
        want,
        sampling: Arc::new(Sampling::default()),
    };
    Batch { segments: vec![segment] }
}

fn prepared(sizes: [usize; 6], format: WeightFormat) -> Box<dyn Executable> {
    let shape = synthetic::shape(sizes);
    let model = synthetic::llama(&shape, format, 1);
    let whole = Subgraph::cut("bench", &model, 0, shape.layers).expect("a whole model");
    let mut device = CpuDevice::new(CpuOptions::default()).expect("one thread");
    let mut executable = device.prepare(&whole, LIMITS).expect("a model that fits");
    executable.run(&batch(0, CONTEXT, Want::Nothing), None).expect("a run");
    executable
}

fn forwards(criterion: &mut Criterion) {
    let models = [
        ("draft Q8_0", [3, 256, 4, 2, 704, 8192], WeightFormat::Q8_0),
        ("target Q8_0", [8, 512, 8, 4, 1536, 8192], WeightFormat::Q8_0),
        ("target Q4_0", [8, 512, 8, 4, 1536, 8192], WeightFormat::Q4_0),
        ("target F16", [8, 512, 8, 4, 1536, 8192], WeightFormat::F16),
    ];
    for (name, sizes, format) in models {
        let mut executable = prepared(sizes, format);
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(executable.memory().weights));
        for rows in [1, 2, 4, 8, 16] {
            let rows_batch = batch(CONTEXT, rows, Want::Picks(rows));
            group.bench_function(BenchmarkId::from_parameter(rows), |bencher| {
                bencher.iter(|| black_box(executable.run(&rows_batch, None)).expect("a run"));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, forwards);
criterion_main!(benches);
