//! The course of a rehearsal: jobs begin and end in virtual time, and what each nanosecond was for is added up.
//!
//! Each model has one job at a time, as in service. While both are at work on units of their own each is slower by what was
//! measured for it. *Invariant:* virtual time only moves to the next end of a job or arrival of a request; of two at the same
//! time the target's comes first, then the draft's.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrider_devices::SequenceId;
use outrider_plans::cost::{Before, Piece, PlanTimes, Purpose, Share, StageTimes};
use outrider_plans::{Forecast, ModelRole, PartitionPlan, UnitId, Workload};

use super::players::Players;
use crate::scheduler::{
    Action, Admission, Event, GenerationParams, Scheduler, SchedulerConfig, Units,
};
use crate::text::Detokenize;

/// How a rehearsal went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// Virtual time from the first arrival to the last end, nanoseconds.
    pub total_ns: u64,
    /// Tokens of output.
    pub tokens: u64,
    /// Texts.
    pub texts: u64,
    /// Passes of the target that picked tokens.
    pub rounds: u64,
    /// Drafted tokens that were compared, and those that were right.
    pub drafted: (u64, u64),
    /// From each text's arrival to its first token, added up.
    pub first_tokens_ns: u64,
    /// Time by purpose and unit, added up.
    pub spent: BTreeMap<(Purpose, Option<UnitId>), u64>,
    /// Energy by the units' power while they compute, nanojoules.
    pub energy_nj: u64,
    /// Jobs of target and draft.
    pub jobs: (u64, u64),
    /// Time of all jobs of target and draft, from message to answer.
    pub jobs_ns: (u64, u64),
}

impl Course {
    /// Millionths of a token per second.
    pub fn rate(&self) -> u64 {
        let microtokens = u128::from(self.tokens) * 1_000_000;
        (microtokens * 1_000_000_000 / u128::from(self.total_ns.max(1))) as u64
    }

    pub(super) fn forecast(
        &self,
        plan: &PartitionPlan,
        plain: u64,
        memory_bytes: BTreeMap<UnitId, u64>,
    ) -> Forecast {
        let rounds = self.rounds.max(1);
        let busy = |unit: &UnitId| -> u64 {
            let on_unit = self.spent.iter().filter(|((_, on), _)| on.as_ref() == Some(unit));
            on_unit.map(|(_, ns)| ns).sum()
        };
        let permille = |unit: &UnitId| {
            (u128::from(busy(unit)) * 1000 / u128::from(self.total_ns.max(1))).min(1000) as u32
        };
        let share = |((purpose, unit), ns): (&(Purpose, Option<UnitId>), &u64)| Share {
            purpose: *purpose,
            unit: unit.clone(),
            ns: ns / rounds,
        };
        let (offered, accepted) = self.drafted;
        Forecast {
            microtokens_per_second: self.rate(),
            plain_microtokens_per_second: plain,
            first_token_ns: self.first_tokens_ns / self.texts.max(1),
            round_ns: self.total_ns / rounds,
            microtokens_per_round: (u128::from(self.tokens) * 1_000_000 / u128::from(rounds))
                as u64,
            acceptance_permille: (accepted * 1000).checked_div(offered).unwrap_or(0) as u32,
            utilisation_permille: plan.units.keys().map(|u| (u.clone(), permille(u))).collect(),
            memory_bytes,
            energy_nj_per_token: self.energy_nj / self.tokens.max(1),
            shares: self.spent.iter().map(share).filter(|share| share.ns > 0).collect(),
        }
    }
}

/// A job under way.
struct Job {
    /// Its answer, given when its time is over.
    event: Event,
    /// What is left of it if it ran alone.
    left_ns: u64,
    /// From message to answer.
    lasted_ns: u64,
    unit: Option<UnitId>,
}

