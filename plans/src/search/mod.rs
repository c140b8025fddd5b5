//! Which plan to run: mappings of stages to units and core counts, modes and depths, best first.
//!
//! | module | what it does |
//! |---|---|
//! | [`space`] | the placements that are worth a look: one unit for both models, one each, a target cut over several |
//! | [`cuts`] | where to cut a target over a row of units: dynamic programming |
//! | [`compose`] | a plan from its parts |
//!
//! For each placement and mode the depth is found by climbing: from a middle one to whichever neighbour is better. A
//! forecast costs a rehearsal, so a quick one on a part of the texts ranks all candidates, and a full one the best of them.
//!
//! *Invariant:* every plan that comes out was checked like one that somebody wrote, and has a forecast. Equal plans are ranked alike
//! everywhere: by objective, then memory, then number of units, then the simpler mode, then content.

pub mod compose;
pub mod cuts;
pub mod space;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::context::PlanContext;
use crate::cost::{Forecast, ForecastError};
use crate::mode::{DraftTokens, Mode};
use crate::plan::{PartitionPlan, PlanId};
pub use compose::Composition;
pub use space::Space;

/// What a plan is to be best at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// Tokens per second of all requests together.
    #[default]
    Throughput,
    /// Time until a reader has the first 32 tokens.
    Latency,
    /// Energy of a token, by the units' power: a proxy.
    EnergyProxy,
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "throughput" => Ok(Objective::Throughput),
            "latency" => Ok(Objective::Latency),
            "energy-proxy" => Ok(Objective::EnergyProxy),
            _ => Err(format!(
                "`{word}` is not an objective: choose throughput, latency or energy-proxy"
            )),
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Objective::Throughput => "throughput",
            Objective::Latency => "latency",
            Objective::EnergyProxy => "energy-proxy",
        })
    }
}

impl Objective {
    /// What is to be as small as possible.
    fn cost(self, forecast: &Forecast, concurrent: usize) -> u64 {
        let rate = forecast.microtokens_per_second.max(1);
        match self {
            Objective::Throughput => u64::MAX - rate,
            Objective::Latency => {
                let each =
                    1_000_000_000_000_000_u128 * concurrent.max(1) as u128 / u128::from(rate);
                forecast.first_token_ns.saturating_add(u64::try_from(31 * each).unwrap_or(u64::MAX))
            }
            Objective::EnergyProxy => forecast.energy_nj_per_token,
        }
    }
}

/// A plan and what it is expected to yield.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Candidate {
    /// The plan.
    pub plan: PartitionPlan,
    /// Its forecast.
    pub forecast: Forecast,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The best plans, best first; at most [`KEPT`], each placement and mode once.
    pub ranked: Vec<Candidate>,
    /// The best plan that drafts nothing.
    pub plain: Option<Candidate>,
    /// Plans with a forecast.
    pub tried: usize,
    /// Plans that did not fit the machine's memory or the limit.
    pub too_large: usize,
    /// Why some plans have no forecast: the first reason.
    pub unmeasured: Option<ForecastError>,
}

/// Plans that are ranked in the end.
pub const KEPT: usize = 12;
/// The depth from which the climb begins.
const DEPTH_FIRST: u32 = 4;

/// Who makes forecasts.
pub trait Forecaster {
    /// A quick forecast, good enough to rank by.
    fn quick(&self, plan: &PartitionPlan) -> Result<Forecast, ForecastError>;
    /// The full one.
    fn full(&self, plan: &PartitionPlan) -> Result<Forecast, ForecastError>;
}

/// What to search for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// What the plan is to be best at.
    pub objective: Objective,
    /// Most bytes on all units together, if that is limited.
    pub memory_bytes_max: Option<u64>,
    /// Requests at one time; the forecaster's own number.
    pub concurrent: usize,
}

