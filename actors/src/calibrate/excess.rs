//! How much longer jobs take in the running engine than in a loop, job by job.
//!
//! Jobs of one kind and one size are compared with what the loop says of exactly such a job; the sizes then lie on a line: what a
//! job takes more, whatever its size, and what each further row or step takes more. *Invariant:* a size counts by the number
//! of its jobs, and a round by the mean of all of its: jobs that take turns being quick and slow are no outliers, and a text
//! takes the sum of them. What was held up for longer is put aside by rounds.

use std::collections::BTreeMap;

use outrider_plans::cost::{
    Before, DRAFT_ROWS_MAX, DraftShape, PassShape, PlanTimes, Purpose, middle,
};
use outrider_plans::{ModelRole, UnitId};

use super::rounds::Answered;
use crate::meter::{StageTiming, Work};

/// Jobs of a size before which a line is not drawn through it, and before which it is not believed to lie beside one.
const JOBS_MIN: usize = 4;
const JOBS_SURE: usize = 12;

/// What a job was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A pass of the target that decodes; its size is the number of its rows.
    Pass,
    /// One that reads a prompt; its size is the number of its rows.
    Prompt,
    /// A draft job; its size is the number of its steps.
    Draft,
    /// A draft job that reads a prompt first.
    DraftPrompt,
}

/// A line through the sizes of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// At the smallest size, 1.
    pub(super) one_ns: i64,
    /// For each size more.
    pub(super) each_ns: i64,
}

/// What jobs took more than in a loop.
#[derive(Clone, Debug, Default)]
pub(super) struct Excess {
    sizes: BTreeMap<(Kind, u32), Rounds>,
}

/// What the jobs of each round took more.
type Rounds = BTreeMap<u32, Vec<i64>>;

impl Excess {
    /// Of all jobs of some answers, each in its round or part of it, that ran under a plan with these times.
    pub(super) fn of<'a>(
        answers: impl Iterator<Item = (u32, &'a Answered)>,
        times: &PlanTimes,
    ) -> Self {
        let mut found = Self::default();
        for (round, answered) in answers {
            let mut last: BTreeMap<&UnitId, ModelRole> = BTreeMap::new();
            for job in &answered.jobs {
                let ran = last.insert(&job.unit, job.stage.role);
                let other = ran.is_some_and(|role| role != job.stage.role);
                found.add((round, job), if other { Before::Other } else { Before::Same }, times);
            }
        }
        found
    }

    fn add(&mut self, (round, job): (u32, &StageTiming), before: Before, times: &PlanTimes) {
        let role = job.stage.role;
        let chain = if role == ModelRole::Target { &times.target } else { &times.draft };
        let Some(stage) = chain.iter().find(|stage| stage.stage == job.stage) else { return };
        let Work { rows, head_rows, steps, context } = job.work;
        let first = PassShape { rows, head_rows, context, before };
        let further = vec![1; steps.saturating_sub(1) as usize];
        let pass = stage.pass(first).into_iter();
        let pass = pass.filter(|piece| piece.purpose != Purpose::Transfer).map(|piece| piece.ns);
        let alone = pass.sum::<u64>() + stage.further_steps_ns(&DraftShape { first, further });
        let size = match role {
            ModelRole::Target if head_rows <= 1 && rows > 1 => (Kind::Prompt, rows),
            ModelRole::Target => (Kind::Pass, rows),
            ModelRole::Draft if rows > DRAFT_ROWS_MAX => (Kind::DraftPrompt, steps),
            ModelRole::Draft => (Kind::Draft, steps),
        };
        let took_ns = job.at_ns.end - job.at_ns.start;
        let jobs = self.sizes.entry(size).or_default().entry(round).or_default();
        jobs.push(took_ns as i64 - alone as i64);
    }

    /// The sizes of a kind, each with its jobs and their number.
    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (u32, &Rounds, usize)> {
        let of_kind = self.sizes.iter().filter(move |((of, _), _)| *of == kind);
        of_kind.map(|((_, size), rounds)| (*size, rounds, rounds.values().map(Vec::len).sum()))
    }

    /// The line through the sizes of a kind, each with its middle and by the number of its jobs.
    pub(super) fn line(&self, kind: Kind) -> Line {
        let enough = self.of_kind(kind).any(|(.., jobs)| jobs >= JOBS_MIN);
        let points: Vec<(f64, f64, f64)> = self
            .of_kind(kind)
            .filter(|(.., jobs)| !enough || *jobs >= JOBS_MIN)
            .map(|(size, rounds, jobs)| {
                let ns = middle(rounds.values().map(|jobs| mean(jobs)));
                (f64::from(size), ns as f64, jobs as f64)
            })
            .collect();
        let weight: f64 = points.iter().map(|(.., weight)| weight).sum();
        if weight == 0.0 {
            return Line::default();
        }
        let weighed = |of: fn(&(f64, f64, f64)) -> f64| {
            points.iter().map(|point| of(point) * point.2).sum::<f64>() / weight
        };
        let (size, ns) = (weighed(|p| p.0), weighed(|p| p.1));
        let sum = |of: &dyn Fn(f64, f64) -> f64| {
            points.iter().map(|p| of(p.0 - size, p.1 - ns) * p.2).sum::<f64>()
        };
        let spread = sum(&|dx, _| dx * dx);
        let each = if spread > 0.0 { sum(&|dx, dy| dx * dy) / spread } else { 0.0 };
        Line { one_ns: (ns - each * (size - 1.0)).round() as i64, each_ns: each.round() as i64 }
    }

