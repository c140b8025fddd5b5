//! The unit against plain loops, and against itself: however a text is cut into batches, its bits are the same.

use std::sync::Arc;

use proptest::prelude::{Strategy, prop_assert_eq, proptest};

use super::{CpuDevice, CpuOptions, Isa};
use crate::batch::{Activations, Batch, Output, Picked, Segment, SequenceId, Want};
use crate::conformance;
use crate::device::{CacheFormat, Device, DeviceError, Executable, SlotLimits};
use crate::graph::{Graph, LlamaShape, Op, RopeStyle, Subgraph, WeightFormat, passes};
use crate::{Sampling, synthetic};

const LIMITS: SlotLimits =
    SlotLimits { sequences_max: 3, positions_max: 48, rows_max: 32, cache: CacheFormat::F16 };

fn device(isa: Option<Isa>, threads: usize) -> CpuDevice {
    CpuDevice::new(CpuOptions { threads, isa, ..CpuOptions::default() }).expect("a cpu")
}

fn whole(graph: &Graph) -> Subgraph {
    let layers = graph.nodes.iter().filter_map(|n| n.layer).max().map_or(0, |l| l + 1);
    Subgraph::cut("model", graph, 0, layers).expect("a whole model")
}

fn prepared(graph: &Graph, isa: Option<Isa>, threads: usize) -> Box<dyn Executable> {
    with_cache(CacheFormat::F16, graph, isa, threads)
}

fn with_cache(
    cache: CacheFormat,
    graph: &Graph,
    isa: Option<Isa>,
    threads: usize,
) -> Box<dyn Executable> {
    let limits = SlotLimits { cache, ..LIMITS };
    device(isa, threads).prepare(&whole(graph), limits).expect("a model that fits")
}

const CACHES: [CacheFormat; 2] = [CacheFormat::F16, CacheFormat::Q8];

fn segment(sequence: u64, base: usize, tokens: &[u32]) -> Segment {
    Segment {
        sequence: SequenceId(sequence),
        base: base as u32,
        tokens: tokens.to_vec(),
        want: Want::Logits(tokens.len() as u32),
        sampling: Arc::new(Sampling::default()),
    }
}

fn picked(executable: &mut dyn Executable, segments: Vec<Segment>) -> Picked {
    match executable.run(&Batch { segments }, None).expect("a run") {
        Output::Picked(picked) => picked,
        Output::Activations(_) => panic!("a whole model ends in picks"),
    }
}

fn logits(executable: &mut dyn Executable, segments: Vec<Segment>) -> Vec<f32> {
    picked(executable, segments).logits
}

fn tokens(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + seed * 11 + i * i) % 96).collect()
}

