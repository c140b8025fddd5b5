//! What a loop cannot tell: what lies around jobs in the running engine, and how much two units slow each other.
//!
//! A few plans are run on the calibration's own prompts with every job clocked, and rehearsed on the same texts. The gaps
//! between jobs are hops; what jobs take longer than in the rehearsal is the engine's, the other model's on the same
//! unit, or the other unit's. Means, not medians: what stalls now and then costs time too. *Invariant:* the engine that is
//! measured is the one that serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use outrider_observability::Registry;
use outrider_pipeline::scheduler::{GenerationParams, Statistics};
use outrider_pipeline::{Message, Speculation};
use outrider_plans::cost::middle;
use outrider_plans::{ModelRole, PartitionPlan, PlanContext};
use tokio::sync::mpsc;

use super::CalibrateError;
use crate::engine::{Engine, EngineLimits, EngineOptions};
use crate::meter::StageTiming;
use crate::pair::Pair;
use crate::request::{RequestEvent, Timings};

/// Timings that the tap holds; read after every request.
const TIMINGS_MAX: usize = 16_384;
/// How long a new engine answers before anything is clocked: its first answers take some hundredths longer on a processor, and
/// on a GPU, whose clock had sunk, a tenth.
pub(crate) const WARM_UP: Duration = Duration::from_millis(120);

/// One answered prompt.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    /// Tokens of the prompt.
    pub(crate) prompt: Vec<u32>,
    /// Tokens of the answer.
    pub(crate) output: Vec<u32>,
    /// From asking, in words, to the end.
    pub(crate) lasted: Duration,
    /// Every job, by its begin.
    pub(crate) jobs: Vec<StageTiming>,
    /// What was drafted, and what of it was right.
    pub(crate) statistics: Statistics,
    /// As the request was told.
    pub(crate) timings: Timings,
}

/// Who answers prompts.
pub(crate) struct Probe {
    engine: Engine,
    timings: Receiver<StageTiming>,
}

impl Probe {
    pub(crate) async fn start(
        pair: &Pair,
        plan: &PartitionPlan,
        (limits, context): (EngineLimits, &PlanContext),
    ) -> Result<Self, CalibrateError> {
        let (tap, timings) = crossbeam_channel::bounded(TIMINGS_MAX);
        let registry = Arc::new(Registry::new(crate::cli::build_info()));
        let (pair, plan, context) = (pair.clone(), plan.clone(), context.clone());
        let mut options = EngineOptions::in_context(pair, plan, limits, registry, context);
        options.timings = Some(tap);
        Ok(Self { engine: Engine::start(options).await?, timings })
    }

    pub(crate) fn stop(&self) {
        self.engine.stop();
    }

    /// The prompt of a text: through the chat template if the model has one.
    fn prompt(&self, text: &str) -> Result<Vec<u32>, CalibrateError> {
        let message = Message { role: "user".into(), content: text.to_owned() };
        match self.engine.chat_prompt(&[message]) {
            Ok(prompt) => Ok(prompt),
            Err(_) => Ok(self.engine.raw_prompt(text)?),
        }
    }

    /// Answers these texts, again and again, until memory and clocks are as they are in service.
    pub(crate) async fn warm_up<'a>(
        &self,
        texts: impl Iterator<Item = &'a str> + Clone,
        (tokens_max, speculation): (u32, Speculation),
    ) -> Result<(), CalibrateError> {
        let end = Instant::now() + WARM_UP;
        for text in texts.cycle() {
            self.answer(text, tokens_max, speculation).await?;
            if Instant::now() > end {
                break;
            }
        }
        Ok(())
    }

    /// Asks for one answer, and waits for it.
    pub(crate) async fn answer(
        &self,
        text: &str,
        tokens_max: u32,
        speculation: Speculation,
    ) -> Result<Answered, CalibrateError> {
        let asked = Instant::now();
        let prompt = self.prompt(text)?;
        let max_tokens = Some(tokens_max);
        let params = GenerationParams { max_tokens, speculation, ..GenerationParams::default() };
        let (_, mut events) = self.engine.generate(prompt.clone(), params).await?;
        let (output, statistics, timings) = self.read(&mut events).await?;
        let lasted = asked.elapsed();
        let mut jobs: Vec<StageTiming> = self.timings.try_iter().collect();
        jobs.sort_by_key(|job| job.at_ns.start);
        Ok(Answered { prompt, output, lasted, jobs, statistics, timings })
    }

    /// Asks for the answers to all these texts, `clients` at a time, as long as there is time for another; which jobs were
    /// whose is not known then. Answers are in the order of their texts, none left out.
    pub(crate) async fn answers(
        &self,
        texts: &[String],
        clients: usize,
        (tokens_max, begins_before): (u32, Instant),
    ) -> Result<Vec<Answered>, CalibrateError> {
        let mut answers = Vec::new();
        // Enough at a time that few clients wait for the last of the others.
        for some in texts.chunks(8 * clients.max(1)) {
            if !answers.is_empty() && Instant::now() > begins_before {
                break;
            }
            let asked = some.iter().map(|text| self.answer(text, tokens_max, Speculation::Plan));
            let some: Vec<_> = stream::iter(asked).buffered(clients.max(1)).try_collect().await?;
            answers.extend(some);
        }
        Ok(answers)
    }

    async fn read(
        &self,
        events: &mut mpsc::Receiver<RequestEvent>,
    ) -> Result<(Vec<u32>, Statistics, Timings), CalibrateError> {
        let mut output = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                RequestEvent::Text { tokens, .. } => {
                    output.extend(tokens.iter().map(|token| token.pick.token));
                }
                RequestEvent::Finished { statistics, timings, .. } => {
                    return Ok((output, statistics, timings));
                }
            }
        }
        Err(CalibrateError::Ended)
    }
}

