//! Forecasts: what a plan yields on measured units, and where the time goes.
//!
//! A round is what repeats: in `plain`, `sequential` and `lookup` one verification pass with the drafting before it, in
//! `overlap` the time from one rejection to the next. *Invariant:* the shares of a round add up to the round, but for
//! `overlap`, where they add up to more if units really work at once.

use std::collections::BTreeMap;
use std::fmt;

use super::acceptance::Acceptance;
use super::overlap;
use super::profile::{LinkProfile, MemoryDomain, TimeTable, UnitProfile};
use crate::mode::Mode;
use crate::plan::{PartitionPlan, Placement, UnitSpec};
use crate::role::{ModelRole, StageId, UnitId};

/// Everything that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct CostModel {
    /// Units by their hardware.
    pub units: BTreeMap<UnitSpec, UnitProfile>,
    /// Ways between units, from and to; where one is missing, [`CostModel::link_default`] holds.
    pub links: BTreeMap<(UnitSpec, UnitSpec), LinkProfile>,
    /// Any other way.
    pub link_default: LinkProfile,
    /// Time of a round that is neither model's.
    pub round_ns: u64,
    /// Bytes per second that main memory gives to all units together; 0 if not known, then it limits nothing.
    pub bus_bytes_per_second: u64,
    /// How much longer jobs take while another unit computes, in thousandths: 1000 for no change.
    pub contention_permille: u32,
    /// Values in a row of activations.
    pub width: BTreeMap<ModelRole, usize>,
}

/// What is decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Mean number of cached positions.
    pub context: u32,
    /// Of the draft model's tokens.
    pub acceptance: Acceptance,
    /// Of tokens that `lookup` finds.
    pub lookup_acceptance: Acceptance,
    /// Share of rounds for which `lookup` finds something, in thousandths.
    pub lookup_hit_permille: u32,
}

/// A part of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What the time is for.
    pub what: String,
    /// The unit that computes; `None` for what lies between units.
    pub unit: Option<UnitId>,
    /// Mean time in one round.
    pub ns: u64,
}

/// What a plan is expected to yield for one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Millionths of a token per second.
    pub microtokens_per_second: u64,
    /// Of the same plan's target alone, on the same units.
    pub plain_microtokens_per_second: u64,
    /// Mean time of a round.
    pub round_ns: u64,
    /// Millionths of a token that a round yields.
    pub microtokens_per_round: u64,
    /// Share of time that each unit computes, in thousandths.
    pub utilisation_permille: BTreeMap<UnitId, u32>,
    /// Where a round's time goes; in `overlap` what units do beside each other is listed too.
    pub shares: Vec<Share>,
}

/// Why there is no forecast.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForecastError {
    /// A unit was never measured.
    #[error("unit `{unit}` ({spec}) was not measured: run `outrider calibrate`")]
    Unit {
        /// The unit.
        unit: UnitId,
        /// Its hardware.
        spec: UnitSpec,
    },
    /// A stage was never measured on its unit.
    #[error("{stage} was not measured on unit `{unit}` ({spec}): run `outrider calibrate`")]
    Stage {
        /// The unit.
        unit: UnitId,
        /// Its hardware.
        spec: UnitSpec,
        /// The stage.
        stage: StageId,
    },
}

impl CostModel {
    /// What `plan` yields for one sequence under `workload`.
    pub fn forecast(
        &self,
        plan: &PartitionPlan,
        workload: &Workload,
    ) -> Result<Forecast, ForecastError> {
        let context = f64::from(workload.context);
        let target = self.chain(plan, ModelRole::Target, context)?;
        let draft = self.chain(plan, ModelRole::Draft, context)?;
        let draft = (!draft.hops.is_empty()).then_some(draft);
        let plain = Round::plain(&target, self.round_ns as f64);
        let round = match (plan.mode, &draft) {
            (Mode::Sequential { draft_tokens }, Some(draft)) => {
                self.sequential(draft_tokens, draft, &target, &workload.acceptance)
            }
            (Mode::Overlap { draft_tokens, wait }, Some(draft)) => overlap::round(
                overlap::Setting { model: self, plan, draft, target: &target },
                (draft_tokens, wait),
                &workload.acceptance,
            ),
            (Mode::Lookup { draft_tokens, .. }, draft) => {
                self.lookup(draft_tokens, draft.as_ref(), &target, workload)
            }
            _ => plain.clone(),
        };
        Ok(round.forecast(plan, plain.rate()))
    }