/// A llama in plain loops over the plain graph, for one sequence: logits of all tokens.
fn plain_llama(graph: &Graph, tokens: &[u32]) -> Vec<f32> {
    let weight = |id: crate::graph::WeightId| {
        let weight = &graph.weights[id.0 as usize];
        (weight.to_f32().expect("a readable weight"), weight.cols)
    };
    let rows = tokens.len();
    let mut values: Vec<Vec<f32>> = vec![Vec::new(); graph.values.len()];
    for node in &graph.nodes {
        let input = |i: usize| -> &[f32] { &values[node.inputs[i].0 as usize] };
        let out = match &node.op {
            Op::Embed { table } => {
                let (table, cols) = weight(*table);
                tokens.iter().flat_map(|&t| table[t as usize * cols..][..cols].to_vec()).collect()
            }
            Op::RmsNorm(norm) => {
                let (scale, cols) = weight(norm.weight);
                let norm_row = |x: &[f32]| -> Vec<f32> {
                    let mean = x.iter().map(|x| x * x).sum::<f32>() / cols as f32;
                    x.iter()
                        .zip(&scale)
                        .map(|(x, w)| x / (mean + norm.epsilon).sqrt() * w)
                        .collect()
                };
                input(0).chunks(cols).flat_map(norm_row).collect()
            }
            Op::MatMul { weight: id } => {
                let (w, cols) = weight(*id);
                let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
                let row = |x: &[f32]| -> Vec<f32> { w.chunks(cols).map(|w| dot(x, w)).collect() };
                input(0).chunks(cols).flat_map(row).collect()
            }
            Op::Rotate(rope) => {
                let mut x = input(0).to_vec();
                let cols = x.len() / rows;
                for (position, row) in x.chunks_mut(cols).enumerate() {
                    for head in row.chunks_mut(rope.head_dim) {
                        for (i, f) in rope.inverse_frequencies.iter().enumerate() {
                            let (a, b) = match rope.style {
                                RopeStyle::Adjacent => (2 * i, 2 * i + 1),
                                RopeStyle::Halves => (i, i + rope.head_dim / 2),
                            };
                            let (sin, cos) = (position as f32 * f).sin_cos();
                            (head[a], head[b]) =
                                (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                        }
                    }
                }
                x
            }
            Op::Attention { heads, kv_heads, head_dim } => {
                let at = |x: &[f32], count: usize, row: usize, head: usize| -> Vec<f32> {
                    x[(row * count + head) * head_dim..][..*head_dim].to_vec()
                };
                let mut out = Vec::new();
                for row in 0..rows {
                    for head in 0..*heads {
                        let query = at(input(0), *heads, row, head);
                        let group = head / (heads / kv_heads);
                        let score = |p: usize| -> f32 {
                            let key = at(input(1), *kv_heads, p, group);
                            let dot: f32 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                            dot / (*head_dim as f32).sqrt()
                        };
                        let scores: Vec<f32> = (0..=row).map(score).collect();
                        let greatest = scores.iter().copied().fold(f32::MIN, f32::max);
                        let e: Vec<f32> = scores.iter().map(|s| (s - greatest).exp()).collect();
                        let sum: f32 = e.iter().sum();
                        let mut y = vec![0.0; *head_dim];
                        for (p, e) in e.iter().enumerate() {
                            let value = at(input(2), *kv_heads, p, group);
                            y.iter_mut().zip(value).for_each(|(y, v)| *y += e / sum * v);
                        }
                        out.extend(y);
                    }
                }
                out
            }
            Op::SiluMul => {
                let silu = |(g, u): (&f32, &f32)| g / (1.0 + (-g).exp()) * u;
                input(0).iter().zip(input(1)).map(silu).collect()
            }
            Op::Add => input(0).iter().zip(input(1)).map(|(a, b)| a + b).collect(),
            fused => panic!("{} in a plain graph", fused.name()),
        };
        values[node.outputs[0].0 as usize] = out;
    }
    let last = graph.nodes.last().expect("a model has ops");
    values.swap_remove(last.outputs[0].0 as usize)
}

/// Root mean square of the difference over that of the expectation.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

/// Formats of every kind of packing, with the relative error of whole logits that is allowed.
const FORMATS: [(WeightFormat, f64); 8] = [
    (WeightFormat::F32, 2e-3),
    (WeightFormat::F16, 2e-3),
    (WeightFormat::BF16, 2e-3),
    (WeightFormat::Q8_0, 3e-2),
    (WeightFormat::Q4_0, 3e-2),
    (WeightFormat::Q4_K, 3e-2),
    (WeightFormat::Q5_0, 3e-2),
    (WeightFormat::Q6_K, 3e-2),
];

/// A shape whose widths are whole blocks of every format.
fn shape_for(format: WeightFormat) -> LlamaShape {
    match format.block_len() {
        256 => synthetic::shape([2, 256, 4, 2, 256, 96]),
        _ => synthetic::tiny(2),
    }
}

#[test]
fn the_unit_passes_the_suite_of_all_devices() {
    for (cache, threads) in [(CacheFormat::F16, 1), (CacheFormat::F16, 2), (CacheFormat::Q8, 2)] {
        let tolerance = CpuDevice::tolerance(cache);
        conformance::check_with_cache(&mut device(None, threads), &tolerance, cache)
            .unwrap_or_else(|e| panic!("{cache}: {e}"));
    }
}

/// What is packed may be filled up and has its scales apart, but is hardly more than the file's.
#[test]
fn a_unit_holds_hardly_more_than_weights_and_caches() {
    for format in [WeightFormat::Q8_0, WeightFormat::Q4_0, WeightFormat::Q4_K, WeightFormat::F16] {
        let shape = synthetic::shape([3, 256, 4, 2, 768, 2048]);
        let model = synthetic::llama(&shape, format, 5);
        for (cache, bits) in [(CacheFormat::F16, 16), (CacheFormat::Q8, 9)] {
            let mut executable = with_cache(cache, &model, None, 1);
            logits(&mut *executable, vec![segment(1, 0, &[1, 2]), segment(2, 0, &[3])]);
            let memory = executable.memory();
            // The embedding, which is the head as well, is listed twice.
            let weights: usize = model.weights[1..].iter().map(|w| w.bytes().len()).sum();
            assert!(memory.weights as f64 <= 1.15 * weights as f64, "{format}: {memory:?}");
            let elements = 2 * 2 * shape.layers * shape.kv_heads * 64 * LIMITS.positions_max;
            assert_eq!(memory.caches, (elements * bits / 8) as u64, "two sequences of {cache}");
        }
    }
}

#[test]
fn a_cache_of_bytes_takes_nine_sixteenths_and_its_text_is_another() {
    let model = synthetic::llama(&synthetic::tiny(2), WeightFormat::F32, 5);
    let run = |cache| {
        let mut executable = with_cache(cache, &model, None, 1);
        let logits = logits(&mut *executable, vec![segment(1, 0, &tokens(17, 1))]);
        (executable.memory().caches, logits)
    };
    let (halves, bytes) = (run(CacheFormat::F16), run(CacheFormat::Q8));
    assert_eq!(16 * bytes.0, 9 * halves.0);
    let error = relative_error(&bytes.1, &halves.1);
    assert!(error > 0.0 && error < 2e-2, "relative error {error}");
}

#[test]
fn every_format_is_near_the_plain_loops() {
    for (format, tolerance) in FORMATS {
        let model = synthetic::llama(&shape_for(format), format, 5);
        let tokens = tokens(17, 1);
        let found = logits(&mut *prepared(&model, None, 1), vec![segment(1, 0, &tokens)]);
        let error = relative_error(&found, &plain_llama(&model, &tokens));
        assert!(error < tolerance, "{format}: relative error {error}");
    }
}

#[test]
fn odd_shapes_are_near_the_plain_loops() {
    for style in [RopeStyle::Adjacent, RopeStyle::Halves] {
        for sizes in [[2, 24, 3, 1, 20, 50], [1, 40, 2, 2, 90, 33], [1, 96, 8, 1, 33, 17]] {
            let mut shape = synthetic::shape(sizes);
            shape.rope.style = style;
            let model = synthetic::llama(&shape, WeightFormat::F32, 7);
            let tokens: Vec<u32> = tokens(9, 2).iter().map(|t| t % sizes[5] as u32).collect();
            let found = logits(&mut *prepared(&model, None, 2), vec![segment(1, 0, &tokens)]);
            let error = relative_error(&found, &plain_llama(&model, &tokens));
            assert!(error < 2e-3, "{sizes:?} {style:?}: relative error {error}");
        }
    }
}

#[test]
fn every_instruction_set_and_thread_count_gives_the_same_bits() {
    for (format, _) in FORMATS {
        let model = synthetic::llama(&shape_for(format), format, 9);
        let tokens = tokens(12, 3);
        let mut runs = Vec::new();
        for isa in Isa::available() {
            for threads in 1..=3 {
                for cache in CACHES {
                    let mut executable = with_cache(cache, &model, Some(isa), threads);
                    runs.push(picked(&mut *executable, vec![segment(1, 0, &tokens)]));
                }
            }
        }
        // Runs of the two caches take turns.
        assert!(runs.windows(3).all(|w| w[0] == w[2]), "{format}");
    }
}

/// How a text of 40 tokens is cut into batches of up to 17 rows: lengths that sum to at least 40.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1usize..18, 40)
}

