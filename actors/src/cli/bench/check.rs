//! `outrider bench --check-forecast`: foreseen beside measured speed, on plans and prompts that the model never saw.
//!
//! The plans take turns, each with an engine of its own for the time of its turn, warmed up first: a GPU that idles until its next
//! turn would have lowered its clock. A turn is a part of the prompts, and a run is as many turns of each plan as there are
//! parts. A plan's speed is that of all prompts, each with the median of its times over the runs, so that a stall counts no
//! more than any other time.
//!
//! An error has three parts: the machine is not as fast as while it was calibrated, these texts are easier or harder to draft
//! than those, and the model is wrong. So the machine is calibrated once more in turns with the plans, a visit to a unit after
//! each plan, and the forecasts from that miss the first part; the draft's reading of the finished texts tells the second.
//! *Invariant:* the raw error is of forecasts that were made before anything was measured, and no time of a plan that is
//! checked flows into any forecast.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use outrider_pipeline::Speculation;
use outrider_plans::search::Composition;
use outrider_plans::{
    DraftTokens, Forecast, Mode, Objective, PartitionPlan, PlanContext, UnitClass, UnitSpec,
    Workload,
};
use serde::Serialize;

use super::report::{Measured, median};
use super::{BenchArguments, order, prompts};
use crate::calibrate::{Answered, Options, Probe, Session, Step, guessed};
use crate::cli::select::named_plan;
use crate::cli::{CliError, calibrate, print_json};
use crate::engine::EngineLimits;
use crate::foresight::Foresight;
use crate::pair::Pair;

/// Prompts of the kind that calibration reads, none of which it does.
const UNSEEN: &str = include_str!("unseen.tsv");
/// Parts of the prompts: many, since a machine is up to a tenth quicker in one second than in the next, and a plan that had a turn in few
/// of them would be as lucky as these were.
const PARTS: usize = 8;
/// A plan that is foreseen to take longer for all prompts is given every second one, every third, and so on.
const LONG: Duration = Duration::from_secs(6);
/// Passes over all prompts where nobody says.
const RUNS: usize = 5;
/// Visits of the calibration in turns to each thing, for each run of the plans and spread over its turns.
const VISITS_A_RUN: usize = 4;
/// The best plans of the search that are measured: the first is what it picks, and the others may be by the calibration in turns.
const PICKS: usize = 3;

/// One plan's figures.
#[derive(Clone, Debug, Serialize)]
struct Row {
    plan: String,
    id: String,
    foreseen: f64,
    measured: f64,
    /// Fastest less slowest run, over the measured speed: errors below it may be the machine's.
    spread: f64,
    /// Foreseen over measured, less 1.
    error: f64,
    /// The same of what is foreseen from the calibration that was taken in turns with the plans.
    in_turns_error: f64,
    /// The same for these very texts: what the model itself is wrong by.
    model_error: f64,
    /// The same of the speeds over the plain plan on all cores, by the calibration in turns.
    relative_error: f64,
    foreseen_acceptance: f64,
    measured_acceptance: Option<f64>,
}

/// The whole check.
#[derive(Clone, Debug, Serialize)]
struct Check {
    rows: Vec<Row>,
    median_error: f64,
    largest_error: f64,
    median_in_turns_error: f64,
    largest_in_turns_error: f64,
    median_model_error: f64,
    largest_model_error: f64,
    median_relative_error: f64,
    largest_relative_error: f64,
    /// By the calibration before.
    chosen: Pick,
    /// By the calibration in turns, among the plans that were measured.
    chosen_in_turns: Pick,
}

/// What a search picks.
#[derive(Clone, Debug, Serialize)]
struct Pick {
    plan: String,
    /// Its measured speed over that of the best measured plan.
    over_best: f64,
}

struct Contest {
    plan: PartitionPlan,
    forecast: Forecast,
    /// One prompt in so many is given to it.
    every: usize,
    /// Whether a turn of it failed, after which it has none.
    failed: bool,
    /// The answers of each run, in the order of their prompts.
    runs: Vec<Vec<Answered>>,
}

/// Later forecasts of one plan, in tokens per second: by the calibration in turns, and of these very texts besides.
struct Foreseen {
    in_turns: f64,
    on_these_texts: f64,
}

