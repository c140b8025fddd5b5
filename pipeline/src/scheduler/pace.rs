//! What the scheduler tells the pacer, and what it passes on to the sequences.
//!
//! *Invariant:* whatever the pacer says, a sequence that is alone and has a target to run on goes on.

use outrider_devices::{Batch, DraftSegment, Pick, SequenceId};
use outrider_plans::ModelRole;

use super::lane::Share;
use super::sequence::Sequence;
use super::{Scheduler, Units};
use crate::draft_policy::{DecodingMode, Guarding, Pace};
use crate::pacing::{DraftJob, GuardState, PassKind, Prospects, Reach, Rhythm, Tail, TargetJob};

/// What one sequence may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// Draft.
    Draft,
    /// Decode alone.
    Rest,
}

impl Scheduler {
    /// Says to each sequence how far its draft may go now.
    pub(super) fn aim(&mut self) {
        let alive = self.sequences.iter().filter(|(_, s)| !s.speculator.is_finished());
        let paced = |s: &Sequence| s.speculator.policy().is_paced();
        let ids: Vec<(SequenceId, bool)> = alive.map(|(&id, s)| (id, paced(s))).collect();
        let Some(first) = self.next_to_try() else {
            // Without anything that is paced, policies are followed to the letter.
            self.sequences.values_mut().for_each(|s| s.speculator.aim(Reach::UNLIMITED));
            return;
        };
        let rhythm = match self.config.units {
            Units::Shared => Rhythm::Alternating,
            Units::Separate => self.rhythm(),
        };
        let rows_max = self.config.target.rows_max;
        let prospects = self.pacer.prospects(self.company(), rows_max, rhythm);
        let state = self.pacer.state();
        for (id, paced) in ids {
            // A try is made by one sequence, so that it costs little.
            let leave = match state {
                GuardState::On => Leave::Draft,
                GuardState::Trial if id == first => Leave::Draft,
                GuardState::Trial | GuardState::Off => Leave::Rest,
            };
            let reach = if paced { self.reach(id, leave, &prospects) } else { Reach::UNLIMITED };
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.speculator.aim(reach);
            }
        }
    }

    fn rhythm(&self) -> Rhythm {
        match self.config.policy.mode {
            DecodingMode::Overlap { .. } => Rhythm::Overlapping,
            _ => Rhythm::Alternating,
        }
    }

    fn reach(&self, id: SequenceId, leave: Leave, prospects: &Prospects) -> Reach {
        let sequence = &self.sequences[&id];
        let speculator = &sequence.speculator;
        let policy = speculator.policy();
        match (leave, policy.guarding, policy.pace) {
            (Leave::Rest, Guarding::On, _) => Reach::NONE,
            (_, _, Pace::Fixed) => Reach::UNLIMITED,
            (_, _, Pace::Worth) => prospects.reach(
                &self.pacer.calibration,
                Tail {
                    confidences: speculator.confidences(),
                    place: speculator.streak(),
                    trust: sequence.trust,
                    noise: sequence.noise(),
                },
            ),
        }
    }

    /// Sequences that are being decoded.
    fn company(&self) -> u32 {
        self.sequences.values().filter(|s| s.speculator.is_decoding()).count() as u32
    }

    /// The sequence that tries whether drafts pay again: the one whose draft has least to read first.
    fn next_to_try(&self) -> Option<SequenceId> {
        let open = |s: &Sequence| s.speculator.policy().is_paced() && !s.speculator.is_finished();
        let open = self.sequences.iter().filter(|(_, s)| open(s));
        open.min_by_key(|(_, s)| s.speculator.missed_by_draft()).map(|(&id, _)| id)
    }

    /// Rows that the draft would have to read for that.
    pub(super) fn catch_up(&self) -> u32 {
        let next = self.next_to_try().and_then(|id| self.sequences.get(&id));
        next.map_or(0, |s| s.speculator.missed_by_draft())
    }

    pub(super) fn note_target(&mut self, batch: &Batch) {
        let decoding = batch.segments.iter().all(|s| s.tokens.len() == s.want.rows());
        let rows = batch.rows() as u32;
        let job = TargetJob {
            rows,
            company: self.company().max(batch.segments.len() as u32),
            offered: rows - (batch.segments.len() as u32).min(rows),
            kind: if decoding { PassKind::Decode } else { PassKind::Prefill },
        };
        self.pacer.target_starts(job);
    }

    pub(super) fn note_draft(&mut self, segments: &[DraftSegment]) {
        // After a round that was right throughout, a draft has two rows to read.
        let missed = segments.iter().map(|s| s.segment.tokens.len().saturating_sub(2) as u32);
        let job = DraftJob { sequences: segments.len() as u32, missed: missed.sum() };
        self.pacer.draft_starts(job);
    }

    /// Passes that the draft has run for these answers: a draft that stopped itself has seen one token more.
    pub(super) fn steps_run(&self, shares: &[Share], drafted: &[Vec<Pick>]) -> u32 {
        let steps = |(share, picks): (&Share, &Vec<Pick>)| {
            let ended = picks.last().is_some_and(|p| self.config.end_of_text.contains(&p.token));
            let stopped = picks.len() < share.picks && !ended;
            picks.len() as u32 + u32::from(stopped)
        };
        shares.iter().zip(drafted).map(steps).max().unwrap_or(0)
    }
}

impl crate::pacing::Pacer {
    /// A job of `role` was lost.
    pub(super) fn lost(&mut self, role: ModelRole) {
        match role {
            ModelRole::Target => self.target_lost(),
            ModelRole::Draft => self.draft_lost(),
        }
    }
}
