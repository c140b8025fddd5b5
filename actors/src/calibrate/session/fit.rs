//! What all visits together say: tables, what lies around jobs, and what two units do to each other.
//!
//! *Invariant:* nothing is measured here, and each fit stands on those before it: units, then a split model, then pairs.

use std::collections::{BTreeMap, BTreeSet};

use outrider_pipeline::rehearsal::Course;
use outrider_plans::cost::{
    AroundJobs, Contention, Link, LinkProfile, MemoryDomain, PlanTimes, RoleProfile, middle,
};
use outrider_plans::{
    ModelRole, PartitionPlan, PlanError, UnitClass, UnitProfile, UnitSpec, Workload,
};

use super::super::excess::{Excess, Kind};
use super::super::rounds::{self, Clocked, Gaps};
use super::{CalibrateError, Clock, DEPTH, Session, Visited};
use crate::foresight::Foresight;

/// Rounds of fitting slow-downs and a hop that depend on each other.
const FITTING_ROUNDS: usize = 6;
/// Rows behind the most that were seen in the engine at which the loop is believed again.
const ROWS_BEHIND: u32 = 4;

/// Whether a rehearsal counts what lies between jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hops {
    Counted,
    Left,
}

impl Session<'_> {
    /// The tables of each class, and what lies around its jobs in the engine.
    pub(super) fn fit_units(&mut self) -> Result<(), CalibrateError> {
        let units = std::mem::take(&mut self.units);
        for unit in &units {
            let middle = |(role, loops): (&ModelRole, &Vec<RoleProfile>)| {
                Some((*role, RoleProfile::middle(loops)?))
            };
            let profile = UnitProfile {
                memory: self.memory_of(&unit.spec),
                roles: unit.loops.iter().filter_map(middle).collect(),
                around: AroundJobs::default(),
                power_mw: 1000 * u64::from(unit.class.core_count()),
            };
            self.model.units.insert(unit.class.clone(), profile);
        }
        for unit in &units {
            let (around, off_line) = self.around(unit)?;
            let profile = self.profile_of(unit);
            profile.around = around;
            if let Some(target) = profile.roles.get_mut(&ModelRole::Target) {
                // The engine has seen many more passes of its sizes than the loop.
                let seen = |rows, _, ns: u64| {
                    ns.saturating_add_signed(between(&off_line, rows)).max(ns / 4)
                };
                target.verify = target.verify.map(seen);
            }
            self.fit_answers(unit)?;
        }
        Ok(())
    }

    /// Answers took as long as they did, whatever their jobs and gaps say: what is left goes with the request, and where the
    /// draft speaks, with its first job.
    fn fit_answers(&mut self, unit: &Visited) -> Result<(), CalibrateError> {
        let (plain, drafting) = self.by_drafting(self.with_texts(&unit.engine));
        let longer_ns = self.longer_an_answer_ns(unit, &plain)?;
        let around = &mut self.profile_of(unit).around;
        around.request_ns = around.request_ns.saturating_add_signed(longer_ns);
        let longer_ns = self.longer_an_answer_ns(unit, &drafting)?;
        self.profile_of(unit).around.draft_prompt_ns += longer_ns;
        Ok(())
    }

    fn profile_of(&mut self, unit: &Visited) -> &mut UnitProfile {
        self.model.units.get_mut(&unit.class).expect("each class was given one")
    }

    /// Answers without drafts, and those with.
    fn by_drafting<'c>(&self, clocks: Vec<&'c Clock>) -> (Vec<&'c Clock>, Vec<&'c Clock>) {
        clocks.into_iter().partition(|clock| clock.depth == 0 || self.pair.draft.is_none())
    }

    /// What each of these answers, all of them plain or all of them with drafts, took longer than is foreseen so far.
    fn longer_an_answer_ns(
        &self,
        unit: &Visited,
        clocks: &[&Clock],
    ) -> Result<i64, CalibrateError> {
        let mut longer = Vec::new();
        for part in parts_of(clocks) {
            let mut longer_ns = lasted_ns(&part);
            for depth in part.iter().map(|clock| clock.depth).collect::<BTreeSet<_>>() {
                let plan = self.of_depth(&unit.spec, depth)?;
                let alike: Vec<&Clock> =
                    part.iter().copied().filter(|clock| clock.depth == depth).collect();
                longer_ns -= self.rehearsed(&plan, &alike, Hops::Counted).total_ns as i64;
            }
            longer.push(longer_ns / part.len().max(1) as i64);
        }
        Ok(middle(longer))
    }

    /// The plan as which a unit answers a request for this depth.
    fn of_depth(&self, spec: &UnitSpec, depth: u32) -> Result<PartitionPlan, PlanError> {
        if depth == 0 { self.plain(spec) } else { self.together(spec, depth) }
    }

    fn memory_of(&self, spec: &UnitSpec) -> MemoryDomain {
        match spec {
            UnitSpec::Gpu { adapter, .. } => {
                let own = self.context.machine.adapters.get(*adapter);
                let own = own.is_some_and(|adapter| adapter.memory_bytes.is_some());
                if own { MemoryDomain::Own } else { MemoryDomain::Main }
            }
            _ => MemoryDomain::Main,
        }
    }

    /// What lies around jobs on units of a class, which have nothing around them yet; and by how much passes of some numbers of
    /// rows are off what that and the loop say.
    fn around(&self, unit: &Visited) -> Result<(AroundJobs, Vec<(u32, i64)>), CalibrateError> {
        let plan = self.together(&unit.spec, DEPTH)?;
        let times = self.model.times(&plan, self.context).expect("its unit was just measured");
        let (plain, drafting) = self.by_drafting(unit.engine.iter().collect());
        let gaps = self.gaps(&plain);
        let excess = longer(&plain, &times);
        let target_hop_ns = gaps.hops_ns.0;
        let around = AroundJobs {
            target_hop_ns,
            draft_hop_ns: target_hop_ns,
            target_ns: excess.line(Kind::Pass).one_ns,
            target_prompt_ns: excess.mean_ns(Kind::Prompt),
            request_ns: gaps.request_ns,
            ..AroundJobs::default()
        };
        if drafting.is_empty() {
            return Ok((around, Vec::new()));
        }
        let gaps = self.gaps(&drafting);
        let excess = longer(&drafting, &times);
        // What a round hops more than twice a plain one's goes with the draft.
        let both = gaps.hops_ns.0 + gaps.hops_ns.1;
        let (target, draft) = (excess.line(Kind::Pass), excess.line(Kind::Draft));
        let around = AroundJobs {
            draft_hop_ns: both.saturating_sub(target_hop_ns),
            target_row_ns: target.each_ns,
            target_after_draft_ns: target.one_ns - around.target_ns,
            draft_after_target_ns: draft.one_ns,
            draft_step_ns: draft.each_ns,
            draft_prompt_ns: excess.beside(Kind::DraftPrompt, draft.each_ns),
            ..around
        };
        Ok((around, excess.off_line(Kind::Pass)))
    }

    /// What all parts say of the gaps between the jobs of these answers.
    fn gaps(&self, clocks: &[&Clock]) -> Gaps {
        let answers = |part: Vec<&Clock>| {
            Clocked::of(part.iter().map(|clock| &clock.answered), self.layers()).gaps
        };
        Gaps::middle(&parts_of(clocks).map(answers).collect::<Vec<_>>())
    }

    /// How the texts of these answers go under a plan by what is known so far.
    fn rehearsed(&self, plan: &PartitionPlan, clocks: &[&Clock], hops: Hops) -> Course {
        let mut model = self.model.clone();
        if hops == Hops::Left {
            for unit in model.units.values_mut() {
                (unit.around.target_hop_ns, unit.around.draft_hop_ns) = (0, 0);
            }
            for pair in &mut model.contention {
                pair.target_hop_ns = 0;
            }
        }
        let texts = clocks.iter().map(|clock| self.texts[clock.text].clone()).collect();
        let known = (model, self.context.clone());
        let foresight = Foresight::of_pair(self.pair, self.limits, known, Workload::single(texts));
        foresight.course(plan).expect("its units were just measured")
    }

    /// What a stage on another unit costs: the message, waking that unit up, and rows that both have to hold.
    pub(super) fn fit_splits(&mut self) {
        for (place, split) in std::mem::take(&mut self.splits).into_iter().enumerate() {
            let Ok(plan) = self.split_plan(&split.units) else { continue };
            let Ok(times) = self.model.times(&plan, self.context) else { continue };
            if split.clocks.is_empty() {
                continue;
            }
            let class = |spec| UnitClass::of(spec, &self.context.machine);
            let (from, to) = (class(&split.units.0), class(&split.units.1));
            let profile = self.way(&split.clocks, &times);
            self.model.links.push(Link { from, to, profile });
            // Waking the first unit for the next pass, and whatever else answers took, goes with the way too.
            for _ in 0..FITTING_ROUNDS {
                let longer_ns = self.longer_a_pass_ns(&plan, &split.clocks);
                let profile = &mut self.model.links.last_mut().expect("it was just pushed").profile;
                profile.latency_ns = profile.latency_ns.saturating_add_signed(longer_ns);
            }
            // Whatever is not measured is as the first: two halves of a cluster, where one can be halved.
            if place == 0 {
                self.model.link_default = self.model.links[0].profile;
            }
        }
    }

    /// The way between the units of a split target, as far as its jobs and the gaps in its passes tell.
    fn way(&self, clocks: &[Clock], times: &PlanTimes) -> LinkProfile {
        let all: Vec<&Clock> = clocks.iter().collect();
        let between_ns = self.gaps(&all).between_ns;
        // Two stages, so twice of each: what a pass takes more, and what each of its rows does, which goes with the activations.
        // Prompts have the most rows, and tell that best.
        let excess = longer(&all, times);
        let (pass_ns, prompt_ns) = (excess.mean_ns(Kind::Pass), excess.mean_ns(Kind::Prompt));
        let pass_rows = excess.mean_size(Kind::Pass);
        let further_rows = excess.mean_size(Kind::Prompt) - pass_rows;
        let row_ns =
            if further_rows > 0.0 { (prompt_ns - pass_ns) as f64 / further_rows } else { 0.0 };
        let row_ns = (2.0 * row_ns).max(0.0);
        let own_ns = 2 * pass_ns - (row_ns * pass_rows) as i64;
        let row_bytes = 4 * self.context.target.width as u64;
        LinkProfile {
            latency_ns: between_ns.saturating_add_signed(own_ns),
            bytes_per_second: (row_bytes * 1_000_000_000).checked_div(row_ns as u64).unwrap_or(0),
        }
    }

    /// What answers took longer than is foreseen so far, for each pass that decodes: they took as long as they did, whatever their
    /// jobs say.
    fn longer_a_pass_ns(&self, plan: &PartitionPlan, clocks: &[Clock]) -> i64 {
        let longer_ns = |part: Vec<&Clock>| {
            let course = self.rehearsed(plan, &part, Hops::Counted);
            let decoding = course.jobs.0.saturating_sub(course.texts).max(1);
            (lasted_ns(&part) - course.total_ns as i64) / decoding as i64
        };
        middle(parts_of(&self.with_texts(clocks)).map(longer_ns))
    }

    /// What two units do to each other that hold a model each: taking turns, and at the same time.
    pub(super) fn fit_pairs(&mut self) {
        for pair in std::mem::take(&mut self.pairs) {
            let class = |spec| UnitClass::of(spec, &self.context.machine);
            let (target, draft) = (class(&pair.units.0), class(&pair.units.1));
            let Ok(plans) = self.pair_plans(&pair.units) else { continue };
            if self.model.times(&plans.1, self.context).is_err()
                || pair.turns.is_empty()
                || pair.overlap.is_empty()
            {
                continue;
            }
            self.model.contention.push(Contention {
                target,
                draft,
                target_permille: 1000,
                draft_permille: 1000,
                target_apart_ns: 0,
                draft_apart_ns: 0,
                target_hop_ns: 0,
            });
            self.fit_turns(&plans.0, &pair.turns);
            self.fit_overlap(&plans.1, &pair.overlap);
        }
    }

    fn fit_turns(&mut self, plan: &PartitionPlan, clocks: &[Clock]) {
        let Ok(times) = self.model.times(plan, self.context) else { return };
        let all: Vec<&Clock> = clocks.iter().collect();
        let gaps = self.gaps(&all);
        let excess = longer(&all, &times);
        let hops = times.hop_ns(ModelRole::Target) + times.hop_ns(ModelRole::Draft);
        // Hops between sleeping units may be longer than those within one.
        let hopping = (gaps.hops_ns.0 + gaps.hops_ns.1) as i64 - hops as i64;
        let found = self.model.contention.last_mut().expect("it was just pushed");
        found.target_apart_ns = excess.mean_ns(Kind::Pass) + hopping;
        found.draft_apart_ns = excess.mean_ns(Kind::Draft);
        for _ in 0..FITTING_ROUNDS {
            let longer_ns = self.longer_a_pass_ns(plan, clocks);
            let found = self.model.contention.last_mut().expect("it was just pushed");
            found.target_apart_ns += longer_ns;
        }
    }

    /// The answers whose texts are known.
    fn with_texts<'c>(&self, clocks: &'c [Clock]) -> Vec<&'c Clock> {
        clocks.iter().filter(|clock| clock.text < self.texts.len()).collect()
    }

    fn fit_overlap(&mut self, plan: &PartitionPlan, clocks: &[Clock]) {
        let clocks = self.with_texts(clocks);
        let parts: Vec<_> = parts_of(&clocks).collect();
        let found: Vec<_> = parts.iter().map(|clocks| self.beside(plan, clocks)).collect();
        let all = |of: fn(&Contention) -> i64| middle(found.iter().map(of));
        let last = self.model.contention.last_mut().expect("it was just pushed");
        if !found.is_empty() {
            last.target_permille = all(|one| one.target_permille.into()) as u32;
            last.draft_permille = all(|one| one.draft_permille.into()) as u32;
            last.target_hop_ns = all(|one| one.target_hop_ns);
        }
    }

    /// What the units of the last pair do to each other by the answers of one part.
    fn beside(&mut self, plan: &PartitionPlan, clocks: &[&Clock]) -> Contention {
        let before = self.model.contention.last().expect("it was just pushed").clone();
        let answers = || clocks.iter().map(|clock| &clock.answered);
        let clocked = Clocked::of(answers(), self.layers());
        for _ in 0..FITTING_ROUNDS {
            let course = self.rehearsed(plan, clocks, Hops::Left);
            let found = self.model.contention.last_mut().expect("it was just pushed");
            let foreseen = [(course.jobs.0, course.jobs_ns.0), (course.jobs.1, course.jobs_ns.1)];
            found.target_permille =
                rounds::slower(found.target_permille, clocked.target, foreseen[0]);
            found.draft_permille = rounds::slower(found.draft_permille, clocked.draft, foreseen[1]);
            // What the answers then still took longer lies between the jobs. Gaps do not tell: in most of them the target
            // waits for the draft, and nothing says in which.
            let course = self.rehearsed(plan, clocks, Hops::Counted);
            let found = self.model.contention.last_mut().expect("it was just pushed");
            let longer_ns = lasted_ns(clocks) - course.total_ns as i64;
            found.target_hop_ns += longer_ns / (course.jobs.0.max(1) as i64);
        }
        std::mem::replace(self.model.contention.last_mut().expect("it was just pushed"), before)
    }
}

