//! The caches of an executable's sequences: a fixed pool of slots, each allocated when it is first used.
//!
//! *Invariant:* a slot holds as many positions as tokens of history; cutting forgets both, and what lies beyond is
//! never read before it is written again.

use super::compile::Heads;
use super::kernels::lanes::LANES;
use super::memory::Pages;
use crate::batch::SequenceId;

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

/// One place for a sequence.
#[derive(Default)]
pub(crate) struct Slot {
    sequence: Option<SequenceId>,
    /// Tokens whose keys and values are cached.
    pub(crate) tokens: Vec<u32>,
    pub(crate) cache: Option<Pages<u16>>,
}

/// All places.
pub(crate) struct Slots {
    pub(crate) shape: CacheShape,
    slots: Vec<Slot>,
}

impl Slots {
    /// A pool of `count` unused slots.
    pub(crate) fn new(shape: CacheShape, count: usize) -> Self {
        Self { shape, slots: (0..count).map(|_| Slot::default()).collect() }
    }

    /// The slot of a sequence.
    pub(crate) fn find(&self, sequence: SequenceId) -> Option<usize> {
        self.slots.iter().position(|s| s.sequence == Some(sequence))
    }

    /// Gives a sequence a slot: a free one that was used before, else one that was not. `None` if all are taken;
    /// `Some(None)` if there was no memory for its cache.
    pub(crate) fn take(&mut self, sequence: SequenceId) -> Option<Option<usize>> {
        let free = |slot: &Slot| slot.sequence.is_none();
        let warm = self.slots.iter().position(|s| free(s) && s.cache.is_some());
        let index = warm.or_else(|| self.slots.iter().position(free))?;
        let slot = &mut self.slots[index];
        if slot.cache.is_none() {
            slot.cache = Pages::zeroed(self.shape.len());
            if slot.cache.is_none() {
                return Some(None);
            }
        }
        slot.sequence = Some(sequence);
        slot.tokens.clear();
        Some(Some(index))
    }

    /// Frees the slot of a sequence; its memory stays for the next.
    pub(crate) fn release(&mut self, sequence: SequenceId) {
        if let Some(index) = self.find(sequence) {
            self.slots[index].sequence = None;
            self.slots[index].tokens.clear();
        }
    }

    /// One slot.
    pub(crate) fn get(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    /// One slot, to change it.
    pub(crate) fn get_mut(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index]
    }

    /// All slots.
    pub(crate) fn all_mut(&mut self) -> &mut [Slot] {
        &mut self.slots
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> u64 {
        self.slots.iter().filter_map(|s| s.cache.as_ref()).map(Pages::bytes).sum()
    }
}
