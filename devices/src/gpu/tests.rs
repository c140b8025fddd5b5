//! The unit's claims on whatever adapter there is: in CI a software rasteriser. Without one they are skipped, unless
//! `OUTRIDER_REQUIRE_GPU=1` says that there must be one.

use std::sync::Arc;

use super::{GpuDevice, GpuFault, GpuOptions, GpuSelector, Tuning, discover};
use crate::batch::{
    Activations, Batch, DraftBatch, DraftSegment, Output, Pick, Picked, Segment, SequenceId, Want,
};
use crate::device::{Device, DeviceError, Executable, SlotLimits, draft_step_by_step};
use crate::graph::{LlamaShape, RopeStyle, Subgraph, WeightFormat};
use crate::reference::ReferenceDevice;
use crate::sampling::{Sampling, Scratch, pick};
use crate::synthetic;

const LIMITS: SlotLimits = SlotLimits { sequences_max: 3, positions_max: 80, rows_max: 64 };

/// Opens the best adapter, or says why the test is skipped.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn open(options: GpuOptions) -> Option<GpuDevice> {
    match GpuDevice::open(&GpuSelector::Best, options) {
        Ok(device) => Some(device),
        Err(error) if std::env::var_os("OUTRIDER_REQUIRE_GPU").is_some_and(|v| v == "1") => {
            panic!("OUTRIDER_REQUIRE_GPU is set, but: {error}")
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn whole(shape: &LlamaShape, format: WeightFormat) -> Subgraph {
    let model = synthetic::llama(shape, format, 7);
    Subgraph::cut("model", &model, 0, shape.layers).unwrap()
}

fn segment(sequence: u64, base: u32, tokens: &[u32], want: Want) -> Segment {
    let sampling = Arc::new(Sampling::default());
    Segment { sequence: SequenceId(sequence), base, tokens: tokens.to_vec(), want, sampling }
}

fn one(sequence: u64, base: u32, tokens: &[u32], want: Want) -> Batch {
    Batch { segments: vec![segment(sequence, base, tokens, want)] }
}

fn text(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + seed * 11 + i * i % 7) % 96).collect()
}

fn picked(executable: &mut dyn Executable, batch: &Batch) -> Picked {
    match executable.run(batch, None).unwrap() {
        Output::Picked(picked) => picked,
        Output::Activations(_) => panic!("picks were expected"),
    }
}

/// The largest difference, relative to the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0.0f32, |d, (a, b)| d.max((a - b).abs())) / most
}

fn agrees(device: &mut GpuDevice, subgraph: &Subgraph, tolerance: f32, what: &str) {
    let mut gpu = device.prepare(subgraph, LIMITS).unwrap();
    let mut oracle = ReferenceDevice.prepare(subgraph, LIMITS).unwrap();
    for (sequence, rows) in [1usize, 2, 3, 4, 8, 17, 33, 64].into_iter().enumerate() {
        let batch = one(sequence as u64, 0, &text(rows, 3), Want::Logits(rows as u32));
        let found = picked(&mut *gpu, &batch);
        let expected = picked(&mut *oracle, &batch);
        let difference = difference(&found.logits, &expected.logits);
        assert!(difference < tolerance, "{what}, {rows} rows: differ by {difference}");
        gpu.release(SequenceId(sequence as u64));
        oracle.release(SequenceId(sequence as u64));
    }
}

#[test]
fn logits_agree_with_the_reference_in_every_format() {
    let Some(mut device) = open(GpuOptions::default()) else { return };
    for (format, tolerance) in [
        (WeightFormat::Q8_0, 2e-3),
        (WeightFormat::Q4_0, 2e-3),
        (WeightFormat::F16, 2e-3),
        (WeightFormat::Q4_1, 2e-3),
        (WeightFormat::Q5_0, 2e-3),
        (WeightFormat::F32, 4e-3),
        (WeightFormat::Q5_1, 2e-2),
    ] {
        let subgraph = whole(&synthetic::tiny(2), format);
        agrees(&mut device, &subgraph, tolerance, &format.to_string());
    }
}
