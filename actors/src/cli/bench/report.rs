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

    /// Tokens, and the time in which they came.
    pub(super) fn tokens_and_time(&self) -> (u64, Duration) {
        (self.tokens, self.elapsed)
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

/// Tokens of a window.
const WINDOW: u64 = 500;

/// An answer's tokens, and the time that it took.
pub(super) type Answer = (u64, Duration);

/// Speed over the plain one in the worst stretch of answers, one after the other, that have 500 tokens or more; `None` if
/// there are not so many. Each stretch counts with its median over the runs: what happens in a single run is the machine's.
/// Both have the same runs of the same prompts in the same order.
pub(super) fn worst_window(own: &[Vec<Answer>], plain: &[Vec<Answer>]) -> Option<f64> {
    let runs: Vec<Vec<f64>> =
        own.iter().zip(plain).map(|(own, plain)| speeds(own, plain)).collect();
    let stretch = |at: usize| median(runs.iter().filter_map(|run| run.get(at).copied()));
    (0..runs.first()?.len()).map(stretch).min_by(f64::total_cmp)
}

/// Speed over the plain one in each shortest stretch of answers that have 500 tokens or more.
fn speeds(own: &[Answer], plain: &[Answer]) -> Vec<f64> {
    let (mut speeds, mut from) = (Vec::new(), 0);
    let (mut tokens, mut own_s, mut plain_s) = (0, 0.0, 0.0);
    for (to, (answer, reference)) in own.iter().zip(plain).enumerate() {
        tokens += answer.0;
        own_s += answer.1.as_secs_f64();
        plain_s += reference.1.as_secs_f64();
        while from < to && tokens - own[from].0 >= WINDOW {
            tokens -= own[from].0;
            own_s -= own[from].1.as_secs_f64();
            plain_s -= plain[from].1.as_secs_f64();
            from += 1;
        }
        if tokens >= WINDOW {
            speeds.push(plain_s / own_s.max(1e-9));
        }
    }
    speeds
}

/// What was measured of a plan with so many clients.
pub(super) struct Entry<'a> {
    pub(super) plan: &'a PartitionPlan,
    pub(super) clients: usize,
    pub(super) runs: &'a [Measured],
    pub(super) identical: bool,
    pub(super) worst_window: Option<f64>,
}

/// One plan's figures.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    plan: String,
    id: String,
    mode: &'static str,
    /// Most tokens of a draft.
    draft_tokens: u32,
    /// Clients that asked at the same time.
    clients: usize,
    /// Median over the runs of tokens over time, prompt processing included.
    tokens_per_second: f64,
    /// Over the best plain placement of this bench with as many clients.
    speedup: f64,
    /// Over the first number of clients that this plan was measured with.
    over_fewer_clients: f64,
    /// Over its target alone (its plain counterpart, or with the guard the same engine with drafts forbidden), in the worst
    /// stretch of 500 tokens or more; `None` for several clients, or fewer tokens.
    worst_window: Option<f64>,
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
    pub(super) fn of<'a>(entries: impl Iterator<Item = Entry<'a>>, prompts: usize) -> Self {
        let mut runs = 0;
        let mut plans: Vec<Row> = entries
            .map(|entry| {
                runs = entry.runs.len();
                row(&entry)
            })
            .collect();
        let rates: Vec<_> = plans.iter().map(|row| row.tokens_per_second).collect();
        let is_plain = |row: &Row| row.mode == Mode::Plain.kind().as_str();
        for at in 0..plans.len() {
            let (id, clients) = (&plans[at].id, plans[at].clients);
            let first = plans.iter().position(|row| row.id == *id).unwrap_or(at);
            let equal = plans.iter().filter(|row| is_plain(row) && row.clients == clients);
            let best = equal.map(|row| row.tokens_per_second).fold(0.0, f64::max);
            plans[at].over_fewer_clients = rates[at] / rates[first];
            plans[at].speedup = rates[at] / best;
        }
        let plain = plans.iter().filter(|row| is_plain(row) && row.clients == plans[0].clients);
        let best = plain.max_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second));
        let baseline = best.map_or_else(String::new, |row| row.id.clone());
        Self { prompts, runs, baseline, plans }
    }
}

