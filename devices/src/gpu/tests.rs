//! The unit's claims on whatever adapter there is: in CI a software rasteriser. Without one they are skipped, unless
//! `OUTRIDER_REQUIRE_GPU=1` says that there must be one.

use std::sync::Arc;
use std::time::Duration;

use super::{
    Backing, GpuDevice, GpuFault, GpuOptions, GpuSelector, Sums, Tuning, discover, measure,
};
use crate::batch::{
    Activations, Batch, DraftBatch, DraftSegment, Drafted, Output, Picked, Segment, SequenceId,
    Want,
};
use crate::device::{CacheFormat, Device, DeviceError, Executable, SlotLimits, draft_step_by_step};
use crate::graph::{LlamaShape, RopeStyle, Subgraph, WeightFormat};
use crate::reference::ReferenceDevice;
use crate::sampling::{Sampling, Scratch, gumbel, pick, word};
use crate::synthetic;

const LIMITS: SlotLimits =
    SlotLimits { sequences_max: 3, positions_max: 80, rows_max: 64, cache: CacheFormat::F16 };

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
fn odd_shapes_and_the_other_rotation_agree_with_the_reference() {
    let Some(mut device) = open(GpuOptions::default()) else { return };
    let mut halves = synthetic::shape([2, 96, 2, 1, 100, 99]);
    halves.rope.style = RopeStyle::Halves;
    agrees(&mut device, &whole(&halves, WeightFormat::F16), 1e-3, "heads of 48 in halves");
    let narrow = synthetic::shape([1, 40, 5, 5, 52, 98]);
    agrees(&mut device, &whole(&narrow, WeightFormat::F16), 1e-3, "heads of 8");
    let wide = synthetic::shape([1, 256, 2, 1, 96, 97]);
    agrees(&mut device, &whole(&wide, WeightFormat::F16), 1e-3, "heads of 128");
}

/// What a driver compiled for one device changes nothing for the next, and rubbish in its place is not given to it.
#[test]
fn kept_kernels_give_the_same_bits_and_rubbish_is_not_used() {
    let name = format!("outrider-kept-{}.bin", std::process::id());
    let file = std::env::temp_dir().join(name);
    let subgraph = whole(&synthetic::shape([1, 64, 2, 1, 96, 97]), WeightFormat::F16);
    let batch = one(0, 0, &text(5, 3), Want::Logits(5));
    let logits = |compiled: Option<&std::path::Path>| {
        let compiled = compiled.map(std::path::Path::to_owned);
        let mut device = open(GpuOptions { compiled, ..GpuOptions::default() })?;
        let mut executable = device.prepare(&subgraph, LIMITS).unwrap();
        Some(picked(&mut *executable, &batch).logits)
    };
    let Some(expected) = logits(None) else { return };
    assert!(!file.exists());
    for _ in 0..2 {
        assert_eq!(logits(Some(&file)).unwrap(), expected);
    }
    let other = file.with_extension("rubbish");
    std::fs::write(&other, vec![7; 4096]).unwrap();
    assert_eq!(logits(Some(&other)).unwrap(), expected);
    std::fs::remove_file(&other).unwrap();
    // A driver that has no such cache keeps no file.
    let _ = std::fs::remove_file(&file);
}

/// Every way to generate the kernels, on the same model.
#[test]
fn every_tuning_agrees_with_the_reference() {
    let Some(device) = open(GpuOptions::default()) else { return };
    let base = device.tuning().clone();
    let subgroup = base.subgroup;
    let size = subgroup.unwrap_or(8);
    let tunings = [
        Tuning { backing: Backing::Buffer, ..base.clone() },
        Tuning { backing: Backing::Texture, ..base.clone() },
        Tuning {
            subgroup: None,
            lanes: 16,
            lanes_max: 16,
            attention_subgroups: 1,
            sums: Sums::Whole,
            ..base.clone()
        },
        Tuning { lanes_max: size * 4, tiles: [1; 4], attention_subgroups: 2, ..base.clone() },
        Tuning { sums: Sums::Halves, tiles: [4, 2, 2, 1], submit_dispatches: 2, ..base.clone() },
        Tuning {
            sums: Sums::Halves,
            backing: Backing::Buffer,
            lanes: size * 2,
            lanes_max: size * 4,
            tiles: [1; 4],
            spin: Duration::from_millis(1),
            ..base.clone()
        },
        Tuning { chunk: 8, pick_span: 32, attention_span: 16, ..base.clone() },
        Tuning { chunk: 16, part_tiles: 6, pass_rows: 16, ..base.clone() },
        Tuning { backing: Backing::Buffer, chunk: 16, part_tiles: 6, ..base.clone() },
    ];
    let formats = [WeightFormat::Q8_0, WeightFormat::Q4_0, WeightFormat::Q4_1, WeightFormat::F16];
    for (index, tuning) in tunings.into_iter().enumerate() {
        let what = format!("{tuning:?}");
        let options = GpuOptions { tuning: Some(tuning), ..GpuOptions::default() };
        let mut device = open(options).unwrap();
        for format in [formats[index % 4], formats[(index + 2) % 4]] {
            let subgraph = whole(&synthetic::tiny(1), format);
            agrees(&mut device, &subgraph, 1e-3, &format!("{format} {what}"));
        }
    }
}

