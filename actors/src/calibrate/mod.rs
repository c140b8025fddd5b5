//! Calibration: measures everything that a forecast is made from, on this machine, with these models.
//!
//! ```text
//!   loops     each class of units by itself, through the device's interface: tables of times     loops.rs
//!   rounds    the engine on a few plans, every job clocked: hops, turns, contention              rounds.rs
//!   excess    what those jobs take more than in the loop                                         excess.rs
//!   texts     the target's answers to prompts, and what the draft says at each position          texts.rs
//!   session   who is visited when, and what all visits together say                              session/
//! ```
//!
//! A machine is not equally fast at all times: memory and caches are shared with whatever else runs. So nothing is measured in
//! one piece. Everything is visited for a part of a second, in turn, and again, as often as the time allows.
//!
//! *Invariant:* what was measured is kept with the fingerprint of what it was measured on, and is not used for anything else.

mod classes;
mod excess;
mod loops;
mod rounds;
mod session;
mod store;
mod texts;
mod trace;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrider_plans::cost::SampleText;
use outrider_plans::{CostModel, Objective, PlanError, UnitClass, Workload};
use serde::{Deserialize, Serialize};

use crate::engine::{EngineError, EngineLimits, PromptError};
use crate::foresight::Foresight;
use crate::gpu_tuning;
use crate::pair::Pair;
use crate::request::Refusal;

pub use classes::classes;
pub use loops::LoopError;
pub(crate) use rounds::{Answered, Probe, WARM_UP};
pub(crate) use session::Session;
pub use store::{Fingerprint, FreshCalibration, StoreError, default_path, load, save};
pub use texts::PROMPTS;
pub(crate) use texts::guessed;
pub use trace::Trace;

/// Version of the format of a stored calibration.
pub const VERSION: u32 = 2;
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
    /// Time that is over.
    pub done: Duration,
    /// Time in all.
    pub all: Duration,
    /// What comes now.
    pub what: &'a str,
}

/// What to calibrate with.
pub struct Options<'a> {
    /// Prompts of the texts.
    pub prompts: Vec<String>,
    /// Time for all of it. A machine of many units, or large models, may need more for one visit each.
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
    let context = limits.plan_context(pair);
    let not_begun = Step { done: Duration::ZERO, all: options.budget, what: "" };
    let cold = gpu_tuning::make_ready(|name| {
        let what = format!("{name}: how to shape its kernels");
        (options.progress)(Step { what: &what, ..not_begun });
    });
    if cold {
        (options.progress)(Step { what: "GPUs: their drivers compile", ..not_begun });
        // What fails here fails again, and is then told of.
        let prompts = options.prompts.clone();
        let once = Options { prompts, budget: Duration::ZERO, progress: &|_| {}, trace: None };
        let _ = Session::new((pair, limits), &context, once).visit_gpus().await;
    }
    let begun = Instant::now();
    let mut session = Session::new((pair, limits), &context, options);
    session.visit_all().await?;
    session.tell("the best plan");
    let (model, texts, left_out) = session.result()?;
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
