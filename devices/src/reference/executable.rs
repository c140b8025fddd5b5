//! Interprets the nodes of a stage one after the other.
//!
//! *Invariant:* after a run, each sequence's keys and values cover exactly the tokens of its slot, in every layer.

use std::sync::Arc;

use super::NAME;
use super::ops::{self, Matrix};
use crate::batch::{Activations, Batch, Output, Picked, SequenceId, Want};
use crate::device::{CacheFormat, DeviceError, Executable, MemoryUse, SlotLimits};
use crate::graph::{Node, Norm, Op, Rope, StageInput, StageOutput, Subgraph, ValueId, WeightId};
use crate::sampling::{Scratch, pick};
use crate::slots::Slots;

/// Rotated keys and values of one layer, each `positions x kv_heads * head_dim`.
#[derive(Debug, Default)]
struct LayerCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// One row of a batch.
#[derive(Clone, Copy)]
struct Row {
    sequence: SequenceId,
    position: u32,
    token: u32,
}

/// A stage with its weights as `f32` and the KV caches of its sequences.
#[derive(Debug)]
pub struct ReferenceExecutable {
    subgraph: Subgraph,
    weights: Vec<Arc<[f32]>>,
    slots: Slots<Vec<LayerCache>>,
    cache: CacheFormat,
    scratch: Scratch,
}

/// What one run computes with: its rows, which of them run through the head, and the values so far.
struct Frame {
    rows: Vec<Row>,
    head_rows: Vec<usize>,
    values: Vec<Matrix>,
}

impl ReferenceExecutable {
    pub(super) fn new(subgraph: Subgraph, weights: Vec<Arc<[f32]>>, limits: SlotLimits) -> Self {
        let (slots, cache) = (Slots::new(limits), limits.cache);
        Self { subgraph, weights, slots, cache, scratch: Scratch::default() }
    }

    fn begin(&mut self, batch: &Batch, input: Option<Activations>) -> Frame {
        let mut frame = Frame {
            rows: Vec::with_capacity(batch.rows()),
            head_rows: Vec::with_capacity(batch.head_rows()),
            values: vec![Matrix::default(); self.subgraph.graph.values.len()],
        };
        let layers = self.subgraph.layers();
        for segment in &batch.segments {
            self.slots.of(segment.sequence).cache.resize_with(layers, LayerCache::default);
            let sequence = segment.sequence;
            let rows = segment.tokens.iter().zip(segment.base..);
            frame.rows.extend(rows.map(|(&token, position)| Row { sequence, position, token }));
            let end = frame.rows.len();
            frame.head_rows.extend(end - segment.want.rows()..end);
        }
        match (self.subgraph.input, input) {
            (StageInput::Tokens, None) => {}
            (StageInput::Activations(id), Some(Activations { cols, data })) => {
                assert_eq!(cols, self.subgraph.graph.values[id.0 as usize].cols, "input width");
                assert_eq!(data.len(), cols * frame.rows.len(), "input rows");
                frame.values[id.0 as usize] = Matrix { cols, data };
            }
            (StageInput::Tokens, Some(_)) => panic!("a stage that embeds tokens got activations"),
            (StageInput::Activations(_), None) => panic!("a stage got no activations"),
        }
        frame
    }

    fn evaluate(&mut self, node: &Node, frame: &mut Frame) {
        let head = self.subgraph.output == StageOutput::Logits(node.outputs[0]);
        let of = |i: usize| &frame.values[node.inputs[i].0 as usize];
        let y = match &node.op {
            Op::Embed { table } => self.embed(*table, frame),
            Op::RmsNorm(norm) => self.norm(of(0), norm),
            Op::MatMul { weight } if head => self.matmul(&of(0).gather(&frame.head_rows), *weight),
            Op::MatMul { weight } => self.matmul(of(0), *weight),
            Op::Rotate(rope) => rotate(of(0).clone(), rope, frame),
            Op::Attention { heads, kv_heads, head_dim } => {
                let kept = |x: &Matrix| ops::kept(x, *head_dim, self.cache);
                let (keys, values) = (kept(of(1)), kept(of(2)));
                self.store(node, frame, &keys, &values);
                self.attend(node, frame, [*heads, *kv_heads])
            }
            Op::SiluMul => ops::silu_mul(of(0), of(1)),
            Op::Add => ops::add(of(0), of(1)),
            Op::FusedQkv { norm, q, k, v, rope, .. } => {
                let h = self.norm(of(0), norm);
                let kept = |x: &Matrix| ops::kept(x, rope.head_dim, self.cache);
                let keys = kept(&rotate(self.matmul(&h, *k), rope, frame));
                let values = kept(&self.matmul(&h, *v));
                self.store(node, frame, &keys, &values);
                rotate(self.matmul(&h, *q), rope, frame)
            }
            Op::FusedAttend { heads, kv_heads, .. } => {
                self.attend(node, frame, [*heads, *kv_heads])
            }
            Op::FusedMatMulAdd { weight } => ops::add(&self.matmul(of(0), *weight), of(1)),
            Op::FusedGateUp { norm, gate, up } => {
                let h = self.norm(of(0), norm);
                ops::silu_mul(&self.matmul(&h, *gate), &self.matmul(&h, *up))
            }
            Op::FusedHead { norm, weight } => {
                self.matmul(&self.norm(&of(0).gather(&frame.head_rows), norm), *weight)
            }
        };
        frame.values[node.outputs[0].0 as usize] = y;
    }

