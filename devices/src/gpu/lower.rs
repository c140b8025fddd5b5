//! Reads a stage's fused graph as a llama stack: embedding, blocks of five ops, head.
//!
//! *Invariant:* a graph either is such a stack, with every value read where the stack reads it, or is refused by the
//! name of the op that does not fit.

use super::kernels::CacheShape;
use super::tuning::Backing;
use crate::device::SlotLimits;
use crate::graph::{
    Graph, Node, Norm, Op, Rope, StageInput, StageOutput, Subgraph, ValueId, Weight, WeightId,
    passes,
};

/// One block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    pub(super) projections: [WeightId; 3],
    pub(super) rope: Rope,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) output: WeightId,
    pub(super) ffn_norm: Norm,
    pub(super) gate_up: [WeightId; 2],
    pub(super) down: WeightId,
}

/// A stage as a stack.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    pub(super) graph: Graph,
    pub(super) width: usize,
    /// The embedding table, where the stage begins with tokens.
    pub(super) table: Option<WeightId>,
    pub(super) blocks: Vec<Block>,
    /// Norm and projection, where the stage ends in logits.
    pub(super) head: Option<(Norm, WeightId)>,
}

/// Walks over a graph's nodes along the residual stream.
struct Walk<'a> {
    nodes: std::slice::Iter<'a, Node>,
    stream: ValueId,
}

impl Walk<'_> {
    fn next(&mut self, expected: &str) -> Result<&Node, String> {
        self.nodes.next().ok_or_else(|| format!("the stage ends where {expected} should follow"))
    }

    /// The next node's op if it reads `inputs`, and its output.
    fn take(&mut self, expected: &str, inputs: &[ValueId]) -> Result<(Op, ValueId), String> {
        let node = self.next(expected)?;
        let name = node.op.name();
        match node.outputs.as_slice() {
            &[output] if node.inputs == inputs => Ok((node.op.clone(), output)),
            _ => Err(format!("{name} does not read what {expected} reads in a llama block")),
        }
    }

    fn block(&mut self) -> Result<Block, String> {
        let misfit = |op: Op, expected: &str| Err(format!("{} in place of {expected}", op.name()));
        let x = self.stream;
        let (op, queries) = self.take("norm+qkv", &[x])?;
        let Op::FusedQkv { norm, q, k, v, rope, heads, kv_heads } = op else {
            return misfit(op, "norm+qkv");
        };
        let (op, attended) = self.take("attend", &[queries])?;
        let Op::FusedAttend { .. } = op else { return misfit(op, "attend") };
        let (op, middle) = self.take("matmul+add", &[attended, x])?;
        let Op::FusedMatMulAdd { weight: output } = op else { return misfit(op, "matmul+add") };
        let (op, hidden) = self.take("norm+gate_up", &[middle])?;
        let Op::FusedGateUp { norm: ffn_norm, gate, up } = op else {
            return misfit(op, "norm+gate_up");
        };
        let (op, end) = self.take("matmul+add", &[hidden, middle])?;
        let Op::FusedMatMulAdd { weight: down } = op else { return misfit(op, "matmul+add") };
        self.stream = end;
        Ok(Block {
            attention_norm: norm,
            projections: [q, k, v],
            rope,
            heads,
            kv_heads,
            output,
            ffn_norm,
            gate_up: [gate, up],
            down,
        })
    }
}

impl Stack {
    /// Reads `subgraph`, fusing it first; the error names what does not fit.
    pub(super) fn read(subgraph: &Subgraph) -> Result<Self, String> {
        let graph = passes::optimise(subgraph.graph.clone());
        let layers = subgraph.layers();
        let mut walk = Walk { nodes: graph.nodes.iter(), stream: ValueId(u32::MAX) };
        let mut table = None;
        match subgraph.input {
            StageInput::Tokens => {
                let (op, output) = walk.take("the embedding", &[])?;
                let Op::Embed { table: embedding } = op else {
                    return Err(format!("{} in place of the embedding", op.name()));
                };
                table = Some(embedding);
                walk.stream = output;
            }
            StageInput::Activations(_) => {
                let first = graph.nodes.first().and_then(|n| n.inputs.first());
                walk.stream = *first.ok_or("the first op reads nothing")?;
            }
        }
        let blocks = (0..layers).map(|_| walk.block()).collect::<Result<Vec<_>, _>>()?;
        let mut head = None;
        if let StageOutput::Logits(_) = subgraph.output {
            let stream = walk.stream;
            let (op, _) = walk.take("the head", &[stream])?;
            let Op::FusedHead { norm, weight } = op else {
                return Err(format!("{} in place of the head", op.name()));
            };
            head = Some((norm, weight));
        }
        if let Some(rest) = walk.nodes.next() {
            return Err(format!("{} after the end of the stack", rest.op.name()));
        }
        let width = graph.values[walk.stream.0 as usize].cols;
        let stack = Self { width, table, blocks, head, graph };
        stack.check()?;
        Ok(stack)
    }

    /// The sizes that the kernels are written for.
    fn check(&self) -> Result<(), String> {
        if !self.width.is_multiple_of(4) {
            return Err(format!("a width of {}, not a multiple of 4", self.width));
        }
        let first = self.blocks.first().ok_or("a stage without blocks")?;
        let head_dim = first.rope.head_dim;
        if !head_dim.is_multiple_of(8) || head_dim > 256 {
            return Err(format!("heads of {head_dim} elements, not a multiple of 8 up to 256"));
        }
        let same = |b: &Block| {
            (b.heads, b.kv_heads, &b.rope) == (first.heads, first.kv_heads, &first.rope)
        };
        if !self.blocks.iter().all(same) {
            return Err("blocks with different heads or rotations".into());
        }
        Ok(())
    }

    pub(super) fn weight(&self, id: WeightId) -> &Weight {
        &self.graph.weights[id.0 as usize]
    }

    /// Tokens of the vocabulary, where the stage has the head.
    pub(super) fn vocabulary(&self) -> Option<usize> {
        self.head.as_ref().map(|(_, weight)| self.weight(*weight).rows)
    }

    pub(super) fn cache(&self, limits: SlotLimits) -> CacheShape {
        let block = &self.blocks[0];
        CacheShape {
            slots: limits.sequences_max as u32,
            positions: limits.positions_max as u32,
            kv_heads: block.kv_heads as u32,
            head_dim: block.rope.head_dim as u32,
            backing: Backing::Buffer,
        }
    }

    /// The norm that block `layer` begins with; for the end of the stack, the head's.
    pub(super) fn norm_before(&self, layer: usize) -> Option<Norm> {
        match self.blocks.get(layer) {
            Some(block) => Some(block.attention_norm),
            None => self.head.as_ref().map(|(norm, _)| *norm),
        }
    }
}
