//! All sequences of the service: who runs next on which model, in whose company. [`Scheduler::step`] is total,
//! synchronous and deterministic: an event in, actions out.
//!
//! ```text
//!   Admit ──▶ queue ──▶ slot: Speculator + TextStream ──▶ Emit … Finish, Release
//!                         │ ▲                  │ ▲
//!               RunTarget ▼ │ TargetDone RunDraft ▼ │ DraftDone
//!                        target               draft
//! ```
//!
//! A model has one batch at a time, made when the model is free, so that it holds whatever is ready by then: first the
//! sequences that decode, in turns, then pieces of prompts with the rows that are left (a quarter is kept for them).
//!
//! *Invariants:* every queue is bounded. A sequence keeps its slot until none of its work is under way. A model that is
//! free and not paused has no work that it could do. Order comes from turns and sequence ids, never from a hash.

mod admission;
mod batching;
mod event;
mod lane;
mod pace;
mod sequence;
mod shelf;
mod warming;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use outrider_devices::{Drafted, Pick, SequenceId};
use outrider_plans::ModelRole;

pub use admission::{Admission, GenerationParams, RejectReason};
pub use event::{Action, EmittedToken, Event, FinishReason, Statistics, Takeover, Ticket};

use crate::draft_policy::DraftPolicy;
use crate::pacing::{Pacer, PacingView};
use crate::text::{Detokenize, TextStart};
use lane::Lane;
use sequence::Sequence;
use shelf::Shelf;
use warming::Warming;

/// Makes a detokenizer for a new text.
pub type DetokenizerFactory = Box<dyn Fn(TextStart) -> Box<dyn Detokenize> + Send>;

/// What one model's executable can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleLimits {
    /// Most rows of one batch; at least 2.
    pub rows_max: u32,
    /// Most positions of one sequence.
    pub positions_max: u32,
}

/// Whether draft and target compete for the same cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// Each has its own: both run at the same time.
    Separate,
    /// They share: batches of the two take turns, so that each is made as late as possible.
    Shared,
}

/// What becomes of the cache of a finished sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefixes {
    /// It is kept until its place is needed: a prompt that begins as that text did takes it over.
    Reuse,
    /// It is given up.
    Forget,
}

/// The frame within which a scheduler works.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Most sequences with a slot; at most as many as the executables have caches for.
    pub sequences_max: usize,
    /// Most requests that wait for a slot.
    pub queue_max: usize,
    /// Most prompt tokens of all requests that wait together; one request may always wait.
    pub queue_tokens_max: usize,
    /// The target's limits.
    pub target: RoleLimits,
    /// The draft's limits.
    pub draft: RoleLimits,
    /// Tokens that the models know.
    pub vocabulary: u32,
    /// The model's own end-of-text tokens.
    pub end_of_text: Arc<[u32]>,
    /// The plan's rules for drafting.
    pub policy: DraftPolicy,
    /// Where the models run.
    pub units: Units,
    /// What becomes of caches.
    pub prefixes: Prefixes,
}

/// Decodes all sequences of a service.
pub struct Scheduler {
    config: SchedulerConfig,
    detokenizers: DetokenizerFactory,
    queue: VecDeque<(Admission, u32)>,
    sequences: BTreeMap<SequenceId, Sequence>,
    target: Lane,
    draft: Lane,
    /// Caches of finished sequences.
    shelf: Shelf,
    /// Second sets of caches that are being filled.
    warming: BTreeMap<ModelRole, Warming>,
    /// On shared units: whose batch goes next if both could.
    next: ModelRole,
    tickets: u64,
    pacer: Pacer,
}

impl Scheduler {
    /// A scheduler without sequences. Panics if the limits leave no room for any.
    pub fn new(config: SchedulerConfig, detokenizers: DetokenizerFactory) -> Self {
        assert!(config.sequences_max > 0, "no slot for a sequence");
        assert!(config.target.rows_max > 1 && config.draft.rows_max > 1, "batches of one row");
        Self {
            pacer: Pacer::default(),
            config,
            detokenizers,
            queue: VecDeque::new(),
            sequences: BTreeMap::new(),
            target: Lane::default(),
            draft: Lane::default(),
            shelf: Shelf::default(),
            warming: BTreeMap::new(),
            next: ModelRole::Target,
            tickets: 0,
        }
    }