/// Where a rehearsal takes place.
pub(super) struct Stage<'a> {
    scheduler: Scheduler,
    times: &'a PlanTimes,
    workload: &'a Workload,
    /// Tokens that end a text.
    ends: Arc<[u32]>,
    separate: bool,
    now_ns: u64,
    target: Option<Job>,
    draft: Option<Job>,
    /// The model that each unit ran last.
    ran: BTreeMap<UnitId, ModelRole>,
    /// When which text arrives at the scheduler, ascending.
    arrivals: Vec<(u64, usize)>,
    asked: usize,
    /// When each open text was asked for, and whether its first token came.
    open: BTreeMap<SequenceId, (u64, bool)>,
    course: Course,
}

/// Text is not looked at.
struct Mute;

impl Detokenize for Mute {
    fn push(&mut self, _: u32) -> String {
        String::new()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        mut config: SchedulerConfig,
        times: &'a PlanTimes,
        workload: &'a Workload,
    ) -> Self {
        let separate = config.units == Units::Separate;
        config.sequences_max = config.sequences_max.max(1);
        config.queue_max = config.queue_max.max(workload.concurrent);
        let ends = config.end_of_text.clone();
        Self {
            scheduler: Scheduler::new(config, Box::new(|_| Box::new(Mute))),
            times,
            workload,
            ends,
            separate,
            now_ns: 0,
            target: None,
            draft: None,
            ran: BTreeMap::new(),
            arrivals: Vec::new(),
            asked: 0,
            open: BTreeMap::new(),
            course: Course::default(),
        }
    }

    pub(super) fn play(mut self, players: &mut dyn Players) -> Course {
        let concurrent = self.workload.concurrent.max(1);
        let texts = self.workload.texts.len().max(if concurrent > 1 { 4 * concurrent } else { 1 });
        for _ in 0..concurrent.min(texts) {
            self.ask();
        }
        while let Some(event) = self.next_event(players) {
            let actions = self.scheduler.step(self.now_ns, event);
            for action in actions {
                self.apply(action, players, texts);
            }
        }
        assert!(self.open.is_empty(), "a rehearsal ends when every text has ended");
        self.course.total_ns = self.now_ns;
        self.course
    }

    /// Somebody asks for the next text.
    fn ask(&mut self) {
        let request_ns = self.times.request_ns();
        *self.course.spent.entry((Purpose::Request, None)).or_default() += request_ns;
        self.arrivals.push((self.now_ns + request_ns, self.asked));
        self.asked += 1;
    }

    /// Moves on to whatever happens next.
    fn next_event(&mut self, players: &mut dyn Players) -> Option<Event> {
        let both = self.separate && self.target.is_some() && self.draft.is_some();
        let (slow_target, slow_draft) = if both { self.times.slowed } else { (1000, 1000) };
        let lasts = |job: &Option<Job>, slow: u32| {
            job.as_ref().map(|job| job.left_ns * u64::from(slow) / 1000)
        };
        let target = lasts(&self.target, slow_target);
        let draft = lasts(&self.draft, slow_draft);
        let arrival = self.arrivals.first().map(|(at, _)| at.saturating_sub(self.now_ns));
        let next = target.into_iter().chain(draft).chain(arrival).min()?;
        self.now_ns += next;
        self.pass(ModelRole::Target, next, slow_target);
        self.pass(ModelRole::Draft, next, slow_draft);
        if target == Some(next) {
            let job = self.target.take()?;
            self.course.jobs.0 += 1;
            self.course.jobs_ns.0 += job.lasted_ns;
            return Some(job.event);
        }
        if draft == Some(next) {
            let job = self.draft.take()?;
            self.course.jobs.1 += 1;
            self.course.jobs_ns.1 += job.lasted_ns;
            return Some(job.event);
        }
        let (_, text) = self.arrivals.remove(0);
        Some(self.admit(text, players))
    }

    fn pass(&mut self, role: ModelRole, ns: u64, slow: u32) {
        let job = if role == ModelRole::Target { &mut self.target } else { &mut self.draft };
        let Some(job) = job else { return };
        let done = ns * 1000 / u64::from(slow);
        job.left_ns = job.left_ns.saturating_sub(done);
        job.lasted_ns += ns;
        if ns > done {
            let place = (Purpose::Contention(role), job.unit.clone());
            *self.course.spent.entry(place).or_default() += ns - done;
        }
    }

