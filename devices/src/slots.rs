//! The bookkeeping behind an executable's caches: who has a slot, which tokens it holds, and the contract of
//! [`crate::Executable::run`].
//!
//! *Invariant:* a batch is either taken whole (every sequence has a slot that is cut to its base) or, with an error,
//! nothing has changed.

use std::collections::BTreeMap;

use crate::batch::{Batch, Segment, SequenceId};
use crate::device::{DeviceError, SlotLimits};

/// One sequence's cache.
#[derive(Debug, Default)]
pub struct Slot<C> {
    /// The tokens at positions 0, 1, ...
    pub tokens: Vec<u32>,
    /// What the executable keeps for these positions.
    pub cache: C,
}

/// The slots of one executable, `C` being what it keeps for a sequence.
#[derive(Debug)]
pub struct Slots<C> {
    limits: SlotLimits,
    taken: BTreeMap<SequenceId, Slot<C>>,
}

impl<C: Default> Slots<C> {
    /// No sequence has a slot yet.
    pub fn new(limits: SlotLimits) -> Self {
        Self { limits, taken: BTreeMap::new() }
    }

    /// Takes a batch in: checks it, gives new sequences a slot, cuts each sequence's tokens to its base and appends
    /// the batch's tokens. Caches are not touched: the executable cuts them to the bases.
    ///
    /// Panics if the batch breaks the contract of `run`. Fails, and changes nothing, if there are not enough slots.
    pub fn admit(&mut self, batch: &Batch, device: &str) -> Result<(), DeviceError> {
        assert!(
            batch.rows() <= self.limits.rows_max,
            "a batch of {} rows, more than the limit of {}",
            batch.rows(),
            self.limits.rows_max
        );
        let mut new = 0;
        for (index, segment) in batch.segments.iter().enumerate() {
            self.check(segment);
            let name = segment.sequence;
            let earlier = batch.segments[..index].iter().any(|s| s.sequence == name);
            assert!(!earlier, "{name} appears twice in a batch");
            new += usize::from(!self.taken.contains_key(&name));
        }
        if self.taken.len() + new > self.limits.sequences_max {
            let detail = format!(
                "{new} more cache slots wanted, {} of {} are taken",
                self.taken.len(),
                self.limits.sequences_max
            );
            return Err(DeviceError::OutOfMemory { device: device.to_owned(), detail });
        }
        for segment in &batch.segments {
            let slot = self.taken.entry(segment.sequence).or_default();
            slot.tokens.truncate(segment.base as usize);
            slot.tokens.extend(&segment.tokens);
        }
        Ok(())
    }

    fn check(&self, segment: &Segment) {
        let Segment { sequence, base, tokens, want, .. } = segment;
        let cached = self.cached(*sequence);
        assert!(!tokens.is_empty(), "{sequence}: a segment without rows");
        assert!(
            *base <= cached,
            "{sequence}: base {base} lies beyond the {cached} cached positions"
        );
        assert!(want.rows() <= tokens.len(), "{sequence}: more results wanted than rows");
        assert!(
            *base as usize + tokens.len() <= self.limits.positions_max,
            "{sequence}: {} rows at {base} exceed the limit of {} positions",
            tokens.len(),
            self.limits.positions_max
        );
    }

    /// The slot of a sequence of an admitted batch.
    pub fn of(&mut self, sequence: SequenceId) -> &mut Slot<C> {
        self.taken.get_mut(&sequence).expect("the batch was admitted")
    }

    /// Positions held for `sequence`; 0 if it has no slot.
    pub fn cached(&self, sequence: SequenceId) -> u32 {
        self.taken.get(&sequence).map_or(0, |slot| slot.tokens.len() as u32)
    }

    /// Frees the slot of `sequence`, if it has one.
    pub fn release(&mut self, sequence: SequenceId) {
        self.taken.remove(&sequence);
    }

    /// All slots that are taken, by sequence.
    pub fn iter(&self) -> impl Iterator<Item = (SequenceId, &Slot<C>)> {
        self.taken.iter().map(|(&sequence, slot)| (sequence, slot))
    }
}
