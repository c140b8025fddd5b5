//! `outrider calibrate`: measures this machine with these models, and keeps what it found.

use std::cell::Cell;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use outrider_plans::{ModelRole, PlanContext};
use serde::Serialize;

use super::{CliError, Selection, in_system, print_json};
use crate::calibrate::{
    self, Calibration, Fingerprint, FreshCalibration, Options, PROMPTS, Step, StoreError, Trace,
};
use crate::engine::EngineLimits;
use crate::pair::Pair;

/// Time for all of a calibration, where nobody says.
pub(super) const SECONDS: u64 = 27;

/// Where the calibration is.
#[derive(Args, Clone, Debug, Default)]
pub struct CalibrationPlace {
    /// File of the calibration. Default: one for this pair in the user's cache folder.
    #[arg(long, value_name = "FILE.json", env = "OUTRIDER_CALIBRATION")]
    calibration: Option<PathBuf>,
}

impl CalibrationPlace {
    fn path(&self, fingerprint: &Fingerprint) -> Result<PathBuf, StoreError> {
        match &self.calibration {
            Some(path) => Ok(path.clone()),
            None => calibrate::default_path(fingerprint),
        }
    }

    /// The calibration for these models on this machine, if it is there and still holds.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(super) fn load(
        &self,
        pair: &Pair,
        context: &PlanContext,
    ) -> Result<FreshCalibration, StoreError> {
        let fingerprint = Fingerprint::here(pair, context);
        calibrate::load(&self.path(&fingerprint)?, &fingerprint)
    }
}

/// How to calibrate.
#[derive(Args, Debug)]
pub(super) struct CalibrateArguments {
    #[command(flatten)]
    selection: Selection,
    /// Prompts whose answers show how often the draft is right: one a line, the text before the first tab. Default: some
    /// sentences of the shipped pair's kind.
    #[arg(long, value_name = "FILE.tsv")]
    prompts: Option<PathBuf>,
    /// Time for all of it, seconds: everything is visited again and again for as long. Large models, or many units, may take
    /// longer.
    #[arg(long, value_name = "S", default_value_t = SECONDS)]
    seconds: u64,
    /// Write every job that is clocked to this file, one line of JSON an answer.
    #[arg(long, value_name = "FILE.jsonl")]
    trace: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is printed about a calibration.
#[derive(Serialize)]
struct Summary {
    path: PathBuf,
    took_ms: u64,
    units: Vec<UnitLine>,
    left_out: Vec<String>,
    texts: usize,
    acceptance_permille: u32,
}

#[derive(Serialize)]
struct UnitLine {
    class: String,
    target_pass_ns: u64,
    five_rows_permille: u64,
    draft_step_ns: Option<u64>,
    hop_ns: u64,
}

pub(super) fn run(arguments: CalibrateArguments) -> Result<(), CliError> {
    in_system(async move {
        let pair = arguments.selection.pair()?;
        let limits = arguments.selection.limits();
        let prompts = prompts(arguments.prompts.as_ref())?;
        let budget = Duration::from_secs(arguments.seconds);
        let trace = trace(arguments.trace.as_ref())?;
        let taken = take(&pair, limits, (prompts, budget), trace.as_ref()).await?;
        let path = arguments.selection.place.path(&taken.fingerprint)?;
        calibrate::save(&path, &taken)?;
        let summary = Summary::of(&taken, path);
        if arguments.json {
            return print_json(&summary);
        }
        summary.print();
        Ok(())
    })
}

/// Takes the calibration anew if the one that is kept is of something else; one that never was is left to its operator.
pub(super) async fn refresh(selection: &Selection) -> Result<(), CliError> {
    let pair = selection.pair()?;
    let limits = selection.limits();
    match selection.place.load(&pair, &limits.plan_context(&pair)) {
        Err(error @ (StoreError::Stale { .. } | StoreError::Format { .. })) => {
            tracing::warn!(%error, "calibrating before requests are taken");
            let asked = (prompts(None)?, Duration::from_secs(SECONDS));
            let taken = take(&pair, limits, asked, None).await?;
            let path = selection.place.path(&taken.fingerprint)?;
            Ok(calibrate::save(&path, &taken)?)
        }
        _ => Ok(()),
    }
}

/// Calibrates with a progress bar.
pub(super) async fn take(
    pair: &Pair,
    limits: EngineLimits,
    (prompts, budget): (Vec<String>, Duration),
    trace: Option<&Trace>,
) -> Result<Calibration, CliError> {
    let bar = Bar::default();
    let show = |step: Step<'_>| bar.show(step);
    let options = Options { prompts, budget, progress: &show, trace };
    let taken = calibrate::calibrate(pair, limits, options).await;
    bar.clear();
    let taken = taken?;
    if u128::from(taken.took_ms) > 2 * budget.as_millis() {
        tracing::warn!(
            took_s = taken.took_ms / 1000,
            wanted_s = budget.as_secs(),
            "the calibration took far longer than it was given: a model that is large for these units, or a machine that was held \
             up. In the last case forecasts may be far off: calibrate again"
        );
    }
    Ok(taken)
}

/// A trace's file.
pub(super) fn trace(path: Option<&PathBuf>) -> Result<Option<Trace>, CliError> {
    let create = |path: &PathBuf| {
        Trace::create(path).map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    Ok(path.map(create).transpose()?)
}

/// Prompts from a file, or the calibration's own.
pub(super) fn prompts(file: Option<&PathBuf>) -> Result<Vec<String>, CliError> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read prompts {}: {error}", path.display()))?,
        None => PROMPTS.to_owned(),
    };
    let first = |line: &str| line.split('\t').next().unwrap_or_default().trim().to_owned();
    let prompts: Vec<_> = text.lines().map(first).filter(|prompt| !prompt.is_empty()).collect();
    if prompts.is_empty() {
        Err("there are no prompts to calibrate with".into())
    } else {
        Ok(prompts)
    }
}