    fn admit(&mut self, text: usize, players: &mut dyn Players) -> Event {
        let sequence = SequenceId(text as u64 + 1);
        let sample = &self.workload.texts[text % self.workload.texts.len()];
        players.begin(sequence, sample);
        self.open.insert(sequence, (self.now_ns - self.times.request_ns().min(self.now_ns), false));
        self.course.texts += 1;
        // Who asks does not know how long the answer will be: a draft that is cut to what is left would be too short.
        let ended = sample.output.last().is_some_and(|token| self.ends.contains(token));
        let max_tokens = (!ended).then_some(sample.output.len() as u32);
        let params = GenerationParams { max_tokens, ..GenerationParams::default() };
        Event::Admit(Admission { sequence, prompt: sample.prompt.clone(), params })
    }

    fn apply(&mut self, action: Action, players: &mut dyn Players, texts: usize) {
        match action {
            Action::RunTarget { ticket, batch } => {
                self.course.rounds += u64::from(batch.head_rows() > 0);
                let answer = players.target(&batch, self.before(ModelRole::Target));
                let event = Event::TargetDone { ticket, picks: answer.answer };
                self.target = Some(self.begin(ModelRole::Target, event, answer.pieces));
            }
            Action::RunDraft { ticket, batch } => {
                let answer = players.draft(&batch, self.before(ModelRole::Draft));
                let event = Event::DraftDone { ticket, drafted: answer.answer };
                self.draft = Some(self.begin(ModelRole::Draft, event, answer.pieces));
            }
            Action::Emit { sequence, tokens, .. } => {
                self.course.tokens += tokens.len() as u64;
                if let Some((asked_ns, came)) = self.open.get_mut(&sequence)
                    && !*came
                    && !tokens.is_empty()
                {
                    *came = true;
                    self.course.first_tokens_ns += self.now_ns - *asked_ns;
                }
            }
            Action::Finish { sequence, statistics, .. } => {
                self.open.remove(&sequence);
                self.course.drafted.0 += u64::from(statistics.draft_n);
                self.course.drafted.1 += u64::from(statistics.draft_n_accepted);
                if self.asked < texts {
                    self.ask();
                }
            }
            Action::Release { sequence } => players.end(sequence),
            Action::RunWarm { .. } | Action::Warmed { .. } => {
                panic!("nothing is swapped in a rehearsal")
            }
            Action::Reject { sequence, reason } => {
                panic!("a recorded text cannot be rejected: {sequence}: {reason}")
            }
        }
    }

    fn chain(&self, role: ModelRole) -> &'a [StageTimes] {
        match role {
            ModelRole::Target => &self.times.target,
            ModelRole::Draft => &self.times.draft,
        }
    }

    fn before(&self, role: ModelRole) -> Before {
        let first = self.chain(role).first().and_then(|stage| self.ran.get(&stage.unit));
        if first.is_some_and(|ran| *ran != role) { Before::Other } else { Before::Same }
    }

    fn begin(&mut self, role: ModelRole, event: Event, pieces: Vec<Piece>) -> Job {
        let chain = self.chain(role);
        let hop_ns = self.times.hop_ns(role);
        let mut left_ns = hop_ns;
        *self.course.spent.entry((Purpose::Hop, None)).or_default() += hop_ns;
        for Piece { purpose, unit, ns } in pieces {
            left_ns += ns;
            if let Some(unit) = &unit {
                let power = self.times.power_mw.get(unit).copied().unwrap_or(0);
                self.course.energy_nj += ns * power / 1000;
            }
            *self.course.spent.entry((purpose, unit)).or_default() += ns;
        }
        for stage in chain {
            self.ran.insert(stage.unit.clone(), role);
        }
        let unit = chain.first().map(|stage| stage.unit.clone());
        Job { event, left_ns, lasted_ns: 0, unit }
    }
}
