//! What ran, what was proposed, and how it ended: kept for people and for going back.
//!
//! *Invariant:* bounded; the oldest entries make room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrider_plans::{PartitionPlan, PlanEpoch, Reason, SwapError, UnitId};

use super::Supervisor;
use crate::pair::Pair;

/// Entries that are kept.
const ENTRIES_MAX: usize = 64;

/// A proposal and its end.
#[derive(Clone, Debug)]
pub struct HistoryEntry {
    /// When it ended, seconds since 1970.
    pub at_s: u64,
    /// The plan.
    pub plan: PartitionPlan,
    /// Why it was proposed.
    pub reason: Reason,
    /// From the proposal to the end.
    pub took: Duration,
    /// The plan's number, or why it does not run.
    pub result: Result<PlanEpoch, SwapError>,
}

/// What runs, for everyone who wants to know.
#[derive(Clone, Debug)]
pub struct PlanView {
    /// The running plan.
    pub plan: Arc<PartitionPlan>,
    /// The models that it is for.
    pub pair: Pair,
    /// Its number.
    pub epoch: PlanEpoch,
    /// Units that were given up.
    pub gone: Vec<UnitId>,
    /// Proposals and their ends, oldest first.
    pub history: VecDeque<HistoryEntry>,
}

impl PlanView {
    /// The view before anything has run here, after what is told.
    pub fn before(
        plan: PartitionPlan,
        pair: Pair,
        epoch: PlanEpoch,
        history: VecDeque<HistoryEntry>,
    ) -> Self {
        Self { plan: Arc::new(plan), pair, epoch, gone: Vec::new(), history }
    }

    /// The plan that ran before the running one.
    pub fn earlier(&self) -> Option<&PartitionPlan> {
        let ran =
            |entry: &&HistoryEntry| entry.result.as_ref().is_ok_and(|epoch| *epoch < self.epoch);
        self.history.iter().rev().find(ran).map(|entry| &entry.plan)
    }
}

impl Supervisor {
    /// Writes an end into the history, and shows what runs now.
    pub(super) fn note(
        &self,
        plan: &PartitionPlan,
        reason: &Reason,
        took: Duration,
        result: &Result<PlanEpoch, SwapError>,
    ) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let entry = HistoryEntry {
            at_s: since_epoch.as_secs(),
            plan: plan.clone(),
            reason: reason.clone(),
            took,
            result: result.clone(),
        };
        let before = Arc::clone(&self.view.borrow());
        let mut history = before.history.clone();
        history.push_back(entry);
        if history.len() > ENTRIES_MAX {
            history.pop_front();
        }
        let running = self.swap.running();
        // What runs was opened before; should its file be gone since, the view keeps what it had.
        let pair = match running.models == before.plan.models {
            true => before.pair.clone(),
            false => self.blueprint.library.pair(&running.models).unwrap_or(before.pair.clone()),
        };
        self.view.send_replace(Arc::new(PlanView {
            plan: Arc::new(running.clone()),
            pair,
            epoch: self.swap.epoch(),
            gone: self.gone.iter().cloned().collect(),
            history,
        }));
    }
}
