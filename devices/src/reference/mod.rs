//! The oracle: a llama in plain loops over dequantised weights, that every other device is checked against.
//!
//! *Invariant:* clarity first. Every op is one short function of matrices ([`ops`]), every sum runs in `f64` in a fixed
//! order and is rounded to `f32` once, and a fused op is the composition of the plain ones. One thread, no tricks.

mod executable;
mod ops;

use std::sync::Arc;

use crate::device::{Device, DeviceDescriptor, DeviceError, DeviceKind, Executable, SlotLimits};
use crate::graph::{Graph, Op, StageOutput, Subgraph, Weight};

pub use executable::ReferenceExecutable;

/// Name in errors.
const NAME: &str = "reference";

/// Compiles by dequantising every weight to `f32`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceDevice;

impl Device for ReferenceDevice {
    fn descriptor(&self) -> DeviceDescriptor {
        DeviceDescriptor { kind: DeviceKind::Reference, name: "plain loops".to_owned(), threads: 1 }
    }

    fn prepare(
        &mut self,
        subgraph: &Subgraph,
        limits: SlotLimits,
    ) -> Result<Box<dyn Executable>, DeviceError> {
        check_head(subgraph)?;
        let weights = dequantised(subgraph)?;
        Ok(Box::new(ReferenceExecutable::new(subgraph.clone(), weights, limits)))
    }
}

/// The head runs for the wanted rows only, so it must be an op of one row in, one row out.
fn check_head(subgraph: &Subgraph) -> Result<(), DeviceError> {
    let StageOutput::Logits(logits) = subgraph.output else { return Ok(()) };
    let head = subgraph.graph.nodes.iter().find(|n| n.outputs.contains(&logits));
    match head.map(|n| &n.op) {
        Some(Op::MatMul { .. } | Op::FusedHead { .. }) => Ok(()),
        other => Err(DeviceError::Unsupported {
            device: NAME.to_owned(),
            detail: format!(
                "{}: the head is {}, expected a matmul",
                subgraph.name,
                other.map_or("missing", Op::name)
            ),
        }),
    }
}

/// Every weight as `f32`, row-major; one that the graph lists twice (tied embedding and head) is held once.
fn dequantised(subgraph: &Subgraph) -> Result<Vec<Arc<[f32]>>, DeviceError> {
    let Graph { weights, .. } = &subgraph.graph;
    let same = |a: &Weight, b: &Weight| {
        (a.format, a.bytes().as_ptr_range()) == (b.format, b.bytes().as_ptr_range())
    };
    let mut ready: Vec<Arc<[f32]>> = Vec::with_capacity(weights.len());
    for (index, weight) in weights.iter().enumerate() {
        let values = match weights[..index].iter().position(|w| same(w, weight)) {
            Some(twin) => ready[twin].clone(),
            None => weight
                .to_f32()
                .map_err(|error| DeviceError::Compile {
                    device: NAME.to_owned(),
                    subgraph: subgraph.name.clone(),
                    detail: error.to_string(),
                })?
                .into(),
        };
        ready.push(values);
    }
    Ok(ready)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::batch::{Batch, Output, Picked, Segment, SequenceId, Want};
    use crate::graph::{WeightFormat, passes};
    use crate::synthetic;

    const LIMITS: SlotLimits = SlotLimits {
        sequences_max: 2,
        positions_max: 64,
        rows_max: 32,
        cache: crate::CacheFormat::F16,
    };

    fn whole(graph: &Graph) -> Box<dyn Executable> {
        let layers = graph.nodes.iter().filter_map(|n| n.layer).max().expect("it has blocks") + 1;
        let whole = Subgraph::cut("model", graph, 0, layers).expect("a whole model");
        ReferenceDevice.prepare(&whole, LIMITS).expect("the reference runs everything")
    }

    fn rows(base: u32, tokens: &[u32], want: Want) -> Batch {
        let segment = Segment {
            sequence: SequenceId(1),
            base,
            tokens: tokens.to_vec(),
            want,
            sampling: Arc::default(),
        };
        Batch { segments: vec![segment] }
    }

    fn picked(executable: &mut dyn Executable, batch: &Batch) -> Picked {
        match executable.run(batch, None).expect("the reference does not fail") {
            Output::Picked(picked) => picked,
            Output::Activations(_) => panic!("the stage ends in the head"),
        }
    }

    #[test]
    fn fused_ops_are_the_composition_of_the_plain_ones() {
        let plain = synthetic::llama(&synthetic::tiny(2), WeightFormat::Q8_0, 3);
        let fused = passes::optimise(plain.clone());
        let batch = rows(0, &[5, 1, 95, 0, 7], Want::Logits(3));
        let [plain, fused] = [plain, fused].map(|graph| picked(&mut *whole(&graph), &batch));
        assert_eq!(plain.logits.len(), 3 * 96);
        assert_eq!(plain, fused);
    }

    #[test]
    fn a_pick_is_the_likeliest_token_with_its_probability() {
        let model = synthetic::llama(&synthetic::tiny(1), WeightFormat::F32, 3);
        let picked = picked(&mut *whole(&model), &rows(0, &[5, 1], Want::Logits(1)));
        let [pick] = picked.picks.as_slice() else { panic!("one row was wanted") };
        let total: f32 = picked.logits.iter().map(|l| l.exp()).sum();
        let of = |token: u32| picked.logits[token as usize].exp() / total;
        assert!((0..96).all(|token| of(token) <= of(pick.token)));
        assert!((pick.probability - of(pick.token)).abs() < 1e-5);
    }

    #[test]
    #[should_panic(expected = "base 3 lies beyond the 2 cached positions")]
    fn a_gap_in_a_sequence_is_a_broken_contract() {
        let model = synthetic::llama(&synthetic::tiny(1), WeightFormat::F32, 3);
        let mut executable = whole(&model);
        picked(&mut *executable, &rows(0, &[5, 1], Want::Nothing));
        picked(&mut *executable, &rows(3, &[5], Want::Nothing));
    }

    #[test]
    #[ignore = "prints a time: run by hand with --nocapture"]
    #[expect(clippy::print_stdout, reason = "it is run for its output")]
    fn time_of_a_token_of_thirty_million_weights() {
        let shape = synthetic::shape([8, 512, 8, 4, 1536, 8192]);
        let mut executable =
            whole(&passes::optimise(synthetic::llama(&shape, WeightFormat::Q8_0, 1)));
        let mut best = f64::INFINITY;
        for position in 0..40 {
            let start = Instant::now();
            picked(&mut *executable, &rows(position, &[5], Want::Picks(1)));
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{:.1} ms a token", best * 1e3);
    }
}