/// A row's bits are the same whether the rows beside it reach over one span of positions or over many.
#[test]
fn long_sequences_are_shared_between_workgroups_to_the_same_bits() {
    let Some(device) = open(GpuOptions::default()) else { return };
    let base = device.tuning().clone();
    for subgroups in [1, if base.subgroup.is_some() { 2 } else { 1 }] {
        let tuning = Tuning { attention_span: 24, attention_subgroups: subgroups, ..base.clone() };
        let mut device =
            open(GpuOptions { tuning: Some(tuning), ..GpuOptions::default() }).unwrap();
        let subgraph = whole(&synthetic::tiny(2), WeightFormat::F16);
        agrees(&mut device, &subgraph, 1e-3, "spans of 24");
        let mut gpu = device.prepare(&subgraph, LIMITS).unwrap();
        let tokens = text(60, 5);
        let alone: Vec<_> = (0..20)
            .flat_map(|i| {
                picked(&mut *gpu, &one(1, i, &tokens[i as usize..][..1], Want::Logits(1))).logits
            })
            .collect();
        picked(&mut *gpu, &one(2, 0, &tokens[..59], Want::Nothing));
        let segments = vec![
            segment(3, 0, &tokens[..20], Want::Logits(20)),
            segment(2, 59, &tokens[59..], Want::Logits(1)),
        ];
        let together = picked(&mut *gpu, &Batch { segments }).logits;
        assert_eq!(together[..alone.len()], alone, "{subgroups} subgroups");
    }
}

#[test]
fn stages_of_a_width_that_is_no_whole_block_pass_it_on() {
    let Some(mut device) = open(GpuOptions::default()) else { return };
    for width in [48] {
        let shape = synthetic::shape([3, width, 2, 1, 96, 96]);
        let model = synthetic::llama(&shape, WeightFormat::F16, 7);
        let mut stage = |first, end| {
            let part = Subgraph::cut("part", &model, first, end).unwrap();
            device.prepare(&part, LIMITS).unwrap()
        };
        let (mut whole, mut parts) = (stage(0, 3), [stage(0, 1), stage(1, 2), stage(2, 3)]);
        for (base, rows) in [(0, 33), (33, 1), (34, 4)] {
            let batch = one(1, base, &text(rows, base), Want::Logits(1));
            let expected = whole.run(&batch, None).unwrap();
            let mut passed: Option<Activations> = None;
            for (index, part) in parts.iter_mut().enumerate() {
                match part.run(&batch, passed.take()).unwrap() {
                    Output::Activations(a) => {
                        assert_eq!((a.cols, a.data.len()), (width, rows * width));
                        passed = Some(a);
                    }
                    found => assert!(index == 2 && found == expected, "{rows} rows at {base}"),
                }
            }
        }
    }
}

fn sampled(seed: u64) -> Arc<Sampling> {
    Arc::new(Sampling { temperature: 0.9, seed, ..Sampling::default() })
}

fn drafts(steps: [u32; 3], probability_min: f32) -> DraftBatch {
    let segments = [
        segment(0, 4, &text(2, 50), Want::Nothing),
        Segment { sampling: sampled(3), ..segment(1, 2, &text(1, 51), Want::Nothing) },
        Segment { sampling: sampled(1 << 40 | 5), ..segment(2, 0, &text(5, 52), Want::Nothing) },
    ];
    let ask = |(segment, steps)| DraftSegment { segment, steps, probability_min };
    DraftBatch {
        segments: segments.into_iter().zip(steps).map(ask).collect(),
        stop_tokens: Arc::from([17, 40]),
    }
}