    fn chain<'a>(
        &'a self,
        plan: &'a PartitionPlan,
        role: ModelRole,
        context: f64,
    ) -> Result<Chain<'a>, ForecastError> {
        let mut hops: Vec<Hop<'a>> = Vec::new();
        let row_bytes = 4.0 * self.width.get(&role).copied().unwrap_or(0) as f64;
        for Placement { stage, unit } in plan.chain(role) {
            let spec = plan.unit(unit);
            let profile = self
                .units
                .get(spec)
                .ok_or_else(|| ForecastError::Unit { unit: unit.clone(), spec: spec.clone() })?;
            let table = profile.stages.get(stage).ok_or_else(|| ForecastError::Stage {
                unit: unit.clone(),
                spec: spec.clone(),
                stage: *stage,
            })?;
            let link = hops.last().map(|hop| self.link(plan.unit(hop.unit), spec));
            hops.push(Hop { unit, stage: *stage, profile, table, link });
        }
        Ok(Chain { hops, row_bytes, context })
    }

    fn link(&self, from: &UnitSpec, to: &UnitSpec) -> LinkProfile {
        if from == to {
            return LinkProfile::default();
        }
        *self.links.get(&(from.clone(), to.clone())).unwrap_or(&self.link_default)
    }

    /// Draft, then verify. The first draft step of a round also takes in the last drafted token if all of the round
    /// before were accepted.
    fn sequential(&self, g: u32, draft: &Chain<'_>, target: &Chain<'_>, a: &Acceptance) -> Round {
        let mut round = Round::new(1.0 + a.expected(g), self.round_ns as f64);
        let first_rows = 1.0 + a.survival(g);
        round.add(draft.draft_parts(first_rows, g), 1.0);
        round.add(target.parts(f64::from(g) + 1.0), 1.0);
        round
    }

    /// A round drafts from the text if something is found there, else with the draft model if there is one.
    fn lookup(
        &self,
        g: u32,
        draft: Option<&Chain<'_>>,
        target: &Chain<'_>,
        workload: &Workload,
    ) -> Round {
        let hit = f64::from(workload.lookup_hit_permille.min(1000)) / 1000.0;
        let miss_round = match draft {
            Some(draft) => self.sequential(g, draft, target, &workload.acceptance),
            None => Round::plain(target, self.round_ns as f64),
        };
        let found = 1.0 + workload.lookup_acceptance.expected(g);
        let tokens = hit * found + (1.0 - hit) * miss_round.tokens;
        let mut round = Round::new(tokens, self.round_ns as f64);
        round.add(target.parts(f64::from(g) + 1.0), hit);
        round.add(miss_round.parts, 1.0 - hit);
        round
    }

    /// Time in nanoseconds that main memory needs to hand out the target's weights once and the draft's `n` times; 0 if
    /// its bandwidth is not known or only one of the models lies in it.
    pub(super) fn bus_ns(&self, plan: &PartitionPlan, n: f64) -> f64 {
        let bytes = |role| -> f64 {
            let in_main = |p: &&&Placement| {
                let profile = self.units.get(plan.unit(&p.unit));
                profile.is_some_and(|profile| profile.memory == MemoryDomain::Main)
            };
            let chain = plan.chain(role);
            let stages = chain.iter().filter(in_main).map(|p| plan.stage_memory(p.stage));
            stages.map(|memory| memory.weight_bytes as f64).sum()
        };
        let (target, draft) = (bytes(ModelRole::Target), bytes(ModelRole::Draft));
        if self.bus_bytes_per_second == 0 || target == 0.0 || draft == 0.0 {
            return 0.0;
        }
        (target + n * draft) * 1e9 / self.bus_bytes_per_second as f64
    }
}

/// The stages of one model with what is known of them.
pub(super) struct Chain<'a> {
    hops: Vec<Hop<'a>>,
    row_bytes: f64,
    context: f64,
}

struct Hop<'a> {
    unit: &'a UnitId,
    stage: StageId,
    profile: &'a UnitProfile,
    table: &'a TimeTable,
    /// From the stage before; `None` for the first.
    link: Option<LinkProfile>,
}

/// A piece of time: what for, and on which unit.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) what: String,
    pub(super) unit: Option<UnitId>,
    pub(super) ns: f64,
}

impl Chain<'_> {
    /// One pass of `rows` rows through all stages.
    pub(super) fn parts(&self, rows: f64) -> Vec<Part> {
        let mut parts = Vec::new();
        for hop in &self.hops {
            if let Some(link) = hop.link {
                let ns = link.transfer_ns(rows * self.row_bytes);
                parts.push(Part { what: format!("to {}", hop.unit), unit: None, ns });
            }
            parts.push(hop.part(hop.profile.job_ns as f64 + hop.table.at(rows, self.context)));
        }
        parts
    }

    /// Drafting `steps` tokens, the first step with `first_rows` rows: one job if the draft is on one unit, else one pass
    /// a step.
    fn draft_parts(&self, first_rows: f64, steps: u32) -> Vec<Part> {
        let more = f64::from(steps) - 1.0;
        if let [hop] = self.hops.as_slice() {
            let first = hop.table.at(first_rows, self.context);
            let each = hop.table.at(1.0, self.context);
            return vec![hop.part(hop.profile.job_ns as f64 + first + more * each)];
        }
        let mut parts = self.parts(first_rows);
        parts.extend(self.parts(1.0).into_iter().map(|part| Part { ns: part.ns * more, ..part }));
        parts
    }

    pub(super) fn pass_ns(&self, rows: f64) -> f64 {
        self.parts(rows).iter().map(|part| part.ns).sum()
    }

    /// Time that a pass of `rows` rows keeps `unit` busy.
    pub(super) fn busy_ns(&self, unit: &UnitId, rows: f64) -> f64 {
        let on_unit = |part: &&Part| part.unit.as_ref() == Some(unit);
        self.parts(rows).iter().filter(on_unit).map(|part| part.ns).sum()
    }
}