/// The logits of every token of a text that is run in these cuts, beside another text in those.
fn in_company(
    executable: &mut dyn Executable,
    (text, cuts): (&[u32], &[usize]),
    (other, their): (&[u32], &[usize]),
) -> Vec<f32> {
    let mut found = Vec::new();
    let (mut at, mut beside) = (0, 0);
    for (cut, their) in cuts.iter().zip(their) {
        let end = (at + cut).min(text.len());
        let until = (beside + their).min(other.len()).min(beside + LIMITS.rows_max - (end - at));
        let mut segments = vec![segment(1, at, &text[at..end])];
        if beside < until {
            segments.push(segment(2, beside, &other[beside..until]));
        }
        let rows = (end - at) * 96;
        found.extend_from_slice(&logits(executable, segments)[..rows]);
        (at, beside) = (end, until);
        if at == text.len() {
            break;
        }
    }
    found
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(4))]

    /// For every format and cache, with every instruction set of this machine: alone, one row at a time, with one thread, by the
    /// portable kernels, or in any company.
    #[test]
    fn a_row_depends_on_its_own_sequence_alone(
        ours in cuts(), theirs in cuts(), threads in 1usize..4,
    ) {
        let (text, other) = (tokens(40, 4), tokens(40, 5));
        for ((format, _), cache) in FORMATS.into_iter().flat_map(|f| CACHES.map(|c| (f, c))) {
            let model = synthetic::llama(&shape_for(format), format, 11);
            let mut alone = with_cache(cache, &model, Some(Isa::Portable), 1);
            let expected = in_company(&mut *alone, (&text, &[1; 40]), (&[], &[0; 40]));
            for isa in Isa::available() {
                let mut unit = with_cache(cache, &model, Some(isa), threads);
                let found = in_company(&mut *unit, (&text, &ours), (&other, &theirs));
                prop_assert_eq!(&found, &expected, "{} with {}, {} cache", format, isa, cache);
            }
        }
    }
}

