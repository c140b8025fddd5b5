//! A calibration under way: who is visited when, and what all visits together say.
//!
//! In each round every class of units is visited in a loop and in the engine, then the target over two units, then each pair of
//! units beside each other. A visit lasts its slice of the time. *Invariant:* whatever was measured of one thing, it was
//! measured in as many rounds as of any other, but for loops of a unit so slow that one visit outlasted its slice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outrider_devices::{DeviceError, SlotLimits};
use outrider_pipeline::Speculation;
use outrider_pipeline::rehearsal::Course;
use outrider_plans::cost::{
    AroundJobs, Contention, LinkProfile, MemoryDomain, RoleProfile, SampleText,
};
use outrider_plans::search::Composition;
use outrider_plans::{
    CostModel, DraftTokens, Mode, ModelRole, PartitionPlan, PlanContext, PlanError, UnitClass,
    UnitProfile, UnitSpec, Workload,
};

use super::excess::{Excess, Kind};
use super::loops::{Ask, LoopError, Profiles};
use super::rounds::{self, Answered, Clocked, Probe};
use super::{CalibrateError, Options, Step, classes, texts};
use crate::engine::EngineLimits;
use crate::foresight::Foresight;
use crate::pair::Pair;

/// Drafted tokens of the plans that show what models on two units do to each other.
const DEPTH: u32 = 4;
/// Depths of the requests to a unit that holds both models: none, few, many.
const DEPTHS: [u32; 5] = [0, 4, 1, 8, 2];
/// Most tokens of an answer.
const TOKENS_MAX: u32 = 48;
/// Most rounds, and what a visit should last at least.
const ROUNDS_MAX: u32 = 4;
const VISIT_MIN: Duration = Duration::from_millis(600);
/// Of the time, one part in so many is for the texts; as much is kept for the search.
const TEXTS_SHARE: u32 = 8;
/// Rounds of fitting two slow-downs that depend on each other.
const FITTING_ROUNDS: usize = 6;

/// An answer to a prompt, with every job clocked.
struct Clock {
    /// Which prompt.
    text: usize,
    depth: u32,
    answered: Answered,
}

/// Two units beside each other.
struct Beside {
    units: (UnitSpec, UnitSpec),
    turns: Vec<Clock>,
    overlap: Vec<Clock>,
}

/// What visits to a class of units gave.
struct Visited {
    class: UnitClass,
    spec: UnitSpec,
    loops: BTreeMap<ModelRole, Vec<RoleProfile>>,
    /// What the longest of its loops took.
    loop_took: Duration,
    engine: Vec<Clock>,
}

