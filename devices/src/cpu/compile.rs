//! Compilation of a fused subgraph: steps with packed weights, and buffers that values share where their lifetimes allow.
//!
//! *Invariant:* the weights of all steps lie in one store in the order in which a forward reads them.

use std::collections::BTreeMap;

use super::kernels::tile::{BLOCK, TILE};
use super::memory::{LINE, Pages};
use super::pack::{Layout, Projection};
use super::rope::RopeTable;
use super::stored::decode_row;
use crate::device::{DeviceError, SlotLimits};
use crate::graph::{
    Graph, Node, Norm, Op, Rope, RopeStyle, StageInput, Subgraph, ValueId, Weight, WeightError,
    WeightId, passes,
};
use crate::reclaim;

/// A value's place in the arena: row r is the `stride` floats from `start + r * stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) start: usize,
    /// A multiple of 32; what the value's columns leave of it is zero.
    pub(crate) stride: usize,
}

/// A norm's weight, zero-filled to the stride of its input.
pub(crate) struct NormWeight {
    pub(crate) weight: Vec<f32>,
    pub(crate) epsilon: f32,
    /// Columns that count.
    pub(crate) cols: usize,
}

/// What the team does between two barriers.
pub(crate) enum Step {
    /// Rows of the table.
    Embed { table: Weight, out: Place },
    /// Norm, three projections, rotation, cache store.
    Qkv { input: Place, norm: NormWeight, qkv: [Projection; 3], out: Place, layer: usize },
    /// Attention over the cache of a layer.
    Attend { q: Place, out: Place, layer: usize },
    /// Projection and residual.
    MatMulAdd { input: Place, weight: Projection, residual: Place, out: Place },
    /// Norm, two projections, SwiGLU.
    GateUp { input: Place, norm: NormWeight, gate: Projection, up: Projection, out: Place },
    /// Norm and logits of the wanted rows.
    Head { input: Place, norm: NormWeight, weight: Projection },
}

/// Heads of every layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) queries: usize,
    pub(crate) kv: usize,
    /// Elements of a head.
    pub(crate) dim: usize,
    /// The same, filled up to a multiple of 16.
    pub(crate) padded: usize,
}

/// A compiled stage.
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) store: Pages<u8>,
    pub(crate) heads: Heads,
    pub(crate) layers: usize,
    pub(crate) rope: RopeTable,
    /// Floats of the arena.
    pub(crate) arena: usize,
    /// Where the previous stage's activations go, and their columns.
    pub(crate) input: Option<(Place, usize)>,
    /// Where this stage's activations are, and their columns; `None` if it ends in the head.
    pub(crate) output: Option<(Place, usize)>,
    /// Tokens of the vocabulary; 0 without a head.
    pub(crate) vocabulary: usize,
    /// Greatest width of a projection's operand.
    pub(crate) widest: usize,
    /// Whether some projection reads unquantised rows.
    pub(crate) reads_floats: bool,
}