#[test]
fn a_draft_at_once_is_a_draft_step_by_step() {
    let Some(mut device) = open(GpuOptions::default()) else { return };
    let mut gpu = device.prepare(&whole(&synthetic::tiny(2), WeightFormat::Q8_0), LIMITS).unwrap();
    let mut lengths = Vec::new();
    for probability_min in [0.0, 0.02, 0.5] {
        for steps in [[1, 1, 1], [3, 5, 2], [8, 1, 32], [2, 33, 1]] {
            let mut run = |draft: fn(&mut dyn Executable, &DraftBatch) -> Vec<Drafted>| {
                picked(&mut *gpu, &one(0, 0, &text(4, 1), Want::Nothing));
                picked(&mut *gpu, &one(1, 0, &text(2, 2), Want::Nothing));
                let drafted = draft(&mut *gpu, &drafts(steps, probability_min));
                let cached = [0, 1, 2].map(|s| gpu.cached(SequenceId(s)));
                // The caches are right if what follows the last but one token is.
                let ends = [6, 3, 5].into_iter().zip(&drafted);
                let ends: Vec<_> = ends.map(|(end, d)| end + d.picks.len() as u32 - 1).collect();
                let next = [0, 1, 2].map(|s| {
                    let next = one(s, ends[s as usize], &[9], Want::Logits(1));
                    let next = picked(&mut *gpu, &next);
                    gpu.release(SequenceId(s));
                    next
                });
                (drafted, cached.to_vec() == ends, next)
            };
            let at_once = run(|gpu, ask| gpu.draft(ask).unwrap());
            let by_step = run(|gpu, ask| draft_step_by_step(gpu, ask).unwrap());
            let what = format!("{steps:?}, {probability_min}");
            let picks = |drafted: &[Drafted]| drafted.iter().map(|d| d.picks.clone()).collect();
            let (found, expected): (Vec<_>, Vec<_>) = (picks(&at_once.0), picks(&by_step.0));
            assert_eq!(found, expected, "picks of {what}");
            // All at once, or one too many where a token was too unlikely: 33 are more than one submission holds.
            if steps.iter().all(|n| *n <= 32) {
                assert!(at_once.0.iter().map(|d| d.steps).eq(steps), "steps of {what}");
            }
            for (ask, Drafted { picks, steps: ran }) in steps.iter().zip(&by_step.0) {
                let ended = picks.last().is_some_and(|pick| [17, 40].contains(&pick.token));
                let seen = picks.len() as u32 + u32::from(!ended);
                assert_eq!(*ran, seen.min(*ask), "steps of {what} one by one");
            }
            assert!(at_once.1, "cached after {what}");
            assert!(at_once.2 == by_step.2, "what follows {what}");
            lengths.push(found.iter().map(Vec::len).collect::<Vec<_>>());
        }
    }
    assert!(lengths.contains(&vec![3, 5, 2]), "some draft runs its full length: {lengths:?}");
}

/// Sampled picks of a row equal those of its logits on the host, but where two scores are within rounding.
#[test]
fn picks_are_those_of_the_logits_on_the_host() {
    let Some(mut device) = open(GpuOptions::default()) else { return };
    let shape = synthetic::shape([1, 64, 4, 2, 96, 5003]);
    let mut gpu = device.prepare(&whole(&shape, WeightFormat::Q8_0), LIMITS).unwrap();
    let mut scratch = Scratch::default();
    let tokens = text(64, 3);
    let mut samplings = vec![
        Sampling::default(),
        Sampling { top_k: 5, temperature: 0.8, seed: 4, ..Sampling::default() },
        Sampling { repetition_penalty: 1.4, prompt_len: 3, ..Sampling::default() },
        Sampling { top_p: 0.7, temperature: 1.3, top_logprobs: 2, ..Sampling::default() },
    ];
    samplings.extend((0..12).map(|seed| Sampling {
        temperature: 0.3 + 0.2 * seed as f32,
        seed: seed * 0x1_2345_6789,
        ..Sampling::default()
    }));
    let mut near = 0;
    for sampling in samplings {
        let sampling = Arc::new(sampling);
        let asked =
            Segment { sampling: Arc::clone(&sampling), ..segment(1, 0, &tokens, Want::Logits(64)) };
        let found = picked(&mut *gpu, &Batch { segments: vec![asked] });
        for (row, (pick_found, logits)) in
            found.picks.iter().zip(found.logits.chunks_exact(5003)).enumerate()
        {
            let (position, seen) = (row as u32 + 1, &tokens[..=row]);
            let expected = pick(logits, position, seen, &sampling, &mut scratch);
            if pick_found.token != expected.token {
                let score = |t: u32| {
                    let noise = gumbel(word(sampling.seed, position, t));
                    f64::from(logits[t as usize] / sampling.temperature) + noise
                };
                let gap = score(expected.token) - score(pick_found.token);
                assert!(sampling.temperature > 0.0 && gap < 1e-5, "{sampling:?}: gap {gap}");
                near += 1;
                continue;
            }
            let ratio = pick_found.probability / expected.probability;
            assert!((ratio - 1.0).abs() < 1e-4, "{sampling:?}, row {row}: {ratio}");
            assert_eq!(pick_found.top, expected.top);
        }
    }
    assert!(near < 3, "{near} of 768 sampled picks were near ties");
}

