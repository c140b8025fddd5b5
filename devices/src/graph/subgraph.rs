//! A stage of a model, ready to be compiled for one unit: consecutive blocks, with the embedding before the first and
//! the output head after the last.

use super::{Graph, Op, ValueId};

/// What a stage reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageInput {
    /// Token ids: the stage begins with the embedding.
    Tokens,
    /// The previous stage's activations, held in this value.
    Activations(ValueId),
}

/// What a stage writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageOutput {
    /// Activations for the next stage.
    Activations(ValueId),
    /// Logits: the stage ends in the output head.
    Logits(ValueId),
}

/// A part of a model that one unit runs: a graph with one input and one output.
#[derive(Clone, Debug)]
pub struct Subgraph {
    /// For messages and traces, such as `target[0..8]`.
    pub name: String,
    /// The ops, fused or not, with their weights.
    pub graph: Graph,
    /// Where rows come from.
    pub input: StageInput,
    /// Where rows go.
    pub output: StageOutput,
}

/// Why a graph cannot be cut as asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubgraphError {
    /// The layers asked for are not in the model.
    #[error("layers {first}..{end} are not a part of a model of {layers} layers")]
    Layers {
        /// First layer asked for.
        first: usize,
        /// One past the last layer asked for.
        end: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// More than one value crosses the cut.
    #[error("the cut at layer {layer} is crossed by {values} values, expected 1")]
    Crossing {
        /// Where the cut lies.
        layer: usize,
        /// Values that cross it.
        values: usize,
    },
}

impl Subgraph {
    /// Cuts layers `first..end` out of a whole model's graph: with the embedding if `first` is 0, and with the head if
    /// `end` is the number of layers. Weights are shared, not copied.
    pub fn cut(
        name: impl Into<String>,
        model: &Graph,
        first: usize,
        end: usize,
    ) -> Result<Self, SubgraphError> {
        let layers = model.nodes.iter().filter_map(|n| n.layer).max().map_or(0, |l| l + 1);
        if first >= end || end > layers {
            return Err(SubgraphError::Layers { first, end, layers });
        }
        let position = |index: usize, layer: Option<usize>| match layer {
            Some(layer) => layer,
            None if model.nodes[..index].iter().all(|n| n.layer.is_none()) => 0,
            None => layers - 1,
        };
        let mut graph = Graph::default();
        let mut values = vec![None; model.values.len()];
        let mut weights = vec![None; model.weights.len()];
        let mut written = vec![false; model.values.len()];
        let mut entering = Vec::new();
        for (index, node) in model.nodes.iter().enumerate() {
            if !(first..end).contains(&position(index, node.layer)) {
                continue;
            }
            for &input in &node.inputs {
                if !written[input.0 as usize] && !entering.contains(&input) {
                    entering.push(input);
                }
            }
            for &output in &node.outputs {
                written[output.0 as usize] = true;
            }
            let mut map = |v: &ValueId| {
                *values[v.0 as usize]
                    .get_or_insert_with(|| graph.value(model.values[v.0 as usize].cols))
            };
            let inputs = node.inputs.iter().map(&mut map).collect();
            let outputs = node.outputs.iter().map(&mut map).collect();
            let op = node.op.map_weights(|w| {
                *weights[w.0 as usize]
                    .get_or_insert_with(|| graph.weight(model.weights[w.0 as usize].clone()))
            });
            let layer = node.layer.map(|l| l - first);
            graph.nodes.push(super::Node { op, inputs, outputs, layer });
        }
        let input = match (first, entering.as_slice()) {
            (0, []) => StageInput::Tokens,
            (1.., [one]) => StageInput::Activations(values[one.0 as usize].expect("it was mapped")),
            (_, many) => {
                return Err(SubgraphError::Crossing { layer: first, values: many.len() });
            }
        };
        let last = graph.nodes.last().expect("a stage has at least one layer");
        let out = *last.outputs.last().expect("the last op writes a value");
        let output = if end == layers && !matches!(last.op, Op::Embed { .. }) {
            StageOutput::Logits(out)
        } else {
            StageOutput::Activations(out)
        };
        Ok(Self { name: name.into(), graph, input, output })
    }

    /// Number of transformer blocks.
    pub fn layers(&self) -> usize {
        self.graph.nodes.iter().filter_map(|n| n.layer).max().map_or(0, |l| l + 1)
    }

    /// Whether one executable of this subgraph is a whole model: tokens in, picks out.
    pub fn is_whole_model(&self) -> bool {
        matches!((self.input, self.output), (StageInput::Tokens, StageOutput::Logits(_)))
    }
}