/// Compiles `subgraph`, fusing it first where it is not.
pub(crate) fn compile(
    device: &str,
    subgraph: &Subgraph,
    limits: SlotLimits,
) -> Result<Program, DeviceError> {
    let graph = passes::optimise(subgraph.graph.clone());
    let heads = heads(device, &graph)?;
    let places = plan(&graph, heads, limits.rows_max);
    let mut compiler = Compiler {
        device,
        subgraph,
        graph: &graph,
        heads,
        places: &places.of,
        packs: Vec::new(),
        offset: 0,
    };
    let mut steps = Vec::with_capacity(graph.nodes.len());
    let mut layers = 0;
    for node in &graph.nodes {
        steps.push(compiler.step(node, &mut layers)?);
    }
    let (packs, bytes) = (std::mem::take(&mut compiler.packs), compiler.offset);
    let mut store = Pages::<u8>::stream(bytes).ok_or_else(|| DeviceError::OutOfMemory {
        device: device.to_owned(),
        detail: format!("{bytes} bytes of packed weights of {}", subgraph.name),
    })?;
    for (projection, weight, layout) in &packs {
        let weight = &graph.weights[weight.0 as usize];
        projection.pack(weight, layout, &mut store).map_err(|e| compiler.unreadable(&e))?;
        reclaim::file_pages(weight.bytes());
    }
    // The system maps more than was asked for, so each matrix brought back parts of those before it.
    for (_, weight, _) in &packs {
        reclaim::file_pages(graph.weights[weight.0 as usize].bytes());
    }
    let last = graph.nodes.last().expect("a stage has an op");
    let out = *last.outputs.last().expect("an op writes a value");
    let head = matches!(last.op, Op::FusedHead { .. });
    let at = |value: ValueId| (places.of[&value], graph.values[value.0 as usize].cols);
    Ok(Program {
        steps,
        store,
        heads,
        layers,
        rope: rope_table(device, &graph, heads, limits.positions_max)?,
        arena: places.floats,
        input: match subgraph.input {
            StageInput::Tokens => None,
            StageInput::Activations(_) => entering(&graph).map(at),
        },
        output: (!head).then(|| at(out)),
        vocabulary: if head { graph.values[out.0 as usize].cols } else { 0 },
        widest: packs.iter().map(|(p, ..)| p.cols).max().unwrap_or(BLOCK),
        reads_floats: packs.iter().any(|(p, ..)| !p.packing.is_quantised()),
    })
}

/// The value that is read before anything writes it.
fn entering(graph: &Graph) -> Option<ValueId> {
    let written = |value| graph.nodes.iter().any(|n| n.outputs.contains(&value));
    graph.nodes.iter().flat_map(|n| &n.inputs).copied().find(|&v| !written(v))
}

fn unsupported(device: &str, detail: impl Into<String>) -> DeviceError {
    DeviceError::Unsupported { device: device.to_owned(), detail: detail.into() }
}

/// The head counts, which all layers must share.
fn heads(device: &str, graph: &Graph) -> Result<Heads, DeviceError> {
    let mut found = None;
    for node in &graph.nodes {
        let Op::FusedAttend { heads, kv_heads, head_dim } = node.op else { continue };
        let these = Heads {
            queries: heads,
            kv: kv_heads,
            dim: head_dim,
            padded: head_dim.next_multiple_of(TILE),
        };
        if *found.get_or_insert(these) != these {
            return Err(unsupported(device, "attention whose head counts differ between layers"));
        }
        if kv_heads == 0 || heads % kv_heads != 0 || head_dim % 2 != 0 || head_dim == 0 {
            let detail = format!("attention of {heads} query, {kv_heads} kv heads of {head_dim}");
            return Err(unsupported(device, detail));
        }
    }
    Ok(found.unwrap_or_default())
}

/// The rotation, which all layers must share.
fn rope_table(
    device: &str,
    graph: &Graph,
    heads: Heads,
    positions: usize,
) -> Result<RopeTable, DeviceError> {
    let ropes = graph.nodes.iter().filter_map(|n| match &n.op {
        Op::FusedQkv { rope, .. } => Some(rope),
        _ => None,
    });
    let mut first: Option<&Rope> = None;
    for rope in ropes {
        if *first.get_or_insert(rope) != rope {
            return Err(unsupported(device, "rotations that differ between layers"));
        }
    }
    let frequencies = first.map_or(&[][..], |rope| &rope.inverse_frequencies);
    Ok(RopeTable::new(frequencies, heads.padded / 2, positions))
}

/// Places of all values, and the floats that they need together.
struct Places {
    of: BTreeMap<ValueId, Place>,
    floats: usize,
}

