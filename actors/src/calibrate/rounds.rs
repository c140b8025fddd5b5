//! What a loop cannot tell: what lies around jobs in the running engine, and how much two units slow each other.
//!
//! A few plans are run on the calibration's own prompts with every job clocked. The gaps between jobs are hops; what a job takes
//! longer than in the loop is the engine's, the other model's on the same unit, or the other unit's. *Invariant:* the
//! engine that is measured is the one that serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use outrider_observability::Registry;
use outrider_pipeline::Message;
use outrider_pipeline::scheduler::GenerationParams;
use outrider_plans::cost::{AroundJobs, Before, DraftShape, PassShape, PlanTimes, StageTimes};
use outrider_plans::{ModelRole, PartitionPlan};
use tokio::sync::mpsc;

use super::CalibrateError;
use super::loops::median;
use crate::engine::{Engine, EngineLimits, EngineOptions};
use crate::meter::{StageTiming, Work};
use crate::pair::Pair;
use crate::request::RequestEvent;

/// Timings that the tap holds; read after every request.
const TIMINGS_MAX: usize = 16_384;

/// One answered prompt.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    /// Tokens of the prompt.
    pub(super) prompt: Vec<u32>,
    /// Tokens of the answer.
    pub(super) output: Vec<u32>,
    /// From asking to the end.
    pub(super) lasted: Duration,
    /// Every job, by its begin.
    pub(super) jobs: Vec<StageTiming>,
}

/// Who answers prompts.
pub(super) struct Probe {
    engine: Engine,
    timings: Receiver<StageTiming>,
}

impl Probe {
    pub(super) async fn start(
        pair: &Pair,
        plan: &PartitionPlan,
        limits: EngineLimits,
    ) -> Result<Self, CalibrateError> {
        let (tap, timings) = crossbeam_channel::bounded(TIMINGS_MAX);
        let registry = Arc::new(Registry::new(crate::cli::build_info()));
        let mut options = EngineOptions::new(pair.clone(), plan.clone(), limits, registry);
        options.timings = Some(tap);
        Ok(Self { engine: Engine::start(options).await?, timings })
    }

    pub(super) fn stop(&self) {
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

    pub(super) async fn answer(
        &self,
        text: &str,
        tokens_max: u32,
    ) -> Result<Answered, CalibrateError> {
        let prompt = self.prompt(text)?;
        let params =
            GenerationParams { max_tokens: Some(tokens_max), ..GenerationParams::default() };
        let asked = Instant::now();
        let (_, mut events) = self.engine.generate(prompt.clone(), params).await?;
        let output = self.read(&mut events).await?;
        let lasted = asked.elapsed();
        let mut jobs: Vec<StageTiming> = self.timings.try_iter().collect();
        jobs.sort_by_key(|job| job.at_ns.start);
        Ok(Answered { prompt, output, lasted, jobs })
    }

    async fn read(
        &self,
        events: &mut mpsc::Receiver<RequestEvent>,
    ) -> Result<Vec<u32>, CalibrateError> {
        let mut output = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                RequestEvent::Text { tokens, .. } => {
                    output.extend(tokens.iter().map(|token| token.pick.token));
                }
                RequestEvent::Finished { .. } => return Ok(output),
            }
        }
        Err(CalibrateError::Ended)
    }
}

/// What a job takes in a loop of nothing else.
fn in_a_loop(times: &PlanTimes, job: &StageTiming) -> u64 {
    let chain = if job.stage.role == ModelRole::Target { &times.target } else { &times.draft };
    let stage = chain.iter().find(|stage| stage.stage == job.stage);
    stage.map_or(0, |stage| of_stage(stage, job.work))
}

fn of_stage(stage: &StageTimes, work: Work) -> u64 {
    let Work { rows, head_rows, steps, context } = work;
    let first = PassShape { rows, head_rows, context, before: Before::Same };
    let further = vec![1; steps.saturating_sub(1) as usize];
    stage.compute_ns(rows, head_rows, context)
        + stage.further_steps_ns(&DraftShape { first, further })
}

fn lasted(job: &StageTiming) -> u64 {
    job.at_ns.end - job.at_ns.start
}

