//! Everything that was measured, and the times of one plan's jobs that follow from it.
//!
//! *Invariant:* a time is made only from what was measured; a unit or a model that was not is an error, never a guess. What lies
//! between two measured core counts is interpolated.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::class::UnitClass;
use super::profile::{
    LinkProfile, MemoryDomain, PartsProfile, RoleProfile, TimeTable, UnitProfile,
};
use super::times::{PlanTimes, StageTimes};
use crate::context::{HeadWeights, PlanContext};
use crate::mode::Mode;
use crate::plan::{PartitionPlan, UnitSpec};
use crate::role::{ModelRole, StageId, UnitId};

/// Everything that was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CostModel {
    /// Classes of units.
    pub units: BTreeMap<UnitClass, UnitProfile>,
    /// Ways between units, from and to.
    pub links: Vec<Link>,
    /// Any other way between units.
    pub link_default: LinkProfile,
    /// How much units slow each other down.
    pub contention: Vec<Contention>,
    /// Bytes per second that main memory gives to all units together; 0 if not known, then it limits nothing.
    pub bus_bytes_per_second: u64,
}

/// A way between two classes of units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// From here.
    pub from: UnitClass,
    /// To here.
    pub to: UnitClass,
    /// Its times.
    pub profile: LinkProfile,
}

/// Two units at work at the same time: the target on one, the draft on the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contention {
    /// The target's unit.
    pub target: UnitClass,
    /// The draft's unit.
    pub draft: UnitClass,
    /// How much longer the target's passes take meanwhile, in thousandths: 1000 for no change.
    pub target_permille: u32,
    /// How much longer the draft's jobs take meanwhile.
    pub draft_permille: u32,
    /// Further time of a pass of the target where both take turns: its unit has slept meanwhile.
    pub target_apart_ns: i64,
    /// The same of a draft job.
    pub draft_apart_ns: i64,
    /// Further time of a hop after a pass of the target where both work at the same time: whoever carries the message then
    /// finds no core that is idle.
    #[serde(default)]
    pub target_hop_ns: i64,
}

/// Why there is no forecast.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForecastError {
    /// A unit was never measured.
    #[error("unit `{unit}` ({class}) was not measured: run `outrider calibrate`")]
    Unit {
        /// The unit.
        unit: UnitId,
        /// Its class.
        class: UnitClass,
    },
    /// A model was never measured on a unit.
    #[error("the {role} was not measured on unit `{unit}` ({class}): run `outrider calibrate`")]
    Role {
        /// The unit.
        unit: UnitId,
        /// Its class.
        class: UnitClass,
        /// The model.
        role: ModelRole,
    },
    /// A software adapter beside cores: its kernels run on these very cores.
    #[error(
        "unit `{adapter}` is a software adapter, which runs on the processor's own cores, so what it and unit `{cores}` \
         take from each other was not measured: give both stages to one of them"
    )]
    Shared {
        /// The adapter.
        adapter: UnitId,
        /// Cores.
        cores: UnitId,
    },
    /// Parts of a model were never measured on a unit.
    #[error(
        "parts of the {} were not measured on unit `{unit}` ({class}), so {stage} has no time: run `outrider calibrate`",
        stage.role
    )]
    Parts {
        /// The unit.
        unit: UnitId,
        /// Its class.
        class: UnitClass,
        /// The stage.
        stage: StageId,
    },
    /// There is nothing to forecast from.
    #[error("the calibration holds no texts to rehearse: run `outrider calibrate` with prompts")]
    NoTexts,
}

impl CostModel {
    /// The profile of a class: as measured, or between the nearest core counts of the same cluster that were.
    pub fn profile(&self, class: &UnitClass) -> Option<UnitProfile> {
        if let Some(profile) = self.units.get(class) {
            return Some(profile.clone());
        }
        let (cluster, cores) = class.single_cluster()?;
        let measured = |(class, profile)| -> Option<(u32, &UnitProfile)> {
            let (of, cores) = UnitClass::single_cluster(class)?;
            (of == cluster).then_some((cores, profile))
        };
        let known: Vec<_> = self.units.iter().filter_map(measured).collect();
        let below = known.iter().filter(|(k, _)| *k < cores).max_by_key(|(k, _)| *k)?;
        let above = known.iter().filter(|(k, _)| *k > cores).min_by_key(|(k, _)| *k)?;
        Some(between(*below, *above, cores))
    }