    fn weight(&self, id: WeightId) -> &[f32] {
        &self.weights[id.0 as usize]
    }

    fn embed(&self, table: WeightId, frame: &Frame) -> Matrix {
        let cols = self.subgraph.graph.weights[table.0 as usize].cols;
        let tokens: Vec<u32> = frame.rows.iter().map(|r| r.token).collect();
        ops::embed(self.weight(table), cols, &tokens)
    }

    fn norm(&self, x: &Matrix, norm: &Norm) -> Matrix {
        ops::rms_norm(x, self.weight(norm.weight), norm.epsilon)
    }

    fn matmul(&self, x: &Matrix, weight: WeightId) -> Matrix {
        ops::matmul(x, self.weight(weight))
    }

    /// Writes each row's key and value at its position: what was cached from there on is cut off.
    fn store(&mut self, node: &Node, frame: &Frame, keys: &Matrix, values: &Matrix) {
        for (index, row) in frame.rows.iter().enumerate() {
            let cache = &mut self.slots.of(row.sequence).cache[layer(node)];
            let kept = row.position as usize * keys.cols;
            cache.keys.truncate(kept);
            cache.keys.extend(keys.row(index));
            cache.values.truncate(kept);
            cache.values.extend(values.row(index));
        }
    }

    /// Attends from each row to its sequence's positions up to its own.
    fn attend(&mut self, node: &Node, frame: &Frame, heads: [usize; 2]) -> Matrix {
        let queries = &frame.values[node.inputs[0].0 as usize];
        let kv_cols = queries.cols / heads[0] * heads[1];
        let mut data = Vec::with_capacity(queries.data.len());
        for (row, query) in frame.rows.iter().zip(queries.rows()) {
            let cache = &self.slots.of(row.sequence).cache[layer(node)];
            let seen = (row.position as usize + 1) * kv_cols;
            data.extend(ops::attend(query, &cache.keys[..seen], &cache.values[..seen], heads));
        }
        Matrix { cols: queries.cols, data }
    }

    fn pick(&mut self, batch: &Batch, logits: &Matrix) -> Picked {
        let mut picked = Picked::default();
        let mut rows = logits.rows();
        for segment in &batch.segments {
            let history = &self.slots.of(segment.sequence).tokens;
            for row in segment.tokens.len() - segment.want.rows()..segment.tokens.len() {
                let logits = rows.next().expect("one row of logits for each wanted one");
                let seen = &history[..segment.base as usize + row + 1];
                let position = seen.len() as u32;
                let sampling = &segment.sampling;
                picked.picks.push(pick(logits, position, seen, sampling, &mut self.scratch));
                if matches!(segment.want, Want::Logits(_)) {
                    picked.logits.extend(logits);
                }
            }
        }
        picked
    }
}

impl Executable for ReferenceExecutable {
    fn run(&mut self, batch: &Batch, input: Option<Activations>) -> Result<Output, DeviceError> {
        self.slots.admit(batch, NAME)?;
        let mut frame = self.begin(batch, input);
        let nodes = std::mem::take(&mut self.subgraph.graph.nodes);
        for node in &nodes {
            self.evaluate(node, &mut frame);
        }
        self.subgraph.graph.nodes = nodes;
        let mut value = |id: ValueId| std::mem::take(&mut frame.values[id.0 as usize]);
        Ok(match self.subgraph.output {
            StageOutput::Activations(id) => {
                let Matrix { cols, data } = value(id);
                Output::Activations(Activations { cols, data })
            }
            StageOutput::Logits(id) => Output::Picked(self.pick(batch, &value(id))),
        })
    }

    fn cached(&self, sequence: SequenceId) -> u32 {
        self.slots.cached(sequence)
    }

    fn release(&mut self, sequence: SequenceId) {
        self.slots.release(sequence);
    }

    fn memory(&self) -> MemoryUse {
        let bytes = |floats: usize| (floats * size_of::<f32>()) as u64;
        let caches = self.slots.iter().flat_map(|(_, slot)| &slot.cache);
        MemoryUse {
            weights: self.weights.iter().map(|w| bytes(w.len())).sum(),
            caches: caches.map(|c| bytes(c.keys.capacity() + c.values.capacity())).sum(),
            scratch: 0,
        }
    }
}

fn layer(node: &Node) -> usize {
    node.layer.expect("attention belongs to a layer")
}

fn rotate(x: Matrix, rope: &Rope, frame: &Frame) -> Matrix {
    let positions: Vec<u32> = frame.rows.iter().map(|r| r.position).collect();
    ops::rotate(x, rope, &positions)
}
