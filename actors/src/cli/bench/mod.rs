//! `outrider bench`: plans side by side on the same prompts, interleaved (one client: prompt by prompt; several: pass by
//! pass), in an order that is another each time, medians over the runs.
//!
//! *Invariant:* a speed-up is over the best plain placement measured in the same run with as many clients, and a text is
//! compared with the plain text of the same target placement.

mod check;
mod devices;
mod gpu_kernels;
mod kernels;
mod report;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use outrider_devices::Sampling;
use outrider_observability::Registry;
use outrider_pipeline::scheduler::{GenerationParams, Prefixes, Statistics};
use outrider_pipeline::{Guarding, Message, Speculation};
use outrider_plans::{Mode, ModeKind, PartitionPlan, default_plan_in};

use super::select::{build_info, named_plan};
use super::{CliError, Selection, in_system, print_json};
use crate::calibrate::WARM_UP;
use crate::engine::{Engine, EngineOptions};
use crate::pair::Pair;
use crate::request::{RequestEvent, Timings};
use report::{Answer, Entry, Measured, Report, worst_window};

/// Passes over all prompts where nobody says.
const RUNS: usize = 3;
/// Between answers that are compared one by one: threads that look for more work for a while have stopped by then.
const SETTLE: Duration = Duration::from_millis(4);
/// Prompts of the shipped pair's kind, for a bench without a file.
const PROMPTS: &str = include_str!("prompts.tsv");

/// What to measure.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArguments {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    selection: Selection,
    /// Prompts: one a line, the text before the first tab. Default: a few dozen sentences.
    #[arg(long, value_name = "FILE.tsv")]
    prompts: Option<PathBuf>,
    /// Use the first N prompts only.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Plans to measure: files or names of shipped plans. Default: plain, sequential, overlap and lookup as they would be
    /// chosen for this machine.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    plans: Vec<String>,
    /// Passes over all prompts; figures are medians over them. Default: 3, and 5 where forecasts are checked.
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Clients that ask at the same time, each for the next prompt as soon as it has its answer; several numbers such as
    /// 1,8 are measured side by side.
    #[arg(long, alias = "concurrency", value_name = "N", value_delimiter = ',', default_values_t = [1])]
    concurrent: Vec<usize>,
    /// Let the guard switch drafts off where they lose, also with a fixed depth, as `serve` does. Each engine answers each prompt
    /// twice then, once with drafts forbidden: "worst 500" is over that, and of a plain plan it is the bench's own doubt.
    #[arg(long)]
    guard: bool,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: u32,
    /// 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the noise.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Run plans that the cost model was not fitted on, and print foreseen beside measured speed. Calibrates first if no
    /// calibration holds.
    #[arg(long)]
    check_forecast: bool,
    /// Compare a target on the best GPU with one on the processor instead: every text is the same, or parts at a near tie.
    #[arg(long, conflicts_with_all = ["plans", "check_forecast"])]
    check_devices: bool,
    /// Write every job of that check to this file, one line of JSON an answer.
    #[arg(long, value_name = "FILE.jsonl", requires = "check_forecast")]
    trace: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Time a unit's forwards alone, the processor's or with `--gpu` a GPU's: time beside the least that it could be, and cost
    /// of each further row.
    Kernels(kernels::KernelsArguments),
}

/// A plan under measurement.
struct Contender {
    plan: PartitionPlan,
    /// Index of the contender that runs the same target placement plainly.
    plain: usize,
    /// What each number of clients got.
    crowds: Vec<Crowd>,
    /// The texts of the prompts, as they came first.
    texts: Vec<Vec<u32>>,
    identical: bool,
}

/// An engine that answers.
struct Writer {
    engine: Engine,
}

