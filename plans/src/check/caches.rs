//! Caches: every unit can keep them in the format that was asked for.

use crate::context::CacheFormat;
use crate::error::PlanProblem;
use crate::plan::{PartitionPlan, UnitKind};
use crate::role::UnitId;

/// On failure names the first unit that cannot.
pub(super) fn kept(plan: &PartitionPlan) -> Result<(), (UnitId, PlanProblem)> {
    let format = plan.caches();
    let cannot = |kind: UnitKind| kind == UnitKind::Gpu && format != CacheFormat::F16;
    match plan.units.iter().find(|(_, spec)| cannot(spec.kind())) {
        Some((unit, _)) => {
            Err((unit.clone(), PlanProblem::CacheOnGpu { unit: unit.clone(), format }))
        }
        None => Ok(()),
    }
}