/// Gives each value a place from the op that writes it to the last that reads it; only values of the same width share
/// one, so that what fills a row up stays zero. A projection with residual writes
/// over its residual where nobody reads that later: it reads each element just before it writes it.
fn plan(graph: &Graph, heads: Heads, rows: usize) -> Places {
    let cols = |value: ValueId| {
        let writer = graph.nodes.iter().find(|n| n.outputs.contains(&value));
        match writer.map(|n| &n.op) {
            Some(Op::FusedQkv { .. } | Op::FusedAttend { .. }) => heads.queries * heads.padded,
            _ => graph.values[value.0 as usize].cols,
        }
    };
    let last_read = |value: ValueId| {
        graph.nodes.iter().rposition(|n| n.inputs.contains(&value)).unwrap_or(usize::MAX)
    };
    let mut of = BTreeMap::new();
    let mut free: Vec<(usize, Place)> = Vec::new();
    let mut floats = 0;
    let mut take = |value: ValueId, free: &mut Vec<(usize, Place)>| {
        let cols = cols(value);
        if let Some(index) = free.iter().position(|&(of, _)| of == cols) {
            return free.swap_remove(index).1;
        }
        let stride = cols.next_multiple_of(BLOCK);
        let place = Place { start: floats, stride };
        floats += (rows * stride).next_multiple_of(LINE / 4);
        place
    };
    if let Some(value) = entering(graph) {
        of.insert(value, take(value, &mut free));
    }
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut dying: Vec<ValueId> =
            node.inputs.iter().copied().filter(|&v| last_read(v) == index).collect();
        if matches!(node.op, Op::FusedHead { .. }) {
            continue;
        }
        for &output in &node.outputs {
            let residual = match node.op {
                Op::FusedMatMulAdd { .. } => Some(node.inputs[1]),
                _ => None,
            };
            let reused = residual.and_then(|r| {
                let at = dying.iter().position(|&v| v == r)?;
                (node.inputs[0] != r).then(|| dying.swap_remove(at))
            });
            let place = match reused {
                Some(residual) => of[&residual],
                None => take(output, &mut free),
            };
            of.insert(output, place);
        }
        free.extend(dying.iter().map(|&v| (cols(v), of[&v])));
    }
    Places { of, floats }
}

struct Compiler<'a> {
    device: &'a str,
    subgraph: &'a Subgraph,
    graph: &'a Graph,
    heads: Heads,
    places: &'a BTreeMap<ValueId, Place>,
    packs: Vec<(Projection, WeightId, Layout)>,
    offset: usize,
}

