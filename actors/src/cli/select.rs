//! The arguments that say what to run: models, plan, and what overrides it. Shared by the subcommands that decode.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgAction, Args, ValueEnum};
use outrider_devices::graph::WeightFormat;
use outrider_observability::{BuildInfo, Registry};
use outrider_pipeline::scheduler::Prefixes;
use outrider_pipeline::{Guarding, ModelSource};
use outrider_plans::{
    CacheFormat, DraftTokens, Mode, ModeKind, ModelRole, Models, PartitionPlan, PlanContext,
    PlanSpec, default_plan, default_plan_in, shipped, shipped_plan,
};

use super::calibrate::CalibrationPlace;
use super::{CliError, OwnUnits};
use crate::engine::{Engine, EngineLimits, EngineOptions};
use crate::foresight::Foresight;
use crate::library;
use crate::meter::TimingTap;
use crate::office::Office;
use crate::pair::Pair;

/// What the draft's projections are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DraftWeights {
    /// Nothing: they stay as they are in the file.
    Own,
    /// Q8_0.
    #[value(name = "q8_0")]
    Q8,
    /// Q4_0.
    #[value(name = "q4_0")]
    Q4,
}

impl DraftWeights {
    fn format(self) -> Option<WeightFormat> {
        match self {
            DraftWeights::Own => None,
            DraftWeights::Q8 => Some(WeightFormat::Q8_0),
            DraftWeights::Q4 => Some(WeightFormat::Q4_0),
        }
    }
}

/// Which models to run, and how.
#[derive(Args, Clone, Debug)]
pub struct Selection {
    /// Target model: a GGUF file, a safetensors file, or a directory with one. Default: the shipped translation pair.
    #[arg(long, value_name = "FILE", env = "OUTRIDER_TARGET")]
    pub target: Option<PathBuf>,
    /// Draft model with the target's vocabulary. Without it, a target of your own runs without a draft model.
    #[arg(long, value_name = "FILE", env = "OUTRIDER_DRAFT")]
    pub draft: Option<PathBuf>,
    /// Round the draft's projections to this format at load. A narrower draft is quicker and less often right; texts do not
    /// change.
    #[arg(long, value_name = "FORMAT", env = "OUTRIDER_DRAFT_WEIGHTS", default_value = "own")]
    pub draft_weights: DraftWeights,
    /// Partition plan: a file, or the name of a shipped one (`outrider plan list`). Default: chosen for this machine.
    #[arg(long, value_name = "FILE", env = "OUTRIDER_PLAN")]
    pub plan: Option<String>,
    /// Decoding mode, instead of the plan's.
    #[arg(long, value_name = "MODE", env = "OUTRIDER_MODE")]
    pub mode: Option<ModeKind>,
    /// Most tokens drafted for one verification pass, or auto for as many as are worth it, instead of the plan's.
    #[arg(long, value_name = "N|auto", env = "OUTRIDER_DRAFT_TOKENS")]
    pub draft_tokens: Option<DraftTokens>,
    /// Requests decoded at one time.
    #[arg(long, value_name = "N", env = "OUTRIDER_PARALLEL", default_value_t = 8)]
    #[arg(value_parser = parallel)]
    pub parallel: usize,
    /// Requests that may wait for a place; more are answered 429.
    #[arg(long, value_name = "N", env = "OUTRIDER_QUEUE", default_value_t = 256)]
    pub queue: usize,
    /// Prompt tokens that may wait for a place, of all waiting requests together; more are answered 429.
    #[arg(long, value_name = "N", env = "OUTRIDER_QUEUE_TOKENS", default_value_t = 65_536)]
    pub queue_tokens: usize,
    /// Keep the caches of finished requests until their places are needed: a prompt that begins as one of them is read
    /// from there on.
    #[arg(long, value_name = "YES", env = "OUTRIDER_PREFIX_CACHE", default_value_t = true)]
    #[arg(action = ArgAction::Set)]
    pub prefix_cache: bool,
    /// Positions of one sequence, prompt and answer together. Default: what the model was trained for, at most 4096.
    #[arg(long, value_name = "N", env = "OUTRIDER_CONTEXT", value_parser = context)]
    pub context: Option<usize>,
    /// How keys and values are cached: f16, or q8, which takes nine sixteenths of the room and rounds them to bytes (CPU
    /// units only).
    #[arg(long, value_name = "FORMAT", env = "OUTRIDER_CACHE", default_value_t = CacheFormat::F16)]
    pub cache: CacheFormat,
    /// Where this machine's calibration is.
    #[command(flatten)]
    pub place: CalibrationPlace,
}

