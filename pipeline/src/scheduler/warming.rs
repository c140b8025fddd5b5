//! A second set of caches for a role, filled from the sequences' tokens while the live one decodes: what the plan that
//! takes over finds there.
//!
//! One batch at a time, of bounded rows, so that a unit which serves both plans is never away from decoding for long.
//! It is over when the second set lacks only a few rows, or when it has had its fair share of batches: decoding goes on
//! meanwhile, and what then is missing is prefilled after the cut-over.
//!
//! *Invariant:* a second cache holds a prefix of the confirmed text, and never more than the target's live cache.

use std::collections::BTreeMap;

use outrider_devices::{Batch, Segment, SequenceId, Want};
use outrider_plans::{Caches, ModelRole};

use super::Scheduler;
use super::event::{Action, Takeover, Ticket};

/// Most rows of one batch.
const ROWS_MAX: u32 = 32;
/// Missing rows of all sequences together that are left to the first batches after the cut-over.
const ROWS_LEFT_MAX: u32 = 64;

#[derive(Debug)]
pub(super) struct Warming {
    /// Positions that each sequence's second cache holds.
    lengths: BTreeMap<SequenceId, u32>,
    flight: Option<(Ticket, Vec<(SequenceId, u32)>)>,
    batches_left: u32,
    settled: bool,
}

impl Warming {
    /// Whether a batch with rows of this sequence is under way.
    pub(super) fn is_at_work_for(&self, sequence: SequenceId) -> bool {
        self.flight.iter().any(|(_, rows)| rows.iter().any(|(id, _)| *id == sequence))
    }
}

impl Scheduler {
    pub(super) fn warm(&mut self, role: ModelRole) {
        let rows: u32 = self.sequences.values().map(|s| s.speculator.target_cached()).sum();
        // Every row once, as many again for what is decoded meanwhile, and something for those who come.
        let batches_left = 2 * rows.div_ceil(ROWS_MAX) + self.config.sequences_max as u32;
        let (lengths, flight) = Default::default();
        let warming = Warming { lengths, flight, batches_left, settled: false };
        let before = self.warming.insert(role, warming);
        assert!(before.is_none(), "the {role}'s caches are being filled already");
    }

    pub(super) fn warm_done(&mut self, role: ModelRole, ticket: Ticket) {
        let Some(warming) = self.warming.get_mut(&role) else { return };
        let Some((_, rows)) = warming.flight.take_if(|(under_way, _)| *under_way == ticket) else {
            return;
        };
        warming.lengths.extend(rows);
    }

    /// Makes the next batch of every role whose caches are being filled, or says that it is done.
    pub(super) fn dispatch_warm(&mut self, actions: &mut Vec<Action>) {
        let roles: Vec<ModelRole> = self.warming.keys().copied().collect();
        for role in roles {
            actions.extend(self.next_warm(role));
        }
    }

    fn next_warm(&mut self, role: ModelRole) -> Option<Action> {
        let sequences = &self.sequences;
        let warming = self.warming.get_mut(&role)?;
        if warming.settled || warming.flight.is_some() {
            return None;
        }
        warming.lengths.retain(|id, _| sequences.contains_key(id));
        let limits = match role {
            ModelRole::Target => self.config.target,
            ModelRole::Draft => self.config.draft,
        };
        let missing = |id: &SequenceId| {
            let speculator = &sequences[id].speculator;
            let held = warming.lengths.get(id).copied().unwrap_or(0);
            match speculator.is_finished() {
                true => 0,
                false => speculator.target_cached().min(limits.positions_max).saturating_sub(held),
            }
        };
        let mut wanting: Vec<(u32, SequenceId)> =
            sequences.keys().map(|id| (missing(id), *id)).filter(|(rows, _)| *rows > 0).collect();
        let total: u32 = wanting.iter().map(|(rows, _)| rows).sum();
        if total <= ROWS_LEFT_MAX || warming.batches_left == 0 {
            warming.settled = true;
            return Some(Action::Warmed { role });
        }
        warming.batches_left -= 1;
        // Who lacks most goes first; among equals, who came first.
        wanting.sort_by_key(|(rows, id)| (u32::MAX - rows, *id));
        let mut room = ROWS_MAX.min(limits.rows_max);
        let (mut batch, mut rows) = (Batch::default(), Vec::new());
        for (missing, id) in wanting {
            let base = warming.lengths.get(&id).copied().unwrap_or(0);
            let end = base + missing.min(room);
            if end == base {
                break;
            }
            room -= end - base;
            let sequence = &sequences[&id];
            batch.segments.push(Segment {
                sequence: sequence.slot(),
                base,
                tokens: sequence.speculator.confirmed()[base as usize..end as usize].to_vec(),
                want: Want::Nothing,
                sampling: sequence.sampling(role),
            });
            rows.push((id, end));
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        warming.flight = Some((ticket, rows));
        Some(Action::RunWarm { role, ticket, batch })
    }

    pub(super) fn cut_over(&mut self, takeover: Takeover) {
        let Takeover { policy, units, target, draft } = takeover;
        self.move_to(ModelRole::Target, target);
        self.move_to(ModelRole::Draft, draft.unwrap_or(Caches::Empty));
        self.draft.paused = draft.is_none();
        self.config.policy = policy;
        self.config.units = units;
        self.next = ModelRole::Target;
        self.pacer.moved();
        self.apply_policy();
    }

    fn move_to(&mut self, role: ModelRole, caches: Caches) {
        let warming = self.warming.remove(&role);
        let lane = self.lane(role);
        (lane.paused, lane.held) = (false, false);
        if caches == Caches::Kept {
            return;
        }
        assert!(!lane.is_busy(), "the {role} moved with a batch under way");
        let lengths = match (caches, warming) {
            (Caches::Warmed, Some(warming)) => warming.lengths,
            // Also where a loss stopped the filling while the cut-over was on its way: what was filled is not counted on.
            (Caches::Warmed, None) | (Caches::Kept | Caches::Empty | Caches::Fresh, _) => {
                BTreeMap::new()
            }
        };
        for (id, sequence) in &mut self.sequences {
            let len = lengths.get(id).copied().unwrap_or(0);
            sequence.speculator.cache_moved(role, len);
        }
    }
}