fn row(entry: &Entry<'_>) -> Row {
    let Entry { plan, clients, runs: measured, identical, worst_window } = *entry;
    let sum = |of: fn(&Measured) -> u64| measured.iter().map(of).sum::<u64>() as f64;
    let (drafted, rounds) = (sum(|m| m.drafted), sum(|m| m.rounds));
    Row {
        plan: plan.name.clone(),
        id: plan.fingerprint().to_string(),
        mode: plan.mode.kind().as_str(),
        draft_tokens: plan.mode.draft_tokens(),
        clients,
        tokens_per_second: median(measured.iter().map(Measured::rate)),
        speedup: 0.0,
        over_fewer_clients: 0.0,
        worst_window,
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
            "{} prompts, {} runs, interleaved; medians; speed-up over the best plain placement ({}) with \
             as many clients; \"worst 500\": over its target alone in the worst stretch of 500 tokens",
            self.prompts, self.runs, self.baseline
        )?;
        let crowded = self.plans.iter().any(|row| row.clients != self.plans[0].clients);
        let scaled = if crowded { format!(" {:>8}", "scaled") } else { String::new() };
        writeln!(
            f,
            "{:<34} {:>5} {:>7} {:>10} {:>8}{scaled} {:>9} {:>10} {:>12} {:>9}",
            "plan",
            "depth",
            "clients",
            "tokens/s",
            "speed-up",
            "worst 500",
            "acceptance",
            "tokens/round",
            "identical"
        )?;
        for row in &self.plans {
            let acceptance = row.acceptance.map_or_else(|| "-".into(), |a| format!("{a:.3}"));
            let worst = row.worst_window.map_or_else(|| "-".into(), |w| format!("{w:.3}"));
            let scaled = match crowded {
                true => format!(" {:>7.2}x", row.over_fewer_clients),
                false => String::new(),
            };
            writeln!(
                f,
                "{:<34} {:>5} {:>7} {:>10.1} {:>7.2}x{scaled} {:>9} {:>10} {:>12.2} {:>9}",
                row.plan,
                row.draft_tokens,
                row.clients,
                row.tokens_per_second,
                row.speedup,
                worst,
                acceptance,
                row.tokens_per_round,
                if row.identical { "yes" } else { "NO" }
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::time::Duration;

    use super::{median, worst_window};

    /// Answers of 100 tokens, in so many milliseconds each.
    fn answers(ms: impl IntoIterator<Item = u64>) -> Vec<(u64, Duration)> {
        ms.into_iter().map(|ms| (100, Duration::from_millis(ms))).collect()
    }

    #[test]
    fn the_worst_window_is_the_slowest_stretch_of_500_tokens() {
        let plain = vec![answers([100; 20])];
        let own = vec![answers((0..20).map(|i| if (8..12).contains(&i) { 200 } else { 100 }))];
        let worst = worst_window(&own, &plain).unwrap();
        assert!((worst - 5.0 / 9.0).abs() < 1e-9, "{worst}");
        assert_eq!(worst_window(&[answers([100; 4])], &[answers([100; 4])]), None);
    }

    /// What holds up one run of three is not the plan's doing, unless it is in the others too.
    #[test]
    fn a_stretch_counts_with_its_median_over_the_runs() {
        let held_up = |at: usize| answers((0..20).map(move |i| if i == at { 200 } else { 100 }));
        let plain = vec![answers([100; 20]); 3];
        let once = vec![held_up(3), held_up(10), held_up(17)];
        assert_eq!(worst_window(&once, &plain), Some(1.0));
        let always = vec![held_up(10); 3];
        let worst = worst_window(&always, &plain).unwrap();
        assert!((worst - 5.0 / 6.0).abs() < 1e-9, "{worst}");
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median([4.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }
}