/// What so many clients got.
#[derive(Default)]
struct Crowd {
    clients: usize,
    runs: Vec<Measured>,
    /// One client's answers in each run, one by one: tokens, and the time that each took.
    answers: Vec<Vec<Answer>>,
    /// Those that the same engine gave with drafts forbidden, if it was asked for them.
    forbidden: Vec<Vec<Answer>>,
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn run(arguments: BenchArguments) -> Result<(), CliError> {
    if let Some(BenchCommand::Kernels(arguments)) = &arguments.command {
        return kernels::run(arguments);
    }
    in_system(async move {
        if arguments.check_forecast {
            return check::run(&arguments).await;
        }
        if arguments.check_devices {
            return devices::run(&arguments).await;
        }
        let report = measure(&arguments).await?;
        if arguments.json {
            return print_json(&report);
        }
        print!("{report}");
        Ok(())
    })
}

impl BenchArguments {
    /// How many passes over all prompts.
    fn runs(&self, default: usize) -> Result<usize, CliError> {
        match self.runs {
            Some(0) => Err("--runs must be at least 1".into()),
            runs => Ok(runs.unwrap_or(default)),
        }
    }
}

async fn measure(arguments: &BenchArguments) -> Result<Report, CliError> {
    let runs = arguments.runs(RUNS)?;
    if arguments.concurrent.contains(&0) {
        return Err("--concurrent must be at least 1".into());
    }
    let prompts = prompts(arguments, PROMPTS)?;
    let pair = arguments.selection.pair()?;
    let mut contenders = Vec::new();
    for (plan, plain) in plans(arguments, &pair)? {
        let crowd = |&clients| Crowd { clients, ..Crowd::default() };
        let crowds = arguments.concurrent.iter().map(crowd).collect();
        contenders.push(Contender { plan, plain, crowds, texts: Vec::new(), identical: true });
    }
    let mut cycle = 0;
    for _ in 0..runs {
        // Anew in every run: an engine is some percent faster or slower than the next one for as long as it lives.
        let mut writers = Vec::with_capacity(contenders.len());
        for contender in &contenders {
            writers.push(Writer::start(arguments, &pair, &contender.plan).await?);
        }
        for writer in &writers {
            writer.warm_up(arguments, &prompts).await?;
        }
        for (crowd, &clients) in arguments.concurrent.iter().enumerate() {
            contenders.iter_mut().for_each(|contender| contender.crowds[crowd].begin_run());
            // One client's prompts go to the plans in turns; several clients would wait for each other at every turn.
            let turn = if clients == 1 { 1 } else { prompts.len() };
            let asked: &[Speculation] = match arguments.guard && clients == 1 {
                true => &[Speculation::Plan, Speculation::Off],
                false => &[Speculation::Plan],
            };
            for (group, prompts) in prompts.chunks(turn).enumerate() {
                for turn_of in order(contenders.len() * asked.len(), cycle) {
                    let (index, how) = (turn_of / asked.len(), asked[turn_of % asked.len()]);
                    if arguments.guard {
                        tokio::time::sleep(SETTLE).await;
                    }
                    let answers = writers[index].answer(arguments, prompts, clients, how).await?;
                    contenders[index].take_note(crowd, group * turn, how, answers);
                }
                cycle += 1;
            }
        }
        writers.iter().for_each(|writer| writer.engine.stop());
    }
    for index in 0..contenders.len() {
        let same = contenders[index].texts == contenders[contenders[index].plain].texts;
        contenders[index].identical &= same;
    }
    let rows = contenders.iter().flat_map(|contender| {
        contender.crowds.iter().enumerate().map(|(crowd, own)| {
            let plain = &contenders[contender.plain].crowds[crowd];
            Entry {
                plan: &contender.plan,
                clients: own.clients,
                runs: &own.runs,
                identical: contender.identical,
                worst_window: match arguments.guard {
                    true => worst_window(&own.answers, &own.forbidden),
                    false => worst_window(&own.answers, &plain.answers),
                },
            }
        })
    });
    Ok(Report::of(rows, prompts.len()))
}

/// Whose turn it is, one after the other: shuffled. What a plan leaves behind, in caches, in which pages of memory are free, or in
/// threads that look for more work for a while, is then met by another one in each cycle.
fn order(plans: usize, cycle: usize) -> Vec<usize> {
    let place = |plan: &usize| {
        let mut hasher = DefaultHasher::new();
        (cycle, plan).hash(&mut hasher);
        hasher.finish()
    };
    let mut order: Vec<usize> = (0..plans).collect();
    order.sort_by_key(place);
    order
}

/// The plans to measure, each with the index of its plain counterpart, which is among them.
fn plans(arguments: &BenchArguments, pair: &Pair) -> Result<Vec<(PartitionPlan, usize)>, CliError> {
    let context = arguments.selection.limits().plan_context(pair);
    let mut asked = vec![default_plan_in(ModeKind::Plain, &context)?];
    if arguments.plans.is_empty() {
        for kind in [ModeKind::Sequential, ModeKind::Overlap, ModeKind::Lookup] {
            if pair.draft.is_some() || !kind.needs_draft() {
                // A machine of one core has no room for overlap.
                match default_plan_in(kind, &context) {
                    Ok(plan) => asked.push(plan),
                    Err(error) => tracing::warn!(%kind, %error, "left out"),
                }
            }
        }
    }
    for name in &arguments.plans {
        asked.push(named_plan(name, &context)?);
    }
    if let Some(depth) = arguments.selection.draft_tokens {
        for plan in asked.iter_mut().filter(|plan| plan.mode != Mode::Plain) {
            *plan = plan.with_mode(plan.mode.with_draft_tokens(depth)?)?;
        }
    }
    let mut plans: Vec<(PartitionPlan, usize)> = Vec::new();
    for plan in asked {
        let plain = plan.with_mode(Mode::Plain)?;
        let find = |plans: &[(PartitionPlan, usize)], wanted: &PartitionPlan| {
            plans.iter().position(|(known, _)| known.fingerprint() == wanted.fingerprint())
        };
        let at = find(&plans, &plain).unwrap_or_else(|| {
            let mut plain = plain;
            if plan.mode != Mode::Plain {
                plain.name = format!("{} (plain)", plan.name);
            }
            plans.push((plain, plans.len()));
            plans.len() - 1
        });
        if find(&plans, &plan).is_none() {
            plans.push((plan, at));
        }
    }
    Ok(plans)
}

/// The prompts that are asked for, else `shipped`.
fn prompts(arguments: &BenchArguments, shipped: &str) -> Result<Vec<String>, CliError> {
    let text = match &arguments.prompts {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read prompts {}: {error}", path.display()))?,
        None => shipped.to_owned(),
    };
    let first = |line: &str| line.split('\t').next().unwrap_or_default().trim().to_owned();
    let prompts: Vec<_> = text
        .lines()
        .map(first)
        .filter(|prompt| !prompt.is_empty())
        .take(arguments.limit.unwrap_or(usize::MAX))
        .collect();
    if prompts.is_empty() {
        Err("there are no prompts to measure with".into())
    } else {
        Ok(prompts)
    }
}

impl Crowd {
    fn begin_run(&mut self) {
        self.runs.push(Measured::default());
        self.answers.push(Vec::new());
        self.forbidden.push(Vec::new());
    }
}

impl Contender {
    /// The answers to the prompts from `first` on have come.
    fn take_note(
        &mut self,
        crowd: usize,
        first: usize,
        speculation: Speculation,
        (texts, measured): (Vec<Vec<u32>>, Measured),
    ) {
        let crowd = &mut self.crowds[crowd];
        let forbidden = speculation == Speculation::Off;
        if crowd.clients == 1 {
            let answers = if forbidden { &mut crowd.forbidden } else { &mut crowd.answers };
            answers.last_mut().expect("a run has begun").push(measured.tokens_and_time());
        }
        if !forbidden {
            *crowd.runs.last_mut().expect("a run has begun") += measured;
        }
        if self.texts.len() == first {
            self.texts.extend(texts);
        } else {
            self.identical &= self.texts[first..][..texts.len()] == texts;
        }
    }
}

impl Writer {
    async fn start(
        arguments: &BenchArguments,
        pair: &Pair,
        plan: &PartitionPlan,
    ) -> Result<Self, CliError> {
        let registry = Arc::new(Registry::new(build_info()));
        let mut limits = arguments.selection.limits();
        if arguments.guard {
            // Who is asked twice must not find the prompt read.
            limits.prefixes = Prefixes::Forget;
        }
        let options = EngineOptions::new(pair.clone(), plan.clone(), limits, registry);
        // A fixed depth is measured as it is, also where it loses, unless the guard is asked for.
        let guarding = if arguments.guard { Guarding::On } else { Guarding::Off };
        let engine = Engine::start(EngineOptions { guarding, ..options }).await?;
        Ok(Self { engine })
    }

