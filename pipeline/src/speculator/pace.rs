//! Who may go on, and how far: questions about the state, answered without changing it.
//!
//! *Invariant:* the target waits for the draft only while the draft has something to do or is doing it.

use super::Speculator;
use crate::draft_policy::{DecodingMode, Pace};

impl Speculator {
    /// How much of the tail goes into the next pass. A stop token at its end needs no row of its own: the pick before
    /// it judges it.
    pub(super) fn tail_to_offer(&self, rows: usize) -> usize {
        let most = self.policy.depth.min(self.reach.offer) as usize;
        let offered = self.tail().len().min(rows).min(most);
        match self.tail()[..offered].last() {
            Some(last) if self.stop_tokens.contains(last) => offered - 1,
            _ => offered,
        }
    }

    /// How many tokens the draft should add now; 0 if it should rest.
    pub(super) fn drafts_wanted(&self) -> u32 {
        if self.finished || !self.policy.uses_draft() || self.tail_is_complete() {
            return 0;
        }
        let caught_up = self.target.len() as usize + 1 == self.confirmed;
        let target_rests = self.target.job().is_none() && caught_up;
        if self.policy.mode == DecodingMode::Sequential && (self.closed || !target_rests) {
            return 0;
        }
        let ahead = self.policy.tail_max(self.checking()).saturating_sub(self.tail().len() as u32);
        let room = self.room().min(self.draft_length_max.saturating_sub(self.text.len() as u32));
        ahead.min(self.policy.chunk()).min(self.reach.steps).min(room)
    }

    /// Whether a pass of the target is worth delaying, because drafts that it could check are on their way.
    pub(super) fn waits_for_draft(&self) -> bool {
        let sequential = self.policy.mode == DecodingMode::Sequential;
        let drafting = self.draft.job().filter(|job| job.epoch == self.epoch);
        if sequential && drafting.is_some() {
            return true;
        }
        let wait = match (sequential, self.dry) {
            (true, _) => self.policy.wait(),
            (false, true) if self.policy.pace == Pace::Worth => {
                self.reach.wait.min(self.policy.depth)
            }
            (false, true) => self.policy.wait().min(self.reach.wait),
            (false, false) => 0,
        };
        let coming = drafting.map_or(self.drafts_wanted(), |job| job.wanted);
        !self.closed && self.tail().len() < wait as usize && coming > 0
    }

    /// Whether only the draft, which is not at work for it, keeps the sequence from a pass of the target.
    pub(crate) fn waits_idly(&self) -> bool {
        let free = self.target.job().is_none() && self.draft.job().is_none();
        free && self.is_decoding() && self.waits_for_draft()
    }

    /// Waits no longer: what is drafted goes into the next pass, however little it is.
    pub(crate) fn go_along(&mut self) {
        self.closed = true;
    }

    /// The tail ends in a stop token: nothing can follow.
    pub(super) fn tail_is_complete(&self) -> bool {
        self.tail().last().is_some_and(|last| self.stop_tokens.contains(last))
    }

    /// How many of the tail's tokens the running pass checks; none if no pass is picking tokens.
    pub(super) fn checking(&self) -> Option<u32> {
        self.target.job().and_then(|job| job.wanted.checked_sub(1))
    }

    /// Tokens that may still be drafted: the last one of a text is always the target's own.
    pub(super) fn room(&self) -> u32 {
        self.length_max - 1 - (self.text.len() as u32).min(self.length_max - 1)
    }
}
