//! Calibration: measures everything that a forecast is made from, on this machine, with these models.
//!
//! ```text
//!   loops     each class of units by itself, through the device's interface: tables of times     loops.rs
//!   rounds    the engine on a few plans, every job clocked: hops, turns, contention              rounds.rs
//!   texts     the target's answers to prompts, and what the draft says at each position          texts.rs
//! ```
//!
//! *Invariant:* what was measured is kept with the fingerprint of what it was measured on, and is not used for anything else.

mod classes;
mod loops;
mod rounds;
mod store;
mod texts;
mod trace;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrider_devices::{DeviceError, SlotLimits};
use outrider_pipeline::rehearsal::Course;
use outrider_plans::cost::{AroundJobs, Contention, LinkProfile, MemoryDomain, SampleText};
use outrider_plans::search::Composition;
use outrider_plans::{
    CostModel, DraftTokens, Mode, ModelRole, Objective, PartitionPlan, PlanContext, PlanError,
    UnitClass, UnitProfile, UnitSpec, Workload,
};
use serde::{Deserialize, Serialize};

use crate::engine::{EngineError, EngineLimits, PromptError};
use crate::foresight::Foresight;
use crate::pair::Pair;
use crate::request::Refusal;
use loops::{Ask, Profiles};
use rounds::Clocked;
pub(crate) use rounds::{Answered, Probe};

pub use classes::classes;
pub use loops::LoopError;
pub use store::{Fingerprint, FreshCalibration, StoreError, default_path, load, save};
pub use texts::PROMPTS;
pub use trace::Trace;

/// Version of the format of a stored calibration.
pub const VERSION: u32 = 1;
/// Drafted tokens of the runs that show what models do to each other.
const DEPTH: u32 = 4;
/// Most tokens of an answer.
const TOKENS_MAX: u32 = 48;
/// Least number of prompts of a run that clocks jobs.
const CLOCKED_PROMPTS_MIN: usize = 8;
/// Time after which such a run takes no more prompts.
const CLOCKED_TIME: Duration = Duration::from_millis(400);
/// Engines that a plan on cores alone is clocked on, one after the other: where the system puts threads and memory differs from
/// one to the next, and times differ with it by a tenth.
const VISITS: usize = 3;
/// Prompts that warm an engine up.
const WARM_UP: usize = 2;
/// Rounds of fitting two slow-downs that depend on each other.
const FITTING_ROUNDS: usize = 6;

/// Everything that was measured, and on what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// [`VERSION`].
    pub version: u32,
    /// What it was measured on.
    pub fingerprint: Fingerprint,
    /// When, seconds since 1970.
    pub taken_at_s: u64,
    /// How long it took, milliseconds.
    pub took_ms: u64,
    /// Times.
    pub model: CostModel,
    /// Texts with the draft's guesses.
    pub texts: Vec<SampleText>,
    /// The plan that the search picked for one request at a time, as a plan file; what runs where no plan is named.
    pub best_plan: String,
    /// Units that could not be measured, and why.
    pub left_out: BTreeMap<UnitClass, String>,
}

impl Calibration {
    /// The texts as a workload of one request at a time.
    pub fn workload(&self) -> Workload {
        Workload::single(self.texts.clone())
    }
}

/// Why there is no calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// An engine did not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A prompt could not be made.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A prompt was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A plan of the measurement is not right for this machine.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A unit refused.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// An engine ended before its answer was complete.
    #[error("the engine ended before the answer was complete")]
    Ended,
    /// No unit could run the target.
    #[error("no unit of this machine could be measured: {0}")]
    NoUnit(String),
}

/// How far a calibration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub all: usize,
    /// What comes now.
    pub what: &'a str,
}

/// What to calibrate with.
pub struct Options<'a> {
    /// Prompts of the texts.
    pub prompts: Vec<String>,
    /// Time for all loops together; runs of the engine come on top.
    pub budget: Duration,
    /// Told of every step.
    pub progress: &'a dyn Fn(Step<'_>),
    /// Where every clocked job goes, if anywhere.
    pub trace: Option<&'a Trace>,
}

