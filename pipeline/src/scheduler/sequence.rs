//! One admitted sequence: its tokens ([`Speculator`]), its text ([`TextStream`]) and its counts.
//!
//! *Invariant:* it finishes once, and emits nothing afterwards.

use std::sync::Arc;

use outrider_devices::{Sampling, SequenceId};
use outrider_plans::ModelRole;

use super::SchedulerConfig;
use super::admission::Admission;
use super::event::{Action, EmittedToken, FinishReason, Statistics};
use super::shelf::{Found, Kept};
use crate::draft_policy::{DraftPolicy, Speculation};
use crate::pacing::{Calibration, GuardState, Noise, Outcome, Trust};
use crate::speculator::{Confirmed, End, Speculator, Task, Verdict};
use crate::text::{Detokenize, TextStream};

pub(super) struct Sequence {
    id: SequenceId,
    /// The name by which devices know its caches.
    slot: SequenceId,
    pub(super) speculator: Speculator,
    text: TextStream,
    speculation: Speculation,
    sampling: Arc<Sampling>,
    draft_sampling: Arc<Sampling>,
    prompt_n: u32,
    cached_n: u32,
    predicted_n: u32,
    /// How its text compares with what the drafts' confidence lets expect.
    pub(super) trust: Trust,
    /// The guard, as this sequence last heard of it; whether it keeps the sequence from drafting, and in how many rounds it
    /// has.
    pub(super) guard: GuardState,
    pub(super) guarded: bool,
    pub(super) guarded_rounds: u32,
}

impl Sequence {
    pub(super) fn new(
        admission: Admission,
        length_max: u32,
        config: &SchedulerConfig,
        detokenizer: Box<dyn Detokenize>,
    ) -> Self {
        let Admission { sequence: id, prompt, params } = admission;
        let prompt_n = prompt.len() as u32;
        let own_end = if params.ignore_eos { &[] } else { &config.end_of_text[..] };
        let stop_tokens = own_end.iter().chain(&params.stop_tokens).copied().collect();
        let draft_length_max = config.draft.positions_max;
        let task = Task { prompt, length_max, draft_length_max, stop_tokens };
        let sampling = Sampling { prompt_len: prompt_n, ..params.sampling };
        let draft_sampling = Sampling { top_logprobs: 0, ..sampling.clone() };
        Self {
            id,
            slot: id,
            cached_n: 0,
            speculator: Speculator::new(task, config.policy.for_request(params.speculation)),
            text: TextStream::new(detokenizer, params.stop),
            speculation: params.speculation,
            sampling: Arc::new(sampling),
            draft_sampling: Arc::new(draft_sampling),
            prompt_n,
            predicted_n: 0,
            trust: Trust::default(),
            guard: GuardState::On,
            guarded: false,
            guarded_rounds: 0,
        }
    }

    /// Positions of its prompt and of what it has written.
    pub(super) fn positions(&self) -> u32 {
        self.prompt_n + self.predicted_n
    }

    /// Begins with the cache of a sequence that is over.
    pub(super) fn take_over(&mut self, found: Found) {
        self.slot = found.slot;
        self.cached_n = found.target;
        self.speculator.cache_moved(ModelRole::Target, found.target);
        self.speculator.cache_moved(ModelRole::Draft, found.draft);
    }

    /// The name by which devices know its caches.
    pub(super) fn slot(&self) -> SequenceId {
        self.slot
    }

    /// What is left of a sequence that is over.
    pub(super) fn into_kept(self) -> Kept {
        Kept {
            slot: self.slot,
            target: self.speculator.target_cached(),
            draft: self.speculator.draft_cached(),
            tokens: self.speculator.confirmed().to_vec(),
        }
    }

    pub(super) fn sampling(&self, role: ModelRole) -> Arc<Sampling> {
        match role {
            ModelRole::Target => self.sampling.clone(),
            ModelRole::Draft => self.draft_sampling.clone(),
        }
    }

    pub(super) fn set_policy(&mut self, plan: DraftPolicy) {
        self.speculator.set_policy(plan.for_request(self.speculation));
    }

    /// How its tokens are picked.
    pub(super) fn noise(&self) -> Noise {
        if self.sampling.is_greedy() { Noise::Greedy } else { Noise::Sampled }
    }

    /// Takes note of drafted tokens that were judged. What was looked up says nothing of the draft model.
    pub(super) fn learn(&mut self, outcomes: &[Outcome], calibration: &mut Calibration) {
        if self.speculator.policy().lookup.is_some() {
            return;
        }
        for &outcome in outcomes {
            let expected = calibration.of_confidence(self.noise(), outcome.confidence);
            self.trust.note(expected, outcome.accepted);
            calibration.note(self.noise(), outcome);
        }
    }

    /// Whether its caches may go.
    pub(super) fn is_over(&self) -> bool {
        let busy = [ModelRole::Target, ModelRole::Draft].map(|role| self.speculator.is_busy(role));
        self.speculator.is_finished() && busy == [false, false]
    }

    /// Makes text of a verdict's tokens, up to the end that one of them may bring.
    pub(super) fn emit(&mut self, verdict: Verdict, actions: &mut Vec<Action>) {
        if verdict.tokens.is_empty() {
            return;
        }
        let Verdict { tokens: confirmed, offered, accepted, end, .. } = verdict;
        let (mut tokens, mut text, mut stopped) = (Vec::new(), String::new(), false);
        let mut confirmed = confirmed.into_iter().peekable();
        while let Some(Confirmed { pick, drafted }) = confirmed.next().filter(|_| !stopped) {
            let is_stop_token = end == Some(End::Stop) && confirmed.peek().is_none();
            let piece = if is_stop_token { Default::default() } else { self.text.push(pick.token) };
            text += &piece.shown;
            stopped = piece.stopped;
            tokens.push(EmittedToken { pick, text: piece.own, drafted });
        }
        let reason = match end {
            _ if stopped => Some(FinishReason::StopString),
            Some(End::Stop) => Some(FinishReason::Stop),
            Some(End::Length) => Some(FinishReason::Length),
            None => None,
        };
        if reason.is_some() {
            text += &self.text.finish();
        }
        self.predicted_n += tokens.len() as u32;
        actions.push(Action::Emit { sequence: self.id, tokens, text, offered, accepted });
        if let Some(reason) = reason {
            self.finish(reason, actions);
        }
    }

    /// Ends the sequence from outside, unless it has ended already.
    pub(super) fn interrupt(&mut self, reason: FinishReason, actions: &mut Vec<Action>) {
        if !self.speculator.is_finished() {
            self.finish(reason, actions);
        }
    }

    fn finish(&mut self, reason: FinishReason, actions: &mut Vec<Action>) {
        self.speculator.finish();
        let counts = self.speculator.counts();
        let statistics = Statistics {
            prompt_n: self.prompt_n,
            cached_n: self.cached_n,
            predicted_n: self.predicted_n,
            draft_n: counts.offered,
            draft_n_accepted: counts.accepted,
            rounds: counts.rounds,
            plain_rounds: counts.plain_rounds,
            guarded_rounds: self.guarded_rounds,
            guard: self.guard,
            discarded: counts.discarded,
        };
        actions.push(Action::Finish { sequence: self.id, reason, statistics });
    }
}