impl Contest {
    /// Whether it was measured.
    fn is_measured(&self) -> bool {
        !self.failed && self.runs.first().is_some_and(|run| !run.is_empty())
    }

    /// Tokens over the sum of each prompt's median time.
    fn speed(&self) -> f64 {
        let first = Measured::of(&self.runs[0]);
        let seconds =
            |prompt: usize| median(self.runs.iter().map(|run| run[prompt].lasted.as_secs_f64()));
        let sum: f64 = (0..self.runs[0].len()).map(seconds).sum();
        first.tokens() as f64 / sum.max(1e-9)
    }

    /// Fastest less slowest run, over the speed.
    fn spread(&self) -> f64 {
        let rates = || self.runs.iter().map(|run| Measured::of(run).rate());
        (rates().fold(0.0, f64::max) - rates().fold(f64::INFINITY, f64::min)) / self.speed()
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the command's own output")]
pub(super) async fn run(arguments: &BenchArguments) -> Result<(), CliError> {
    let runs = arguments.runs(RUNS)?;
    let pair = arguments.selection.pair()?;
    let limits = arguments.selection.limits();
    let context = limits.plan_context(&pair);
    let calibration = match arguments.selection.place.load(&pair, &context) {
        Ok(fresh) => fresh.calibration,
        Err(error) => {
            tracing::warn!(%error, "calibrating for this check");
            let asked = (calibrate::prompts(None)?, Duration::from_secs(calibrate::SECONDS));
            calibrate::take(&pair, limits, asked, None).await?
        }
    };
    let foresight = Foresight::in_context(&pair, limits, (&calibration, context.clone()), 1);
    let prompts = prompts(arguments, UNSEEN)?;
    let texts = &foresight.workload.texts;
    let tokens: usize = texts.iter().map(|text| text.output.len()).sum();
    let tokens_a_text = tokens as f64 / texts.len().max(1) as f64;
    let mut contests = Vec::new();
    let mut enter = |plan: PartitionPlan| -> Result<usize, CliError> {
        let known =
            contests.iter().position(|c: &Contest| c.plan.fingerprint() == plan.fingerprint());
        if let Some(known) = known {
            return Ok(known);
        }
        let forecast = foresight.forecast(&plan)?;
        let whole = prompts.len() as f64 * tokens_a_text / rate(&forecast).max(1e-3);
        let every = ((whole / LONG.as_secs_f64()) as usize + 1).min(prompts.len());
        contests.push(Contest { plan, forecast, every, failed: false, runs: Vec::new() });
        Ok(contests.len() - 1)
    };
    for composition in plans(&context) {
        let measurable = composition
            .units
            .iter()
            .all(|spec| foresight.model.profile(&UnitClass::of(spec, &context.machine)).is_some());
        if measurable {
            enter(composition.plan(&composition.name(), &context)?)?;
        }
    }
    for name in &arguments.plans {
        enter(named_plan(name, &context)?)?;
    }
    let found = foresight.search(Objective::Throughput, None);
    let mut picks = Vec::with_capacity(PICKS);
    for best in found.ranked.into_iter().take(PICKS) {
        picks.push(enter(best.plan)?);
    }
    let chosen = *picks.first().ok_or("the search found no plan")?;
    let trace = calibrate::trace(arguments.trace.as_ref())?;
    let asked = Options {
        prompts: calibrate::prompts(None)?,
        budget: Duration::from_secs(calibrate::SECONDS),
        progress: &|_: Step<'_>| {},
        trace: trace.as_ref(),
    };
    let mut session = Session::new((&pair, limits), &context, asked);
    for run in 1..=runs {
        let visits = VISITS_A_RUN * session.things();
        let mut visited = 0;
        contests.iter_mut().for_each(|contest| contest.runs.push(Vec::new()));
        let turns = PARTS * contests.len();
        let cycle = |part| order(contests.len(), (run - 1) * PARTS + part).into_iter();
        let whose: Vec<(usize, usize)> =
            (0..PARTS).flat_map(|part| cycle(part).map(move |index| (part, index))).collect();
        for (turn, (part, index)) in whose.into_iter().enumerate() {
            let contest = &mut contests[index];
            if !contest.failed {
                tracing::info!(run, plan = contest.plan.name, "measuring");
                let prompts = part_of(&prompts, contest.every, part);
                match turn_of(arguments, (&pair, limits, &context), &contest.plan, &prompts).await {
                    Ok(answers) => {
                        if let Some(trace) = &trace {
                            trace.add(&contest.plan, &answers);
                        }
                        contest.runs[run - 1].extend(answers);
                    }
                    Err(error) => {
                        eprintln!("run {run}: {} is not measured: {error}", contest.plan.name);
                        contest.failed = true;
                    }
                }
            }
            while visited < visits * (turn + 1) / turns {
                session.visit_next().await?;
                visited += 1;
            }
        }
        if !contests[0].is_measured() {
            return Err("the plain plan on all cores does not start".into());
        }
        eprintln!("run {run} of {runs}: {}", Check::in_short(&contests));
    }
    let (model, calibrated, _) = session.result()?;
    let all = UnitSpec::Cpu { cores: context.machine.big_cores() };
    let plain = contests[0].runs[0].clone();
    let texts = guessed(&pair, &all, limits.slots(&pair), plain)?;
    let with = |texts| {
        let known = (model.clone(), context.clone());
        Foresight::of_pair(&pair, limits, known, Workload::single(texts))
    };
    let in_turns = with(calibrated);
    // By how few of the prompts a plan was given: of the plain one's texts those that it wrote too.
    let mut on_these: BTreeMap<usize, Foresight> = BTreeMap::new();
    let known_every = contests[0].every;
    let mut foreseen = Vec::with_capacity(contests.len());
    for Contest { plan, every, .. } in &contests {
        let some = || {
            let prompts = (0..).step_by(known_every);
            let own = prompts.zip(&texts).filter(|(prompt, _)| prompt % every == 0);
            with(own.map(|(_, text)| text.clone()).collect())
        };
        let on_these = on_these.entry(*every).or_insert_with(some);
        foreseen.push(Foreseen {
            in_turns: rate(&in_turns.forecast(plan)?),
            on_these_texts: rate(&on_these.forecast(plan)?),
        });
    }
    let check = Check::of(&contests, &foreseen, chosen);
    if arguments.json {
        return print_json(&check);
    }
    print!("{check}");
    Ok(())
}

/// One prompt in so many, of those the ones of one part.
fn part_of(prompts: &[String], every: usize, part: usize) -> Vec<&str> {
    let some: Vec<&str> = prompts.iter().step_by(every).map(String::as_str).collect();
    let len = some.len();
    some[len * part / PARTS..len * (part + 1) / PARTS].to_vec()
}

fn rate(forecast: &Forecast) -> f64 {
    forecast.microtokens_per_second as f64 / 1e6
}

/// One plan's turn: these prompts, one after the other, in an engine of its own.
async fn turn_of(
    arguments: &BenchArguments,
    (pair, limits, context): (&Pair, EngineLimits, &PlanContext),
    plan: &PartitionPlan,
    prompts: &[&str],
) -> Result<Vec<Answered>, CliError> {
    let probe = Probe::start(pair, plan, (limits, context)).await?;
    let last = prompts.iter().rev().copied();
    probe.warm_up(last, (arguments.max_tokens, Speculation::Plan)).await?;
    let mut answers = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        answers.push(probe.answer(prompt, arguments.max_tokens, Speculation::Plan).await?);
    }
    probe.stop();
    Ok(answers)
}

/// Plans that calibration does not run: other modes, depths, core counts and cuts. The first is the plain one on all cores,
/// over which speeds are compared, and the only one that calibration runs too.
fn plans(context: &PlanContext) -> Vec<Composition> {
    let cores = context.machine.big_cores();
    let layers = context.target.layers();
    let cpu = |cores: &[usize]| UnitSpec::Cpu { cores: cores.to_vec() };
    let all = cpu(&cores);
    let one = cpu(&cores[..1]);
    let half = cores.len().div_ceil(2);
    let fixed = DraftTokens::Fixed;
    let sequential = |depth| Mode::Sequential { draft_tokens: fixed(depth) };
    let overlap = |depth, wait| Mode::Overlap { draft_tokens: fixed(depth), wait };
    let lookup = |draft_tokens, ngram| Mode::Lookup { draft_tokens, ngram };
    let on = |unit: &UnitSpec, mode| Composition {
        mode,
        draft: Some(0),
        ..Composition::plain(unit.clone(), layers)
    };
    let apart = |target: &UnitSpec, draft: &UnitSpec, mode| Composition {
        mode,
        units: vec![target.clone(), draft.clone()],
        target: vec![(0, layers)],
        draft: Some(1),
    };
    let mut plans = vec![Composition::plain(all.clone(), layers)];
    if context.draft.is_none() {
        plans.extend([1, 2, 4, 8].map(|depth| Composition {
            mode: lookup(depth, 3),
            ..Composition::plain(all.clone(), layers)
        }));
        return plans;
    }
    plans.extend([1, 2, 3, 5, 6, 8].map(|depth| on(&all, sequential(depth))));
    plans.extend([2, 7].map(|depth| on(&one, sequential(depth))));
    if cores.len() > 2 {
        plans.extend([1, 5].map(|depth| on(&cpu(&cores[..2]), sequential(depth))));
    }
    plans.push(on(&all, lookup(3, 2)));
    if cores.len() > 1 {
        let (last, rest) = cores.split_last().expect("there are several");
        let (most, last) = (cpu(rest), cpu(&[*last]));
        plans.push(apart(&most, &last, sequential(3)));
        plans.extend([(2, 0), (3, 1), (8, 2)].map(|(g, w)| apart(&most, &last, overlap(g, w))));
        let (front, back) = (cpu(&cores[..half]), cpu(&cores[half..]));
        let split = |mode, draft| Composition {
            mode,
            units: vec![front.clone(), back.clone()],
            target: vec![(0, layers / 2), (1, layers - layers / 2)],
            draft,
        };
        if layers > 1 {
            plans.push(split(sequential(4), Some(1)));
        }
    }
    if cores.len() > 3 {
        plans.push(on(&cpu(&cores[..half]), sequential(3)));
    }
    for gpu in context.machine.adapter_units() {
        plans.push(on(&gpu, sequential(3)));
        if !context.machine.is_software(&gpu) {
            plans.push(apart(&gpu, &all, overlap(3, 1)));
            plans.push(apart(&all, &gpu, overlap(3, 1)));
        }
    }
    plans
}

/// The middle and the largest of some errors.
fn middle_and_largest(errors: impl Iterator<Item = f64>) -> (f64, f64) {
    let errors: Vec<f64> = errors.map(f64::abs).collect();
    let largest = errors.iter().copied().fold(0.0, f64::max);
    (median(errors.into_iter()), largest)
}

impl Check {
    /// How far the forecasts were off until now.
    fn in_short(contests: &[Contest]) -> String {
        let measured = contests.iter().skip(1).filter(|contest| contest.is_measured());
        let (median, largest) = middle_and_largest(
            measured.map(|contest| rate(&contest.forecast) / contest.speed() - 1.0),
        );
        format!("median error {:.1} %, largest {:.1} %", 100.0 * median, 100.0 * largest)
    }