/// Measures all classes of units of this machine with these models. Runs inside an actix system.
///
/// # Errors
/// See [`CalibrateError`]. A unit that refuses is left out, and said so; it is an error only if none is left.
pub async fn calibrate(
    pair: &Pair,
    limits: EngineLimits,
    options: Options<'_>,
) -> Result<Calibration, CalibrateError> {
    let begun = Instant::now();
    let context = limits.plan_context(pair);
    let classes = classes(&context.machine);
    let pairs = if pair.draft.is_some() { classes::pairs(&context.machine) } else { Vec::new() };
    let mut session = Session {
        pair,
        limits,
        context: &context,
        model: CostModel::default(),
        left_out: BTreeMap::new(),
        done: 0,
        texts: Vec::new(),
        all: 2 * classes.len() + pairs.len() + 3,
        options,
        begun,
    };
    let budget = session.options.budget / (2 * classes.len().max(1) as u32);
    for (class, spec) in &classes {
        session.tell(&format!("{class}: both models in a loop"));
        session.in_loops(class, spec, budget);
    }
    if session.model.units.is_empty() {
        let reasons: Vec<_> = session.left_out.values().cloned().collect();
        return Err(CalibrateError::NoUnit(reasons.join("; ")));
    }
    let main = session.main_class(&classes);
    session.tell("what the target answers, and what the draft says");
    let answers = session.answers(&session.plain(&main.1)?, Duration::MAX).await?;
    session.texts = texts::guessed(pair, &main.1, session.slots(), answers)?;
    for (class, spec) in &classes {
        session.tell(&format!("{class}: in the engine"));
        if session.model.units.contains_key(class) {
            if let Err(error) = session.in_engine(class, spec).await {
                tracing::warn!(%class, %error, "left out of the calibration");
                session.model.units.remove(class);
                session.left_out.insert(class.clone(), error.to_string());
            }
        }
    }
    session.tell("a split model");
    session.between_units().await?;
    for (target, draft) in &pairs {
        session.tell("a unit for each model");
        let known = session.model.contention.len();
        if let Err(error) = session.apart(target, draft).await {
            tracing::warn!(%error, "two units were not measured beside each other");
            session.model.contention.truncate(known);
        }
    }
    let texts = std::mem::take(&mut session.texts);
    session.tell("the best plan");
    let Session { model, left_out, .. } = session;
    let known = (model.clone(), context.clone());
    let foresight = Foresight::of_pair(pair, limits, known, Workload::single(texts.clone()));
    let found = foresight.search(Objective::Throughput, None);
    let best_plan = found.ranked.first().map_or(String::new(), |best| best.plan.to_toml());
    Ok(Calibration {
        version: VERSION,
        fingerprint: Fingerprint::here(pair, &context),
        taken_at_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        took_ms: begun.elapsed().as_millis() as u64,
        model,
        texts,
        best_plan,
        left_out,
    })
}

/// A calibration under way.
struct Session<'a> {
    pair: &'a Pair,
    limits: EngineLimits,
    context: &'a PlanContext,
    model: CostModel,
    left_out: BTreeMap<UnitClass, String>,
    /// The prompts' texts, in their order.
    texts: Vec<SampleText>,
    done: usize,
    all: usize,
    options: Options<'a>,
    begun: Instant,
}