/// Most requests at one time: each has caches of its own, and a pass takes a few hundred rows of all of them.
const PARALLEL_MAX: usize = 1024;

fn parallel(text: &str) -> Result<usize, String> {
    bounded(text, 1..=PARALLEL_MAX)
}

/// A prompt has a token, and so has its answer. How many there may be depends on the model.
fn context(text: &str) -> Result<usize, String> {
    bounded(text, 2..=usize::MAX)
}

fn bounded(text: &str, within: RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "it is not a whole number".to_owned())?;
    let (least, most) = (*within.start(), *within.end());
    match within.contains(&number) {
        true => Ok(number),
        false if most == usize::MAX => Err(format!("at least {least} are needed")),
        false => Err(format!("choose {least} to {most}")),
    }
}

impl Selection {
    /// Where the models are: as the arguments say, else as the plan does.
    pub fn sources(&self) -> Result<(ModelSource, Option<ModelSource>), CliError> {
        let file = |path: &PathBuf| ModelSource::File(path.clone());
        let named = self.models_of_plan();
        let source = |role, flag: &Option<PathBuf>| {
            let by_plan = named.of(role).map(|name| library::source(role, name));
            flag.as_ref().map(file).or(by_plan)
        };
        let target = source(ModelRole::Target, &self.target);
        let draft = source(ModelRole::Draft, &self.draft);
        match (target, draft) {
            (None, Some(ModelSource::File(_))) if self.draft.is_some() => {
                Err("a draft needs the target that it rides ahead of: name it with --target FILE"
                    .into())
            }
            (Some(target), draft) => Ok((target, draft)),
            (None, draft) if cfg!(feature = "embedded-models") => {
                let shipped = ModelSource::Shipped;
                let draft = draft.unwrap_or(shipped(ModelRole::Draft));
                Ok((shipped(ModelRole::Target), Some(draft)))
            }
            (None, _) => {
                Err("this build has no shipped models: name one with --target FILE".into())
            }
        }
    }

    /// The models that the plan's file names. What is wrong with it is said when it is read as a plan.
    fn models_of_plan(&self) -> Models {
        let text = self.plan.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        let spec = text.and_then(|text| PlanSpec::parse(&text, None).ok());
        spec.map(|spec| spec.models().clone()).unwrap_or_default()
    }

    /// Loads the models.
    pub fn pair(&self) -> Result<Pair, CliError> {
        let (target, draft) = self.sources()?;
        Ok(Pair::open_with(&target, draft.as_ref(), self.draft_weights.format())?)
    }

    /// Bounds of the engine.
    pub fn limits(&self) -> EngineLimits {
        EngineLimits {
            parallel: self.parallel,
            queue: self.queue,
            queue_tokens: self.queue_tokens,
            prefixes: match self.prefix_cache {
                true => Prefixes::Reuse,
                false => Prefixes::Forget,
            },
            context: self.context,
            cache: self.cache,
        }
    }

    /// Starts the engine that all this describes.
    pub async fn engine(&self) -> Result<Engine, CliError> {
        Ok(Engine::start(self.options()?).await?)
    }

    /// The same for a service, with units of one's own, every job told to `timings`, and drafts of a fixed depth guarded or not.
    pub(super) async fn office(
        &self,
        factories: OwnUnits,
        (timings, guarding): (TimingTap, Guarding),
    ) -> Result<Office, CliError> {
        let timings = Some(timings);
        let options = EngineOptions { factories, timings, guarding, ..self.options()? };
        Ok(Office::open(options).await?)
    }

    fn options(&self) -> Result<EngineOptions, CliError> {
        let pair = self.pair()?;
        let plan = self.plan(&pair)?;
        let registry = Arc::new(Registry::new(build_info()));
        let options = EngineOptions::new(pair, plan, self.limits(), registry);
        Ok(EngineOptions { guarding: Guarding::On, ..options })
    }

