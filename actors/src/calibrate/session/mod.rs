//! A calibration under way: who is visited when. What all visits together say is in `fit`.
//!
//! Every class of units is visited in a loop and in the engine, then the target over two units, then each pair of units beside
//! each other: once in this order, then always what has had the least time so far. *Invariant:* each thing is visited at least once,
//! and none for longer than another while visits of that one still fit into the time.

mod fit;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outrider_devices::{DeviceError, SlotLimits};
use outrider_pipeline::Speculation;
use outrider_plans::cost::{RoleProfile, SampleText};
use outrider_plans::search::Composition;
use outrider_plans::{
    CostModel, DraftTokens, Mode, ModelRole, PartitionPlan, PlanContext, PlanError, UnitClass,
    UnitSpec,
};

use super::classes::{self, classes};
use super::loops::{Ask, LoopError, Profiles};
use super::rounds::{Answered, Probe};
use super::{CalibrateError, Options, Step, texts};
use crate::engine::EngineLimits;
use crate::pair::Pair;

/// Drafted tokens of the plans that show what models on two units do to each other.
const DEPTH: u32 = 4;
/// Depths of the requests to a unit that holds both models, in one visit and in the next: none, few, many.
const DEPTHS: [[u32; 5]; 2] = [[0, 4, 1, 8, 2], [0, 3, 7, 2, 5]];
/// Most tokens of an answer.
const TOKENS_MAX: u32 = 48;
/// Tokens of an answer that is not clocked, where the depth changes: caches hold what the passes before have left in them.
const SETTLING_TOKENS: u32 = 8;
/// How often everything should be visited, and the least and the most that a visit lasts.
const VISITS: u32 = 4;
const VISIT: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(500));
/// Parts of a visit to an engine. Parts of all visits to a thing are put beside each other.
const PARTS: u32 = 2;
/// Of the time, one part in so many is for the texts, and one for what follows the visits.
const TEXTS_SHARE: u32 = 8;
const SEARCH_SHARE: u32 = 16;