impl Session<'_> {
    fn tell(&mut self, what: &str) {
        (self.options.progress)(Step { done: self.done, all: self.all, what });
        tracing::info!(what, elapsed_ms = self.begun.elapsed().as_millis() as u64, "calibrating");
        self.done += 1;
    }

    fn slots(&self) -> SlotLimits {
        SlotLimits { sequences_max: 4, rows_max: 128, ..self.limits.slots(self.pair) }
    }

    fn layers(&self) -> usize {
        self.context.target.layers()
    }

    fn plain(&self, spec: &UnitSpec) -> Result<PartitionPlan, PlanError> {
        Composition::plain(spec.clone(), self.layers()).plan("calibration", self.context)
    }

    fn drafting(
        &self,
        mode: Mode,
        target: &UnitSpec,
        draft: &UnitSpec,
    ) -> Result<PartitionPlan, PlanError> {
        let (units, unit) = if target == draft {
            (vec![target.clone()], 0)
        } else {
            (vec![target.clone(), draft.clone()], 1)
        };
        let target = vec![(0, self.layers())];
        Composition { mode, units, target, draft: Some(unit) }.plan("calibration", self.context)
    }

    /// The class whose answers become the texts: of those measured the one with the quickest pass.
    fn main_class(&self, classes: &[(UnitClass, UnitSpec)]) -> (UnitClass, UnitSpec) {
        let speed = |class: &UnitClass| {
            let profile = self.model.units.get(class)?;
            Some(profile.roles.get(&ModelRole::Target)?.verify.at_ns(1, 0))
        };
        let timed = classes.iter().filter_map(|class| Some((speed(&class.0)?, class)));
        timed.min().map(|(_, class)| class.clone()).expect("a class was measured")
    }

    /// Measures a class in a loop, on a thread of its own, where the device lives.
    fn in_loops(&mut self, class: &UnitClass, spec: &UnitSpec, budget: Duration) {
        let measured = self.plain(spec).map_err(CalibrateError::from).and_then(|plan| {
            let factory = crate::fleet::factory(plan.units.values().next().expect("one unit"));
            let ask = Ask { pair: self.pair.clone(), limits: self.slots(), budget };
            let body = move || -> Result<Profiles, LoopError> {
                let mut device = factory()?;
                let roles = [ModelRole::Target, ModelRole::Draft];
                let loaded = roles.into_iter().filter(|role| ask.pair.model(*role).is_some());
                loaded.map(|role| Ok((role, ask.measure(device.as_mut(), role)?))).collect()
            };
            let lost = || {
                let detail = "it panicked while it was measured".to_owned();
                LoopError::Device(DeviceError::Lost { device: class.to_string(), detail })
            };
            Ok(std::thread::spawn(body).join().map_err(|_| lost())??)
        });
        match measured {
            Ok(roles) => {
                let memory = self.memory_of(spec);
                let power_mw = 1000 * u64::from(class.core_count());
                let around = AroundJobs::default();
                let profile = UnitProfile { memory, roles, around, power_mw };
                self.model.units.insert(class.clone(), profile);
            }
            Err(error) => {
                tracing::warn!(%class, %error, "left out of the calibration");
                self.left_out.insert(class.clone(), error.to_string());
            }
        }
    }

    fn memory_of(&self, spec: &UnitSpec) -> MemoryDomain {
        match spec {
            UnitSpec::Gpu { adapter, .. } => {
                let own = self.context.machine.adapters.get(*adapter);
                let own = own.is_some_and(|adapter| adapter.memory_bytes.is_some());
                if own { MemoryDomain::Own } else { MemoryDomain::Main }
            }
            _ => MemoryDomain::Main,
        }
    }

    /// Answers prompts under a plan, one after the other, all of them or as many as can be had in `time`.
    async fn answers(
        &self,
        plan: &PartitionPlan,
        time: Duration,
    ) -> Result<Vec<Answered>, CalibrateError> {
        self.answers_of(plan, usize::MAX, time).await
    }

    /// The same for the first `count` prompts.
    async fn answers_of(
        &self,
        plan: &PartitionPlan,
        count: usize,
        time: Duration,
    ) -> Result<Vec<Answered>, CalibrateError> {
        let probe = Probe::start(self.pair, plan, (self.limits, self.context)).await?;
        let mut answers = Vec::new();
        let texts = &self.options.prompts;
        // The first answers warm up.
        for text in texts.iter().take(WARM_UP) {
            probe.answer(text, TOKENS_MAX).await?;
        }
        let begun = Instant::now();
        for text in texts.iter().take(count) {
            if answers.len() >= CLOCKED_PROMPTS_MIN && begun.elapsed() > time {
                break;
            }
            answers.push(probe.answer(text, TOKENS_MAX).await?);
        }
        probe.stop();
        if let Some(trace) = self.options.trace {
            trace.add(plan, &answers);
        }
        Ok(answers)
    }

    /// Runs a plan with every job clocked: of some visits the one of middling speed.
    async fn clocked(&self, plan: &PartitionPlan) -> Result<(Clocked, usize), CalibrateError> {
        let on_cores = plan.units.values().all(|spec| matches!(spec, UnitSpec::Cpu { .. }));
        let mut visits = vec![self.answers(plan, CLOCKED_TIME).await?];
        // The same texts each time.
        let texts = visits[0].len();
        for _ in 1..if on_cores { VISITS } else { 1 } {
            visits.push(self.answers_of(plan, texts, Duration::MAX).await?);
        }
        visits.sort_by_key(|answers| answers.iter().map(|answer| answer.lasted).sum::<Duration>());
        let middle = visits.swap_remove(visits.len() / 2);
        Ok((Clocked::of(&middle, self.layers()), texts))
    }

    /// How the first texts go under a plan by what is known so far, without hops.
    fn rehearsed(&self, plan: &PartitionPlan, texts: usize) -> Course {
        let mut model = self.model.clone();
        for unit in model.units.values_mut() {
            (unit.around.target_hop_ns, unit.around.draft_hop_ns) = (0, 0);
        }
        let workload = Workload::single(self.texts[..texts.min(self.texts.len())].to_vec());
        let foresight =
            Foresight::of_pair(self.pair, self.limits, (model, self.context.clone()), workload);
        foresight.course(plan).expect("its units were just measured")
    }

    /// What lies around jobs on units of a class.
    async fn in_engine(
        &mut self,
        class: &UnitClass,
        spec: &UnitSpec,
    ) -> Result<(), CalibrateError> {
        let plain = self.plain(spec)?;
        let (clocked, texts) = self.clocked(&plain).await?;
        let course = self.rehearsed(&plain, texts);
        let (target_hop_ns, _) = clocked.hops_ns;
        let around = AroundJobs {
            target_hop_ns,
            draft_hop_ns: target_hop_ns,
            target_ns: rounds::excess(clocked.target, (course.jobs.0, course.jobs_ns.0)),
            request_ns: clocked.request_ns,
            ..AroundJobs::default()
        };
        self.around(class, around);
        if self.pair.draft.is_none() {
            return Ok(());
        }
        let mode = Mode::Sequential { draft_tokens: DraftTokens::Fixed(DEPTH) };
        let turns = self.drafting(mode, spec, spec)?;
        let (clocked, texts) = self.clocked(&turns).await?;
        let course = self.rehearsed(&turns, texts);
        // What a round hops more than twice a plain one's goes with the draft.
        let both = clocked.hops_ns.0 + clocked.hops_ns.1;
        let around = AroundJobs {
            draft_hop_ns: both.saturating_sub(target_hop_ns),
            target_after_draft_ns: rounds::excess(
                clocked.target,
                (course.jobs.0, course.jobs_ns.0),
            ),
            draft_after_target_ns: rounds::excess(clocked.draft, (course.jobs.1, course.jobs_ns.1)),
            ..around
        };
        self.around(class, around);
        Ok(())
    }

    fn around(&mut self, class: &UnitClass, around: AroundJobs) {
        self.model.units.get_mut(class).expect("it was just measured").around = around;
    }

    /// What a stage on another unit costs: the message, and waking that unit up.
    async fn between_units(&mut self) -> Result<(), CalibrateError> {
        let Some((front, back)) = classes::halves(&self.context.machine) else { return Ok(()) };
        let layers = self.layers();
        if layers < 2 {
            return Ok(());
        }
        let target = vec![(0, layers / 2), (1, layers - layers / 2)];
        let split =
            Composition { mode: Mode::Plain, units: vec![front, back], target, draft: None };
        let plan = split.plan("calibration", self.context)?;
        if self.model.times(&plan, self.context).is_err() {
            return Ok(());
        }
        let (clocked, texts) = self.clocked(&plan).await?;
        let course = self.rehearsed(&plan, texts);
        let slower = rounds::excess(clocked.target, (course.jobs.0, course.jobs_ns.0)).max(0);
        let latency_ns = clocked.between_ns + slower as u64;
        self.model.link_default = LinkProfile { latency_ns, bytes_per_second: 0 };
        Ok(())
    }

    /// What two units do to each other that hold a model each: taking turns, and at the same time.
    async fn apart(&mut self, target: &UnitSpec, draft: &UnitSpec) -> Result<(), CalibrateError> {
        let turns = Mode::Sequential { draft_tokens: DraftTokens::Fixed(DEPTH) };
        let turns = self.drafting(turns, target, draft)?;
        let overlap = Mode::Overlap { draft_tokens: DraftTokens::Fixed(DEPTH), wait: 1 };
        let overlap = self.drafting(overlap, target, draft)?;
        if self.model.times(&overlap, self.context).is_err() {
            return Ok(());
        }
        let class = |spec| UnitClass::of(spec, &self.context.machine);
        self.model.contention.push(Contention {
            target: class(target),
            draft: class(draft),
            target_permille: 1000,
            draft_permille: 1000,
            target_apart_ns: 0,
            draft_apart_ns: 0,
        });
        let (clocked, texts) = self.clocked(&turns).await?;
        let course = self.rehearsed(&turns, texts);
        let hops = self
            .model
            .times(&turns, self.context)
            .map_or(0, |times| times.hop_ns(ModelRole::Target) + times.hop_ns(ModelRole::Draft));
        // Hops between sleeping units may be longer than those within one.
        let hopping = (clocked.hops_ns.0 + clocked.hops_ns.1) as i64 - hops as i64;
        let found = self.model.contention.last_mut().expect("it was just pushed");
        found.target_apart_ns =
            rounds::excess(clocked.target, (course.jobs.0, course.jobs_ns.0)) + hopping;
        found.draft_apart_ns = rounds::excess(clocked.draft, (course.jobs.1, course.jobs_ns.1));
        let (clocked, texts) = self.clocked(&overlap).await?;
        for _ in 0..FITTING_ROUNDS {
            let course = self.rehearsed(&overlap, texts);
            let found = self.model.contention.last_mut().expect("it was just pushed");
            let foreseen = [(course.jobs.0, course.jobs_ns.0), (course.jobs.1, course.jobs_ns.1)];
            found.target_permille =
                rounds::slower(found.target_permille, clocked.target, foreseen[0]);
            found.draft_permille = rounds::slower(found.draft_permille, clocked.draft, foreseen[1]);
        }
        Ok(())
    }
}