pub(super) struct Session<'a> {
    pair: &'a Pair,
    limits: EngineLimits,
    context: &'a PlanContext,
    options: Options<'a>,
    begun: Instant,
    rounds: u32,
    slice: Duration,
    done: usize,
    units: Vec<Visited>,
    halves: Option<(UnitSpec, UnitSpec)>,
    split: Vec<Clock>,
    pairs: Vec<Beside>,
    /// The prompts' texts, in their order.
    texts: Vec<SampleText>,
    texts_took: Duration,
    /// The prompt of the next visit to an engine.
    next_text: usize,
    model: CostModel,
    left_out: BTreeMap<UnitClass, String>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        (pair, limits): (&'a Pair, EngineLimits),
        context: &'a PlanContext,
        options: Options<'a>,
    ) -> Self {
        let unit = |(class, spec)| Visited {
            class,
            spec,
            loops: BTreeMap::new(),
            loop_took: Duration::ZERO,
            engine: Vec::new(),
        };
        let units: Vec<_> = classes(&context.machine).into_iter().map(unit).collect();
        let pairs =
            if pair.draft.is_some() { super::classes::pairs(&context.machine) } else { Vec::new() };
        let beside = |units| Beside { units, turns: Vec::new(), overlap: Vec::new() };
        let pairs: Vec<_> = pairs.into_iter().map(beside).collect();
        let halves =
            super::classes::halves(&context.machine).filter(|_| context.target.layers() > 1);
        let visits = visits(units.len(), halves.is_some(), pairs.len());
        let time = options.budget / TEXTS_SHARE * (TEXTS_SHARE - 2);
        let (rounds, slice) = shares(time, visits);
        Self {
            pair,
            limits,
            context,
            options,
            begun: Instant::now(),
            rounds,
            slice,
            done: 0,
            units,
            halves,
            split: Vec::new(),
            pairs,
            texts: Vec::new(),
            texts_took: Duration::ZERO,
            next_text: 0,
            model: CostModel::default(),
            left_out: BTreeMap::new(),
        }
    }

    pub(super) fn tell(&mut self, what: &str) {
        let visits = visits(self.units.len(), self.halves.is_some(), self.pairs.len());
        let all = (self.rounds * visits) as usize + 2;
        (self.options.progress)(Step { done: self.done.min(all), all, what });
        tracing::info!(what, elapsed_ms = self.begun.elapsed().as_millis() as u64, "calibrating");
        self.done += 1;
    }

    /// Visits everything in turn, for as many rounds as there is time for.
    pub(super) async fn visit_all(&mut self) -> Result<(), CalibrateError> {
        for round in 0..self.rounds {
            let begun = self.begun.elapsed();
            self.visit_units().await?;
            if round == 0 {
                self.tell("what the target answers, and what the draft says");
                self.read_texts().await?;
            }
            self.visit_split().await?;
            self.visit_pairs().await;
            // Another round takes no longer than this one, without what is not done again.
            let mut round_took = self.begun.elapsed() - begun;
            if round == 0 {
                let slow = self.units.iter().filter(|unit| !self.is_visited_again(unit));
                let once: Duration = slow.map(|unit| unit.loop_took).sum();
                round_took = round_took.saturating_sub(once + self.texts_took);
            }
            if self.begun.elapsed() + round_took > self.options.budget {
                break;
            }
        }
        Ok(())
    }

    /// What all visits together say.
    pub(super) fn result(mut self) -> Result<Results, CalibrateError> {
        self.fit_units()?;
        self.fit_split();
        self.fit_pairs();
        Ok((self.model, self.texts, self.left_out))
    }

    fn slots(&self) -> SlotLimits {
        SlotLimits { sequences_max: 4, rows_max: 128, ..self.limits.slots(self.pair) }
    }

    fn layers(&self) -> usize {
        self.context.target.layers()
    }

    fn plain(&self, spec: &UnitSpec) -> Result<PartitionPlan, PlanError> {
        Composition::plain(spec.clone(), self.layers()).plan("calibration", self.context)
    }

    /// A plan that drafts up to `depth` tokens, or the plain one if there is no draft.
    fn together(&self, spec: &UnitSpec, depth: u32) -> Result<PartitionPlan, PlanError> {
        if self.pair.draft.is_none() {
            return self.plain(spec);
        }
        let mode = Mode::Sequential { draft_tokens: DraftTokens::Fixed(depth) };
        self.drafting(mode, (spec, spec))
    }

    fn drafting(
        &self,
        mode: Mode,
        (target, draft): (&UnitSpec, &UnitSpec),
    ) -> Result<PartitionPlan, PlanError> {
        let (units, unit) = if target == draft {
            (vec![target.clone()], 0)
        } else {
            (vec![target.clone(), draft.clone()], 1)
        };
        let target = vec![(0, self.layers())];
        Composition { mode, units, target, draft: Some(unit) }.plan("calibration", self.context)
    }

    async fn visit_units(&mut self) -> Result<(), CalibrateError> {
        for mut unit in std::mem::take(&mut self.units) {
            match self.visit_unit(&mut unit).await {
                Ok(()) => self.units.push(unit),
                Err(error) => {
                    tracing::warn!(class = %unit.class, %error, "left out of the calibration");
                    self.left_out.insert(unit.class, error.to_string());
                }
            }
        }
        if self.units.is_empty() {
            let reasons: Vec<_> = self.left_out.values().cloned().collect();
            return Err(CalibrateError::NoUnit(reasons.join("; ")));
        }
        Ok(())
    }

    async fn visit_unit(&mut self, unit: &mut Visited) -> Result<(), CalibrateError> {
        let class = unit.class.clone();
        self.tell(&format!("{class}: both models in a loop"));
        if self.is_visited_again(unit) {
            let begun = Instant::now();
            for (role, profile) in self.in_loops(unit)? {
                unit.loops.entry(role).or_default().push(profile);
            }
            unit.loop_took = unit.loop_took.max(begun.elapsed());
        }
        self.tell(&format!("{class}: in the engine"));
        let deepest = DEPTHS.into_iter().max().unwrap_or(0);
        let plan = self.together(&unit.spec, deepest)?;
        unit.engine.extend(self.in_engine(&plan, &DEPTHS).await?);
        Ok(())
    }

    /// Whether a unit is quick enough in a loop for another one.
    fn is_visited_again(&self, unit: &Visited) -> bool {
        unit.loop_took <= 3 * self.slice
    }

    /// Measures a class in a loop, on a thread of its own, where the device lives.
    fn in_loops(&self, unit: &Visited) -> Result<Profiles, CalibrateError> {
        let plan = self.plain(&unit.spec)?;
        let factory = crate::fleet::factory(plan.units.values().next().expect("one unit"));
        let roles = [ModelRole::Target, ModelRole::Draft];
        let roles = roles.into_iter().filter(|role| self.pair.model(*role).is_some());
        let roles: Vec<_> = roles.collect();
        let budget = self.slice / roles.len() as u32;
        let first =
            |(role, loops): (&ModelRole, &Vec<RoleProfile>)| Some((*role, loops.first()?.clone()));
        let known = unit.loops.iter().filter_map(first).collect();
        let ask = Ask { pair: self.pair.clone(), limits: self.slots(), budget, known };
        let body = move || -> Result<Profiles, LoopError> {
            let mut device = factory()?;
            let measure = |role| Ok((role, ask.measure(device.as_mut(), role)?));
            roles.into_iter().map(measure).collect()
        };
        let class = &unit.class;
        let lost = || {
            let detail = "it panicked while it was measured".to_owned();
            LoopError::Device(DeviceError::Lost { device: class.to_string(), detail })
        };
        Ok(std::thread::spawn(body).join().map_err(|_| lost())??)
    }

    /// Answers prompts under a plan, one after the other and with these depths in turn, for a slice of the time: at least as
    /// many as there are depths.
    async fn in_engine(
        &mut self,
        plan: &PartitionPlan,
        depths: &[u32],
    ) -> Result<Vec<Clock>, CalibrateError> {
        let end = Instant::now() + self.slice;
        let probe = Probe::start(self.pair, plan, (self.limits, self.context)).await?;
        let prompts = &self.options.prompts;
        let speculation = |depth| match depth {
            0 => Speculation::Off,
            depth => Speculation::Depth(depth),
        };
        // A prompt that is asked about twice would be half in the caches.
        let far = (self.next_text + prompts.len() / 2) % prompts.len();
        let deepest = depths.iter().copied().max().unwrap_or(0);
        probe.answer(&prompts[far], TOKENS_MAX, speculation(deepest)).await?;
        let mut clocks = Vec::new();
        let mut turn = 0;
        while turn < depths.len() || (Instant::now() < end && turn < prompts.len()) {
            let text = (self.next_text + turn) % prompts.len();
            let depth = depths[turn % depths.len()];
            let answered = probe.answer(&prompts[text], TOKENS_MAX, speculation(depth)).await?;
            clocks.push(Clock { text, depth, answered });
            turn += 1;
        }
        self.next_text = (self.next_text + turn) % prompts.len();
        probe.stop();
        if let Some(trace) = self.options.trace {
            trace.add(plan, clocks.iter().map(|clock| &clock.answered));
        }
        Ok(clocks)
    }

    /// The answers to as many prompts as there is time for, with what the draft says of each.
    async fn read_texts(&mut self) -> Result<(), CalibrateError> {
        let quickest = |unit: &&Visited| {
            let loops = unit.loops.get(&ModelRole::Target)?;
            loops.iter().map(|times| times.verify.at_ns(1, 0)).min()
        };
        let timed = self.units.iter().filter_map(|unit| Some((quickest(&unit)?, &unit.spec)));
        let spec = timed.min_by_key(|(ns, _)| *ns).map(|(_, spec)| spec.clone());
        let spec = spec.expect("a class was measured");
        let begun = Instant::now();
        let end = begun + self.options.budget / TEXTS_SHARE;
        let plan = self.plain(&spec)?;
        let probe = Probe::start(self.pair, &plan, (self.limits, self.context)).await?;
        let clients = self.limits.parallel;
        let answers = probe.answers(&self.options.prompts, clients, (TOKENS_MAX, end)).await?;
        probe.stop();
        self.texts = texts::guessed(self.pair, &spec, self.slots(), answers)?;
        self.texts_took = begun.elapsed();
        Ok(())
    }

    /// The target over two units.
    async fn visit_split(&mut self) -> Result<(), CalibrateError> {
        let Some((front, back)) = self.halves.clone() else { return Ok(()) };
        self.tell("a split model");
        if !self.all_measured(&[&front, &back]) {
            return Ok(());
        }
        let plan = self.split_plan(front, back)?;
        let clocks = self.in_engine(&plan, &DEPTHS).await?;
        self.split.extend(clocks);
        Ok(())
    }

    fn split_plan(&self, front: UnitSpec, back: UnitSpec) -> Result<PartitionPlan, PlanError> {
        let layers = self.layers();
        let target = vec![(0, layers / 2), (1, layers - layers / 2)];
        let deepest = DEPTHS.into_iter().max().unwrap_or(0);
        let draft_tokens = DraftTokens::Fixed(deepest);
        let (mode, draft) = match self.pair.draft {
            Some(_) => (Mode::Sequential { draft_tokens }, Some(1)),
            None => (Mode::Plain, None),
        };
        Composition { mode, units: vec![front, back], target, draft }
            .plan("calibration", self.context)
    }

    /// Whether units of these classes, or of more and of fewer cores, are among those that are visited.
    fn all_measured(&self, specs: &[&UnitSpec]) -> bool {
        let known = |spec: &&UnitSpec| {
            let class = UnitClass::of(spec, &self.context.machine);
            let cores = class.single_cluster();
            self.units.iter().any(|unit| {
                unit.class == class
                    || cores.is_some_and(|(cluster, _)| {
                        unit.class.single_cluster().is_some_and(|(of, _)| of == cluster)
                    })
            })
        };
        specs.iter().all(known)
    }

    /// A unit for each model: taking turns, and at the same time.
    async fn visit_pairs(&mut self) {
        for mut pair in std::mem::take(&mut self.pairs) {
            self.tell("a unit for each model");
            let (target, draft) = pair.units.clone();
            if !self.all_measured(&[&target, &draft]) {
                continue;
            }
            match self.visit_pair(&mut pair).await {
                Ok(()) => self.pairs.push(pair),
                Err(error) => {
                    tracing::warn!(%error, "two units were not measured beside each other");
                }
            }
        }
    }

    async fn visit_pair(&mut self, pair: &mut Beside) -> Result<(), CalibrateError> {
        let (turns, overlap) = self.pair_plans(&pair.units)?;
        pair.turns.extend(self.in_engine(&turns, &[DEPTH]).await?);
        self.tell("a unit for each model, at the same time");
        pair.overlap.extend(self.in_engine(&overlap, &[DEPTH]).await?);
        Ok(())
    }

    /// The two models on two units: in turns, and at the same time.
    fn pair_plans(
        &self,
        (target, draft): &(UnitSpec, UnitSpec),
    ) -> Result<(PartitionPlan, PartitionPlan), PlanError> {
        let draft_tokens = DraftTokens::Fixed(DEPTH);
        let turns = self.drafting(Mode::Sequential { draft_tokens }, (target, draft))?;
        let overlap = self.drafting(Mode::Overlap { draft_tokens, wait: 1 }, (target, draft))?;
        Ok((turns, overlap))
    }

    /// The tables of each class, and what lies around its jobs in the engine.
    fn fit_units(&mut self) -> Result<(), CalibrateError> {
        for unit in &self.units {
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
        for unit in &self.units {
            let around = self.around(unit)?;
            self.model.units.get_mut(&unit.class).expect("it was just put there").around = around;
        }
        Ok(())
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

    /// What lies around jobs on units of a class, which have nothing around them yet.
    fn around(&self, unit: &Visited) -> Result<AroundJobs, CalibrateError> {
        let plan = self.together(&unit.spec, DEPTH)?;
        let times = self.model.times(&plan, self.context).expect("its unit was just measured");
        let answers = |drafting: bool| {
            let of = move |clock: &&Clock| (clock.depth > 0) == drafting;
            unit.engine.iter().filter(of).map(|clock| &clock.answered)
        };
        let (plain, drafting) = if self.pair.draft.is_some() {
            (answers(false).collect::<Vec<_>>(), answers(true).collect())
        } else {
            (unit.engine.iter().map(|clock| &clock.answered).collect(), Vec::new())
        };
        let clocked = Clocked::of(plain.iter().copied(), self.layers());
        let excess = Excess::of(plain.iter().copied(), &times);
        let target_hop_ns = clocked.hops_ns.0;
        let around = AroundJobs {
            target_hop_ns,
            draft_hop_ns: target_hop_ns,
            target_ns: excess.line(Kind::Pass).one_ns,
            target_prompt_ns: excess.mean_ns(Kind::Prompt),
            request_ns: clocked.request_ns,
            ..AroundJobs::default()
        };
        if drafting.is_empty() {
            return Ok(around);
        }
        let clocked = Clocked::of(drafting.iter().copied(), self.layers());
        let excess = Excess::of(drafting.iter().copied(), &times);
        // What a round hops more than twice a plain one's goes with the draft.
        let both = clocked.hops_ns.0 + clocked.hops_ns.1;
        let (target, draft) = (excess.line(Kind::Pass), excess.line(Kind::Draft));
        Ok(AroundJobs {
            draft_hop_ns: both.saturating_sub(target_hop_ns),
            target_row_ns: target.each_ns,
            target_after_draft_ns: target.one_ns - around.target_ns,
            draft_after_target_ns: draft.one_ns,
            draft_step_ns: draft.each_ns,
            draft_prompt_ns: excess.line(Kind::DraftPrompt).one_ns,
            ..around
        })
    }

    /// How the texts of these answers go under a plan by what is known so far, without hops.
    fn rehearsed(&self, plan: &PartitionPlan, clocks: &[&Clock]) -> Course {
        let mut model = self.model.clone();
        for unit in model.units.values_mut() {
            (unit.around.target_hop_ns, unit.around.draft_hop_ns) = (0, 0);
        }
        let texts = clocks.iter().map(|clock| self.texts[clock.text].clone()).collect();
        let known = (model, self.context.clone());
        let foresight = Foresight::of_pair(self.pair, self.limits, known, Workload::single(texts));
        foresight.course(plan).expect("its units were just measured")
    }

    /// What a stage on another unit costs: the message, waking that unit up, and rows that both have to hold.
    fn fit_split(&mut self) {
        let Some((front, back)) = self.halves.clone() else { return };
        let Ok(plan) = self.split_plan(front, back) else { return };
        let Ok(times) = self.model.times(&plan, self.context) else { return };
        if self.split.is_empty() {
            return;
        }
        let answers = || self.split.iter().map(|clock| &clock.answered);
        let between_ns = Clocked::of(answers(), self.layers()).between_ns;
        // Two stages, so twice of each: what a pass takes more, and what each of its further rows does, which goes with the
        // activations.
        let line = Excess::of(answers(), &times).line(Kind::Pass);
        let row_ns = (2 * line.each_ns).max(0) as u64;
        let row_bytes = 4 * self.context.target.width as u64;
        self.model.link_default = LinkProfile {
            latency_ns: between_ns.saturating_add_signed(2 * line.one_ns - row_ns as i64),
            bytes_per_second: (row_bytes * 1_000_000_000).checked_div(row_ns).unwrap_or(0),
        };
    }

    /// What two units do to each other that hold a model each: taking turns, and at the same time.
    fn fit_pairs(&mut self) {
        for pair in std::mem::take(&mut self.pairs) {
            let class = |spec| UnitClass::of(spec, &self.context.machine);
            let (target, draft) = (class(&pair.units.0), class(&pair.units.1));
            let Ok(plans) = self.pair_plans(&pair.units) else { continue };
            if self.model.times(&plans.1, self.context).is_err() || pair.overlap.is_empty() {
                continue;
            }
            self.model.contention.push(Contention {
                target,
                draft,
                target_permille: 1000,
                draft_permille: 1000,
                target_apart_ns: 0,
                draft_apart_ns: 0,
            });
            self.fit_turns(&plans.0, &pair.turns);
            self.fit_overlap(&plans.1, &pair.overlap);
        }
    }

    fn fit_turns(&mut self, plan: &PartitionPlan, clocks: &[Clock]) {
        let Ok(times) = self.model.times(plan, self.context) else { return };
        let answers = || clocks.iter().map(|clock| &clock.answered);
        let clocked = Clocked::of(answers(), self.layers());
        let excess = Excess::of(answers(), &times);
        let hops = times.hop_ns(ModelRole::Target) + times.hop_ns(ModelRole::Draft);
        // Hops between sleeping units may be longer than those within one.
        let hopping = (clocked.hops_ns.0 + clocked.hops_ns.1) as i64 - hops as i64;
        let found = self.model.contention.last_mut().expect("it was just pushed");
        found.target_apart_ns = excess.mean_ns(Kind::Pass) + hopping;
        found.draft_apart_ns = excess.mean_ns(Kind::Draft);
    }

    fn fit_overlap(&mut self, plan: &PartitionPlan, clocks: &[Clock]) {
        let clocks: Vec<&Clock> =
            clocks.iter().filter(|clock| clock.text < self.texts.len()).collect();
        if clocks.is_empty() {
            return;
        }
        let clocked = Clocked::of(clocks.iter().map(|clock| &clock.answered), self.layers());
        for _ in 0..FITTING_ROUNDS {
            let course = self.rehearsed(plan, &clocks);
            let found = self.model.contention.last_mut().expect("it was just pushed");
            let foreseen = [(course.jobs.0, course.jobs_ns.0), (course.jobs.1, course.jobs_ns.1)];
            found.target_permille =
                rounds::slower(found.target_permille, clocked.target, foreseen[0]);
            found.draft_permille = rounds::slower(found.draft_permille, clocked.draft, foreseen[1]);
        }
    }
}

/// Times, texts, and the units that were left out.
pub(super) type Results = (CostModel, Vec<SampleText>, BTreeMap<UnitClass, String>);

/// Visits of a round: a loop and an engine for each class, the split target, turns and overlap of each pair.
fn visits(units: usize, split: bool, pairs: usize) -> u32 {
    (2 * units + usize::from(split) + 2 * pairs).max(1) as u32
}

/// Rounds over so many visits in this time, and the time of each visit.
fn shares(time: Duration, visits: u32) -> (u32, Duration) {
    let rounds = (time.as_millis() / VISIT_MIN.as_millis() / u128::from(visits)) as u32;
    let rounds = rounds.clamp(1, ROUNDS_MAX);
    (rounds, time / (rounds * visits))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ROUNDS_MAX, shares, visits};

    /// However many units there are, all visits together take the time that there is.
    #[test]
    fn many_units_are_visited_less_often_and_more_briefly() {
        let time = Duration::from_secs(18);
        for units in 1..40 {
            let visits = visits(units, units > 1, units - 1);
            let (rounds, slice) = shares(time, visits);
            assert!((1..=ROUNDS_MAX).contains(&rounds));
            assert!(rounds * visits * slice <= time, "{units} units");
        }
        assert_eq!(shares(time, visits(2, true, 1)).0, 4);
        assert_eq!(shares(time, visits(7, true, 6)).0, 1);
    }
}