impl Hop<'_> {
    fn part(&self, ns: f64) -> Part {
        Part { what: self.stage.to_string(), unit: Some(self.unit.clone()), ns }
    }
}

/// What repeats: time, tokens, and where the time goes.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) tokens: f64,
    pub(super) ns: f64,
    pub(super) parts: Vec<Part>,
}

impl Round {
    fn new(tokens: f64, overhead_ns: f64) -> Self {
        let mut round = Self { tokens, ns: 0.0, parts: Vec::new() };
        if overhead_ns > 0.0 {
            round.add(vec![Part { what: "round".to_owned(), unit: None, ns: overhead_ns }], 1.0);
        }
        round
    }

    fn plain(target: &Chain<'_>, overhead_ns: f64) -> Self {
        let mut round = Self::new(1.0, overhead_ns);
        round.add(target.parts(1.0), 1.0);
        round
    }

    /// Adds parts that the sequence waits for, each `times` times on average. The overhead of a round is counted once.
    fn add(&mut self, parts: Vec<Part>, times: f64) {
        for part in parts {
            let already = |p: &&mut Part| p.what == part.what && p.unit == part.unit;
            let known = self.parts.iter_mut().find(already);
            if part.what == "round" && known.is_some() {
                continue;
            }
            let ns = part.ns * times;
            self.ns += ns;
            match known {
                Some(known) => known.ns += ns,
                None => self.parts.push(Part { ns, ..part }),
            }
        }
    }

    /// Tokens per nanosecond.
    fn rate(&self) -> f64 {
        self.tokens / self.ns
    }

    fn forecast(&self, plan: &PartitionPlan, plain_rate: f64) -> Forecast {
        let busy = |unit: &UnitId| -> f64 {
            let on_unit = |part: &&Part| part.unit.as_ref() == Some(unit);
            self.parts.iter().filter(on_unit).map(|part| part.ns).sum()
        };
        let permille = |unit: &UnitId| (busy(unit) * 1000.0 / self.ns).round().min(1000.0) as u32;
        let share = |part: &Part| Share {
            what: part.what.clone(),
            unit: part.unit.clone(),
            ns: part.ns.round() as u64,
        };
        Forecast {
            microtokens_per_second: (self.rate() * 1e15).round() as u64,
            plain_microtokens_per_second: (plain_rate * 1e15).round() as u64,
            round_ns: self.ns.round() as u64,
            microtokens_per_round: (self.tokens * 1e6).round() as u64,
            utilisation_permille: plan.units.keys().map(|u| (u.clone(), permille(u))).collect(),
            shares: self.parts.iter().map(share).collect(),
        }
    }
}

impl Forecast {
    /// Speed over that of the same plan's target alone, in thousandths.
    pub fn speedup_permille(&self) -> u64 {
        let (with, without) = (self.microtokens_per_second, self.plain_microtokens_per_second);
        (u128::from(with) * 1000 / u128::from(without.max(1))) as u64
    }

    /// The unit that computes most of the time; of equals the first by name.
    pub fn bottleneck(&self) -> Option<&UnitId> {
        let busiest = self.utilisation_permille.iter().rev().max_by_key(|(_, permille)| **permille);
        busiest.map(|(unit, _)| unit)
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thousandths =
            |n: u64, unit: u64| format!("{}.{:03}", n / unit, n % unit / (unit / 1000));
        writeln!(
            f,
            "{} tokens/s, {} times its target alone",
            thousandths(self.microtokens_per_second, 1_000_000),
            thousandths(self.speedup_permille(), 1000)
        )?;
        writeln!(
            f,
            "a round: {} us for {} tokens",
            thousandths(self.round_ns, 1000),
            thousandths(self.microtokens_per_round, 1_000_000)
        )?;
        for Share { what, unit, ns } in &self.shares {
            let on = unit.as_ref().map(|unit| format!(" on {unit}")).unwrap_or_default();
            writeln!(f, "  {:>12} us  {what}{on}", thousandths(*ns, 1000))?;
        }
        for (unit, permille) in &self.utilisation_permille {
            let mark = if self.bottleneck() == Some(unit) { ", the bottleneck" } else { "" };
            writeln!(f, "  {unit} is busy {}.{} %{mark}", permille / 10, permille % 10)?;
        }
        Ok(())
    }
}
