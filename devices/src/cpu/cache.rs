//! Where in a sequence's cache the keys and values of a head lie.
//!
//! *Invariant:* heads are apart, so the attention of one head reads one stream of keys and one of values.

use super::compile::Heads;
use super::kernels::lanes::LANES;

/// Sizes of a slot's cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheShape {
    pub(crate) layers: usize,
    pub(crate) heads: Heads,
    /// A multiple of 16.
    pub(crate) positions: usize,
}

impl CacheShape {
    pub(crate) fn new(layers: usize, heads: Heads, positions_max: usize) -> Self {
        Self { layers, heads, positions: positions_max.next_multiple_of(LANES) }
    }

    /// Halves of the keys, or the values, of one head of one layer.
    pub(crate) fn head_len(&self) -> usize {
        self.positions * self.heads.padded
    }

    /// Halves of a slot.
    pub(crate) fn len(&self) -> usize {
        2 * self.layers * self.heads.kv * self.head_len()
    }

    /// Where the keys of a head begin.
    pub(crate) fn keys(&self, layer: usize, head: usize) -> usize {
        (2 * layer * self.heads.kv + head) * self.head_len()
    }

    /// Where the values of a head begin.
    pub(crate) fn values(&self, layer: usize, head: usize) -> usize {
        ((2 * layer + 1) * self.heads.kv + head) * self.head_len()
    }
}
