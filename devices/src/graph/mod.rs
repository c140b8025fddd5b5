//! The model graph: ops with explicit inputs and outputs, shapes symbolic in the number of batch rows.
//!
//! A checkpoint becomes a [`Graph`] of plain ops (`build` in the pipeline crate), [`passes`] fuse it, a stage of it is
//! cut out as a [`Subgraph`], and a device compiles that. Every value is a matrix `rows x cols` of `f32`, where `rows`
//! is the number of batch rows; only weights have fixed shapes. *Invariant:* nodes are in execution order and each
//! value is written by exactly one node (or is the graph's input).

pub mod arena;
mod llama;
mod op;
pub mod passes;
mod subgraph;
mod weight;

pub use llama::{LlamaShape, Tensor as LlamaTensor};
pub use op::{Norm, Op, Rope, RopeStyle};
pub use subgraph::{StageInput, StageOutput, Subgraph, SubgraphError};
pub use weight::{Weight, WeightBytes, WeightError, WeightFormat};

/// Index of a value in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Index of a weight in [`Graph::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// A matrix of `rows x cols` `f32`, rows being those of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Width of a row.
    pub cols: usize,
}

/// One op application.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Values read, in the order that the op documents.
    pub inputs: Vec<ValueId>,
    /// Values written, in the order that the op documents.
    pub outputs: Vec<ValueId>,
    /// Transformer block this node belongs to; `None` for the embedding and the head.
    pub layer: Option<usize>,
}

/// A model or a part of one.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Ops in execution order.
    pub nodes: Vec<Node>,
    /// Shapes of all values.
    pub values: Vec<Value>,
    /// Weights that the ops name.
    pub weights: Vec<Weight>,
}

impl Graph {
    /// Adds a value of `cols` columns.
    pub fn value(&mut self, cols: usize) -> ValueId {
        self.values.push(Value { cols });
        ValueId(self.values.len() as u32 - 1)
    }

    /// Adds a weight.
    pub fn weight(&mut self, weight: Weight) -> WeightId {
        self.weights.push(weight);
        WeightId(self.weights.len() as u32 - 1)
    }

    /// Appends a node that writes new values of the given widths, and returns these.
    pub fn push(
        &mut self,
        op: Op,
        layer: Option<usize>,
        inputs: &[ValueId],
        widths: &[usize],
    ) -> Vec<ValueId> {
        let outputs: Vec<_> = widths.iter().map(|&cols| self.value(cols)).collect();
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone(), layer });
        outputs
    }

    /// Number of nodes that read `value`.
    pub fn readers(&self, value: ValueId) -> usize {
        self.nodes.iter().filter(|n| n.inputs.contains(&value)).count()
    }
}
