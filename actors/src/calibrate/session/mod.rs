//! A calibration under way: who is visited when. What all visits together say is in `fit`.
//!
//! In each round every class of units is visited in a loop and in the engine, then the target over two units, then each pair of
//! units beside each other. A visit lasts its slice of the time. *Invariant:* whatever was measured of one thing, it was
//! measured in as many rounds as of any other, but for loops of a unit so slow that one visit outlasted its slice.

mod fit;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use outrider_devices::{DeviceError, SlotLimits};
use outrider_pipeline::Speculation;
use outrider_plans::cost::{RoleProfile, SampleText};
use outrider_plans::search::Composition;
use outrider_plans::{
    CostModel, DraftTokens, Mode, ModelRole, PartitionPlan, PlanContext, PlanError, UnitClass,
    UnitSpec,
};

use super::loops::{Ask, LoopError, Profiles};
use super::rounds::{Answered, Probe};
use super::{CalibrateError, Options, Step, classes, texts};
use crate::engine::EngineLimits;
use crate::pair::Pair;

/// Drafted tokens of the plans that show what models on two units do to each other.
const DEPTH: u32 = 4;
/// Depths of the requests to a unit that holds both models: none, few, many.
const DEPTHS: [u32; 5] = [0, 4, 1, 8, 2];
/// Most tokens of an answer.
const TOKENS_MAX: u32 = 48;
/// Most rounds, and what a visit should last at least.
const ROUNDS_MAX: u32 = 6;
const VISIT_MIN: Duration = Duration::from_millis(450);
/// Parts of visits to a thing that are put beside each other, at least: where there are fewer rounds, visits are divided.
const PARTS_MIN: u32 = 4;
/// Of the time, one part in so many is for the texts; as much is kept for the search.
const TEXTS_SHARE: u32 = 8;

/// An answer to a prompt, with every job clocked.
struct Clock {
    /// In which part of which visit; parts of all visits to a thing are put beside each other.
    part: u32,
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

/// The target over two units.
struct Split {
    units: (UnitSpec, UnitSpec),
    clocks: Vec<Clock>,
}

/// What is visited in a round.
enum Visit {
    Unit(UnitClass),
    Texts,
    /// Which of them.
    Split(usize),
    Pair(UnitSpec, UnitSpec),
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

/// A calibration under way.
pub(crate) struct Session<'a> {
    pair: &'a Pair,
    limits: EngineLimits,
    context: &'a PlanContext,
    options: Options<'a>,
    begun: Instant,
    rounds: u32,
    slice: Duration,
    done: usize,
    /// Which round it is, from 0, and what is still to be visited in it.
    round: u32,
    left: VecDeque<Visit>,
    units: Vec<Visited>,
    splits: Vec<Split>,
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
    pub(crate) fn new(
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
        let splits = match context.target.layers() {
            1 => Vec::new(),
            _ => super::classes::splits(&context.machine),
        };
        let split = |units| Split { units, clocks: Vec::new() };
        let splits: Vec<_> = splits.into_iter().map(split).collect();
        let visits = visits(units.len(), splits.len(), pairs.len());
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
            round: 0,
            left: VecDeque::new(),
            units,
            splits,
            pairs,
            texts: Vec::new(),
            texts_took: Duration::ZERO,
            next_text: 0,
            model: CostModel::default(),
            left_out: BTreeMap::new(),
        }
    }

    pub(super) fn tell(&mut self, what: &str) {
        let visits = visits(self.units.len(), self.splits.len(), self.pairs.len());
        let all = (self.rounds * visits) as usize + 2;
        (self.options.progress)(Step { done: self.done.min(all), all, what });
        tracing::info!(what, elapsed_ms = self.begun.elapsed().as_millis() as u64, "calibrating");
        self.done += 1;
    }

