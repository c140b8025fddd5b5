//! The models that devices are checked on: small, and together with every op, format, grouping of heads and rotation.

use super::Tolerance;
use crate::graph::{Graph, LlamaShape, RopeStyle, Subgraph, WeightFormat, passes};
use crate::synthetic;

/// A model to check a device on.
pub(super) struct Model {
    /// Shape and format.
    pub(super) name: String,
    /// Blocks.
    pub(super) layers: usize,
    /// Tokens in the vocabulary.
    pub(super) vocabulary: usize,
    /// As a checkpoint gives it.
    pub(super) plain: Graph,
    /// As devices get it.
    pub(super) fused: Graph,
}

impl Model {
    fn new(shape: &LlamaShape, format: WeightFormat) -> Self {
        let LlamaShape { layers, width, heads, kv_heads, ffn, vocabulary, rope, .. } = shape;
        let plain = synthetic::llama(shape, format, 11);
        Self {
            name: format!(
                "{format} {layers}x{width}, heads {heads}/{kv_heads}, ffn {ffn}, vocabulary {vocabulary}, {:?}",
                rope.style
            ),
            layers: *layers,
            vocabulary: *vocabulary,
            fused: passes::optimise(plain.clone()),
            plain,
        }
    }

    /// The first `count` tokens of a text.
    pub(super) fn tokens(&self, count: usize) -> Vec<u32> {
        (0..count).map(|i| ((i * i * 3 + i * 7 + 5) % self.vocabulary) as u32).collect()
    }

    /// Layers `first..end` as devices get them.
    pub(super) fn stage(&self, first: usize, end: usize) -> Subgraph {
        cut(&self.fused, first, end)
    }

    /// The whole model as devices get it.
    pub(super) fn whole(&self) -> Subgraph {
        self.stage(0, self.layers)
    }

    /// Layers `0..end` as a checkpoint gives them.
    pub(super) fn plain_stage(&self, end: usize) -> Subgraph {
        cut(&self.plain, 0, end)
    }
}

fn cut(graph: &Graph, first: usize, end: usize) -> Subgraph {
    Subgraph::cut(format!("model[{first}..{end}]"), graph, first, end)
        .expect("a llama can be cut between blocks")
}

/// The model for what does not depend on numbers.
pub(super) fn small(format: WeightFormat) -> Model {
    let width = if format.block_len() > 64 { 256 } else { 64 };
    Model::new(&synthetic::shape([3, width, 4, 2, width, 97]), format)
}

/// Every model that a device of these formats is checked on, with what is allowed.
pub(super) fn all(tolerance: &Tolerance) -> impl Iterator<Item = (Model, f32)> {
    let by_format = tolerance.formats.iter().flat_map(|&(format, allowed)| {
        shapes_of(format).into_iter().map(move |shape| (shape, format, allowed))
    });
    let by_shape = tolerance.formats.first().into_iter().flat_map(|&(format, allowed)| {
        special_shapes().into_iter().map(move |shape| (shape, format, allowed))
    });
    let fits = |shape: &LlamaShape, format: WeightFormat| {
        [shape.width, shape.ffn].iter().all(|cols| cols.is_multiple_of(format.block_len()))
    };
    by_format
        .chain(by_shape)
        .filter(move |(shape, format, _)| fits(shape, *format))
        .map(|(shape, format, allowed)| (Model::new(&shape, format), allowed))
}

/// `[layers, width, heads, kv_heads, ffn, vocabulary]` for each format: a narrow model where its blocks allow that, and
/// one of the width of a real draft.
fn shapes_of(format: WeightFormat) -> Vec<LlamaShape> {
    let mut shapes = vec![halves([2, 256, 4, 2, 768, 131])];
    if format.block_len() <= 32 {
        shapes.push(synthetic::shape([2, 64, 4, 2, 96, 97]));
    }
    shapes
}

/// Shapes that matter whatever the format: groupings of heads, sizes of heads, no power of two.
fn special_shapes() -> Vec<LlamaShape> {
    vec![
        synthetic::shape([2, 256, 4, 4, 256, 64]),
        halves([2, 256, 4, 1, 256, 101]),
        synthetic::shape([2, 512, 8, 2, 256, 101]),
        halves([2, 256, 2, 1, 512, 33]),
        synthetic::shape([2, 256, 8, 4, 704, 300]),
        halves([2, 192, 3, 1, 224, 50]),
    ]
}

fn halves(sizes: [usize; 6]) -> LlamaShape {
    let mut shape = synthetic::shape(sizes);
    shape.rope.style = RopeStyle::Halves;
    shape
}