    /// Forecasts for this machine and these models, if a calibration holds.
    pub(super) fn foresight(&self) -> Option<Foresight> {
        let pair = self.pair().ok()?;
        let limits = self.limits();
        let context = limits.plan_context(&pair);
        let fresh = self.place.load(&pair, &context).ok()?;
        Some(Foresight::here(&pair, limits, &fresh.calibration, 1))
    }

    /// The plan to run, checked against this machine and these models.
    pub fn plan(&self, pair: &Pair) -> Result<PartitionPlan, CliError> {
        let trained = pair.context_length();
        if let Some(wanted) = self.context.filter(|wanted| *wanted > trained) {
            return Err(format!(
                "a context of {wanted} positions is asked for, but the models were trained for {trained}: give --context \
                 {trained} at most"
            )
            .into());
        }
        let context = self.limits().plan_context(pair);
        let plan = match &self.plan {
            Some(name) => named_plan(name, &context)?,
            None => match self.mode {
                Some(kind) => default_plan_in(kind, &context)?,
                None => calibrated_plan(&self.place, pair, &context)
                    .map_or_else(|| default_plan(&context), Ok)?,
            },
        };
        let plan = match self.mode {
            Some(kind) if kind != plan.mode.kind() => plan_in_mode(&plan, kind, &context)?,
            _ => plan,
        };
        match self.draft_tokens {
            Some(depth) => Ok(plan.with_mode(plan.mode.with_draft_tokens(depth)?)?),
            None => Ok(plan),
        }
    }
}

/// The plan that was found best when this machine was calibrated with these models, if that still holds.
fn calibrated_plan(
    place: &CalibrationPlace,
    pair: &Pair,
    context: &PlanContext,
) -> Option<PartitionPlan> {
    match place.load(pair, context) {
        Ok(fresh) => {
            let plan = PartitionPlan::from_toml(&fresh.calibration.best_plan, None, context);
            match plan {
                Ok(plan) => {
                    let (path, plan_name) = (fresh.path.display(), plan.name.as_str());
                    tracing::info!(%path, plan_name, "the plan that calibration found best");
                    Some(plan)
                }
                Err(error) => {
                    tracing::warn!(%error, "the plan that calibration found best does not fit any more");
                    None
                }
            }
        }
        Err(error) => {
            tracing::info!(%error, "the default plan runs; a calibrated one may be faster");
            None
        }
    }
}

/// The text of a plan by file name, or by the name of a shipped one.
pub(super) fn plan_text(name: &str) -> Result<String, CliError> {
    let error = match std::fs::read_to_string(name) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    if let Some(shipped) = shipped_plan(name) {
        return Ok(shipped.text.to_owned());
    }
    let names: Vec<_> = shipped().iter().map(|plan| plan.name).collect();
    let names = names.join(", ");
    Err(format!("cannot read plan {name}: {error}; nor is it a shipped plan ({names})").into())
}

/// A plan by file name, or by the name of a shipped one.
pub(super) fn named_plan(name: &str, context: &PlanContext) -> Result<PartitionPlan, CliError> {
    let text = plan_text(name)?;
    let spec = PlanSpec::parse(&text, Some(name))?;
    // Its models were opened before, as those that everything starts with.
    Ok(spec.with_models(Models::default()).check(context)?)
}

/// The plan's placement in another mode, or the default placement of that mode where the plan's does not do.
fn plan_in_mode(
    plan: &PartitionPlan,
    kind: ModeKind,
    context: &PlanContext,
) -> Result<PartitionPlan, CliError> {
    let mode: Mode = kind.with_defaults();
    match plan.with_mode(mode) {
        // Overlap needs draft and target on units of their own.
        Ok(mut plan) if kind != ModeKind::Overlap || plan.units.len() > 1 => {
            plan.name = format!("{}-as-{kind}", plan.name);
            Ok(plan)
        }
        _ => Ok(default_plan_in(kind, context)?),
    }
}

/// What this build is.
pub(crate) fn build_info() -> BuildInfo {
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    BuildInfo { version: env!("CARGO_PKG_VERSION").into(), target }
}
