//! Numbers against other engines on the same files; by hand, because the engines are large.
//!
//! ```text
//! OUTRIDER_PEERS_PYTHON=python-with-torch-and-transformers OUTRIDER_PEERS_CHECKPOINTS=folder:folder \
//!     cargo test --release -p outrider-tests peers -- --ignored --nocapture
//! ```

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use outrider_devices::cpu::{CpuDevice, CpuOptions};
use outrider_devices::reference::ReferenceDevice;
use outrider_devices::{
    Batch, CacheFormat, Device, Output, Sampling, Segment, SequenceId, SlotLimits, Subgraph, Want,
};
use outrider_pipeline::{Model, ModelSource};

/// Largest difference of a logit over the largest logit of its row.
const REFERENCE_TOLERANCE: f32 = 1e-4;
/// The CPU unit's: 16-bit weights are exact, its cache holds 16-bit floats.
const CPU_TOLERANCE: f32 = 1e-2;

fn logits(device: &mut dyn Device, stage: &Subgraph, ids: &[u32]) -> Vec<f32> {
    let limits =
        SlotLimits { sequences_max: 1, positions_max: 128, rows_max: 128, cache: CacheFormat::F16 };
    let mut executable = device.prepare(stage, limits).unwrap();
    let segment = Segment {
        sequence: SequenceId(1),
        base: 0,
        tokens: ids.to_vec(),
        want: Want::Logits(ids.len() as u32),
        sampling: Arc::new(Sampling::default()),
    };
    match executable.run(&Batch { segments: vec![segment] }, None).unwrap() {
        Output::Picked(picked) => picked.logits,
        Output::Activations(_) => panic!("a whole model ends in logits"),
    }
}

/// The largest difference in any row over the row's largest logit, and whether every row has the same best token.
fn difference(found: &[f32], expected: &[Vec<f32>]) -> (f32, bool) {
    let (mut worst, mut same) = (0f32, true);
    for (found, expected) in found.chunks(expected[0].len()).zip(expected) {
        let scale = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
        worst = worst.max(differences.fold(0f32, f32::max) / scale);
        let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        same &= best(found) == best(expected);
    }
    (worst, same)
}

#[test]
#[ignore = "needs torch and transformers, see the top of the file"]
fn logits_agree_with_transformers() {
    let python = std::env::var_os("OUTRIDER_PEERS_PYTHON").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/transformers_logits.py");
    let text = "Please restart the computer to finish the installation.";
    for folder in std::env::split_paths(&std::env::var_os("OUTRIDER_PEERS_CHECKPOINTS").unwrap()) {
        let model = Model::open(&ModelSource::File(PathBuf::from(&folder))).unwrap();
        let vocabulary = model.config().shape.vocabulary as u32;
        let ids: Vec<u32> = text.bytes().map(|b| (u32::from(b) * 31) % vocabulary).collect();
        let words = ids.iter().map(u32::to_string);
        let output = Command::new(&python).arg(script).arg(&folder).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let expected: Vec<Vec<f32>> = serde_json::from_slice(&output.stdout).unwrap();
        let stage = model.subgraph("target", 0, model.config().shape.layers).unwrap();
        let mut cpu = CpuDevice::new(CpuOptions::default()).unwrap();
        let devices: [(&str, &mut dyn Device, f32); 2] = [
            ("reference", &mut ReferenceDevice, REFERENCE_TOLERANCE),
            ("cpu", &mut cpu, CPU_TOLERANCE),
        ];
        for (name, device, tolerance) in devices {
            let (worst, same) = difference(&logits(device, &stage, &ids), &expected);
            println!("{}: {name}: {worst:.2e}, same best token: {same}", folder.display());
            assert!(worst <= tolerance, "{name}: {worst} is more than {tolerance}");
        }
    }
}