    /// The first answers of an engine are slower than later ones.
    async fn warm_up(
        &self,
        arguments: &BenchArguments,
        prompts: &[String],
    ) -> Result<(), CliError> {
        let started = Instant::now();
        for prompt in prompts {
            self.generate(arguments, prompt, Speculation::Plan).await?;
            if started.elapsed() >= WARM_UP {
                break;
            }
        }
        Ok(())
    }

    /// Has `clients` clients ask for the answers to these prompts.
    async fn answer(
        &self,
        arguments: &BenchArguments,
        prompts: &[String],
        clients: usize,
        speculation: Speculation,
    ) -> Result<(Vec<Vec<u32>>, Measured), CliError> {
        let started = Instant::now();
        let ask = async |at: usize| {
            Ok::<_, CliError>((at, self.generate(arguments, &prompts[at], speculation).await?))
        };
        let asked = stream::iter(0..prompts.len()).map(ask).buffer_unordered(clients);
        let mut answers: Vec<_> = asked.try_collect().await?;
        answers.sort_by_key(|(at, _)| *at);
        let mut measured = Measured::over(started.elapsed());
        let mut texts = Vec::with_capacity(answers.len());
        for (_, (tokens, statistics, timings)) in answers {
            measured.add(&statistics, &timings);
            texts.push(tokens);
        }
        Ok((texts, measured))
    }

