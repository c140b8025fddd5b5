//! Caches of finished sequences, kept until their places are needed: a prompt that begins as one of them takes its cache
//! over and runs only the rest.
//!
//! Devices know a cache by its *slot*, the id of the sequence that had it first. Whoever takes it over keeps that name,
//! and its first batch cuts the cache to what both share, as any batch does: no device and no message knows of this.
//!
//! *Invariants:* slots in use and slots on the shelf together are at most those of the executables. A text does not
//! depend on the shelf, because a row's bits depend on its own tokens alone.

use std::collections::VecDeque;

use outrider_devices::SequenceId;

/// Fewest positions that are worth taking over.
const SHARED_MIN: u32 = 8;

/// A cache that nobody uses at present.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) slot: SequenceId,
    /// The text that it was made of.
    pub(super) tokens: Vec<u32>,
    /// Positions of it in the target's cache.
    pub(super) target: u32,
    /// Positions of it in the draft's cache.
    pub(super) draft: u32,
}

/// What a prompt takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) slot: SequenceId,
    pub(super) target: u32,
    pub(super) draft: u32,
}

/// Caches that nobody uses at present, the one that was put away first in front.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    kept: VecDeque<Kept>,
}

impl Shelf {
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn put(&mut self, kept: Kept) {
        self.kept.push_back(kept);
    }

    /// Takes the cache from the shelf that shares most with a prompt, if that is worth it. The last token of a prompt
    /// is always run: its row picks the first token of the answer.
    pub(super) fn take(&mut self, prompt: &[u32]) -> Option<Found> {
        let usable = prompt.len() as u32 - 1;
        let shared = |kept: &Kept| {
            let same = kept.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
            (same as u32).min(usable)
        };
        let worth = |kept: &Kept| shared(kept).min(kept.target);
        let best = (0..self.kept.len()).max_by_key(|&index| worth(&self.kept[index]))?;
        if worth(&self.kept[best]) < SHARED_MIN {
            return None;
        }
        let kept = self.kept.remove(best)?;
        let shared = shared(&kept);
        Some(Found {
            slot: kept.slot,
            target: shared.min(kept.target),
            draft: shared.min(kept.draft),
        })
    }

    /// Gives up the cache that was put away first.
    pub(super) fn drop_oldest(&mut self) -> Option<SequenceId> {
        self.kept.pop_front().map(|kept| kept.slot)
    }
}

#[cfg(test)]
mod tests {
    use outrider_devices::SequenceId;

    use super::{Found, Kept, Shelf};

    fn shelf(texts: &[&[u32]]) -> Shelf {
        let mut shelf = Shelf::default();
        for (index, tokens) in texts.iter().enumerate() {
            let (target, draft) = (tokens.len() as u32 - 1, tokens.len() as u32 / 2);
            let slot = SequenceId(index as u64);
            shelf.put(Kept { slot, tokens: tokens.to_vec(), target, draft });
        }
        shelf
    }

    #[test]
    fn a_prompt_takes_the_longest_beginning_that_it_shares() {
        let text: Vec<u32> = (0..40).collect();
        let mut shelf = shelf(&[&text[..12], &text[..20], &[9; 30]]);
        let found = shelf.take(&text);
        assert_eq!(found, Some(Found { slot: SequenceId(1), target: 19, draft: 10 }));
        assert_eq!(shelf.take(&text).map(|found| found.slot), Some(SequenceId(0)));
        assert_eq!((shelf.take(&text), shelf.len()), (None, 1));
    }

    #[test]
    fn the_last_token_of_a_prompt_is_run_again() {
        let text: Vec<u32> = (0..16).collect();
        let mut shelf = shelf(&[&(0..30).collect::<Vec<u32>>()]);
        assert_eq!(shelf.take(&text).map(|found| found.target), Some(15));
    }

    #[test]
    fn a_few_shared_tokens_are_not_worth_a_slot() {
        let mut shelf = shelf(&[&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]);
        assert_eq!(shelf.take(&[1, 2, 3, 4, 5, 99, 98, 97, 96, 95]), None);
        assert_eq!((shelf.drop_oldest(), shelf.drop_oldest()), (Some(SequenceId(0)), None));
    }
}
