//! The ops: first those that a checkpoint is translated to, then the fused ones that the passes put in their place.

use std::sync::Arc;

use super::WeightId;

/// How rotary embedding pairs the elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Elements 2i and 2i+1 (GGUF llama files).
    Adjacent,
    /// Elements i and i + head_dim/2 (Hugging Face checkpoints).
    Halves,
}

/// Rotary position embedding of heads of `head_dim` elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Pairing.
    pub style: RopeStyle,
    /// Elements of a head; all of them are rotated.
    pub head_dim: usize,
    /// `head_dim / 2` angles per position, radians: pair i at position p turns by `p * inverse_frequencies[i]`.
    pub inverse_frequencies: Arc<[f32]>,
}

/// Root-mean-square normalisation: `x / sqrt(mean(x^2) + epsilon) * weight`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// `1 x cols` weight.
    pub weight: WeightId,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// What a node computes. Matrices are row-major; a weight of `rows x cols` maps `cols` inputs to `rows` outputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// () -> x: row of the table for each token.
    Embed {
        /// `vocabulary x width` table.
        table: WeightId,
    },
    /// x -> y.
    RmsNorm(Norm),
    /// x -> y = x W^T.
    MatMul {
        /// `y.cols x x.cols`.
        weight: WeightId,
    },
    /// x -> y: rotates every head of x by its row's position.
    Rotate(Rope),
    /// q, k, v -> y: appends k and v to the layer's cache, then each query head attends causally to its group's cache.
    Attention {
        /// Query heads.
        heads: usize,
        /// Key and value heads; divides `heads`.
        kv_heads: usize,
        /// Elements of a head.
        head_dim: usize,
    },
    /// gate, up -> y = silu(gate) * up.
    SiluMul,
    /// a, b -> a + b.
    Add,

    /// x -> q (rotated): norm, the three projections, rotation of q and k, and k, v into the layer's cache.
    FusedQkv {
        /// Norm of x.
        norm: Norm,
        /// Query projection.
        q: WeightId,
        /// Key projection.
        k: WeightId,
        /// Value projection.
        v: WeightId,
        /// Rotation of q and k.
        rope: Rope,
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
    },
    /// q -> y: attention of rotated queries over the layer's cache, which holds this row already.
    FusedAttend {
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
        /// Elements of a head.
        head_dim: usize,
    },
    /// x, residual -> residual + x W^T.
    FusedMatMulAdd {
        /// Projection.
        weight: WeightId,
    },
    /// x -> silu(norm(x) G^T) * (norm(x) U^T).
    FusedGateUp {
        /// Norm of x.
        norm: Norm,
        /// Gate projection.
        gate: WeightId,
        /// Up projection.
        up: WeightId,
    },
    /// x -> logits = norm(x) W^T, only for the rows that want a result.
    FusedHead {
        /// Norm of x.
        norm: Norm,
        /// `vocabulary x width`.
        weight: WeightId,
    },
}

impl Op {
    /// Short name for listings and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::RmsNorm(_) => "rms_norm",
            Op::MatMul { .. } => "matmul",
            Op::Rotate(_) => "rotate",
            Op::Attention { .. } => "attention",
            Op::SiluMul => "silu_mul",
            Op::Add => "add",
            Op::FusedQkv { .. } => "norm+qkv+rope+cache",
            Op::FusedAttend { .. } => "attend",
            Op::FusedMatMulAdd { .. } => "matmul+add",
            Op::FusedGateUp { .. } => "norm+gate_up+silu_mul",
            Op::FusedHead { .. } => "norm+head",
        }
    }

    /// The same op with every weight renamed by `rename`, in the order of [`Op::weights`].
    pub fn map_weights(&self, mut rename: impl FnMut(WeightId) -> WeightId) -> Self {
        let mut op = self.clone();
        match &mut op {
            Op::Embed { table } => *table = rename(*table),
            Op::RmsNorm(norm) => norm.weight = rename(norm.weight),
            Op::MatMul { weight } | Op::FusedMatMulAdd { weight } => *weight = rename(*weight),
            Op::FusedQkv { norm, q, k, v, .. } => {
                norm.weight = rename(norm.weight);
                for w in [q, k, v] {
                    *w = rename(*w);
                }
            }
            Op::FusedGateUp { norm, gate, up } => {
                norm.weight = rename(norm.weight);
                *gate = rename(*gate);
                *up = rename(*up);
            }
            Op::FusedHead { norm, weight } => {
                norm.weight = rename(norm.weight);
                *weight = rename(*weight);
            }
            Op::Rotate(_)
            | Op::Attention { .. }
            | Op::SiluMul
            | Op::Add
            | Op::FusedAttend { .. } => {}
        }
        op
    }

    /// The weights that the op reads.
    pub fn weights(&self) -> Vec<WeightId> {
        let mut weights = Vec::new();
        self.map_weights(|w| {
            weights.push(w);
            w
        });
        weights
    }
}
