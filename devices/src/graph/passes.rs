//! The optimiser: a readable list of passes from the ops of a checkpoint to the fused ops that devices run.
//!
//! *Invariant:* a pass only replaces ops whose intermediate values nobody else reads, so the graph keeps its meaning;
//! a graph that lacks a pattern passes through unchanged.

use super::{Graph, Node, Op, ValueId};

/// One rewrite of a graph.
pub type Pass = fn(Graph) -> Graph;

/// The passes in the order that they run.
pub const PASSES: &[(&str, Pass)] = &[
    ("fuse norm, q, k, v, rope and cache store", fuse_qkv),
    ("fuse norm, gate, up and SwiGLU", fuse_gate_up),
    ("fuse matmul and residual add", fuse_matmul_add),
    ("fuse norm and head", fuse_head),
    ("drop values that nobody reads", drop_dead_values),
];

/// Runs every pass.
pub fn optimise(graph: Graph) -> Graph {
    PASSES.iter().fold(graph, |graph, (_, pass)| pass(graph))
}

/// rms_norm -> 3 matmul -> 2 rotate -> attention becomes norm+qkv+rope+cache -> attend.
fn fuse_qkv(mut graph: Graph) -> Graph {
    while let Some((at, members, fused)) = find(&graph, match_qkv) {
        replace(&mut graph, at, &members, fused);
    }
    graph
}

fn match_qkv(graph: &Graph, at: usize) -> Option<(Vec<usize>, Vec<Node>)> {
    let node = &graph.nodes[at];
    let Op::Attention { heads, kv_heads, head_dim } = node.op else { return None };
    let &[q_turned, k_turned, v_out] = node.inputs.as_slice() else { return None };
    let (q_rotate, Op::Rotate(rope)) = only_writer(graph, q_turned)? else { return None };
    let (k_rotate, Op::Rotate(k_rope)) = only_writer(graph, k_turned)? else { return None };
    let projection = |value| match only_writer(graph, value)? {
        (index, Op::MatMul { weight }) => Some((index, *weight, graph.nodes[index].inputs[0])),
        _ => None,
    };
    let (q_index, q, normed) = projection(graph.nodes[q_rotate].inputs[0])?;
    let (k_index, k, k_normed) = projection(graph.nodes[k_rotate].inputs[0])?;
    let (v_index, v, v_normed) = projection(v_out)?;
    if rope != k_rope || [k_normed, v_normed] != [normed; 2] || graph.readers(normed) != 3 {
        return None;
    }
    let (norm_index, Op::RmsNorm(norm)) = writer(graph, normed)? else { return None };
    let layer = node.layer;
    let qkv = Node {
        op: Op::FusedQkv { norm: *norm, q, k, v, rope: rope.clone(), heads, kv_heads },
        inputs: graph.nodes[norm_index].inputs.clone(),
        outputs: vec![q_turned],
        layer,
    };
    let attend = Node {
        op: Op::FusedAttend { heads, kv_heads, head_dim },
        inputs: vec![q_turned],
        outputs: node.outputs.clone(),
        layer,
    };
    let members = vec![norm_index, q_index, k_index, v_index, q_rotate, k_rotate, at];
    Some((members, vec![qkv, attend]))
}

/// rms_norm -> 2 matmul -> silu_mul becomes one op.
fn fuse_gate_up(mut graph: Graph) -> Graph {
    while let Some((at, members, fused)) = find(&graph, match_gate_up) {
        replace(&mut graph, at, &members, fused);
    }
    graph
}

fn match_gate_up(graph: &Graph, at: usize) -> Option<(Vec<usize>, Vec<Node>)> {
    let node = &graph.nodes[at];
    if node.op != Op::SiluMul {
        return None;
    }
    let (gate_index, Op::MatMul { weight: gate }) = only_writer(graph, node.inputs[0])? else {
        return None;
    };
    let (up_index, Op::MatMul { weight: up }) = only_writer(graph, node.inputs[1])? else {
        return None;
    };
    let normed = graph.nodes[gate_index].inputs[0];
    if graph.nodes[up_index].inputs[0] != normed || graph.readers(normed) != 2 {
        return None;
    }
    let (norm_index, Op::RmsNorm(norm)) = writer(graph, normed)? else { return None };
    let fused = Node {
        op: Op::FusedGateUp { norm: *norm, gate: *gate, up: *up },
        inputs: graph.nodes[norm_index].inputs.clone(),
        outputs: node.outputs.clone(),
        layer: node.layer,
    };
    Some((vec![norm_index, gate_index, up_index, at], vec![fused]))
}

/// matmul -> add becomes one op.
fn fuse_matmul_add(mut graph: Graph) -> Graph {
    while let Some((at, members, fused)) = find(&graph, match_matmul_add) {
        replace(&mut graph, at, &members, fused);
    }
    graph
}

fn match_matmul_add(graph: &Graph, at: usize) -> Option<(Vec<usize>, Vec<Node>)> {
    let node = &graph.nodes[at];
    if node.op != Op::Add {
        return None;
    }
    let (index, Op::MatMul { weight }) = only_writer(graph, node.inputs[0])? else { return None };
    let fused = Node {
        op: Op::FusedMatMulAdd { weight: *weight },
        inputs: vec![graph.nodes[index].inputs[0], node.inputs[1]],
        outputs: node.outputs.clone(),
        layer: node.layer,
    };
    Some((vec![index, at], vec![fused]))
}