    /// The times of a plan's jobs.
    pub fn times(
        &self,
        plan: &PartitionPlan,
        context: &PlanContext,
    ) -> Result<PlanTimes, ForecastError> {
        let mut units = BTreeMap::new();
        for (unit, spec) in &plan.units {
            let class = UnitClass::of(spec, &context.machine);
            let unmeasured = || ForecastError::Unit { unit: unit.clone(), class: class.clone() };
            let profile = self.profile(&class).ok_or_else(unmeasured)?;
            units.insert(unit.clone(), (class, profile));
        }
        let find = |is: &dyn Fn(&UnitSpec) -> bool| {
            let found = plan.units.iter().find(|(_, spec)| is(spec));
            found.map(|(unit, _)| unit.clone())
        };
        let adapter = find(&|spec| context.machine.is_software(spec));
        let cores = find(&|spec| matches!(spec, UnitSpec::Cpu { .. }));
        if let Some((adapter, cores)) = adapter.zip(cores) {
            return Err(ForecastError::Shared { adapter, cores });
        }
        let chain = |role: ModelRole| -> Result<Vec<StageTimes>, ForecastError> {
            let mut stages: Vec<StageTimes> = Vec::new();
            let width = context.shape(role).map_or(0, |shape| shape.width) as u64;
            for placement in plan.chain(role) {
                let (unit, stage) = (&placement.unit, placement.stage);
                let (class, profile) = &units[unit];
                let (unit, class) = (unit.clone(), class.clone());
                let Some(times) = profile.roles.get(&role) else {
                    return Err(ForecastError::Role { unit, class, role });
                };
                if stage.layers() < times.layers as usize && times.parts.is_none() {
                    return Err(ForecastError::Parts { unit, class, stage });
                }
                let link = stages.last().map(|before| self.link(&units[&before.unit].0, &class));
                stages.push(StageTimes {
                    unit,
                    stage,
                    times: times.clone(),
                    around: profile.around,
                    link,
                    row_bytes: 4 * width,
                    drafts_at_once: matches!(class, UnitClass::Gpu { .. }),
                });
            }
            Ok(stages)
        };
        let (mut target, mut draft) = (chain(ModelRole::Target)?, chain(ModelRole::Draft)?);
        if let (Some(one), Some(other)) = (target.first_mut(), draft.first_mut())
            && one.unit != other.unit
            && let Some(found) =
                self.measured_contention(&units[&one.unit].0, &units[&other.unit].0)
        {
            if matches!(plan.mode, Mode::Overlap { .. }) {
                let last = target.last_mut().expect("the target has a stage");
                let hop_ns = &mut last.around.target_hop_ns;
                *hop_ns = hop_ns.saturating_add_signed(found.target_hop_ns);
            } else if one.stage.layers() == one.times.layers as usize {
                // A split target's way between its units was measured with a draft beside it.
                one.around.target_ns += found.target_apart_ns;
                other.around.draft_ns += found.draft_apart_ns;
            }
        }
        let slowed = self.slowdown(plan, context, &units);
        let power_mw =
            units.iter().map(|(u, (_, profile))| (u.clone(), profile.power_mw)).collect();
        Ok(PlanTimes { target, draft, slowed, power_mw })
    }

    /// The way that was measured between units with core counts nearest to these; it is the same back and forth.
    fn link(&self, from: &UnitClass, to: &UnitClass) -> LinkProfile {
        let far =
            |one: &UnitClass, other: &UnitClass| Some(distance(one, from)? + distance(other, to)?);
        let candidates = self.links.iter().filter_map(|link| {
            let ways = [far(&link.from, &link.to), far(&link.to, &link.from)];
            Some((ways.into_iter().flatten().min()?, link.profile))
        });
        candidates.min_by_key(|(far, _)| *far).map_or(self.link_default, |(_, profile)| profile)
    }

    /// How much longer jobs of the target and of the draft take while the other is at work on another unit.
    fn slowdown(
        &self,
        plan: &PartitionPlan,
        context: &PlanContext,
        units: &BTreeMap<UnitId, (UnitClass, UnitProfile)>,
    ) -> (u32, u32) {
        let first = |role| plan.chain(role).first().map(|p| units[&p.unit].clone());
        let (Some(target), Some(draft)) = (first(ModelRole::Target), first(ModelRole::Draft))
        else {
            return (1000, 1000);
        };
        match self.measured_contention(&target.0, &draft.0) {
            Some(found) => (found.target_permille.max(1000), found.draft_permille.max(1000)),
            None => {
                let shared = self.shared_bus_permille(context, &target.1, &draft.1);
                (shared, shared)
            }
        }
    }

    /// The pair that was measured with core counts nearest to these.
    fn measured_contention(&self, target: &UnitClass, draft: &UnitClass) -> Option<&Contention> {
        let candidates = self.contention.iter().filter_map(|found| {
            let far = distance(&found.target, target)? + distance(&found.draft, draft)?;
            Some((far, found))
        });
        candidates.min_by_key(|(far, _)| *far).map(|(_, found)| found)
    }

