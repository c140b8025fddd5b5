//! What goes into the next batch of a model that is free.
//!
//! *Invariant:* a batch has at most the model's rows, and each sequence at most once.

use outrider_devices::{Batch, DraftBatch, DraftSegment, Segment, SequenceId, Want};
use outrider_plans::ModelRole;

use super::event::{Action, Ticket};
use super::lane::Share;
use super::{Scheduler, Units};
use crate::speculator::Need;

impl Scheduler {
    /// Gives work to the models that are free.
    pub(super) fn dispatch(&mut self, actions: &mut Vec<Action>) {
        let order = match self.next {
            ModelRole::Target => [ModelRole::Target, ModelRole::Draft],
            ModelRole::Draft => [ModelRole::Draft, ModelRole::Target],
        };
        for role in order {
            let taken = self.target.is_busy() || self.draft.is_busy();
            if self.config.units == Units::Shared && taken || !self.lane(role).is_open() {
                continue;
            }
            let departed = match role {
                ModelRole::Target => self.run_target(),
                ModelRole::Draft => self.run_draft(),
            };
            if self.config.units == Units::Shared && departed.is_some() {
                self.next = order[usize::from(role == order[0])];
            }
            actions.extend(departed);
        }
    }

    fn run_target(&mut self) -> Option<Action> {
        let (mut decode, prefill) = (self.in_need(Need::Decode), self.in_need(Need::Prefill));
        // On shared units the pass keeps the draft from running. Who waits for it goes along meanwhile, for the price of a
        // row, instead of leaving a pass out.
        if self.config.units == Units::Shared && !(decode.is_empty() && prefill.is_empty()) {
            let waits = |id: &SequenceId| self.sequences[id].speculator.waits_idly();
            let idle: Vec<_> = self.target.turns().into_iter().filter(waits).collect();
            for id in &idle {
                if let Some(sequence) = self.sequences.get_mut(id) {
                    sequence.speculator.go_along();
                }
            }
            decode.extend(idle);
        }
        let rows_max = self.config.target.rows_max;
        let kept = if prefill.is_empty() { 0 } else { rows_max.div_ceil(4) };
        let (mut shares, mut batch) = (Vec::new(), Batch::default());
        for (ids, reach) in [(decode, rows_max - kept), (prefill, rows_max)] {
            for id in ids {
                let rows = reach.saturating_sub(batch.rows() as u32);
                if rows == 0 {
                    break;
                }
                let Some((share, segment)) = self.verify_share(id, rows) else { continue };
                shares.push(share);
                batch.segments.push(segment);
            }
        }
        if shares.is_empty() {
            return None;
        }
        let ticket = self.next_ticket();
        self.note_target(&batch);
        self.target.depart(ticket, shares);
        Some(Action::RunTarget { ticket, batch })
    }

    /// The sequences for which the target could do `need`, in turn.
    fn in_need(&self, need: Need) -> Vec<SequenceId> {
        let mut turns = self.target.turns();
        turns.retain(|id| self.sequences[id].speculator.need() == need);
        turns
    }

    fn verify_share(&mut self, id: SequenceId, rows: u32) -> Option<(Share, Segment)> {
        let sequence = self.sequences.get_mut(&id)?;
        let work = sequence.speculator.take_verify(rows)?;
        let want = match work.picks_wanted {
            0 => Want::Nothing,
            n => Want::Picks(n),
        };
        let (base, tokens) = (work.base, work.tokens);
        let guarded = sequence.guarded;
        let share = Share { sequence: id, epoch: 0, base, picks: want.rows(), guarded };
        let sampling = sequence.sampling(ModelRole::Target);
        Some((share, Segment { sequence: sequence.slot(), base, tokens, want, sampling }))
    }

    fn run_draft(&mut self) -> Option<Action> {
        let (mut shares, mut segments) = (Vec::new(), Vec::new());
        let mut rows = self.config.draft.rows_max;
        for id in self.draft.turns() {
            if rows == 0 {
                break;
            }
            let reading = self.sequences[&id].speculator.reading_max();
            let Some((share, segment)) = self.draft_share(id, rows.min(reading)) else { continue };
            rows -= segment.segment.tokens.len() as u32;
            shares.push(share);
            segments.push(segment);
        }
        if shares.is_empty() {
            return None;
        }
        let ticket = self.next_ticket();
        self.note_draft(&segments);
        self.draft.depart(ticket, shares);
        let stop_tokens = self.config.end_of_text.clone();
        Some(Action::RunDraft { ticket, batch: DraftBatch { segments, stop_tokens } })
    }

    fn draft_share(&mut self, id: SequenceId, rows: u32) -> Option<(Share, DraftSegment)> {
        let sequence = self.sequences.get_mut(&id)?;
        let work = sequence.speculator.take_draft(rows)?;
        let probability_min = sequence.speculator.probability_min();
        let steps = work.steps as usize;
        let (epoch, base) = (work.epoch, work.base);
        let share = Share { sequence: id, epoch, base, picks: steps, guarded: false };
        let segment = Segment {
            sequence: sequence.slot(),
            base: work.base,
            tokens: work.tokens,
            want: Want::Picks(1),
            sampling: sequence.sampling(ModelRole::Draft),
        };
        Some((share, DraftSegment { segment, steps: work.steps, probability_min }))
    }

    fn next_ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }
}