/// The last rms_norm -> matmul, whose result nobody reads, becomes the head.
fn fuse_head(mut graph: Graph) -> Graph {
    while let Some((at, members, fused)) = find(&graph, match_head) {
        replace(&mut graph, at, &members, fused);
    }
    graph
}

fn match_head(graph: &Graph, at: usize) -> Option<(Vec<usize>, Vec<Node>)> {
    let node = &graph.nodes[at];
    let Op::MatMul { weight } = node.op else { return None };
    if graph.readers(node.outputs[0]) != 0 || node.layer.is_some() {
        return None;
    }
    let (norm_index, Op::RmsNorm(norm)) = only_writer(graph, node.inputs[0])? else { return None };
    let fused = Node {
        op: Op::FusedHead { norm: *norm, weight },
        inputs: graph.nodes[norm_index].inputs.clone(),
        outputs: node.outputs.clone(),
        layer: None,
    };
    Some((vec![norm_index, at], vec![fused]))
}

/// Removes the intermediate values that fusion left behind, and renumbers the rest.
fn drop_dead_values(mut graph: Graph) -> Graph {
    let mut renamed = vec![None; graph.values.len()];
    let mut values = Vec::new();
    for node in &mut graph.nodes {
        for id in node.inputs.iter_mut().chain(&mut node.outputs) {
            let old = id.0 as usize;
            *id = *renamed[old].get_or_insert_with(|| {
                values.push(graph.values[old]);
                ValueId(values.len() as u32 - 1)
            });
        }
    }
    graph.values = values;
    graph
}

/// The node that writes `value`, if any.
fn writer(graph: &Graph, value: ValueId) -> Option<(usize, &Op)> {
    let index = graph.nodes.iter().position(|n| n.outputs.contains(&value))?;
    Some((index, &graph.nodes[index].op))
}

/// The node that writes `value`, if `value` has a single reader.
fn only_writer(graph: &Graph, value: ValueId) -> Option<(usize, &Op)> {
    if graph.readers(value) == 1 { writer(graph, value) } else { None }
}

/// A pattern that ends at a node: the nodes to remove and those to put in place of the last of them.
type Match = fn(&Graph, usize) -> Option<(Vec<usize>, Vec<Node>)>;

fn find(graph: &Graph, matches: Match) -> Option<(usize, Vec<usize>, Vec<Node>)> {
    (0..graph.nodes.len()).find_map(|at| {
        let (members, fused) = matches(graph, at)?;
        Some((at, members, fused))
    })
}

fn replace(graph: &mut Graph, at: usize, members: &[usize], fused: Vec<Node>) {
    let mut fused = Some(fused);
    let old = std::mem::take(&mut graph.nodes);
    for (index, node) in old.into_iter().enumerate() {
        if index == at {
            graph.nodes.extend(fused.take().into_iter().flatten());
        } else if !members.contains(&index) {
            graph.nodes.push(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Subgraph, WeightFormat};
    use crate::synthetic;

    fn names(graph: &Graph) -> Vec<&'static str> {
        graph.nodes.iter().map(|n| n.op.name()).collect()
    }

    #[test]
    fn a_llama_becomes_five_ops_a_block() {
        let model = synthetic::llama(&synthetic::tiny(2), WeightFormat::F32, 1);
        let fused = optimise(model);
        let block =
            ["norm+qkv+rope+cache", "attend", "matmul+add", "norm+gate_up+silu_mul", "matmul+add"];
        let mut expected = vec!["embed"];
        expected.extend(block);
        expected.extend(block);
        expected.push("norm+head");
        assert_eq!(names(&fused), expected);
        let read_or_written = fused.nodes.iter().map(|n| n.outputs.len()).sum::<usize>();
        assert_eq!(fused.values.len(), read_or_written);
    }

    #[test]
    fn a_value_that_somebody_else_reads_is_not_fused_away() {
        let mut model = synthetic::llama(&synthetic::tiny(1), WeightFormat::F32, 1);
        let gate = model.nodes.iter().position(|n| n.op == Op::SiluMul).expect("a block has one");
        let spied = model.nodes[gate].inputs[0];
        let cols = model.values[spied.0 as usize].cols;
        model.push(Op::Add, Some(0), &[spied, spied], &[cols]);
        assert!(names(&optimise(model)).contains(&"silu_mul"));
    }

    #[test]
    fn stages_of_a_cut_model_hold_all_its_ops_once() {
        let model = optimise(synthetic::llama(&synthetic::tiny(3), WeightFormat::F32, 1));
        let parts: Vec<_> = [(0, 1), (1, 3)]
            .map(|(a, b)| Subgraph::cut("part", &model, a, b).expect("these layers exist"))
            .into();
        let joined: Vec<_> = parts.iter().flat_map(|p| names(&p.graph)).collect();
        assert_eq!(joined, names(&model));
        assert!(Subgraph::cut("none", &model, 1, 4).is_err());
        assert!(Subgraph::cut("none", &model, 1, 1).is_err());
    }
}