#[test]
fn a_cut_cache_is_as_if_never_longer() {
    let model = synthetic::llama(&synthetic::tiny(2), WeightFormat::Q8_0, 13);
    let (text, wrong) = (tokens(20, 6), tokens(15, 7));
    let mut straight = prepared(&model, None, 1);
    logits(&mut *straight, vec![segment(1, 0, &text[..10])]);
    let expected = logits(&mut *straight, vec![segment(1, 10, &text[10..])]);
    let mut cut = prepared(&model, None, 2);
    logits(&mut *cut, vec![segment(1, 0, &text[..10])]);
    logits(&mut *cut, vec![segment(1, 10, &wrong)]);
    assert_eq!(cut.cached(SequenceId(1)), 25);
    assert_eq!(logits(&mut *cut, vec![segment(1, 10, &text[10..])]), expected);
    assert_eq!(cut.cached(SequenceId(1)), 20);
}

#[test]
fn two_stages_are_the_whole_bit_for_bit() {
    let model = synthetic::llama(&synthetic::tiny(3), WeightFormat::Q8_0, 15);
    for model in [model.clone(), passes::optimise(model)] {
        let text = tokens(11, 8);
        let expected = picked(&mut *prepared(&model, None, 1), vec![segment(1, 0, &text)]);
        let mut unit = device(None, 2);
        let mut stage = |first, end| {
            let part = Subgraph::cut("part", &model, first, end).expect("layers of the model");
            unit.prepare(&part, LIMITS).expect("a stage that fits")
        };
        let (mut head, mut tail) = (stage(0, 1), stage(1, 3));
        let batch = Batch { segments: vec![segment(1, 0, &text)] };
        let Output::Activations(between) = head.run(&batch, None).expect("a run") else {
            panic!("a first stage ends in activations")
        };
        let Activations { cols, ref data } = between;
        assert_eq!((cols, data.len()), (64, 11 * 64));
        assert_eq!(tail.run(&batch, Some(between)).expect("a run"), Output::Picked(expected));
    }
}

#[test]
fn slots_run_out_with_an_error_and_are_used_again() {
    let model = synthetic::llama(&synthetic::tiny(1), WeightFormat::F32, 17);
    let mut executable = prepared(&model, None, 1);
    assert_eq!(executable.memory().caches, 0);
    let text = tokens(5, 9);
    let expected = logits(&mut *executable, vec![segment(1, 0, &text)]);
    let one = executable.memory().caches;
    assert!(one > 0);
    logits(&mut *executable, vec![segment(2, 0, &text), segment(3, 0, &text)]);
    let full = executable.run(&Batch { segments: vec![segment(4, 0, &text)] }, None);
    assert!(matches!(full, Err(DeviceError::OutOfMemory { .. })));
    assert_eq!(executable.cached(SequenceId(2)), 5);
    executable.release(SequenceId(2));
    assert_eq!(executable.cached(SequenceId(2)), 0);
    assert_eq!(logits(&mut *executable, vec![segment(4, 0, &text)]), expected);
    assert_eq!(executable.memory().caches, 3 * one);
}

#[test]
fn rows_that_want_nothing_answer_nothing() {
    let model = synthetic::llama(&synthetic::tiny(1), WeightFormat::F32, 19);
    let mut executable = prepared(&model, None, 1);
    let text = tokens(6, 10);
    let quiet = Segment { want: Want::Nothing, ..segment(1, 0, &text) };
    assert_eq!(picked(&mut *executable, vec![quiet]), Picked::default());
    let last = Segment { want: Want::Picks(1), ..segment(2, 0, &text) };
    let one = picked(&mut *executable, vec![last]);
    assert_eq!((one.picks.len(), one.logits.len()), (1, 0));
    let all = picked(&mut *executable, vec![segment(3, 0, &text)]);
    assert_eq!(one.picks[0], all.picks[5]);
}

#[test]
fn an_op_outside_the_patterns_is_named() {
    let mut model = synthetic::llama(&synthetic::tiny(1), WeightFormat::F32, 21);
    let silu = model.nodes.iter().position(|n| n.op == Op::SiluMul).expect("a block has one");
    let spied = model.nodes[silu].inputs[0];
    let cols = model.values[spied.0 as usize].cols;
    model.push(Op::Add, Some(0), &[spied, spied], &[cols]);
    let error = device(None, 1).prepare(&whole(&model), LIMITS).err().expect("it cannot run");
    assert!(matches!(error, DeviceError::Unsupported { .. }));
    assert!(error.to_string().contains("rms_norm outside the fused ops"), "{error}");
}

#[test]
#[should_panic(expected = "lies beyond the 0 cached")]
fn a_base_beyond_the_cache_is_a_broken_contract() {
    let model = synthetic::llama(&synthetic::tiny(1), WeightFormat::F32, 23);
    logits(&mut *prepared(&model, None, 1), vec![segment(1, 3, &[1])]);
}