    /// Two models whose weights come over one bus at the same time share its bandwidth.
    fn shared_bus_permille(
        &self,
        context: &PlanContext,
        target: &UnitProfile,
        draft: &UnitProfile,
    ) -> u32 {
        let in_main = [target, draft].iter().all(|p| p.memory == MemoryDomain::Main);
        if self.bus_bytes_per_second == 0 || !in_main {
            return 1000;
        }
        let demand = |role: ModelRole, profile: &UnitProfile| -> u128 {
            let (Some(shape), Some(times)) = (context.shape(role), profile.roles.get(&role)) else {
                return 0;
            };
            let table = if shape.head == HeadWeights::Tied { 0 } else { shape.embedding_bytes };
            let bytes = shape.weight_bytes(0, shape.layers()) - table;
            u128::from(bytes) * 1_000_000_000 / u128::from(times.verify.at_ns(1, 0).max(1))
        };
        let wanted = demand(ModelRole::Target, target) + demand(ModelRole::Draft, draft);
        (wanted * 1000 / u128::from(self.bus_bytes_per_second)).clamp(1000, 100_000) as u32
    }

    /// The specs of a plan's units that this model cannot price.
    pub fn unmeasured<'a>(
        &self,
        plan: &'a PartitionPlan,
        context: &PlanContext,
    ) -> Vec<(&'a UnitId, &'a UnitSpec)> {
        let unknown = |(_, spec): &(&UnitId, &UnitSpec)| {
            self.profile(&UnitClass::of(spec, &context.machine)).is_none()
        };
        plan.units.iter().filter(unknown).collect()
    }
}

/// By how many cores two classes differ; `None` if they are not alike.
fn distance(a: &UnitClass, b: &UnitClass) -> Option<u32> {
    match (a.single_cluster(), b.single_cluster()) {
        _ if a == b => Some(0),
        (Some((one, cores)), Some((other, others))) if one == other => Some(cores.abs_diff(others)),
        _ => None,
    }
}

/// Between `a` and `b` cores, each time taken as a constant plus a share that the cores divide among them.
fn between((a, low): (u32, &UnitProfile), (b, high): (u32, &UnitProfile), k: u32) -> UnitProfile {
    let [ka, kb, kk] = [a, b, k].map(i128::from);
    let mix = |x: i128, y: i128| (x * ka * (kb - kk) + y * kb * (kk - ka)) / (kk * (kb - ka));
    let mix_u = |x: u64, y: u64| mix(i128::from(x), i128::from(y)).max(0) as u64;
    let mix_i = |x: i64, y: i64| mix(i128::from(x), i128::from(y)) as i64;
    let table = |x: &TimeTable, y: &TimeTable| x.map(|r, c, ns| mix_u(ns, y.at_ns(r, c)));
    let parts = |x: &PartsProfile, y: &PartsProfile| PartsProfile {
        base: table(&x.base, &y.base),
        layer: table(&x.layer, &y.layer),
        head: table(&x.head, &y.head),
    };
    let role = |(role, x): (&ModelRole, &RoleProfile)| {
        let y = high.roles.get(role)?;
        let between = RoleProfile {
            layers: x.layers,
            verify: table(&x.verify, &y.verify),
            fill: table(&x.fill, &y.fill),
            draft_step: table(&x.draft_step, &y.draft_step),
            parts: x.parts.as_ref().zip(y.parts.as_ref()).map(|(x, y)| parts(x, y)),
            scratch_bytes: x.scratch_bytes.max(y.scratch_bytes),
        };
        Some((*role, between))
    };
    let (x, y) = (low.around, high.around);
    UnitProfile {
        memory: low.memory,
        roles: low.roles.iter().filter_map(role).collect(),
        around: super::profile::AroundJobs {
            target_hop_ns: mix_u(x.target_hop_ns, y.target_hop_ns),
            draft_hop_ns: mix_u(x.draft_hop_ns, y.draft_hop_ns),
            target_ns: mix_i(x.target_ns, y.target_ns),
            target_row_ns: mix_i(x.target_row_ns, y.target_row_ns),
            target_prompt_ns: mix_i(x.target_prompt_ns, y.target_prompt_ns),
            draft_ns: mix_i(x.draft_ns, y.draft_ns),
            draft_step_ns: mix_i(x.draft_step_ns, y.draft_step_ns),
            draft_prompt_ns: mix_i(x.draft_prompt_ns, y.draft_prompt_ns),
            target_after_draft_ns: mix_i(x.target_after_draft_ns, y.target_after_draft_ns),
            draft_after_target_ns: mix_i(x.draft_after_target_ns, y.draft_after_target_ns),
            request_ns: mix_u(x.request_ns, y.request_ns),
        },
        power_mw: low.power_mw / u64::from(a.max(1)) * u64::from(k),
    }
}