/// How much longer the jobs of `role` took than in a loop, median.
fn excess(times: &PlanTimes, answers: &[Answered], role: ModelRole) -> i64 {
    let jobs = answers.iter().flat_map(|answered| &answered.jobs);
    // Pieces of prompts come once a text, and are left to the table.
    let decoding = jobs.filter(|job| job.stage.role == role && job.work.rows <= 16);
    median(decoding.map(|job| lasted(job) as i64 - in_a_loop(times, job) as i64).collect())
}

/// Gaps after jobs of `role` before whatever came next, median.
fn gap(answers: &[Answered], role: ModelRole) -> u64 {
    let gaps = answers.iter().flat_map(|answered| {
        let pairs = answered.jobs.windows(2).filter(|pair| pair[0].stage.role == role);
        pairs.map(|pair| pair[1].at_ns.start.saturating_sub(pair[0].at_ns.end))
    });
    median(gaps.collect())
}

/// From asking until the end, without the jobs and what lies between them.
fn request(answers: &[Answered], hop_ns: u64) -> u64 {
    let outside = answers.iter().filter_map(|answered| {
        let first = answered.jobs.first()?.at_ns.start;
        let last = answered.jobs.iter().map(|job| job.at_ns.end).max()?;
        Some((answered.lasted.as_nanos() as u64).saturating_sub(last - first + hop_ns))
    });
    median(outside.collect())
}

/// What lies around the target's jobs, seen while the target decoded alone.
pub(super) fn around_plain(times: &PlanTimes, answers: &[Answered]) -> AroundJobs {
    let target_hop_ns = gap(answers, ModelRole::Target);
    AroundJobs {
        target_hop_ns,
        draft_hop_ns: target_hop_ns,
        target_ns: excess(times, answers, ModelRole::Target),
        request_ns: request(answers, target_hop_ns),
        ..AroundJobs::default()
    }
}

/// What comes on top where both models take turns on one unit.
pub(super) fn around_turns(
    plain: AroundJobs,
    times: &PlanTimes,
    answers: &[Answered],
) -> AroundJobs {
    AroundJobs {
        draft_hop_ns: gap(answers, ModelRole::Draft),
        target_after_draft_ns: excess(times, answers, ModelRole::Target) - plain.target_ns,
        draft_after_target_ns: excess(times, answers, ModelRole::Draft) - plain.draft_ns,
        ..plain
    }
}

/// Time from the end of a stage to the begin of the next one on another unit.
pub(super) fn between_stages(answers: &[Answered]) -> u64 {
    let gaps = answers.iter().flat_map(|answered| {
        let next = |pair: &&[StageTiming]| pair[0].stage.layer_end == pair[1].stage.layer_first;
        let pairs = answered.jobs.windows(2).filter(next);
        pairs.map(|pair| pair[1].at_ns.start.saturating_sub(pair[0].at_ns.end))
    });
    median(gaps.collect())
}

/// How much longer jobs of target and draft take while the other model is at work elsewhere, in thousandths, seen while
/// both worked at once.
///
/// A job that was beside others for `o` of its time and took `e` longer than alone made `o - e` of progress in that time: it
/// was `o / (o - e)` times slower.
pub(super) fn slowdown(times: &PlanTimes, answers: &[Answered], around: (i64, i64)) -> (u32, u32) {
    let of = |role: ModelRole, own_ns: i64| {
        let (mut beside, mut extra) = (0i64, 0i64);
        for Answered { jobs, .. } in answers {
            let others: Vec<_> = jobs.iter().filter(|job| job.stage.role != role).collect();
            for job in jobs.iter().filter(|job| job.stage.role == role && job.work.rows <= 16) {
                let shared = |other: &&StageTiming| {
                    let end = job.at_ns.end.min(other.at_ns.end);
                    end.saturating_sub(job.at_ns.start.max(other.at_ns.start))
                };
                beside += others.iter().map(shared).sum::<u64>() as i64;
                extra += lasted(job) as i64 - in_a_loop(times, job) as i64 - own_ns;
            }
        }
        let progress = (beside - extra).max(beside / 8).max(1);
        ((beside.max(1) * 1000 / progress).clamp(1000, 8000)) as u32
    };
    (of(ModelRole::Target, around.0), of(ModelRole::Draft, around.1))
}