    /// What jobs of a kind took more than their line says, for each size of which enough were seen: what the loop did not meet
    /// alike at all sizes.
    pub(super) fn off_line(&self, kind: Kind) -> Vec<(u32, i64)> {
        let Line { one_ns, each_ns } = self.line(kind);
        let sure = self.of_kind(kind).filter(|(.., jobs)| *jobs >= JOBS_SURE);
        let off = |(size, rounds, _): (u32, &Rounds, usize)| {
            let ns = middle(rounds.values().map(|jobs| mean(jobs)));
            (size, ns - one_ns - each_ns * (i64::from(size) - 1))
        };
        sure.map(off).collect()
    }

    /// What jobs of a kind took more than `each_ns` for each size beyond the first.
    pub(super) fn beside(&self, kind: Kind, each_ns: i64) -> i64 {
        self.mean_ns(kind) - (each_ns as f64 * (self.mean_size(kind) - 1.0).max(0.0)).round() as i64
    }

    /// The mean size of the jobs of a kind.
    pub(super) fn mean_size(&self, kind: Kind) -> f64 {
        let all: usize = self.of_kind(kind).map(|(.., jobs)| jobs).sum();
        let sizes: usize = self.of_kind(kind).map(|(size, _, jobs)| size as usize * jobs).sum();
        sizes as f64 / all.max(1) as f64
    }

    /// What jobs of a kind took more, whatever their size.
    pub(super) fn mean_ns(&self, kind: Kind) -> i64 {
        let mut all = Rounds::new();
        for (_, rounds, _) in self.of_kind(kind) {
            for (round, jobs) in rounds {
                all.entry(*round).or_default().extend(jobs);
            }
        }
        middle(all.values().map(|jobs| mean(jobs)))
    }
}

/// The mean of a round's jobs.
fn mean(jobs: &[i64]) -> i64 {
    jobs.iter().sum::<i64>() / jobs.len().max(1) as i64
}

#[cfg(test)]
mod tests {
    use super::{Excess, Kind, Line};

    fn excess(sizes: &[(u32, i64, usize)]) -> Excess {
        let mut excess = Excess::default();
        for &(size, ns, jobs) in sizes {
            excess.sizes.insert((Kind::Pass, size), [(0, vec![ns; jobs])].into());
        }
        excess
    }

    #[test]
    fn sizes_lie_on_a_line_by_the_number_of_their_jobs() {
        let line = excess(&[(1, 100, 10), (3, 140, 10), (9, 260, 10)]).line(Kind::Pass);
        assert_eq!(line, Line { one_ns: 100, each_ns: 20 });
        // One that was seen twice bends nothing.
        let bent = excess(&[(1, 100, 10), (3, 140, 10), (9, 260, 10), (16, 9000, 2)]);
        assert_eq!(bent.line(Kind::Pass), line);
    }

    #[test]
    fn a_size_beside_the_line_is_known_once_enough_of_it_was_seen() {
        let excess = excess(&[(1, 100, 20), (2, 120, 20), (3, 200, 20), (4, 160, 20), (5, 180, 5)]);
        let Line { one_ns, each_ns } = excess.line(Kind::Pass);
        let off = excess.off_line(Kind::Pass);
        assert_eq!(off.iter().map(|(size, _)| *size).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(off[2], (3, 200 - one_ns - 2 * each_ns));
        assert!(off[2].1 > 30, "{off:?}");
    }

    #[test]
    fn a_single_size_has_no_slope_and_none_nothing() {
        assert_eq!(excess(&[(5, -70, 9)]).line(Kind::Pass), Line { one_ns: -70, each_ns: 0 });
        assert_eq!(excess(&[(5, -70, 3)]).line(Kind::Pass), Line { one_ns: -70, each_ns: 0 });
        assert_eq!(Excess::default().line(Kind::Draft), Line::default());
        assert_eq!(Excess::default().mean_ns(Kind::Draft), 0);
        assert_eq!(Excess::default().mean_size(Kind::Draft), 0.0);
        assert_eq!(excess(&[(1, 0, 3), (5, 0, 1)]).mean_size(Kind::Pass), 2.0);
    }

    #[test]
    fn a_round_in_which_the_machine_was_slow_is_put_aside() {
        let mut excess = excess(&[(1, 100, 20), (3, 140, 20)]);
        for (size, rounds) in &mut excess.sizes {
            let ns = rounds[&0][0];
            rounds.insert(1, vec![ns - 2; 20]);
            rounds.insert(2, vec![ns + 2; 20]);
            rounds.insert(3, vec![ns + 7000 * i64::from(size.1); 20]);
        }
        assert_eq!(excess.line(Kind::Pass), Line { one_ns: 101, each_ns: 20 });
        assert_eq!(excess.mean_ns(Kind::Pass), 121);
    }
}
