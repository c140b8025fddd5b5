//! `outrider plan search`, and what a calibration adds to `outrider plan explain`.

use std::path::PathBuf;

use clap::Args;
use outrider_plans::search::{Candidate, Found};
use outrider_plans::{Board, Mode, Objective, PartitionPlan, shipped_boards};
use serde::Serialize;

use super::{CliError, Selection, print_json};
use crate::engine::EngineLimits;
use crate::foresight::{Foresight, WhatIf};

/// What to search for.
#[derive(Args, Debug)]
pub(super) struct SearchArguments {
    #[command(flatten)]
    selection: Selection,
    /// What the plan is to be best at: throughput, latency or energy-proxy.
    #[arg(long, value_name = "WHAT", default_value_t)]
    objective: Objective,
    /// Most memory of all units together, MiB.
    #[arg(long, value_name = "MIB")]
    limit_memory: Option<u64>,
    /// Requests at one time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    concurrency: usize,
    /// Search for a board that is not here: a board file, or the name of a shipped one.
    #[arg(long, value_name = "FILE.toml")]
    board: Option<String>,
    /// Write the best plan to this file.
    #[arg(long, value_name = "FILE.toml")]
    output: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    objective: String,
    ranked: &'a [Candidate],
    speculate: bool,
    tried: usize,
    why: String,
}

#[expect(clippy::print_stdout, reason = "the command's own output")]
pub(super) fn run(arguments: &SearchArguments) -> Result<(), CliError> {
    let foresight = arguments.foresight()?;
    let memory_bytes_max = arguments.limit_memory.map(|mib| mib << 20);
    let found = foresight.search(arguments.objective, memory_bytes_max);
    let Some(best) = found.ranked.first() else {
        return Err(match &found.unmeasured {
            Some(error) => error.to_string().into(),
            None => format!("none of {} plans fits the memory", found.too_large).into(),
        });
    };
    if let Some(path) = &arguments.output {
        std::fs::write(path, best.plan.to_toml())
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    let why = why(&found);
    if arguments.json {
        return print_json(&Report {
            objective: arguments.objective.to_string(),
            ranked: &found.ranked,
            speculate: best.plan.mode != Mode::Plain,
            tried: found.tried,
            why,
        });
    }
    println!(
        "{:<36} {:>10} {:>9} {:>10} {:>9} {:>10}",
        "plan", "tokens/s", "speed-up", "first, ms", "MiB", "mJ/token"
    );
    for Candidate { plan, forecast } in &found.ranked {
        let bytes: u64 = forecast.memory_bytes.values().sum();
        println!(
            "{:<36} {:>10.1} {:>8.2}x {:>10.1} {:>9} {:>10.2}",
            plan.name,
            forecast.microtokens_per_second as f64 / 1e6,
            over(forecast.microtokens_per_second, &found),
            forecast.first_token_ns as f64 / 1e6,
            bytes >> 20,
            forecast.energy_nj_per_token as f64 / 1e6,
        );
    }
    println!("{} plans tried; speed-up over the best plain placement. {why}", found.tried);
    Ok(())
}

/// Speed over that of the best plain plan.
fn over(rate: u64, found: &Found) -> f64 {
    let plain = found.plain.as_ref().map_or(rate, |c| c.forecast.microtokens_per_second);
    rate as f64 / plain.max(1) as f64
}

/// Why the best plan is the best.
fn why(found: &Found) -> String {
    let Some(best) = found.ranked.first() else { return String::new() };
    if best.plan.mode == Mode::Plain {
        return format!(
            "Do not speculate: {} alone is the fastest, since drafts cost more than they bring here.",
            best.plan.name
        );
    }
    let mut words = String::new();
    let runner = found.ranked.get(1);
    if let Some(runner) = runner {
        let (one, two) =
            (best.forecast.microtokens_per_second, runner.forecast.microtokens_per_second);
        words = format!(
            "{} comes second with {:.1} % less: ",
            runner.plan.name,
            100.0 * (1.0 - two as f64 / one.max(1) as f64)
        );
        words += &differs(best, runner);
    }
    words
}

/// Where the second plan loses most against the first.
fn differs(best: &Candidate, runner: &Candidate) -> String {
    let per_token = |c: &Candidate, purpose| {
        let shares = c.forecast.shares.iter().filter(|share| share.purpose == purpose);
        let ns: u64 = shares.map(|share| share.ns).sum();
        ns as f64 * 1e6 / c.forecast.microtokens_per_round.max(1) as f64
    };
    let purposes = runner.forecast.shares.iter().map(|share| share.purpose);
    let losses =
        purposes.map(|purpose| (per_token(runner, purpose) - per_token(best, purpose), purpose));
    match losses.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((ns, purpose)) if ns > 0.0 => {
            format!("it spends {:.1} us a token more on \"{purpose}\".", ns / 1e3)
        }
        _ => "its units wait more for each other.".to_owned(),
    }
}