    /// Visits everything in turn, for as many rounds as there is time for.
    pub(super) async fn visit_all(&mut self) -> Result<(), CalibrateError> {
        for round in 0..self.rounds {
            let begun = self.begun.elapsed();
            while self.visit_next().await? {}
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

    /// Makes the next visit. Returns whether more are left in its round; after the last one, another round begins.
    ///
    /// # Errors
    /// A unit that fails is left out; it is an error if none is left.
    pub(crate) async fn visit_next(&mut self) -> Result<bool, CalibrateError> {
        if self.left.is_empty() {
            self.left = self.round_of_visits();
        }
        match self.left.pop_front() {
            Some(Visit::Unit(class)) => self.visit_unit_of(&class).await?,
            Some(Visit::Texts) => {
                self.tell("what the target answers, and what the draft says");
                self.read_texts().await?;
            }
            Some(Visit::Split(place)) => self.visit_split(place).await,
            Some(Visit::Pair(target, draft)) => self.visit_pair_of((&target, &draft)).await,
            None => {}
        }
        let more = !self.left.is_empty();
        self.round += u32::from(!more);
        Ok(more)
    }

    /// How many visits a round has.
    pub(crate) fn visits(&self) -> usize {
        self.round_of_visits().len()
    }

    fn round_of_visits(&self) -> VecDeque<Visit> {
        let units = self.units.iter().map(|unit| Visit::Unit(unit.class.clone()));
        let texts = self.texts.is_empty().then_some(Visit::Texts);
        let splits = (0..self.splits.len()).map(Visit::Split);
        let pairs = self.pairs.iter().map(|pair| &pair.units);
        let pairs = pairs.map(|(target, draft)| Visit::Pair(target.clone(), draft.clone()));
        units.chain(texts).chain(splits).chain(pairs).collect()
    }

    /// What all visits together say.
    pub(crate) fn result(mut self) -> Result<Results, CalibrateError> {
        self.fit_units()?;
        self.fit_splits();
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

    async fn visit_unit_of(&mut self, class: &UnitClass) -> Result<(), CalibrateError> {
        let Some(place) = self.units.iter().position(|unit| unit.class == *class) else {
            return Ok(());
        };
        let mut unit = self.units.remove(place);
        match self.visit_unit(&mut unit).await {
            Ok(()) => self.units.insert(place, unit),
            Err(error) => {
                tracing::warn!(%class, %error, "left out of the calibration");
                self.left_out.insert(unit.class, error.to_string());
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
        let probe = Probe::start(self.pair, plan, (self.limits, self.context)).await?;
        let prompts = &self.options.prompts;
        let speculation = |depth| match depth {
            0 => Speculation::Off,
            depth => Speculation::Depth(depth),
        };
        // A prompt that is asked about twice would be half in the caches.
        let far = (0..prompts.len() / 2).map(|n| n + self.next_text + prompts.len() / 2);
        let far = far.map(|text| prompts[text % prompts.len()].as_str());
        let deepest = depths.iter().copied().max().unwrap_or(0);
        probe.warm_up(far, (TOKENS_MAX, speculation(deepest))).await?;
        let parts = PARTS_MIN.div_ceil(self.rounds);
        // The rest is for starting and warming up.
        let (begun, time) = (Instant::now(), self.slice / 2);
        let mut clocks = Vec::new();
        let mut turn = 0;
        while turn < depths.len() || (begun.elapsed() < time && turn < prompts.len()) {
            let text = (self.next_text + turn) % prompts.len();
            let depth = depths[turn % depths.len()];
            let gone = begun.elapsed().as_nanos() * u128::from(parts) / time.as_nanos().max(1);
            let part = self.round * parts + (gone as u32).min(parts - 1);
            let answered = probe.answer(&prompts[text], TOKENS_MAX, speculation(depth)).await?;
            clocks.push(Clock { part, text, depth, answered });
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
    async fn visit_split(&mut self, place: usize) {
        self.tell("a split model");
        let units = self.splits[place].units.clone();
        if !self.all_measured(&[&units.0, &units.1]) {
            return;
        }
        match self.clock_split(&units).await {
            Ok(clocks) => self.splits[place].clocks.extend(clocks),
            Err(error) => tracing::warn!(%error, "a split model was not measured"),
        }
    }

    async fn clock_split(
        &mut self,
        units: &(UnitSpec, UnitSpec),
    ) -> Result<Vec<Clock>, CalibrateError> {
        let plan = self.split_plan(units)?;
        self.in_engine(&plan, &[DEPTH]).await
    }

    fn split_plan(&self, (front, back): &(UnitSpec, UnitSpec)) -> Result<PartitionPlan, PlanError> {
        let layers = self.layers();
        let target = vec![(0, layers / 2), (1, layers - layers / 2)];
        let draft_tokens = DraftTokens::Fixed(DEPTH);
        let (mode, draft) = match self.pair.draft {
            Some(_) => (Mode::Sequential { draft_tokens }, Some(1)),
            None => (Mode::Plain, None),
        };
        Composition { mode, units: vec![front.clone(), back.clone()], target, draft }
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
    async fn visit_pair_of(&mut self, (target, draft): (&UnitSpec, &UnitSpec)) {
        self.tell("a unit for each model");
        let found =
            self.pairs.iter().position(|pair| (&pair.units.0, &pair.units.1) == (target, draft));
        let Some(place) = found.filter(|_| self.all_measured(&[target, draft])) else { return };
        let mut pair = self.pairs.remove(place);
        match self.visit_pair(&mut pair).await {
            Ok(()) => self.pairs.insert(place, pair),
            Err(error) => {
                tracing::warn!(%error, "two units were not measured beside each other");
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
}

/// Times, texts, and the units that were left out.
pub(crate) type Results = (CostModel, Vec<SampleText>, BTreeMap<UnitClass, String>);

/// Visits of a round: a loop and an engine for each class, each split target, turns and overlap of each pair.
fn visits(units: usize, splits: usize, pairs: usize) -> u32 {
    (2 * units + splits + 2 * pairs).max(1) as u32
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
            let visits = visits(units, usize::from(units > 1), units - 1);
            let (rounds, slice) = shares(time, visits);
            assert!((1..=ROUNDS_MAX).contains(&rounds));
            assert!(rounds * visits * slice <= time, "{units} units");
        }
        assert_eq!(shares(time, visits(2, 1, 1)).0, 5);
        assert_eq!(shares(time, visits(7, 2, 6)).0, 1);
    }
}
