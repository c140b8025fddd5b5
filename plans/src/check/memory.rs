//! Memory: weights and caches of every stage fit where their units keep them.

use std::collections::BTreeMap;

use crate::context::{PlanContext, StageMemory};
use crate::error::PlanProblem;
use crate::machine::Machine;
use crate::plan::{PartitionPlan, UnitSpec};
use crate::role::UnitId;

/// A memory that units draw on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pool {
    Main,
    Adapter(usize),
}

/// Adds up what every memory is asked for. On failure names the unit that asks for most of the memory that is short.
pub(super) fn fits(
    plan: &PartitionPlan,
    context: &PlanContext,
) -> Result<(), (UnitId, PlanProblem)> {
    let mut asked: BTreeMap<Pool, Vec<(&UnitId, StageMemory)>> = BTreeMap::new();
    for (unit, spec) in &plan.units {
        if let Some(pool) = pool(spec, &context.machine) {
            asked.entry(pool).or_default().push((unit, plan.unit_memory(unit)));
        }
    }
    for (pool, units) in asked {
        let place = pool_name(pool, &context.machine);
        let free_bytes = match pool {
            Pool::Main => context.machine.memory_bytes,
            Pool::Adapter(index) => context.machine.adapters[index].memory_bytes.unwrap_or(0),
        };
        let sum = units.iter().fold(StageMemory::default(), |sum, (_, memory)| sum + *memory);
        if sum.total_bytes() <= free_bytes {
            continue;
        }
        let most = units.iter().rev().max_by_key(|(_, memory)| memory.total_bytes());
        let unit = most.map(|(unit, _)| (*unit).clone()).expect("a pool in use has a unit");
        let StageMemory { weight_bytes, cache_bytes } = sum;
        let problem = PlanProblem::Memory {
            unit: unit.clone(),
            place,
            weight_bytes,
            cache_bytes,
            free_bytes,
        };
        return Err((unit, problem));
    }
    Ok(())
}

/// The words for a memory.
pub(crate) fn pool_name(pool: Pool, machine: &Machine) -> String {
    match pool {
        Pool::Main => "main memory".to_owned(),
        Pool::Adapter(index) => format!("the memory of `{}`", machine.adapters[index].name),
    }
}

/// Where a unit keeps its weights; `None` for the simulated unit, which has none.
pub(crate) fn pool(spec: &UnitSpec, machine: &Machine) -> Option<Pool> {
    match spec {
        UnitSpec::Cpu { .. } | UnitSpec::Reference => Some(Pool::Main),
        UnitSpec::Sim => None,
        UnitSpec::Gpu { adapter, .. } => Some(match machine.adapters[*adapter].memory_bytes {
            Some(_) => Pool::Adapter(*adapter),
            None => Pool::Main,
        }),
    }
}