#[test]
fn logits_without_a_number_pick_token_0() {
    let Some(mut device) = open(GpuOptions::default()) else { return };
    let mut model = synthetic::llama(&synthetic::tiny(1), WeightFormat::F32, 7);
    let norm = model.weights.iter().position(|w| w.name == "OutputNorm").unwrap();
    let nan = [f32::NAN; 64];
    model.weights[norm] = synthetic::quantised("n".into(), WeightFormat::F32, (1, 64), &nan);
    let broken = Subgraph::cut("broken", &model, 0, 1).unwrap();
    let mut gpu = device.prepare(&broken, LIMITS).unwrap();
    let picks = picked(&mut *gpu, &one(1, 0, &[1, 2], Want::Picks(2))).picks;
    assert!(picks.iter().all(|p| (p.token, p.probability) == (0, 0.0)), "{picks:?}");
    let ask = DraftSegment {
        segment: segment(2, 0, &[3], Want::Nothing),
        steps: 3,
        probability_min: 0.0,
    };
    let ask = DraftBatch { segments: vec![ask], stop_tokens: Arc::new([]) };
    assert_eq!(gpu.draft(&ask).unwrap()[0].picks.len(), 3);
}

#[test]
fn discovery_describes_every_adapter_or_says_why_there_is_none() {
    let found = discover();
    assert_eq!(found.adapters.is_empty(), found.reason.is_some());
    for (index, adapter) in found.adapters.iter().enumerate() {
        assert_eq!(adapter.index, index);
        assert!(!adapter.name.is_empty() && adapter.limits.binding_bytes_max > 0);
        let text = adapter.to_string();
        assert!(text.contains(&adapter.name), "{text}");
        let part = adapter.name[..4].to_uppercase();
        if adapter.usable.is_ok() {
            let by_name = GpuSelector::NameContains(part);
            assert!(GpuDevice::open(&by_name, GpuOptions::default()).is_ok());
        }
    }
    let none = GpuDevice::open(&GpuSelector::Index(99), GpuOptions::default());
    assert!(matches!(none.err(), Some(DeviceError::Unsupported { .. })));
    let none = GpuDevice::open(&GpuSelector::NameContains("no such".into()), GpuOptions::default());
    assert!(matches!(none.err(), Some(DeviceError::Unsupported { .. })));
}

fn faulty(fault: GpuFault) -> Option<GpuDevice> {
    open(GpuOptions { faults: vec![fault], ..GpuOptions::default() })
}

#[test]
fn a_lost_or_hung_device_is_an_error_at_once_and_for_ever() {
    for fault in [GpuFault::LoseAtSubmission, GpuFault::TimeOutAtSubmission] {
        let tiny = whole(&synthetic::tiny(1), WeightFormat::Q8_0);
        let Some(mut device) = faulty(fault(12)) else { return };
        let mut gpu = device.prepare(&tiny, LIMITS).unwrap();
        let batch = one(1, 0, &[1, 2, 3], Want::Picks(1));
        let error = (0..12).find_map(|_| gpu.run(&batch, None).err()).unwrap();
        assert!(matches!(error, DeviceError::Lost { .. }), "{error}");
        assert_eq!(gpu.run(&batch, None).unwrap_err(), error);
        assert!(device.prepare(&tiny, LIMITS).is_err());
        drop(gpu);
        drop(device);
        // A new device is not affected.
        let mut device = open(GpuOptions::default()).unwrap();
        device.prepare(&tiny, LIMITS).unwrap().run(&batch, None).unwrap();
    }
}