/// An answer to a prompt, with every job clocked.
struct Clock {
    /// In which part of which visit.
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

/// What is visited.
#[derive(Clone)]
enum Thing {
    Loops(UnitClass),
    Engine(UnitClass),
    Texts,
    /// Which of the splits.
    Split(usize),
    /// Which of the pairs: taking turns, and at the same time.
    Turns(usize),
    Overlap(usize),
}

/// A thing, how often and for how long it was visited, and how long the last visit took.
struct Turn {
    thing: Thing,
    visits: u32,
    spent: Duration,
    last: Duration,
}

/// What visits to a class of units gave.
struct Visited {
    class: UnitClass,
    spec: UnitSpec,
    loops: BTreeMap<ModelRole, Vec<RoleProfile>>,
    engine: Vec<Clock>,
}

/// A calibration under way.
pub(crate) struct Session<'a> {
    pair: &'a Pair,
    limits: EngineLimits,
    context: &'a PlanContext,
    options: Options<'a>,
    begun: Instant,
    slice: Duration,
    turns: Vec<Turn>,
    units: Vec<Visited>,
    splits: Vec<Split>,
    pairs: Vec<Beside>,
    /// The prompts' texts, in their order.
    texts: Vec<SampleText>,
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
        let unit =
            |(class, spec)| Visited { class, spec, loops: BTreeMap::new(), engine: Vec::new() };
        let units: Vec<_> = classes(&context.machine).into_iter().map(unit).collect();
        let pairs =
            if pair.draft.is_some() { classes::pairs(&context.machine) } else { Vec::new() };
        let beside = |units| Beside { units, turns: Vec::new(), overlap: Vec::new() };
        let pairs: Vec<_> = pairs.into_iter().map(beside).collect();
        let splits = match context.target.layers() {
            1 => Vec::new(),
            _ => classes::splits(&context.machine),
        };
        let split = |units| Split { units, clocks: Vec::new() };
        let splits: Vec<_> = splits.into_iter().map(split).collect();
        let turns = things(&units, splits.len(), pairs.len());
        let slice = slice(options.budget / TEXTS_SHARE * (TEXTS_SHARE - 2), turns.len());
        Self {
            pair,
            limits,
            context,
            options,
            begun: Instant::now(),
            slice,
            turns,
            units,
            splits,
            pairs,
            texts: Vec::new(),
            next_text: 0,
            model: CostModel::default(),
            left_out: BTreeMap::new(),
        }
    }

    /// Tells what comes now, and which part of the time is over.
    pub(super) fn tell(&self, what: &str) {
        let (done, all) = (self.begun.elapsed(), self.options.budget);
        (self.options.progress)(Step { done, all, what });
        tracing::info!(what, elapsed_ms = done.as_millis() as u64, "calibrating");
    }

    /// Visits everything once, and again whatever there is time for.
    pub(super) async fn visit_all(&mut self) -> Result<(), CalibrateError> {
        let end = self.options.budget - self.options.budget / SEARCH_SHARE;
        while let Some(place) = next(&self.turns, end.saturating_sub(self.begun.elapsed())) {
            self.visit(place).await?;
        }
        Ok(())
    }

    /// Visits what was visited the fewest times.
    ///
    /// # Errors
    /// A unit that fails is left out; it is an error if none is left.
    pub(crate) async fn visit_next(&mut self) -> Result<(), CalibrateError> {
        let due = (0..self.turns.len()).filter(|place| self.turns[*place].is_due());
        match due.min_by_key(|place| self.turns[*place].visits) {
            Some(place) => self.visit(place).await,
            None => Ok(()),
        }
    }

    /// Visits once what runs on GPUs, so that their drivers have compiled it.
    pub(super) async fn visit_gpus(&mut self) -> Result<(), CalibrateError> {
        let is_gpu = |spec: &UnitSpec| self.context.machine.gpus().any(|gpu| gpu == *spec);
        self.units.retain(|unit| is_gpu(&unit.spec));
        for class in self.units.iter().map(|unit| unit.class.clone()).collect::<Vec<_>>() {
            for thing in [Thing::Loops(class.clone()), Thing::Engine(class)] {
                self.visit_unit(&thing, 0).await?;
            }
        }
        for Split { units, .. } in std::mem::take(&mut self.splits) {
            if is_gpu(&units.0) || is_gpu(&units.1) {
                self.clock_split(&units, 0).await?;
            }
        }
        Ok(())
    }

    /// How many things there are to visit.
    pub(crate) fn things(&self) -> usize {
        self.turns.len()
    }

    async fn visit(&mut self, place: usize) -> Result<(), CalibrateError> {
        let begun = Instant::now();
        let Turn { thing, visits, .. } = &self.turns[place];
        let (thing, visit) = (thing.clone(), *visits);
        let is_there = match &thing {
            Thing::Loops(_) | Thing::Engine(_) => self.visit_unit(&thing, visit).await?,
            Thing::Texts => {
                self.tell("what the target answers, and what the draft says");
                self.read_texts().await?;
                true
            }
            Thing::Split(split) => self.visit_split(*split, visit).await,
            Thing::Turns(pair) => self.visit_pair((*pair, false), visit).await,
            Thing::Overlap(pair) => self.visit_pair((*pair, true), visit).await,
        };
        if is_there {
            self.turns[place].note(begun.elapsed());
        } else {
            self.turns.remove(place);
        }
        Ok(())
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

    /// A class of units in a loop or in the engine, whichever the thing is. Returns whether it can be measured.
    async fn visit_unit(&mut self, thing: &Thing, visit: u32) -> Result<bool, CalibrateError> {
        let (Thing::Loops(class) | Thing::Engine(class)) = thing else { return Ok(false) };
        let Some(place) = self.units.iter().position(|unit| unit.class == *class) else {
            return Ok(false);
        };
        let mut unit = self.units.remove(place);
        let visited = match thing {
            Thing::Loops(_) => self.visit_loops(&mut unit),
            _ => self.visit_engine(&mut unit, visit).await,
        };
        let is_there = visited.is_ok();
        match visited {
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
        Ok(is_there)
    }

    fn visit_loops(&self, unit: &mut Visited) -> Result<(), CalibrateError> {
        self.tell(&format!("{}: both models in a loop", unit.class));
        for (role, profile) in self.in_loops(unit)? {
            unit.loops.entry(role).or_default().push(profile);
        }
        Ok(())
    }

    async fn visit_engine(&mut self, unit: &mut Visited, visit: u32) -> Result<(), CalibrateError> {
        self.tell(&format!("{}: in the engine", unit.class));
        let depths = &DEPTHS[visit as usize % DEPTHS.len()];
        let deepest = depths.iter().copied().max().unwrap_or(0);
        let plan = self.together(&unit.spec, deepest)?;
        unit.engine.extend(self.in_engine(&plan, depths, visit).await?);
        Ok(())
    }

    /// Measures a class in a loop, on a thread of its own, where the device lives.
    fn in_loops(&self, unit: &Visited) -> Result<Profiles, CalibrateError> {
        let plan = self.plain(&unit.spec)?;
        let factory = crate::fleet::factory(plan.units.values().next().expect("one unit"));
        let roles = [ModelRole::Target, ModelRole::Draft];
        let roles = roles.into_iter().filter(|role| self.pair.model(*role).is_some());
        let roles: Vec<_> = roles.collect();
        let budget = self.slice;
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
        visit: u32,
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
        probe.warm_up(far.clone(), (TOKENS_MAX, speculation(deepest))).await?;
        let (mut far, mut settled) = (far.cycle(), deepest);
        // The rest is for starting and warming up.
        let (begun, time) = (Instant::now(), self.slice / 2);
        let mut clocks = Vec::new();
        let mut turn = 0;
        while turn < depths.len() || (begun.elapsed() < time && turn < prompts.len()) {
            let text = (self.next_text + turn) % prompts.len();
            let depth = depths[turn % depths.len()];
            let gone = begun.elapsed().as_nanos() * u128::from(PARTS) / time.as_nanos().max(1);
            let part = visit * PARTS + (gone as u32).min(PARTS - 1);
            if settled != depth
                && let Some(text) = far.next()
            {
                probe.answer(text, SETTLING_TOKENS, speculation(depth)).await?;
                settled = depth;
            }
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
        let end = Instant::now() + self.options.budget / TEXTS_SHARE;
        let plan = self.plain(&spec)?;
        let probe = Probe::start(self.pair, &plan, (self.limits, self.context)).await?;
        let clients = self.limits.parallel;
        let answers = probe.answers(&self.options.prompts, clients, (TOKENS_MAX, end)).await?;
        probe.stop();
        self.texts = texts::guessed(self.pair, &spec, self.slots(), answers)?;
        Ok(())
    }

    /// The target over two units. Returns whether that can be measured.
    async fn visit_split(&mut self, place: usize, visit: u32) -> bool {
        let units = self.splits[place].units.clone();
        if !self.all_measured(&[&units.0, &units.1]) {
            return false;
        }
        self.tell("a split model");
        match self.clock_split(&units, visit).await {
            Ok(clocks) => self.splits[place].clocks.extend(clocks),
            Err(error) => {
                tracing::warn!(%error, "a split model was not measured");
                return false;
            }
        }
        true
    }

    async fn clock_split(
        &mut self,
        units: &(UnitSpec, UnitSpec),
        visit: u32,
    ) -> Result<Vec<Clock>, CalibrateError> {
        let plan = self.split_plan(units)?;
        self.in_engine(&plan, &[DEPTH], visit).await
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

    /// A unit for each model, in turns or at once. Returns whether that can be measured.
    async fn visit_pair(&mut self, (place, at_once): (usize, bool), visit: u32) -> bool {
        let units = self.pairs[place].units.clone();
        if !self.all_measured(&[&units.0, &units.1]) {
            return false;
        }
        self.tell(match at_once {
            true => "a unit for each model, at the same time",
            false => "a unit for each model",
        });
        let clocks = match self.clock_pair((&units, at_once), visit).await {
            Ok(clocks) => clocks,
            Err(error) => {
                tracing::warn!(%error, "two units were not measured beside each other");
                return false;
            }
        };
        let Beside { turns, overlap, .. } = &mut self.pairs[place];
        (if at_once { overlap } else { turns }).extend(clocks);
        true
    }

    async fn clock_pair(
        &mut self,
        (units, at_once): (&(UnitSpec, UnitSpec), bool),
        visit: u32,
    ) -> Result<Vec<Clock>, CalibrateError> {
        let (turns, overlap) = self.pair_plans(units)?;
        let plan = if at_once { overlap } else { turns };
        self.in_engine(&plan, &[DEPTH], visit).await
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

impl Turn {
    fn new(thing: Thing) -> Self {
        Self { thing, visits: 0, spent: Duration::ZERO, last: Duration::ZERO }
    }

    /// Texts are read once.
    fn is_due(&self) -> bool {
        self.visits == 0 || !matches!(self.thing, Thing::Texts)
    }

    fn note(&mut self, took: Duration) {
        (self.last, self.visits) = (took, self.visits + 1);
        self.spent += took;
    }
}

/// Everything that is visited, in the order of the first visits: what is measured beside others comes after these.
fn things(units: &[Visited], splits: usize, pairs: usize) -> Vec<Turn> {
    let of_unit =
        |unit: &Visited| [Thing::Loops(unit.class.clone()), Thing::Engine(unit.class.clone())];
    let pair = |pair| [Thing::Turns(pair), Thing::Overlap(pair)];
    let units = units.iter().flat_map(of_unit);
    let together = (0..splits).map(Thing::Split).chain((0..pairs).flat_map(pair));
    units.chain([Thing::Texts]).chain(together).map(Turn::new).collect()
}

/// How long a visit lasts where so many things have this time.
fn slice(time: Duration, things: usize) -> Duration {
    (time / (VISITS * things.max(1) as u32)).clamp(VISIT.0, VISIT.1)
}

/// Whose turn it is: what was never visited, in order; then what has had the least time, if it takes no longer than what is left.
fn next(turns: &[Turn], left: Duration) -> Option<usize> {
    let all = || turns.iter().enumerate();
    let again = |(_, turn): &(usize, &Turn)| turn.is_due() && turn.last <= left;
    let new = all().find(|(_, turn)| turn.visits == 0);
    let next = new.or_else(|| all().filter(again).min_by_key(|(_, turn)| turn.spent));
    next.map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrider_plans::UnitClass;

    use super::{Thing, Turn, next};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Everything once, in order; then all have the same time, and what no longer fits is not begun.
    #[test]
    fn time_is_shared_by_things_and_not_by_visits() {
        let slow = UnitClass::Gpu { adapter: 0, name: "slow".into() };
        let things = [
            (Thing::Loops(UnitClass::cores(0, 1)), ms(900), ms(300)),
            (Thing::Engine(UnitClass::cores(0, 1)), ms(300), ms(300)),
            (Thing::Texts, ms(2000), ms(2000)),
            (Thing::Engine(slow), ms(3000), ms(3000)),
        ];
        let mut turns: Vec<Turn> =
            things.iter().map(|(thing, ..)| Turn::new(thing.clone())).collect();
        let (mut left, mut order) = (ms(9000), Vec::new());
        while let Some(place) = next(&turns, left) {
            let (_, first, again) = things[place];
            let took = if turns[place].visits == 0 { first } else { again };
            turns[place].note(took);
            left -= took;
            order.push(place);
        }
        assert_eq!(order[..4], [0, 1, 2, 3]);
        assert!(left < ms(300), "another visit would have fitted into {left:?}");
        let visits: Vec<u32> = turns.iter().map(|turn| turn.visits).collect();
        assert_eq!(visits, [5, 6, 1, 1]);
        assert!(turns[0].spent.abs_diff(turns[1].spent) <= ms(300));
    }

    #[test]
    fn the_first_visits_are_made_whatever_time_is_left() {
        let turns = vec![Turn::new(Thing::Texts)];
        assert_eq!(next(&turns, Duration::ZERO), Some(0));
        assert_eq!(next(&[], ms(1000)), None);
    }
}