impl Compiler<'_> {
    fn step(&mut self, node: &Node, layers: &mut usize) -> Result<Step, DeviceError> {
        let input = |i: usize| self.places[&node.inputs[i]];
        let out = node.outputs.first().and_then(|v| self.places.get(v)).copied();
        let out = out.unwrap_or(Place { start: 0, stride: 0 });
        Ok(match &node.op {
            Op::Embed { table } => Step::Embed { table: self.weight(*table).clone(), out },
            Op::FusedQkv { norm, q, k, v, rope, .. } => {
                let input = input(0);
                let norm = self.norm(*norm, input)?;
                let qkv = self.qkv([*q, *k, *v], rope)?;
                *layers += 1;
                Step::Qkv { input, norm, qkv, out, layer: *layers - 1 }
            }
            Op::FusedAttend { .. } => {
                let layer = layers.checked_sub(1).ok_or_else(|| self.stray(node))?;
                Step::Attend { q: input(0), out, layer }
            }
            Op::FusedMatMulAdd { weight } => {
                let (input, residual) = (input(0), input(1));
                let weight = self.projection(*weight, self.inputs(node.inputs[0]))?;
                Step::MatMulAdd { input, weight, residual, out }
            }
            Op::FusedGateUp { norm, gate, up } => {
                let input = input(0);
                let norm = self.norm(*norm, input)?;
                let [gate, up] = self.in_turns([*gate, *up]);
                Step::GateUp { input, norm, gate, up, out }
            }
            Op::FusedHead { norm, weight } => {
                let input = input(0);
                let norm = self.norm(*norm, input)?;
                Step::Head { input, norm, weight: self.projection(*weight, None)? }
            }
            Op::RmsNorm(_)
            | Op::MatMul { .. }
            | Op::Rotate(_)
            | Op::Attention { .. }
            | Op::SiluMul
            | Op::Add => return Err(self.stray(node)),
        })
    }

    /// An op in no pattern that this unit runs.
    fn stray(&self, node: &Node) -> DeviceError {
        let detail =
            format!("a {} outside the fused ops, in {}", node.op.name(), self.subgraph.name);
        unsupported(self.device, detail)
    }

    fn unreadable(&self, error: &WeightError) -> DeviceError {
        DeviceError::Compile {
            device: self.device.to_owned(),
            subgraph: self.subgraph.name.clone(),
            detail: error.to_string(),
        }
    }

    fn weight(&self, id: WeightId) -> &Weight {
        &self.graph.weights[id.0 as usize]
    }

    fn norm(&self, norm: Norm, input: Place) -> Result<NormWeight, DeviceError> {
        let source = self.weight(norm.weight);
        let mut weight = vec![0.0; input.stride];
        decode_row(source, 0, &mut weight).map_err(|e| self.unreadable(&e))?;
        Ok(NormWeight { weight, epsilon: norm.epsilon, cols: source.cols })
    }

    /// Which input of its weight each column of `value` is, if heads were filled up.
    fn inputs(&self, value: ValueId) -> Option<Vec<Option<u32>>> {
        let writer = self.graph.nodes.iter().find(|n| n.outputs.contains(&value))?;
        matches!(writer.op, Op::FusedAttend { .. })
            .then(|| head_rows(self.heads.queries, self.heads, RopeStyle::Adjacent))
    }

    fn projection(
        &mut self,
        id: WeightId,
        inputs: Option<Vec<Option<u32>>>,
    ) -> Result<Projection, DeviceError> {
        let layout = Layout::plain(self.weight(id));
        let layout = match inputs {
            Some(inputs) => layout.with_inputs(inputs),
            None => layout,
        };
        Ok(self.reserve(id, layout))
    }

    fn qkv(&mut self, ids: [WeightId; 3], rope: &Rope) -> Result<[Projection; 3], DeviceError> {
        let heads = self.heads;
        if rope.head_dim != heads.dim || rope.inverse_frequencies.len() != heads.dim / 2 {
            let detail = format!("a rotation of {} of {} elements", rope.head_dim, heads.dim);
            return Err(unsupported(self.device, detail));
        }
        let [q, k, v] = ids;
        Ok([
            self.reserve(q, Layout::outputs(head_rows(heads.queries, heads, rope.style))),
            self.reserve(k, Layout::outputs(head_rows(heads.kv, heads, rope.style))),
            self.reserve(v, Layout::outputs(head_rows(heads.kv, heads, RopeStyle::Adjacent))),
        ])
    }

    fn in_turns(&mut self, ids: [WeightId; 2]) -> [Projection; 2] {
        let layouts = ids.map(|id| Layout::plain(self.weight(id)));
        let [first, second] = ids.map(|id| self.weight(id));
        let planned =
            Projection::in_turns([(first, &layouts[0]), (second, &layouts[1])], self.offset);
        for ((projection, id), layout) in planned.iter().zip(ids).zip(layouts) {
            self.keep(projection.clone(), id, layout);
        }
        planned
    }

    fn reserve(&mut self, id: WeightId, layout: Layout) -> Projection {
        let projection = Projection::plan(self.weight(id), &layout, self.offset);
        self.keep(projection, id, layout)
    }

    fn keep(&mut self, projection: Projection, id: WeightId, layout: Layout) -> Projection {
        self.offset += projection.bytes();
        self.packs.push((projection.clone(), id, layout));
        projection
    }
}

/// The rows of `count` heads, each filled up, and with the halves of a pair side by side: a rotation then always turns
/// neighbours, and since queries and keys are permuted alike, their products stay.
fn head_rows(count: usize, heads: Heads, style: RopeStyle) -> Vec<Option<u32>> {
    let Heads { dim, padded, .. } = heads;
    let from = |i: usize| match style {
        RopeStyle::Adjacent => i,
        RopeStyle::Halves => i / 2 + i % 2 * (dim / 2),
    };
    (0..count)
        .flat_map(|head| (0..padded).map(move |i| (i < dim).then(|| (head * dim + from(i)) as u32)))
        .collect()
}