impl SearchArguments {
    fn foresight(&self) -> Result<Foresight, CliError> {
        if let Some(name) = &self.board {
            return self.of_board(name);
        }
        let pair = self.selection.pair()?;
        let limits = self.selection.limits();
        let fresh = self.selection.place.load(&pair, &limits.plan_context(&pair))?;
        tracing::info!(path = %fresh.path.display(), "calibration in use");
        Ok(Foresight::here(&pair, limits, &fresh.calibration, self.concurrency))
    }
}

impl SearchArguments {
    /// Forecasts for a board that is not here, with the models and texts that its file describes.
    fn of_board(&self, name: &str) -> Result<Foresight, CliError> {
        let text = match std::fs::read_to_string(name) {
            Ok(text) => text,
            Err(error) => {
                let boards = shipped_boards();
                let shipped = boards.iter().find(|board| board.name == name).ok_or_else(|| {
                    let names: Vec<_> = boards.iter().map(|board| board.name).collect();
                    let names = names.join(", ");
                    format!("cannot read board {name}: {error}; nor is it a shipped one ({names})")
                })?;
                shipped.text.to_owned()
            }
        };
        let board = Board::parse(&text).map_err(|error| format!("board {name}: {error}"))?;
        let context = board.context();
        let limits = EngineLimits {
            parallel: context.caches.sequences_max,
            queue: self.selection.queue,
            context: Some(context.caches.positions_max),
            ..EngineLimits::default()
        };
        let workload = board.workload().with_concurrency(self.concurrency);
        // The texts of boards are made up: no token of theirs ends one.
        let tokens = (board.vocabulary(), [board.vocabulary() - 1].into());
        Ok(Foresight::new(board.model(), context, workload, tokens, limits))
    }
}

/// What `plan explain` adds where a calibration holds.
#[derive(Serialize)]
pub(super) struct Explained {
    forecast: outrider_plans::Forecast,
    what_if: Vec<WhatIf>,
    /// Share of right drafts, in thousandths, below which the target alone would be as fast.
    break_even_permille: Option<u32>,
    best: Option<Candidate>,
}

/// Explains a plan by its forecast.
pub(super) fn explain(
    plan: &PartitionPlan,
    selection: &Selection,
    concurrent: usize,
) -> Result<Explained, CliError> {
    let pair = selection.pair()?;
    let limits = selection.limits();
    let fresh = selection.place.load(&pair, &limits.plan_context(&pair))?;
    let foresight = Foresight::here(&pair, limits, &fresh.calibration, concurrent);
    Ok(Explained {
        forecast: foresight.forecast(plan)?,
        what_if: foresight.what_if(plan)?,
        break_even_permille: foresight.break_even(plan)?,
        best: foresight.search(Objective::Throughput, None).ranked.into_iter().next(),
    })
}

impl Explained {
    #[expect(clippy::print_stdout, reason = "the command's own output")]
    pub(super) fn print(&self, plan: &PartitionPlan) {
        print!("{}", self.forecast);
        let rate = self.forecast.microtokens_per_second.max(1) as f64;
        for WhatIf { change, microtokens_per_second } in &self.what_if {
            let more = 100.0 * (*microtokens_per_second as f64 / rate - 1.0);
            println!("  if {change}: {more:+.1} %");
        }
        if let Some(permille) = self.break_even_permille {
            println!(
                "  the target alone would be as fast if {:.1} % of the drafted tokens were right instead of {:.1} %",
                f64::from(permille) / 10.0,
                f64::from(self.forecast.acceptance_permille) / 10.0
            );
        }
        match &self.best {
            Some(best) if best.plan.fingerprint() == plan.fingerprint() => {
                println!("  no plan was found that is faster");
            }
            Some(best) => {
                let more = 100.0 * (best.forecast.microtokens_per_second as f64 / rate - 1.0);
                println!("  the fastest plan found is {} ({more:+.1} %)", best.plan.name);
            }
            None => {}
        }
    }
}