    async fn generate(
        &self,
        arguments: &BenchArguments,
        prompt: &str,
        speculation: Speculation,
    ) -> Result<(Vec<u32>, Statistics, Timings), CliError> {
        let message = Message { role: "user".into(), content: prompt.to_owned() };
        let prompt = self.engine.chat_prompt(&[message])?;
        let sampling = Sampling {
            temperature: arguments.temperature,
            seed: arguments.seed,
            ..Sampling::default()
        };
        let max_tokens = Some(arguments.max_tokens);
        let params =
            GenerationParams { sampling, max_tokens, speculation, ..GenerationParams::default() };
        let (_, mut events) = self.engine.generate(prompt, params).await?;
        let mut tokens = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                RequestEvent::Text { tokens: more, .. } => {
                    tokens.extend(more.iter().map(|token| token.pick.token));
                }
                RequestEvent::Finished { statistics, timings, .. } => {
                    return Ok((tokens, statistics, timings));
                }
            }
        }
        Err("the engine ended before the answer was complete".into())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeSet;

    use super::order;

    #[test]
    fn every_plan_has_one_turn_a_cycle_and_none_always_the_same_before_it() {
        for cycle in 0..6 {
            let mut plans = order(9, cycle);
            plans.sort_unstable();
            assert!(plans.into_iter().eq(0..9));
        }
        for plan in 0..9 {
            let before = |cycle: usize| {
                let order = order(9, cycle);
                let at = order.iter().position(|one| *one == plan).unwrap();
                at.checked_sub(1).map(|before| order[before])
            };
            let distinct: BTreeSet<_> = (0..9).map(before).collect();
            assert!(distinct.len() > 3, "{plan} comes after {distinct:?}");
        }
        assert_eq!((order(1, 0), order(0, 0)), (vec![0], vec![]));
    }
}
