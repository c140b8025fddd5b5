//! Plans that do without units that are gone, best guess first.
//!
//! *Invariant:* a fall-back is checked like any plan, names none of the lost units, and keeps every stage that can stay.

use std::collections::BTreeSet;

use crate::check::NAME_MAX;
use crate::context::PlanContext;
use crate::defaults::default_plan;
use crate::mode::Mode;
use crate::plan::{PartitionPlan, Placement, UnitKind, UnitSpec};
use crate::role::{ModelRole, UnitId};

/// Plans to run when the units `lost` of `plan` are gone, for the same models, which `context` is about. In this order:
/// 1. what was on a lost unit moves to a unit that is left, in a mode that does on shared units;
/// 2. the target alone, where that still covers it;
/// 3. the plan by rule for the processor's cores, unless the lost units were cores themselves, or simulated.
pub fn fallbacks(
    plan: &PartitionPlan,
    lost: &BTreeSet<UnitId>,
    context: &PlanContext,
) -> Vec<PartitionPlan> {
    let left: Vec<&UnitId> = plan.units.keys().filter(|unit| !lost.contains(*unit)).collect();
    let mut found: Vec<PartitionPlan> = Vec::new();
    let mut add = |candidate: Option<PartitionPlan>| {
        found.extend(candidate.filter(|candidate| !candidate.units.is_empty()));
    };
    // A unit that runs part of the target is more likely to be up to it than one that ran the draft only.
    let runs = |unit: &UnitId, role| plan.chain(role).iter().any(|p| p.unit == *unit);
    let heir = left.iter().find(|unit| runs(unit, ModelRole::Target)).or(left.first());
    if let Some(heir) = heir {
        let modes = match plan.mode {
            Mode::Plain => vec![Mode::Plain],
            Mode::Overlap { draft_tokens, .. } => {
                vec![Mode::Sequential { draft_tokens }, Mode::Plain]
            }
            mode => vec![mode, Mode::Plain],
        };
        let moved = moved_to(heir, plan, lost);
        for mode in modes {
            let candidate = moved.with_mode(mode).ok();
            // Read again, so that it is checked like any plan.
            add(candidate.and_then(|c| PartitionPlan::from_toml(&c.to_toml(), None, context).ok()));
        }
    }
    let kinds =
        |kind| lost.iter().any(|unit| plan.units.get(unit).map(UnitSpec::kind) == Some(kind));
    if !kinds(UnitKind::Cpu) && !kinds(UnitKind::Sim) {
        let models = plan.models.clone();
        add(default_plan(context).ok().map(|default| PartitionPlan { models, ..default }));
    }
    found
}

/// The plan with everything of the lost units on one that is left. Its memory is not yet known.
fn moved_to(heir: &UnitId, plan: &PartitionPlan, lost: &BTreeSet<UnitId>) -> PartitionPlan {
    let mut moved = plan.clone();
    moved.name = format!("{}-without-{}", short(&plan.name), names(lost));
    moved.name.truncate(NAME_MAX);
    moved.units.retain(|unit, _| !lost.contains(unit));
    moved.memory.clear();
    for placement in &mut moved.stages {
        if lost.contains(&placement.unit) {
            placement.unit = heir.clone();
        }
    }
    join_neighbours(&mut moved);
    moved
}

/// Stages of one model that lie on one unit one after the other become one.
fn join_neighbours(plan: &mut PartitionPlan) {
    let mut joined: Vec<Placement> = Vec::new();
    for placement in std::mem::take(&mut plan.stages) {
        match joined.last_mut() {
            Some(last)
                if last.unit == placement.unit
                    && last.stage.role == placement.stage.role
                    && last.stage.layer_end == placement.stage.layer_first =>
            {
                last.stage.layer_end = placement.stage.layer_end;
            }
            _ => joined.push(placement),
        }
    }
    plan.stages = joined;
}

fn names(lost: &BTreeSet<UnitId>) -> String {
    lost.iter().map(UnitId::as_str).collect::<Vec<_>>().join("-")
}

/// A name that leaves room for what is appended to it.
fn short(name: &str) -> &str {
    name.split("-without-").next().unwrap_or(name)
}