    /// Takes note of an event and says what is to be done now. `now_ns` is the time on any clock that does not go
    /// backwards, in nanoseconds: what jobs take follows from it, and what drafts are worth from that.
    pub fn step(&mut self, now_ns: u64, event: Event) -> Vec<Action> {
        self.pacer.at(now_ns);
        let mut actions = Vec::new();
        match event {
            Event::Admit(admission) => self.admit(admission, &mut actions),
            Event::Cancel(id) => self.interrupt(id, FinishReason::Cancelled, &mut actions),
            Event::Abort { sequence, reason } => {
                self.interrupt(sequence, FinishReason::Failed { reason }, &mut actions);
            }
            Event::TargetDone { ticket, picks } => self.verified(ticket, picks, &mut actions),
            Event::DraftDone { ticket, drafted } => self.drafted(ticket, drafted),
            Event::Failed { role, ticket } => self.failed(role, ticket),
            Event::CachesLost { role } => {
                self.clear_shelf(&mut actions);
                self.sequences.values_mut().for_each(|s| s.speculator.cache_lost(role));
            }
            Event::Pause { role } => self.set_paused(role, true),
            Event::Resume { role } => self.set_paused(role, false),
            Event::Configure(policy) => {
                self.config.policy = policy;
                self.apply_policy();
            }
            Event::Warm { role } => {
                self.clear_shelf(&mut actions);
                self.warm(role);
            }
            Event::WarmDone { role, ticket } => self.warm_done(role, ticket),
            Event::StopWarming { role } => drop(self.warming.remove(&role)),
            Event::Hold { role } => self.lane(role).held = true,
            Event::CutOver(takeover) => {
                self.clear_shelf(&mut actions);
                self.cut_over(takeover);
            }
        }
        self.release(&mut actions);
        self.fill_slots(&mut actions);
        self.aim();
        self.dispatch(&mut actions);
        self.dispatch_warm(&mut actions);
        actions
    }

    /// Sequences that have a slot.
    pub fn running(&self) -> usize {
        self.sequences.len()
    }

    /// Requests that wait for a slot.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Share of the target's cache positions that prompts and texts with a slot take, 0 to 1.
    pub fn cache_usage(&self) -> f64 {
        let used: u64 = self.sequences.values().map(|s| u64::from(s.positions())).sum();
        let all = self.config.sequences_max as u64 * u64::from(self.config.target.positions_max);
        used as f64 / all as f64
    }

    /// Whether a batch of `role` is under way.
    pub fn is_busy(&self, role: ModelRole) -> bool {
        match role {
            ModelRole::Target => self.target.is_busy(),
            ModelRole::Draft => self.draft.is_busy(),
        }
    }

    /// How far drafts run at present, and how they have fared.
    pub fn pacing(&self) -> PacingView {
        self.pacer.view()
    }

    /// Prompt and output of a sequence that has a slot.
    pub fn confirmed(&self, sequence: SequenceId) -> Option<&[u32]> {
        self.sequences.get(&sequence).map(|s| s.speculator.confirmed())
    }

    fn admit(&mut self, admission: Admission, actions: &mut Vec<Action>) {
        let sequence = admission.sequence;
        let living = self.sequences.contains_key(&sequence)
            || self.queue.iter().any(|(waiting, _)| waiting.sequence == sequence);
        assert!(!living, "{sequence} was admitted before");
        let waiting = self.queue.len();
        let tokens = self.queue.iter().map(|(waiting, _)| waiting.prompt.len()).sum::<usize>();
        let busy = self.sequences.len() >= self.config.sequences_max;
        let full = waiting >= self.config.queue_max
            || waiting > 0 && tokens + admission.prompt.len() > self.config.queue_tokens_max;
        let verdict = match admission.length_max(&self.config) {
            Ok(_) if busy && full => Err(RejectReason::QueueFull { waiting, tokens }),
            verdict => verdict,
        };
        match verdict {
            Ok(length_max) => self.queue.push_back((admission, length_max)),
            Err(reason) => actions.push(Action::Reject { sequence, reason }),
        }
    }