#[test]
fn a_broken_shader_is_a_compile_error_with_the_compilers_words() {
    let tiny = whole(&synthetic::tiny(1), WeightFormat::Q8_0);
    let Some(mut device) = faulty(GpuFault::BreakShadersAfter(3)) else { return };
    let error = device.prepare(&tiny, LIMITS).err().unwrap();
    let DeviceError::Compile { subgraph, detail, .. } = &error else { panic!("{error}") };
    assert!(subgraph == "model" && detail.contains("injected"), "{error}");
}

#[test]
fn what_does_not_fit_is_out_of_memory_and_leaves_the_device_usable() {
    let tiny = whole(&synthetic::tiny(1), WeightFormat::Q8_0);
    let Some(mut device) = faulty(GpuFault::OutOfMemoryAtAllocation(0)) else { return };
    let budget = device.context().memory_budget.unwrap();
    assert_eq!(Some(budget), device.adapter().budget_bytes());
    assert!(device.adapter().memory_bytes.is_none_or(|all| all / 2 < budget && budget < all));
    let refused = device.prepare(&tiny, LIMITS).err().unwrap();
    assert!(matches!(refused, DeviceError::OutOfMemory { .. }), "{refused}");
    let needed = device.prepare(&tiny, LIMITS).unwrap().memory();
    let needed = needed.total();

    let options = GpuOptions { memory_budget_bytes: Some(needed * 3 / 2), ..GpuOptions::default() };
    let mut device = open(options).unwrap();
    let first = device.prepare(&tiny, LIMITS).unwrap();
    let refused = device.prepare(&tiny, LIMITS).err().unwrap();
    assert!(matches!(refused, DeviceError::OutOfMemory { .. }), "{refused}");
    let numbers = format!("{needed} of {} bytes are taken", needed * 3 / 2);
    assert!(refused.to_string().contains(&numbers), "{refused}");
    drop(first);
    device.prepare(&tiny, LIMITS).unwrap();
    let huge = SlotLimits {
        sequences_max: 1 << 12,
        positions_max: 1 << 16,
        rows_max: 8,
        cache: CacheFormat::F16,
    };
    let refused = device.prepare(&tiny, huge).err().unwrap();
    assert!(matches!(refused, DeviceError::OutOfMemory { .. }), "{refused}");
}

#[test]
fn measured_costs_are_positive() {
    let Some(mut device) = open(GpuOptions::default()) else { return };
    let begin = std::time::Instant::now();
    let clock = || begin.elapsed();
    let timer = measure::Timer::new(&clock, 1);
    let costs = measure::costs(&device, 1 << 20, timer).unwrap();
    assert!(costs.bandwidth_bytes_per_s > 0 && costs.submit_and_wait.as_nanos() > 0, "{costs:?}");
    let mut gpu = device.prepare(&whole(&synthetic::tiny(1), WeightFormat::Q8_0), LIMITS).unwrap();
    assert!(measure::pass(&mut *gpu, (9, 2), timer).unwrap().as_nanos() > 0);
    assert!(measure::draft(&mut *gpu, (9, 2), timer).unwrap().as_nanos() > 0);
    assert_eq!(gpu.cached(SequenceId(u64::MAX)), 0);
    let tiny = whole(&synthetic::tiny(1), WeightFormat::Q8_0);
    let kernels = measure::kernels(&device, (&tiny, LIMITS), 2, timer).unwrap();
    let labels: Vec<_> = kernels.iter().map(|k| k.label).collect();
    let expected = [
        "embed",
        "norm+qkv+rope+cache",
        "attend",
        "matmul+add",
        "norm+gate_up+silu_mul",
        "matmul+add",
        "norm+head",
        "pick best",
        "pick",
    ];
    assert_eq!(labels, expected);
}

#[test]
fn a_unit_can_be_opened_and_closed_any_number_of_times() {
    let model = whole(&synthetic::tiny(1), WeightFormat::F16);
    let mut first = None;
    for _ in 0..40 {
        let Some(mut device) = open(GpuOptions::default()) else { return };
        let mut executable = device.prepare(&model, LIMITS).unwrap();
        let said = picked(&mut *executable, &one(1, 0, &text(3, 1), Want::Picks(1)));
        assert_eq!(*first.get_or_insert_with(|| said.clone()), said);
    }
}