/// The value at these rows of a line through points, which begins with nothing at one row and ends with nothing a few rows
/// behind the last of them.
fn between(points: &[(u32, i64)], rows: u32) -> i64 {
    let Some((last, _)) = points.last() else { return 0 };
    let within = points.iter().copied().filter(|(at, _)| *at > 1);
    let all: Vec<_> = [(1, 0)].into_iter().chain(within).chain([(last + ROWS_BEHIND, 0)]).collect();
    let pair = all.windows(2).find(|pair| (pair[0].0..=pair[1].0).contains(&rows));
    pair.map_or(0, |pair| {
        let ((from, low), (to, high)) = (pair[0], pair[1]);
        low + (high - low) * i64::from(rows - from) / i64::from(to - from)
    })
}

/// Answers by the parts of visits in which they were given.
fn parts_of<'a>(clocks: &[&'a Clock]) -> impl Iterator<Item = Vec<&'a Clock>> {
    let mut parts: BTreeMap<u32, Vec<&Clock>> = BTreeMap::new();
    for clock in clocks {
        parts.entry(clock.part).or_default().push(clock);
    }
    parts.into_values()
}

/// What jobs took longer than in a loop.
fn longer(clocks: &[&Clock], times: &PlanTimes) -> Excess {
    Excess::of(clocks.iter().map(|clock| (clock.part, &clock.answered)), times)
}

/// How long these answers took together.
fn lasted_ns(clocks: &[&Clock]) -> i64 {
    clocks.iter().map(|clock| clock.answered.lasted.as_nanos() as i64).sum()
}

#[cfg(test)]
mod tests {
    use super::between;

    #[test]
    fn what_was_seen_at_some_rows_holds_in_between_and_not_far_behind() {
        let seen = [(3, 40), (5, -20)];
        let at = |rows| between(&seen, rows);
        assert_eq!([at(1), at(2), at(3), at(4), at(5)], [0, 20, 40, 10, -20]);
        assert_eq!([at(7), at(9), at(16)], [-10, 0, 0]);
        assert_eq!(between(&[], 4), 0);
        // One row is what plain passes say.
        assert_eq!(between(&[(1, 90), (2, 10)], 1), 0);
    }
}
