//! The plan for a machine that nobody made a plan for: by rule, before anything was measured.
//!
//! *Invariant:* the result is checked like any plan, and depends on the context alone.

use crate::context::PlanContext;
use crate::error::{PlanError, PlanProblem};
use crate::mode::ModeKind;
use crate::plan::PartitionPlan;

/// One unit `cpu` of all big cores; `sequential` with a depth of 4 if a draft is loaded and both models fit into memory,
/// else `plain`.
///
/// Fails if not even the target fits.
pub fn default_plan(context: &PlanContext) -> Result<PartitionPlan, PlanError> {
    if context.draft.is_some() {
        match default_plan_in(ModeKind::Sequential, context) {
            Err(PlanError { problem: PlanProblem::Memory { .. }, .. }) => {}
            other => return other,
        }
    }
    default_plan_in(ModeKind::Plain, context)
}

/// The plan by rule for a mode that somebody asked for, with the mode's default numbers.
///
/// `overlap` on a machine of several big cores has a unit `cpu0` of all big cores but one for the target, and `cpu1` of
/// one for the draft; every other plan has one unit `cpu` of all big cores. `lookup` takes the draft model along if one
/// is loaded.
///
/// Fails if the mode needs a draft and none is loaded, or memory does not suffice.
pub fn default_plan_in(mode: ModeKind, context: &PlanContext) -> Result<PartitionPlan, PlanError> {
    let big = context.machine.big_cores();
    let drafts = mode != ModeKind::Plain && context.draft.is_some();
    if mode.needs_draft() && !drafts {
        return Err(PlanProblem::DraftNotLoaded.into());
    }
    let apart = mode == ModeKind::Overlap && big.len() > 1;
    let mut text = format!("name = \"default-{mode}\"\nmode = \"{mode}\"\n");
    let mut unit = |name: &str, cores: &[usize]| {
        text.push_str(&format!("[units.{name}]\nkind = \"cpu\"\ncores = {cores:?}\n"));
    };
    let (target, draft) = if apart {
        let (last, rest) = big.split_last().expect("there are several big cores");
        unit("cpu0", rest);
        unit("cpu1", &[*last]);
        ("cpu0", "cpu1")
    } else {
        unit("cpu", &big);
        ("cpu", "cpu")
    };
    text.push_str(&format!("[[target]]\nunit = \"{target}\"\nlayers = \"all\"\n"));
    if drafts {
        text.push_str(&format!("[[draft]]\nunit = \"{draft}\"\nlayers = \"all\"\n"));
    }
    PartitionPlan::from_toml(&text, None, context).map_err(|error| PlanError { at: None, ..error })
}
