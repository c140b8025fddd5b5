//! `outrider bench --check-forecast`: foreseen beside measured speed, on plans and prompts that the model never saw.
//!
//! The plans take turns, each with an engine of its own for the time of its turn, warmed up first: a GPU that idles until its next
//! turn would have lowered its clock. A plan's speed is that of all prompts, each with the median of its times over
//! the runs, so that a stall counts no more than any other time. *Invariant:* nothing that is measured here flows back
//! into the forecasts.

use std::fmt;
use std::time::Duration;

use outrider_plans::search::Composition;
use outrider_plans::{
    AdapterKind, DraftTokens, Forecast, Mode, PartitionPlan, PlanContext, UnitClass, UnitSpec,
};
use serde::Serialize;

use super::report::{Measured, median};
use super::{BenchArguments, prompts};
use crate::calibrate::{Answered, Probe};
use crate::cli::select::named_plan;
use crate::cli::{CliError, calibrate, print_json};
use crate::foresight::Foresight;
use outrider_plans::Objective;

/// Prompts of the kind that calibration reads, none of which it does.
const UNSEEN: &str = include_str!("unseen.tsv");
/// Prompts that warm an engine up before its turn.
const WARM_UP: usize = 4;

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
    /// The same of the speeds over the plain plan on all cores.
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
    median_relative_error: f64,
    largest_relative_error: f64,
    chosen: String,
    /// Measured speed of the plan that the search picks over that of the best measured one.
    chosen_over_best: f64,
}

struct Contest {
    plan: PartitionPlan,
    forecast: Forecast,
    runs: Vec<Measured>,
    /// Time of each prompt in each run.
    laps: Vec<Vec<Duration>>,
}

impl Contest {
    /// Tokens over the sum of each prompt's median time.
    fn speed(&self) -> f64 {
        let prompts = self.laps.first().map_or(0, Vec::len);
        let seconds = |prompt: usize| median(self.laps.iter().map(|run| run[prompt].as_secs_f64()));
        let sum: f64 = (0..prompts).map(seconds).sum();
        self.runs[0].tokens() as f64 / sum.max(1e-9)
    }