    /// Of the plans that could be measured. The plain one on all cores always can, or nothing could be compared.
    fn of(contests: &[Contest], foreseen: &[Foreseen], chosen: usize) -> Self {
        let measured = contests.iter().zip(foreseen).filter(|(c, _)| c.is_measured());
        let measured: Vec<(&Contest, &Foreseen)> = measured.collect();
        let (plain, plain_foreseen) = measured[0];
        let best = measured.iter().map(|(contest, _)| contest.speed()).fold(0.0, f64::max);
        let pick = |contest: &Contest| {
            let speed = if contest.is_measured() { contest.speed() } else { 0.0 };
            Pick { plan: contest.plan.name.clone(), over_best: speed / best }
        };
        let ahead = |a: &&(&Contest, &Foreseen), b: &&(&Contest, &Foreseen)| {
            a.1.in_turns.total_cmp(&b.1.in_turns)
        };
        let chosen_in_turns = measured.iter().max_by(ahead).map_or(plain, |(contest, _)| contest);
        let (chosen, chosen_in_turns) = (pick(&contests[chosen]), pick(chosen_in_turns));
        let row = |(contest, foreseen): &(&Contest, &Foreseen)| {
            let measured = contest.speed();
            let over = measured / plain.speed();
            let raw = rate(&contest.forecast);
            let foreseen_over = foreseen.in_turns / plain_foreseen.in_turns;
            Row {
                plan: contest.plan.name.clone(),
                id: contest.plan.fingerprint().to_string(),
                foreseen: raw,
                measured,
                error: raw / measured - 1.0,
                in_turns_error: foreseen.in_turns / measured - 1.0,
                model_error: foreseen.on_these_texts / measured - 1.0,
                spread: contest.spread(),
                relative_error: foreseen_over / over - 1.0,
                foreseen_acceptance: f64::from(contest.forecast.acceptance_permille) / 1000.0,
                measured_acceptance: Measured::of(&contest.runs[0]).acceptance(),
            }
        };
        let rows: Vec<Row> = measured.iter().map(row).collect();
        // The plain plan on all cores is what calibration was taken on.
        let errors = |of: fn(&Row) -> f64| middle_and_largest(rows.iter().skip(1).map(of));
        let (median_error, largest_error) = errors(|row| row.error);
        let (median_in_turns_error, largest_in_turns_error) = errors(|row| row.in_turns_error);
        let (median_model_error, largest_model_error) = errors(|row| row.model_error);
        let (median_relative_error, largest_relative_error) = errors(|row| row.relative_error);
        Self {
            median_error,
            largest_error,
            median_in_turns_error,
            largest_in_turns_error,
            median_model_error,
            largest_model_error,
            median_relative_error,
            largest_relative_error,
            chosen,
            chosen_in_turns,
            rows,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<32} {:>9} {:>9} {:>7} {:>8} {:>9} {:>8} {:>9} {:>10} {:>10}",
            "plan",
            "foreseen",
            "measured",
            "spread",
            "error",
            "in turns",
            "model",
            "relative",
            "acceptance",
            "(measured)"
        )?;
        for row in &self.rows {
            let acceptance =
                row.measured_acceptance.map_or_else(|| "-".into(), |a| format!("{a:.3}"));
            writeln!(
                f,
                "{:<32} {:>9.1} {:>9.1} {:>6.1}% {:>7.1}% {:>8.1}% {:>7.1}% {:>8.1}% {:>10.3} {:>10}",
                row.plan,
                row.foreseen,
                row.measured,
                100.0 * row.spread,
                100.0 * row.error,
                100.0 * row.in_turns_error,
                100.0 * row.model_error,
                100.0 * row.relative_error,
                row.foreseen_acceptance,
                acceptance
            )?;
        }
        let plans = self.rows.len() - 1;
        let mut line = |what: &str, median: f64, largest: f64| {
            writeln!(f, "{what}: median {:.1} %, largest {:.1} %", 100.0 * median, 100.0 * largest)
        };
        line(
            &format!("error of speed over {plans} plans that were not calibrated on"),
            self.median_error,
            self.largest_error,
        )?;
        line(
            "by a calibration that was taken in turns with them",
            self.median_in_turns_error,
            self.largest_in_turns_error,
        )?;
        line(
            "and knowing how often the draft is right on these texts: the model",
            self.median_model_error,
            self.largest_model_error,
        )?;
        line(
            "relative to plain on all cores",
            self.median_relative_error,
            self.largest_relative_error,
        )?;
        let Self { chosen, chosen_in_turns, .. } = self;
        writeln!(
            f,
            "the search picks {}, {:.1} % of the best measured speed; of these plans the calibration in turns picks {}, {:.1} %",
            chosen.plan,
            100.0 * chosen.over_best,
            chosen_in_turns.plan,
            100.0 * chosen_in_turns.over_best
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{PARTS, part_of};

    #[test]
    fn the_parts_together_are_all_prompts() {
        let prompts: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        for (every, len) in [(1, 20), (3, 7), (20, 1)] {
            let all: Vec<&str> =
                (0..PARTS).flat_map(|part| part_of(&prompts, every, part)).collect();
            assert_eq!(all.len(), len);
            assert!(all.iter().zip(prompts.iter().step_by(every)).all(|(a, b)| a == b));
        }
    }
}