/// Sums over the jobs of some answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clocked {
    /// Jobs of the target and their time. Stages of a split model count as one job.
    pub(super) target: (u64, u64),
    /// Jobs of the draft and their time.
    pub(super) draft: (u64, u64),
    /// What lies between the jobs.
    pub(super) gaps: Gaps,
}

/// Mean gaps between the jobs of some answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gaps {
    /// After a pass of the target, and after a draft job, before whatever came next.
    pub(super) hops_ns: (u64, u64),
    /// Between two stages of a pass.
    pub(super) between_ns: u64,
    /// Time of a request outside of its jobs and the gaps between them.
    pub(super) request_ns: u64,
}

impl Gaps {
    /// Those of the rounds in the middle.
    pub(super) fn middle(rounds: &[Self]) -> Self {
        let gap = |of: fn(&Self) -> u64| middle(rounds.iter().map(|one| of(one) as i64)) as u64;
        Self {
            hops_ns: (gap(|one| one.hops_ns.0), gap(|one| one.hops_ns.1)),
            between_ns: gap(|one| one.between_ns),
            request_ns: gap(|one| one.request_ns),
        }
    }
}

impl Clocked {
    /// Adds up what was clocked while `layers` layers of the target ran.
    pub(super) fn of<'a>(answers: impl Iterator<Item = &'a Answered>, layers: usize) -> Self {
        let mut sums = Self::default();
        let (mut after_target, mut after_draft, mut between) =
            (Mean::default(), Mean::default(), Mean::default());
        let mut outside = Mean::default();
        for Answered { jobs, lasted: whole, .. } in answers {
            for job in jobs {
                match job.stage.role {
                    ModelRole::Target => {
                        sums.target.0 += u64::from(job.stage.layer_end == layers);
                        sums.target.1 += lasted(job);
                    }
                    ModelRole::Draft => {
                        sums.draft.0 += 1;
                        sums.draft.1 += lasted(job);
                    }
                }
            }
            for pair in jobs.windows(2) {
                let gap = pair[1].at_ns.start.saturating_sub(pair[0].at_ns.end);
                match pair[0].stage {
                    stage if stage.role == ModelRole::Draft => after_draft.add(gap),
                    stage if stage.layer_end == layers => after_target.add(gap),
                    _ => between.add(gap),
                }
            }
            if let (Some(first), Some(last)) =
                (jobs.first(), jobs.iter().map(|job| job.at_ns.end).max())
            {
                let inside = last - first.at_ns.start;
                outside.add((whole.as_nanos() as u64).saturating_sub(inside));
            }
        }
        let hops_ns = (after_target.get(), after_draft.get());
        // The last job's hop is a part of the request's end.
        let request_ns = outside.get().saturating_sub(hops_ns.0);
        sums.gaps = Gaps { hops_ns, between_ns: between.get(), request_ns };
        sums
    }
}

fn lasted(job: &StageTiming) -> u64 {
    job.at_ns.end - job.at_ns.start
}

/// A mean.
#[derive(Default)]
struct Mean {
    count: u64,
    sum: u64,
}

impl Mean {
    fn add(&mut self, value: u64) {
        self.count += 1;
        self.sum += value;
    }

    fn get(self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }
}

/// The slow-down that makes the foreseen time of a job the measured one, from the one that was foreseen with.
pub(super) fn slower(permille: u32, measured: (u64, u64), foreseen: (u64, u64)) -> u32 {
    let each = |(jobs, ns): (u64, u64)| u128::from(ns) * 1000 / u128::from(jobs.max(1));
    let next = u128::from(permille) * each(measured) / each(foreseen).max(1);
    next.clamp(1000, 6000) as u32
}