    /// Fastest less slowest run, over the speed.
    fn spread(&self) -> f64 {
        let rates = || self.runs.iter().map(Measured::rate);
        (rates().fold(0.0, f64::max) - rates().fold(f64::INFINITY, f64::min)) / self.speed()
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the command's own output")]
pub(super) async fn run(arguments: &BenchArguments) -> Result<(), CliError> {
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
    let mut contests = Vec::new();
    let mut enter = |plan: PartitionPlan| -> Result<usize, CliError> {
        let known =
            contests.iter().position(|c: &Contest| c.plan.fingerprint() == plan.fingerprint());
        if let Some(known) = known {
            return Ok(known);
        }
        let forecast = foresight.forecast(&plan)?;
        contests.push(Contest { plan, forecast, runs: Vec::new(), laps: Vec::new() });
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
    let best = found.ranked.into_iter().next().ok_or("the search found no plan")?;
    let chosen = enter(best.plan)?;
    let prompts = prompts(arguments, UNSEEN)?;
    let trace = calibrate::trace(arguments.trace.as_ref())?;
    for run in 1..=arguments.runs {
        for (index, contest) in contests.iter_mut().enumerate() {
            tracing::info!(run, plan = contest.plan.name, "measuring plan {index}");
            let probe = match Probe::start(&pair, &contest.plan, (limits, &context)).await {
                Ok(probe) => probe,
                Err(error) => {
                    eprintln!("run {run}: {} does not start: {error}", contest.plan.name);
                    continue;
                }
            };
            let answers = turn(arguments, &probe, &prompts).await?;
            probe.stop();
            if let Some(trace) = &trace {
                trace.add(&contest.plan, &answers);
            }
            contest.runs.push(Measured::of(&answers));
            contest.laps.push(answers.iter().map(|answer| answer.lasted).collect());
        }
        if contests[0].runs.is_empty() {
            return Err("the plain plan on all cores does not start".into());
        }
        let so_far = Check::of(&contests, chosen);
        eprintln!(
            "run {run} of {}: median error {:.1} %, largest {:.1} %",
            arguments.runs,
            100.0 * so_far.median_error,
            100.0 * so_far.largest_error
        );
    }
    let check = Check::of(&contests, chosen);
    if arguments.json {
        return print_json(&check);
    }
    print!("{check}");
    Ok(())
}

/// One plan's turn: all prompts, one after the other.
async fn turn(
    arguments: &BenchArguments,
    probe: &Probe,
    prompts: &[String],
) -> Result<Vec<Answered>, CliError> {
    for prompt in prompts.iter().rev().take(WARM_UP) {
        probe.answer(prompt, arguments.max_tokens).await?;
    }
    let mut answers = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        answers.push(probe.answer(prompt, arguments.max_tokens).await?);
    }
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
    for (adapter, found) in context.machine.adapters.iter().enumerate() {
        let gpu = UnitSpec::Gpu { adapter, name: found.name.clone() };
        plans.push(on(&gpu, sequential(3)));
        if found.kind != AdapterKind::Software {
            plans.push(apart(&gpu, &all, overlap(3, 1)));
            plans.push(apart(&all, &gpu, overlap(3, 1)));
        }
    }
    plans
}

impl Check {
    /// Of the plans that could be measured. The plain one on all cores always can, or nothing could be compared.
    fn of(contests: &[Contest], chosen: usize) -> Self {
        let chosen = contests[chosen].plan.name.as_str();
        let contests: Vec<&Contest> = contests.iter().filter(|c| !c.runs.is_empty()).collect();
        let plain = contests[0];
        let foreseen = |contest: &Contest| contest.forecast.microtokens_per_second as f64 / 1e6;
        let row = |contest: &&Contest| {
            let measured = contest.speed();
            let over = measured / plain.speed();
            let foreseen_over = foreseen(contest) / foreseen(plain);
            Row {
                plan: contest.plan.name.clone(),
                id: contest.plan.fingerprint().to_string(),
                foreseen: foreseen(contest),
                measured,
                error: foreseen(contest) / measured - 1.0,
                spread: contest.spread(),
                relative_error: foreseen_over / over - 1.0,
                foreseen_acceptance: f64::from(contest.forecast.acceptance_permille) / 1000.0,
                measured_acceptance: contest.runs[0].acceptance(),
            }
        };
        let rows: Vec<Row> = contests.iter().map(row).collect();
        // The plain plan on all cores is what calibration was taken on.
        let errors = |of: fn(&Row) -> f64| {
            let errors: Vec<f64> = rows.iter().skip(1).map(|row| of(row).abs()).collect();
            let largest = errors.iter().copied().fold(0.0, f64::max);
            (median(errors.into_iter()), largest)
        };
        let (median_error, largest_error) = errors(|row| row.error);
        let (median_relative_error, largest_relative_error) = errors(|row| row.relative_error);
        let best = rows.iter().map(|row| row.measured).fold(0.0, f64::max);
        Self {
            median_error,
            largest_error,
            median_relative_error,
            largest_relative_error,
            chosen: chosen.to_owned(),
            chosen_over_best: rows
                .iter()
                .find(|row| row.plan == chosen)
                .map_or(0.0, |row| row.measured / best),
            rows,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<36} {:>10} {:>10} {:>8} {:>8} {:>9} {:>11} {:>11}",
            "plan",
            "foreseen",
            "measured",
            "spread",
            "error",
            "relative",
            "acceptance",
            "(measured)"
        )?;
        for row in &self.rows {
            let acceptance =
                row.measured_acceptance.map_or_else(|| "-".into(), |a| format!("{a:.3}"));
            writeln!(
                f,
                "{:<36} {:>10.1} {:>10.1} {:>7.1}% {:>7.1}% {:>8.1}% {:>11.3} {:>11}",
                row.plan,
                row.foreseen,
                row.measured,
                100.0 * row.spread,
                100.0 * row.error,
                100.0 * row.relative_error,
                row.foreseen_acceptance,
                acceptance
            )?;
        }
        writeln!(
            f,
            "error of speed over {} plans that were not calibrated on: median {:.1} %, largest {:.1} %",
            self.rows.len() - 1,
            100.0 * self.median_error,
            100.0 * self.largest_error
        )?;
        writeln!(
            f,
            "relative to plain on all cores: median {:.1} %, largest {:.1} %",
            100.0 * self.median_relative_error,
            100.0 * self.largest_relative_error
        )?;
        writeln!(
            f,
            "the search picks {}, {:.1} % of the best measured speed",
            self.chosen,
            100.0 * self.chosen_over_best
        )
    }
}
