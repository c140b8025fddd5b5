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

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrider_devices::{DeviceError, SlotLimits};
use outrider_plans::cost::{AroundJobs, Contention, LinkProfile, MemoryDomain, SampleText};
use outrider_plans::search::Composition;
use outrider_plans::{
    CostModel, DraftTokens, Mode, ModelRole, PartitionPlan, PlanContext, PlanError, UnitClass,
    UnitKind, UnitProfile, UnitSpec, Workload,
};
use serde::{Deserialize, Serialize};

use crate::engine::{EngineError, EngineLimits, PromptError};
use crate::pair::Pair;
use crate::request::Refusal;
use loops::{Ask, Profiles};
use rounds::{Answered, Probe};

pub use classes::classes;
pub use loops::LoopError;
pub use store::{Fingerprint, FreshCalibration, StoreError, default_path, load, save};
pub use texts::PROMPTS;

/// Version of the format of a stored calibration.
pub const VERSION: u32 = 1;
/// Drafted tokens of the runs that show what models do to each other.
const DEPTH: u32 = 4;
/// Most tokens of an answer.
const TOKENS_MAX: u32 = 48;
/// Prompts of a run that only clocks jobs.
const CLOCKED_PROMPTS: usize = 10;

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
        all: 2 * classes.len() + pairs.len() + 2,
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
    let mut answers = Vec::new();
    let main = session.main_class(&classes);
    for (class, spec) in &classes {
        session.tell(&format!("{class}: in the engine"));
        if !session.model.units.contains_key(class) {
            continue;
        }
        let prompts = if *class == main { usize::MAX } else { CLOCKED_PROMPTS };
        let answered = session.in_engine(class, spec, prompts).await?;
        if *class == main {
            answers = answered;
        }
    }
    session.between_units().await?;
    for (target, draft) in &pairs {
        session.tell("two units at once");
        session.at_once(target, draft).await?;
    }
    session.tell("what the draft says");
    let spec = classes.iter().find(|(class, _)| *class == main).map(|(_, spec)| spec.clone());
    let spec = spec.expect("the main class is one of them");
    let texts = texts::guessed(pair, &session.plain(&spec)?, session.slots(), answers)?;
    let Session { model, left_out, .. } = session;
    Ok(Calibration {
        version: VERSION,
        fingerprint: Fingerprint::here(pair, &context),
        taken_at_s: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        took_ms: begun.elapsed().as_millis() as u64,
        model,
        texts,
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
        SlotLimits {
            sequences_max: 4,
            positions_max: self.limits.context_of(self.pair),
            rows_max: 128,
        }
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
    fn main_class(&self, classes: &[(UnitClass, UnitSpec)]) -> UnitClass {
        let speed = |class: &UnitClass| {
            let profile = self.model.units.get(class)?;
            Some(profile.roles.get(&ModelRole::Target)?.verify.at_ns(1, 0))
        };
        let timed = classes.iter().filter_map(|(class, _)| Some((speed(class)?, class.clone())));
        timed.min().map(|(_, class)| class).expect("a class was measured")
    }

    /// Measures a class in a loop, on a thread of its own, where the device lives.
    fn in_loops(&mut self, class: &UnitClass, spec: &UnitSpec, budget: Duration) {
        let measured = self.plain(spec).map_err(CalibrateError::from).and_then(|plan| {
            let factory = crate::fleet::factories(&plan).into_values().next();
            let factory = factory.expect("a plain plan has one unit");
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

    /// Answers some of the prompts under a plan, one after the other.
    async fn answers(
        &self,
        plan: &PartitionPlan,
        prompts: usize,
    ) -> Result<Vec<Answered>, CalibrateError> {
        let probe = Probe::start(self.pair, plan, self.limits).await?;
        let mut answers = Vec::new();
        let texts = &self.options.prompts;
        // The first answer warms up.
        for text in texts.iter().take(1).chain(texts.iter().take(prompts)) {
            answers.push(probe.answer(text, TOKENS_MAX).await?);
        }
        probe.stop();
        answers.remove(0);
        Ok(answers)
    }

    /// What lies around jobs on units of a class. Returns the plain answers.
    async fn in_engine(
        &mut self,
        class: &UnitClass,
        spec: &UnitSpec,
        prompts: usize,
    ) -> Result<Vec<Answered>, CalibrateError> {
        let plain = self.plain(spec)?;
        let answers = self.answers(&plain, prompts).await?;
        let times = self.model.times(&plain, self.context).expect("it was just measured");
        let mut around = rounds::around_plain(&times, &answers);
        if self.pair.draft.is_some() {
            let mode = Mode::Sequential { draft_tokens: DraftTokens::Fixed(DEPTH) };
            let turns = self.drafting(mode, spec, spec)?;
            let times = self.model.times(&turns, self.context).expect("it was just measured");
            let answers = self.answers(&turns, CLOCKED_PROMPTS).await?;
            around = rounds::around_turns(around, &times, &answers);
        }
        let profile = self.model.units.get_mut(class).expect("it was just measured");
        profile.around = around;
        Ok(answers)
    }

    /// What a message from one unit to the next of a split model takes.
    async fn between_units(&mut self) -> Result<(), CalibrateError> {
        self.tell("a split model");
        let Some((front, back)) = classes::pairs(&self.context.machine).into_iter().next() else {
            return Ok(());
        };
        let layers = self.layers();
        if layers < 2 || front.kind() != UnitKind::Cpu {
            return Ok(());
        }
        let target = vec![(0, layers / 2), (1, layers - layers / 2)];
        let split =
            Composition { mode: Mode::Plain, units: vec![front, back], target, draft: None };
        let plan = split.plan("calibration", self.context)?;
        let answers = self.answers(&plan, CLOCKED_PROMPTS).await?;
        let latency_ns = rounds::between_stages(&answers);
        self.model.link_default = LinkProfile { latency_ns, bytes_per_second: 0 };
        Ok(())
    }

    /// How much two units slow each other down.
    async fn at_once(&mut self, target: &UnitSpec, draft: &UnitSpec) -> Result<(), CalibrateError> {
        let mode = Mode::Overlap { draft_tokens: DraftTokens::Fixed(DEPTH), wait: 1 };
        let plan = self.drafting(mode, target, draft)?;
        let Ok(times) = self.model.times(&plan, self.context) else { return Ok(()) };
        let answers = self.answers(&plan, CLOCKED_PROMPTS).await?;
        let class = |spec| UnitClass::of(spec, &self.context.machine);
        let (target, draft) = (class(target), class(draft));
        let own = |class| self.model.profile(class).map_or(0, |profile| profile.around.target_ns);
        let (target_permille, draft_permille) =
            rounds::slowdown(&times, &answers, (own(&target), 0));
        let found = Contention { target, draft, target_permille, draft_permille };
        self.model.contention.push(found);
        Ok(())
    }
}
