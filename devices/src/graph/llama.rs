//! The llama architecture as a graph of plain ops.
//!
//! *Invariant:* this file says which ops a block consists of; it knows no file format. Who has the tensors hands them
//! out through a function from [`Tensor`] to [`Weight`].

use super::{Graph, Norm, Op, Rope, ValueId, Weight, WeightId};

/// Sizes of a llama model.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaShape {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Epsilon of every norm.
    pub norm_epsilon: f32,
    /// Rotation of queries and keys; holds the size of a head.
    pub rope: Rope,
}

/// The tensors of a llama model, blocks counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tensor {
    /// `vocabulary x width`.
    Embedding,
    /// `1 x width`.
    AttentionNorm(usize),
    /// `heads * head_dim x width`.
    Query(usize),
    /// `kv_heads * head_dim x width`.
    Key(usize),
    /// `kv_heads * head_dim x width`.
    Value(usize),
    /// `width x heads * head_dim`.
    AttentionOutput(usize),
    /// `1 x width`.
    FfnNorm(usize),
    /// `ffn x width`.
    Gate(usize),
    /// `ffn x width`.
    Up(usize),
    /// `width x ffn`.
    Down(usize),
    /// `1 x width`.
    OutputNorm,
    /// `vocabulary x width`; the embedding again where the two are tied.
    Output,
}

impl LlamaShape {
    /// Rows and columns that a tensor must have.
    pub fn of(&self, tensor: Tensor) -> (usize, usize) {
        let (q, kv) = (self.heads * self.rope.head_dim, self.kv_heads * self.rope.head_dim);
        match tensor {
            Tensor::Embedding | Tensor::Output => (self.vocabulary, self.width),
            Tensor::AttentionNorm(_) | Tensor::FfnNorm(_) | Tensor::OutputNorm => (1, self.width),
            Tensor::Query(_) => (q, self.width),
            Tensor::Key(_) | Tensor::Value(_) => (kv, self.width),
            Tensor::AttentionOutput(_) => (self.width, q),
            Tensor::Gate(_) | Tensor::Up(_) => (self.ffn, self.width),
            Tensor::Down(_) => (self.width, self.ffn),
        }
    }

    /// Builds the graph of the whole model from `weight`, which must return weights of the shapes of [`Self::of`].
    pub fn graph<E>(
        &self,
        mut weight: impl FnMut(Tensor) -> Result<Weight, E>,
    ) -> Result<Graph, E> {
        let mut graph = Graph::default();
        let mut add = |graph: &mut Graph, tensor: Tensor| -> Result<WeightId, E> {
            let weight = weight(tensor)?;
            assert_eq!((weight.rows, weight.cols), self.of(tensor), "shape of {}", weight.name);
            Ok(graph.weight(weight))
        };
        let table = add(&mut graph, Tensor::Embedding)?;
        let mut x = graph.push(Op::Embed { table }, None, &[], &[self.width])[0];
        for layer in 0..self.layers {
            let mut tensor = |graph: &mut Graph, of: fn(usize) -> Tensor| add(graph, of(layer));
            x = self.attention_block(&mut graph, layer, x, &mut tensor)?;
            x = self.ffn_block(&mut graph, layer, x, &mut tensor)?;
        }
        let weight = add(&mut graph, Tensor::OutputNorm)?;
        let x = graph.push(Op::RmsNorm(self.norm(weight)), None, &[x], &[self.width])[0];
        let weight = add(&mut graph, Tensor::Output)?;
        graph.push(Op::MatMul { weight }, None, &[x], &[self.vocabulary]);
        Ok(graph)
    }

    fn norm(&self, weight: WeightId) -> Norm {
        Norm { weight, epsilon: self.norm_epsilon }
    }

    fn attention_block<E>(
        &self,
        graph: &mut Graph,
        layer: usize,
        x: ValueId,
        tensor: &mut impl FnMut(&mut Graph, fn(usize) -> Tensor) -> Result<WeightId, E>,
    ) -> Result<ValueId, E> {
        let at = Some(layer);
        let head_dim = self.rope.head_dim;
        let (q_width, kv_width) = (self.heads * head_dim, self.kv_heads * head_dim);
        let weight = tensor(graph, Tensor::AttentionNorm)?;
        let h = graph.push(Op::RmsNorm(self.norm(weight)), at, &[x], &[self.width])[0];
        let weight = tensor(graph, Tensor::Query)?;
        let q = graph.push(Op::MatMul { weight }, at, &[h], &[q_width])[0];
        let weight = tensor(graph, Tensor::Key)?;
        let k = graph.push(Op::MatMul { weight }, at, &[h], &[kv_width])[0];
        let weight = tensor(graph, Tensor::Value)?;
        let v = graph.push(Op::MatMul { weight }, at, &[h], &[kv_width])[0];
        let q = graph.push(Op::Rotate(self.rope.clone()), at, &[q], &[q_width])[0];
        let k = graph.push(Op::Rotate(self.rope.clone()), at, &[k], &[kv_width])[0];
        let attention = Op::Attention { heads: self.heads, kv_heads: self.kv_heads, head_dim };
        let y = graph.push(attention, at, &[q, k, v], &[q_width])[0];
        let weight = tensor(graph, Tensor::AttentionOutput)?;
        let y = graph.push(Op::MatMul { weight }, at, &[y], &[self.width])[0];
        Ok(graph.push(Op::Add, at, &[y, x], &[self.width])[0])
    }

    fn ffn_block<E>(
        &self,
        graph: &mut Graph,
        layer: usize,
        x: ValueId,
        tensor: &mut impl FnMut(&mut Graph, fn(usize) -> Tensor) -> Result<WeightId, E>,
    ) -> Result<ValueId, E> {
        let at = Some(layer);
        let weight = tensor(graph, Tensor::FfnNorm)?;
        let h = graph.push(Op::RmsNorm(self.norm(weight)), at, &[x], &[self.width])[0];
        let weight = tensor(graph, Tensor::Gate)?;
        let gate = graph.push(Op::MatMul { weight }, at, &[h], &[self.ffn])[0];
        let weight = tensor(graph, Tensor::Up)?;
        let up = graph.push(Op::MatMul { weight }, at, &[h], &[self.ffn])[0];
        let h = graph.push(Op::SiluMul, at, &[gate, up], &[self.ffn])[0];
        let weight = tensor(graph, Tensor::Down)?;
        let y = graph.push(Op::MatMul { weight }, at, &[h], &[self.width])[0];
        Ok(graph.push(Op::Add, at, &[y, x], &[self.width])[0])
    }
}
