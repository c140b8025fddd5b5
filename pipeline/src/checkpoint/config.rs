//! Hyper-parameters of a llama model, whatever file they come from.
//!
//! *Invariant:* a [`ModelConfig`] has been checked: no size is zero, heads divide, products do not overflow, token ids
//! are in the vocabulary.

use std::collections::BTreeSet;

use outrider_devices::graph::{LlamaShape, Rope, RopeStyle};

use super::CheckpointError;
use super::rope::{self, RopeScaling};

/// No llama has heads beyond 256; a bound, since angles are allocated before any tensor is seen.
const HEAD_DIM_MAX: usize = 1 << 16;

/// Token ids with a meaning of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Each of these ends a text or a turn; ascending.
    pub eos: BTreeSet<u32>,
    /// Fills batches in training; never meant to be generated.
    pub pad: Option<u32>,
}

/// Hyper-parameters of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Sizes, and the rotation of queries and keys.
    pub shape: LlamaShape,
    /// Positions that the model was made for.
    pub context: usize,
    /// How positions were stretched, if they were.
    pub rope_scaling: RopeScaling,
    /// Base of the rotation's frequencies.
    pub rope_theta: f64,
    /// Whether the output projection is the embedding.
    pub tied: Tied,
    /// Ids with a meaning.
    pub special: SpecialIds,
}

/// Whether the output projection is the embedding again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tied {
    /// One table for both.
    Yes,
    /// Two tensors.
    No,
}

/// Hyper-parameters as a file says them, in its own names for messages.
pub(crate) struct Raw<'a> {
    pub(crate) file: &'a str,
    pub(crate) names: &'static Names,
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: Option<usize>,
    pub(crate) ffn: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
    pub(crate) norm_epsilon: f64,
    pub(crate) rope_style: RopeStyle,
    pub(crate) rope_theta: f64,
    pub(crate) rope_scaling: RopeScaling,
    pub(crate) tied: Tied,
    pub(crate) special: SpecialIds,
}

/// What a format calls the hyper-parameters.
pub(crate) struct Names {
    pub(crate) layers: &'static str,
    pub(crate) width: &'static str,
    pub(crate) heads: &'static str,
    pub(crate) kv_heads: &'static str,
    pub(crate) head_dim: &'static str,
    pub(crate) ffn: &'static str,
    pub(crate) vocabulary: &'static str,
    pub(crate) context: &'static str,
    pub(crate) norm_epsilon: &'static str,
    pub(crate) rope_theta: &'static str,
    pub(crate) special: &'static str,
}

impl Raw<'_> {
    /// Checks everything that does not need the tensors.
    pub(crate) fn check(self) -> Result<ModelConfig, CheckpointError> {
        let names = self.names;
        let bad = |name, expected: &str, found: &dyn ToString| {
            CheckpointError::bad_field(self.file, name, expected, found.to_string())
        };
        for (name, size) in [
            (names.layers, self.layers),
            (names.width, self.width),
            (names.heads, self.heads),
            (names.kv_heads, self.kv_heads),
            (names.ffn, self.ffn),
            (names.vocabulary, self.vocabulary),
            (names.context, self.context),
        ] {
            // Cache sizes and products of two sizes stay far from overflow.
            if size == 0 || size > u32::MAX as usize {
                return Err(bad(name, "a size from 1 to 4294967295", &size));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of the {} query heads", self.heads);
            return Err(bad(names.kv_heads, &expected, &self.kv_heads));
        }
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None if self.width.is_multiple_of(self.heads) => self.width / self.heads,
            None => {
                let expected = format!("a divisor of the width {}", self.width);
                return Err(bad(names.heads, &expected, &self.heads));
            }
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > HEAD_DIM_MAX {
            let expected = format!("an even size from 2 to {HEAD_DIM_MAX}");
            return Err(bad(names.head_dim, &expected, &head_dim));
        }
        if self.heads > u32::MAX as usize / head_dim {
            return Err(bad(names.heads, "heads that can be addressed", &self.heads));
        }
        let norm_epsilon = self.norm_epsilon as f32;
        if !(norm_epsilon.is_finite() && norm_epsilon >= 0.0) {
            return Err(bad(names.norm_epsilon, "a number from 0", &self.norm_epsilon));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(bad(names.rope_theta, "a number above 0", &self.rope_theta));
        }
        let ids = self.special.eos.iter().chain(&self.special.bos).chain(&self.special.pad);
        for id in ids.copied() {
            if id as usize >= self.vocabulary {
                let expected = format!("ids below the {} of the vocabulary", self.vocabulary);
                return Err(bad(names.special, &expected, &id));
            }
        }
        let frequencies = rope::inverse_frequencies(head_dim, self.rope_theta, self.rope_scaling);
        if !frequencies.iter().all(|f| f.is_finite()) {
            return Err(bad(names.rope_theta, "a base with finite angles", &self.rope_theta));
        }
        let shape = LlamaShape {
            layers: self.layers,
            width: self.width,
            heads: self.heads,
            kv_heads: self.kv_heads,
            ffn: self.ffn,
            vocabulary: self.vocabulary,
            norm_epsilon,
            rope: Rope {
                style: self.rope_style,
                head_dim,
                inverse_frequencies: frequencies.into(),
            },
        };
        Ok(ModelConfig {
            shape,
            context: self.context,
            rope_scaling: self.rope_scaling,
            rope_theta: self.rope_theta,
            tied: self.tied,
            special: self.special,
        })
    }
}
