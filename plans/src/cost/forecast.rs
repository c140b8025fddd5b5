//! What a plan yields on measured units.
//!
//! *Invariant:* a forecast is made only from what was measured; a stage or a unit that was not is an error, never a guess.

use std::collections::BTreeMap;

use super::acceptance::Acceptance;
use super::chain::{Chain, Hop};
use super::overlap;
use super::profile::{LinkProfile, MemoryDomain, UnitProfile};
use super::round::{Forecast, Round};
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