/// Searches the plans of a space.
pub fn search(
    context: &PlanContext,
    space: &Space,
    wanted: Wanted,
    forecaster: &dyn Forecaster,
) -> Found {
    let mut search = Search {
        context,
        wanted,
        forecaster,
        known: BTreeMap::new(),
        too_large: 0,
        unmeasured: None,
    };
    let mut best: Vec<(u64, PartitionPlan)> = Vec::new();
    for placement in space.placements(context) {
        for mode in space::modes(&placement, context) {
            best.extend(search.climb(&placement, mode));
        }
    }
    best.sort_by_key(|a| search.rank(a));
    best.dedup_by_key(|(_, plan)| plan.fingerprint());
    let plain = best.iter().find(|(_, plan)| plan.mode == Mode::Plain).cloned();
    let full = |(_, plan): &(u64, PartitionPlan)| {
        let forecast = forecaster.full(plan).ok()?;
        Some(Candidate { plan: plan.clone(), forecast })
    };
    let mut ranked: Vec<Candidate> = best.iter().take(KEPT).filter_map(full).collect();
    let plain = plain.as_ref().and_then(full);
    if let Some(plain) = &plain
        && !ranked.iter().any(|c| c.plan.fingerprint() == plain.plan.fingerprint())
    {
        ranked.push(plain.clone());
    }
    let cost = |c: &Candidate| wanted.objective.cost(&c.forecast, wanted.concurrent);
    ranked.sort_by_cached_key(|c| (cost(c), order(&c.plan)));
    Found {
        plain: ranked.iter().find(|c| c.plan.mode == Mode::Plain).cloned(),
        ranked,
        tried: search.known.len(),
        too_large: search.too_large,
        unmeasured: search.unmeasured,
    }
}

/// What decides between plans that are equally good.
fn order(plan: &PartitionPlan) -> Order {
    let bytes = plan.units.keys().map(|unit| plan.unit_memory(unit).total_bytes()).sum();
    // Where no text repeats itself, lookup does what the draft alone does: the simpler one is named.
    let mode = match plan.mode {
        Mode::Plain => 0,
        Mode::Sequential { .. } => 1,
        Mode::Overlap { .. } => 2,
        Mode::Lookup { .. } => 3,
    };
    (bytes, plan.units.len(), mode, plan.fingerprint(), Reverse(plan.mode.draft_tokens()))
}

/// Memory, units, mode, content, depth.
type Order = (u64, usize, u8, PlanId, Reverse<u32>);

struct Search<'a> {
    context: &'a PlanContext,
    wanted: Wanted,
    forecaster: &'a dyn Forecaster,
    /// Costs of plans that were tried.
    known: BTreeMap<PlanId, u64>,
    too_large: usize,
    unmeasured: Option<ForecastError>,
}

impl Search<'_> {
    fn rank(&self, (cost, plan): &(u64, PartitionPlan)) -> (u64, Order) {
        (*cost, order(plan))
    }

    /// The best depth of a mode on a placement: climbing from [`DEPTH_FIRST`] while a neighbour is better.
    fn climb(&mut self, placement: &Composition, mode: Mode) -> Option<(u64, PartitionPlan)> {
        let at = |depth: u32| match mode {
            Mode::Plain => Some(mode),
            _ => mode.with_draft_tokens(DraftTokens::Fixed(depth)).ok(),
        };
        let mut best = self.try_mode(placement, at(DEPTH_FIRST)?)?;
        if mode == Mode::Plain {
            return Some(best);
        }
        let mut depth = DEPTH_FIRST;
        for step in [1i64, -1] {
            loop {
                let next = (i64::from(depth) + step) as u32;
                let Some(found) = at(next).and_then(|mode| self.try_mode(placement, mode)) else {
                    break;
                };
                if found.0 >= best.0 {
                    break;
                }
                (best, depth) = (found, next);
            }
            if depth != DEPTH_FIRST {
                break;
            }
        }
        Some(best)
    }

    fn try_mode(&mut self, placement: &Composition, mode: Mode) -> Option<(u64, PartitionPlan)> {
        let composition = Composition { mode, ..placement.clone() };
        let plan = match composition.plan(&composition.name(), self.context) {
            Ok(plan) => plan,
            Err(_) => {
                self.too_large += 1;
                return None;
            }
        };
        let bytes: u64 = plan.units.keys().map(|unit| plan.unit_memory(unit).total_bytes()).sum();
        if self.wanted.memory_bytes_max.is_some_and(|max| bytes > max) {
            self.too_large += 1;
            return None;
        }
        if let Some(cost) = self.known.get(&plan.fingerprint()) {
            return Some((*cost, plan));
        }
        match self.forecaster.quick(&plan) {
            Ok(forecast) => {
                let cost = self.wanted.objective.cost(&forecast, self.wanted.concurrent);
                self.known.insert(plan.fingerprint(), cost);
                Some((cost, plan))
            }
            Err(error) => {
                self.unmeasured.get_or_insert(error);
                None
            }
        }
    }
}
