//! Where in a sequence's cache the keys and values of a head lie.
//!
//! *Invariant:* heads are apart, so the attention of one head reads one stream of keys and one of values. A cache is an array of
//! halves: as 16-bit floats each element is one; as bytes two elements share one, and the scales, one for each 16 elements of a
//! position, follow a head's bytes, those of its first 16 elements before those of its second.

use super::compile::Heads;
use super::kernels::lanes::LANES;
use crate::device::CacheFormat;

/// Sizes of a slot's cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheShape {
    pub(crate) layers: usize,
    pub(crate) heads: Heads,
    /// A multiple of 16.
    pub(crate) positions: usize,
    pub(crate) format: CacheFormat,
}

impl CacheShape {
    pub(crate) fn new(
        layers: usize,
        heads: Heads,
        (positions_max, format): (usize, CacheFormat),
    ) -> Self {
        Self { layers, heads, positions: positions_max.next_multiple_of(LANES), format }
    }

    /// Elements of the keys, or the values, of one head of one layer.
    pub(crate) fn elements(&self) -> usize {
        self.positions * self.heads.padded
    }

    /// Halves of the same.
    fn head_len(&self) -> usize {
        match self.format {
            CacheFormat::F16 => self.elements(),
            CacheFormat::Q8 => self.elements() / 2 + self.elements() / LANES,
        }
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

    /// Where the scale of elements `first..first + 16` of a position is, in a cache of bytes; `start` is where the head's
    /// keys or values begin.
    pub(crate) fn scale(&self, start: usize, first: usize, position: usize) -> usize {
        start + self.elements() / 2 + first / LANES * self.positions + position
    }
}
