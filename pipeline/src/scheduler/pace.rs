//! What the scheduler tells the pacer, and what it passes on to the sequences.
//!
//! *Invariant:* whatever the pacer says, a sequence that is alone and has a target to run on goes on.

use outrider_devices::{Batch, DraftSegment, Drafted, SequenceId};
use outrider_plans::ModelRole;

use super::lane::Share;
use super::sequence::Sequence;
use super::{Scheduler, Units};
use crate::draft_policy::{DecodingMode, Guarding, Pace};
use crate::pacing::{
    Allowance, DraftJob, GuardState, PassKind, Prospects, Reach, Rhythm, Tail, TargetJob,
};

/// What one sequence may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// Draft.
    Draft,
    /// Decode alone.
    Rest,
}

impl Scheduler {
    /// Rows that a draft has missed and that are not counted; and the fewest that are worth a job of their own.
    const MISSED_FREE: u32 = 16;
    const READING_MIN: u32 = 16;

    /// Says to each sequence how far its draft may go now.
    pub(super) fn aim(&mut self) {
        let alive = self.sequences.iter().filter(|(_, s)| !s.speculator.is_finished());
        let paced = |s: &Sequence| s.speculator.policy().is_paced();
        let (mut paced, others): (Vec<_>, Vec<_>) = alive.partition(|(_, s)| paced(s));
        // Those whose drafts have least to read go first.
        paced.sort_by_key(|(id, s)| (s.speculator.missed_by_draft(), **id));
        let ids = |of: Vec<(&SequenceId, _)>| of.into_iter().map(|(id, _)| *id).collect::<Vec<_>>();
        let (paced, others) = (ids(paced), ids(others));
        // What is not paced follows its policy to the letter.
        for id in others {
            self.aim_at(id, Reach::UNLIMITED);
        }
        if paced.is_empty() {
            return;
        }
        let rhythm = match self.config.units {
            Units::Shared => Rhythm::Alternating,
            Units::Separate => self.rhythm(),
        };
        let rows_max = self.config.target.rows_max;
        let company = self.company();
        let (guard, state) = (self.pacer.guard(company), self.pacer.state(company));
        // Where nobody may draft there is nothing to weigh.
        let unguarded = |id: &SequenceId| !self.is_guarded(*id);
        let prospects = (state != GuardState::Off || paced.iter().any(unguarded))
            .then(|| self.pacer.prospects(company, rows_max, rhythm));
        let allowance = match &prospects {
            Some(prospects) if state != GuardState::Off => prospects.allowance(),
            _ => Allowance::default(),
        };
        let drafters = allowance.drafters as usize;
        let (mut drafting, (mut all, mut piece)) = (0, allowance.reading);
        // While nobody drafts, the one who will try first may read.
        let mut ahead = None;
        for id in paced {
            // A few rows are read beside any draft. What else a draft reads comes out of what all of them may read.
            let missed = self.sequences[&id].speculator.missed_by_draft();
            let missed = if missed > Self::MISSED_FREE { missed } else { 0 };
            let read = if missed <= all { missed } else { piece };
            let worthwhile = missed <= all || piece >= Self::READING_MIN;
            let leave = if drafting < drafters && worthwhile { Leave::Draft } else { Leave::Rest };
            let mut reach = match &prospects {
                Some(prospects) => self.reach(id, leave, prospects),
                None => Reach::NONE,
            };
            if leave == Leave::Draft && self.is_decoding(id) {
                drafting += 1;
                (all, piece) = (all.saturating_sub(read), piece.saturating_sub(read));
                reach.reading = if read == missed { u32::MAX } else { read };
            }
            if drafters == 0 && ahead.is_none() {
                let missed = self.sequences[&id].speculator.missed_by_draft();
                let rows = self.pacer.reading_ahead(missed, company).min(missed / 2);
                ahead = Some(rows);
                if rows > 0 {
                    reach = Reach { steps: 1, offer: 0, reading: rows, ..Reach::NONE };
                }
            }
            self.aim_at(id, reach);
            let guarding = self.is_guarded(id);
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.guarded = guarding && leave == Leave::Rest && guard != GuardState::On;
                sequence.guard = guard;
            }
        }
    }

    fn aim_at(&mut self, id: SequenceId, reach: Reach) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.speculator.aim(reach);
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
            (_, Guarding::Off, Pace::Fixed) => Reach::UNLIMITED,
            (_, Guarding::On, Pace::Fixed) => {
                let offer = prospects.allowance().steps;
                let steps = offer.saturating_sub(speculator.tail().len() as u32);
                Reach { steps, offer, ..Reach::UNLIMITED }
            }
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

    fn is_guarded(&self, id: SequenceId) -> bool {
        self.sequences[&id].speculator.policy().guarding == Guarding::On
    }

    fn is_decoding(&self, id: SequenceId) -> bool {
        self.sequences[&id].speculator.is_decoding()
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
            paced: self
                .sequences
                .values()
                .any(|s| s.speculator.is_decoding() && s.speculator.policy().is_paced()),
        };
        self.pacer.target_starts(job);
    }

    pub(super) fn note_draft(&mut self, segments: &[DraftSegment]) {
        // After a round that was right throughout, a draft has two rows to read.
        let missed = segments.iter().map(|s| s.segment.tokens.len().saturating_sub(2) as u32);
        let job = DraftJob { sequences: segments.len() as u32, missed: missed.sum() };
        self.pacer.draft_starts(job);
    }

    pub(super) fn note_drafted(&mut self, shares: &[Share], drafted: &[Drafted]) {
        let steps = drafted.iter().map(|drafted| drafted.steps).max().unwrap_or(0);
        // Whether the draft stopped, where it could have.
        let stops = |(share, Drafted { picks, steps }): (&Share, &Drafted)| {
            let ended = picks.last().is_some_and(|p| self.config.end_of_text.contains(&p.token));
            let enough = picks.len() + usize::from(!ended);
            (enough < share.picks).then_some((*steps as usize) < share.picks)
        };
        let stops = shares.iter().zip(drafted).find_map(stops);
        self.pacer.draft_ends(steps, stops);
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