impl Summary {
    fn of(taken: &Calibration, path: PathBuf) -> Self {
        let unit =
            |(class, profile): (&outrider_plans::UnitClass, &outrider_plans::UnitProfile)| {
                let target = profile.roles.get(&ModelRole::Target);
                let one = target.map_or(0, |times| times.verify.at_ns(1, 0));
                let five = target.map_or(0, |times| times.verify.at_ns(5, 0));
                let draft = profile.roles.get(&ModelRole::Draft);
                UnitLine {
                    class: class.to_string(),
                    target_pass_ns: one,
                    five_rows_permille: five * 1000 / one.max(1),
                    draft_step_ns: draft.map(|times| times.draft_step.at_ns(1, 0)),
                    hop_ns: profile.around.target_hop_ns,
                }
            };
        let left_out =
            |(class, why): (&outrider_plans::UnitClass, &String)| format!("{class}: {why}");
        Self {
            path,
            took_ms: taken.took_ms,
            units: taken.model.units.iter().map(unit).collect(),
            left_out: taken.left_out.iter().map(left_out).collect(),
            texts: taken.texts.len(),
            acceptance_permille: taken.workload().acceptance_permille(),
        }
    }

    #[expect(clippy::print_stdout, reason = "the command's own output")]
    fn print(&self) {
        println!(
            "{:<24} {:>14} {:>14} {:>14} {:>10}",
            "units", "target pass us", "t(5) / t(1)", "draft step us", "hop us"
        );
        for line in &self.units {
            let step = line.draft_step_ns.map_or_else(|| "-".into(), |ns| format!("{:.1}", us(ns)));
            println!(
                "{:<24} {:>14.1} {:>14.2} {:>14} {:>10.1}",
                line.class,
                us(line.target_pass_ns),
                line.five_rows_permille as f64 / 1000.0,
                step,
                us(line.hop_ns)
            );
        }
        for line in &self.left_out {
            println!("left out {line}");
        }
        println!(
            "{} texts, {} of 1000 tokens as the draft says; took {:.1} s; kept in {}",
            self.texts,
            self.acceptance_permille,
            self.took_ms as f64 / 1000.0,
            self.path.display()
        );
    }
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

/// A bar on a terminal; nothing elsewhere.
#[derive(Default)]
struct Bar {
    width: Cell<usize>,
}

impl Bar {
    fn show(&self, step: Step<'_>) {
        let Step { done, all, what } = step;
        let (done, all) = (done.as_secs().min(all.as_secs()), all.as_secs());
        let filled = (24 * done / all.max(1)) as usize;
        let line =
            format!("[{}{}] {done}/{all} s {what}", "#".repeat(filled), "-".repeat(24 - filled));
        self.draw(&line);
    }

    fn clear(&self) {
        self.draw("");
    }

    fn draw(&self, line: &str) {
        let mut out = std::io::stderr().lock();
        if out.is_terminal() {
            let blank = self.width.replace(line.len()).saturating_sub(line.len());
            // A terminal that is gone needs no bar.
            let _ = write!(out, "\r{line}{}\r{line}", " ".repeat(blank));
            let _ = out.flush();
        }
    }
}
