//! What a bench found: medians per plan, and each plan against the best plain one.

use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use outrider_pipeline::scheduler::Statistics;
use outrider_plans::{Mode, PartitionPlan};
use serde::Serialize;

use crate::calibrate::Answered;
use crate::request::Timings;

/// Sums over the prompts of one pass.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    elapsed: Duration,
    tokens: u64,
    prompt_ms: f64,
    drafted: u64,
    accepted: u64,
    rounds: u64,
}

impl Measured {
    /// Nothing yet, over this much time.
    pub(super) fn over(elapsed: Duration) -> Self {
        Self { elapsed, ..Self::default() }
    }

    /// One answer that came in this time.
    pub(super) fn add(&mut self, statistics: &Statistics, timings: &Timings) {
        self.tokens += u64::from(statistics.predicted_n);
        self.prompt_ms += timings.prompt_ms;
        self.drafted += u64::from(statistics.draft_n);
        self.accepted += u64::from(statistics.draft_n_accepted);
        self.rounds += u64::from(statistics.rounds);
    }

    /// Answers that came one after the other.
    pub(super) fn of(answers: &[Answered]) -> Self {
        let mut sum = Self::default();
        for answered in answers {
            sum.elapsed += answered.lasted;
            sum.add(&answered.statistics, &answered.timings);
        }
        sum
    }

    /// Tokens of output.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Tokens over the whole time, prompts included.
    pub(super) fn rate(&self) -> f64 {
        self.tokens as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Accepted of drafted tokens; `None` where nothing is drafted.
    pub(super) fn acceptance(&self) -> Option<f64> {
        (self.drafted > 0).then(|| self.accepted as f64 / self.drafted as f64)
    }
}

impl AddAssign for Measured {
    fn add_assign(&mut self, other: Self) {
        self.elapsed += other.elapsed;
        self.tokens += other.tokens;
        self.prompt_ms += other.prompt_ms;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.rounds += other.rounds;
    }
}

/// One plan's figures.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    plan: String,
    id: String,
    mode: &'static str,
    draft_tokens: u32,
    /// Median over the runs of tokens over time, prompt processing included.
    tokens_per_second: f64,
    /// Over the best plain placement of this bench.
    speedup: f64,
    /// Accepted of drafted and verified tokens; `None` where nothing is drafted.
    acceptance: Option<f64>,
    /// Tokens for each verification pass.
    tokens_per_round: f64,
    /// Median over the runs of prompt processing, all prompts together.
    prompt_ms: f64,
    /// Whether every text equals the plain text of the same target placement, in every run.
    identical: bool,
}

/// A whole bench.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    prompts: usize,
    runs: usize,
    /// Id of the plain plan that the speed-ups are over.
    baseline: String,
    plans: Vec<Row>,
}

impl Report {
    pub(super) fn of<'a>(
        measured: impl Iterator<Item = (&'a PartitionPlan, &'a [Measured], bool)>,
        prompts: usize,
    ) -> Self {
        let mut runs = 0;
        let mut plans: Vec<Row> = measured
            .map(|(plan, measured, identical)| {
                runs = measured.len();
                row(plan, measured, identical)
            })
            .collect();
        let plain = plans.iter().filter(|row| row.mode == Mode::Plain.kind().as_str());
        let best = plain.max_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second));
        let (baseline, rate) =
            best.map_or_else(Default::default, |row| (row.id.clone(), row.tokens_per_second));
        plans.iter_mut().for_each(|row| row.speedup = row.tokens_per_second / rate);
        Self { prompts, runs, baseline, plans }
    }
}

fn row(plan: &PartitionPlan, measured: &[Measured], identical: bool) -> Row {
    let sum = |of: fn(&Measured) -> u64| measured.iter().map(of).sum::<u64>() as f64;
    let (drafted, rounds) = (sum(|m| m.drafted), sum(|m| m.rounds));
    Row {
        plan: plan.name.clone(),
        id: plan.fingerprint().to_string(),
        mode: plan.mode.kind().as_str(),
        draft_tokens: plan.mode.draft_tokens(),
        tokens_per_second: median(measured.iter().map(Measured::rate)),
        speedup: 0.0,
        acceptance: (drafted > 0.0).then(|| sum(|m| m.accepted) / drafted),
        tokens_per_round: sum(|m| m.tokens) / rounds.max(1.0),
        prompt_ms: median(measured.iter().map(|m| m.prompt_ms)),
        identical,
    }
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        (values[middle - 1] + values[middle]) / 2.0
    } else {
        values[middle]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} prompts, {} runs, interleaved; medians; speed-up over the best plain placement ({})",
            self.prompts, self.runs, self.baseline
        )?;
        writeln!(
            f,
            "{:<34} {:>5} {:>10} {:>8} {:>10} {:>12} {:>9}",
            "plan", "depth", "tokens/s", "speed-up", "acceptance", "tokens/round", "identical"
        )?;
        for row in &self.plans {
            let acceptance = row.acceptance.map_or_else(|| "-".into(), |a| format!("{a:.3}"));
            writeln!(
                f,
                "{:<34} {:>5} {:>10.1} {:>7.2}x {:>10} {:>12.2} {:>9}",
                row.plan,
                row.draft_tokens,
                row.tokens_per_second,
                row.speedup,
                acceptance,
                row.tokens_per_round,
                if row.identical { "yes" } else { "NO" }
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median([4.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }
}