    fn interrupt(&mut self, id: SequenceId, reason: FinishReason, actions: &mut Vec<Action>) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.interrupt(reason, actions);
        } else if let Some(place) = self.queue.iter().position(|(a, _)| a.sequence == id) {
            let prompt_n = self.queue.remove(place).map_or(0, |(a, _)| a.prompt.len() as u32);
            let statistics = Statistics { prompt_n, ..Statistics::default() };
            actions.push(Action::Finish { sequence: id, reason, statistics });
            actions.push(Action::Release { sequence: id });
        }
    }

    fn verified(&mut self, ticket: Ticket, picks: Vec<Pick>, actions: &mut Vec<Action>) {
        let Some(shares) = self.target.arrive(ticket) else { return };
        let mut picks = picks.into_iter();
        let mut tokens = 0;
        for share in shares {
            let own = picks.by_ref().take(share.picks).collect();
            let sequence = self.sequences.get_mut(&share.sequence).expect("it keeps its slot");
            let verdict = sequence.speculator.verified(own);
            tokens += verdict.tokens.len() as u32;
            sequence.learn(&verdict.outcomes, &mut self.pacer.calibration);
            if !verdict.tokens.is_empty() {
                self.pacer.checked(share.picks.saturating_sub(1) as u32);
            }
            sequence.guarded_rounds += u32::from(share.picks == 1 && share.guarded);
            if share.picks == 1 && verdict.outcomes.is_empty() {
                sequence.trust.fade(verdict.tokens.len() as u32);
            }
            sequence.emit(verdict, actions);
        }
        self.pacer.target_ends(tokens, self.catch_up());
        assert!(picks.next().is_none(), "{ticket} was answered with more picks than were wanted");
    }

    fn drafted(&mut self, ticket: Ticket, drafted: Vec<Drafted>) {
        let Some(shares) = self.draft.arrive(ticket) else { return };
        assert_eq!(shares.len(), drafted.len(), "segments in the answer to {ticket}");
        self.note_drafted(&shares, &drafted);
        for (share, Drafted { picks, .. }) in shares.into_iter().zip(drafted) {
            let sequence = self.sequences.get_mut(&share.sequence).expect("it keeps its slot");
            let outcomes = sequence.speculator.drafted(share.epoch, share.base, &picks);
            sequence.learn(&outcomes, &mut self.pacer.calibration);
        }
    }

    fn failed(&mut self, role: ModelRole, ticket: Ticket) {
        let Some(shares) = self.lane(role).arrive(ticket) else { return };
        for share in shares {
            let sequence = self.sequences.get_mut(&share.sequence).expect("it keeps its slot");
            sequence.speculator.failed(role);
        }
        self.pacer.lost(role);
        self.set_paused(role, true);
    }

    fn set_paused(&mut self, role: ModelRole, paused: bool) {
        self.lane(role).paused = paused;
        self.apply_policy();
    }

    fn policy(&self) -> DraftPolicy {
        let policy = self.config.policy;
        if self.draft.paused { policy.without_draft() } else { policy }
    }

    fn apply_policy(&mut self) {
        let policy = self.policy();
        self.sequences.values_mut().for_each(|s| s.set_policy(policy));
    }

    fn release(&mut self, actions: &mut Vec<Action>) {
        let over: Vec<SequenceId> =
            self.sequences.iter().filter(|(_, s)| s.is_over()).map(|(&id, _)| id).collect();
        for sequence in over {
            if self.warming.values().any(|warming| warming.is_at_work_for(sequence)) {
                continue;
            }
            let Some(over) = self.sequences.remove(&sequence) else { continue };
            self.target.leave(sequence);
            self.draft.leave(sequence);
            let kept = over.into_kept();
            // What a plan that takes over finds does not include the shelf.
            if self.config.prefixes == Prefixes::Reuse && self.warming.is_empty() && kept.target > 0
            {
                self.shelf.put(kept);
            } else {
                actions.push(Action::Release { sequence: kept.slot });
            }
        }
        if self.sequences.is_empty() {
            self.pacer.interrupted();
        }
    }

    fn clear_shelf(&mut self, actions: &mut Vec<Action>) {
        while let Some(slot) = self.shelf.drop_oldest() {
            actions.push(Action::Release { sequence: slot });
        }
    }

    /// The sequence that uses a slot: the name by which devices know a cache.
    pub fn holder(&self, slot: SequenceId) -> Option<SequenceId> {
        self.sequences.iter().find(|(_, sequence)| sequence.slot() == slot).map(|(&id, _)| id)
    }

    fn fill_slots(&mut self, actions: &mut Vec<Action>) {
        while self.sequences.len() < self.config.sequences_max {
            let Some((admission, length_max)) = self.queue.pop_front() else { return };
            let id = admission.sequence;
            let found = self.shelf.take(&admission.prompt);
            if self.sequences.len() + self.shelf.len() >= self.config.sequences_max
                && let Some(slot) = self.shelf.drop_oldest()
            {
                actions.push(Action::Release { sequence: slot });
            }
            let text = (self.detokenizers)(admission.params.begins);
            let mut sequence = Sequence::new(admission, length_max, &self.config, text);
            if let Some(found) = found {
                sequence.take_over(found);
            }
            sequence.set_policy(self.policy());
            self.sequences.insert(id, sequence);
            self.target.join(id);
            self.draft.join(id);
        }
    }

    fn lane(&mut self, role: ModelRole) -> &mut Lane {
        match role {
            ModelRole::Target => &mut self.target,
            ModelRole::Draft => &mut self.draft,
        }
    }
}
