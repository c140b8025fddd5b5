//! The way to one model: whose turn it is, and the batch that is under way.
//!
//! *Invariant:* at most one batch is under way, and whoever got a share of one waits behind all who did not.

use std::collections::VecDeque;

use outrider_devices::SequenceId;

use super::event::Ticket;

/// One sequence's part of a batch that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) sequence: SequenceId,
    /// Epoch and base of the work (the epoch is the draft's alone).
    pub(super) epoch: u64,
    pub(super) base: u32,
    /// Picks that it gets from the target, or steps that it asks of the draft.
    pub(super) picks: usize,
    /// The guard kept the sequence from drafting.
    pub(super) guarded: bool,
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) paused: bool,
    /// The next batch belongs to another plan.
    pub(super) held: bool,
    turns: VecDeque<SequenceId>,
    flight: Option<(Ticket, Vec<Share>)>,
}

impl Lane {
    pub(super) fn join(&mut self, sequence: SequenceId) {
        self.turns.push_back(sequence);
    }

    pub(super) fn leave(&mut self, sequence: SequenceId) {
        self.turns.retain(|&s| s != sequence);
    }

    pub(super) fn turns(&self) -> Vec<SequenceId> {
        self.turns.iter().copied().collect()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.flight.is_some()
    }

    pub(super) fn is_open(&self) -> bool {
        !self.paused && !self.held && self.flight.is_none()
    }

    /// A batch leaves; those who share in it go to the end of the line.
    pub(super) fn depart(&mut self, ticket: Ticket, shares: Vec<Share>) {
        assert!(self.is_open(), "a second batch under way");
        let (served, waiting): (Vec<_>, Vec<_>) =
            self.turns.iter().partition(|&&s| shares.iter().any(|share| share.sequence == s));
        self.turns = waiting.into_iter().chain(served).collect();
        self.flight = Some((ticket, shares));
    }

    /// The shares of the batch `ticket`, if it is the one under way.
    pub(super) fn arrive(&mut self, ticket: Ticket) -> Option<Vec<Share>> {
        self.flight.take_if(|(under_way, _)| *under_way == ticket).map(|(_, shares)| shares)
    }
}
