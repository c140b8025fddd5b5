//! What changes from one plan to the next, by content: the work list of a plan swap, and its own undoing.
//!
//! *Invariant:* `between(a, b)` applied to what `a` has installed gives what `b` has installed, and
//! `between(a, b).invert() == between(b, a)`.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::mode::Mode;
use crate::plan::{PartitionPlan, Placement, UnitSpec};
use crate::role::{ModelRole, StageId, UnitId};

/// A stage installed on a unit with certain hardware. A stage that stays where it is, while its unit keeps its cores, is
/// the same `Installed` in both plans and is not touched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Installed {
    /// The unit.
    pub unit: UnitId,
    /// The unit's hardware.
    pub spec: UnitSpec,
    /// The stage.
    pub stage: StageId,
    /// The checkpoint that it is cut from; `None` for the one that the service was started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl PartitionPlan {
    /// Everything that the plan has installed.
    pub fn installed(&self) -> BTreeSet<Installed> {
        self.stages.iter().map(|placement| self.installed_at(placement)).collect()
    }

    /// What the plan has installed at one of its placements.
    pub fn installed_at(&self, placement: &Placement) -> Installed {
        let Placement { unit, stage } = placement;
        let (spec, model) = (self.unit(unit).clone(), self.models.of(stage.role));
        Installed { unit: unit.clone(), spec, stage: *stage, model: model.map(str::to_owned) }
    }

    /// What the plan has installed of one model.
    pub fn installed_of(&self, role: ModelRole) -> BTreeSet<Installed> {
        self.installed().into_iter().filter(|installed| installed.stage.role == role).collect()
    }
}

/// The way from one plan to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanDiff {
    /// What the new plan has and the old one has not.
    pub installs: BTreeSet<Installed>,
    /// What the old plan has and the new one has not.
    pub evictions: BTreeSet<Installed>,
    /// The mode before and after, if it or one of its numbers changes.
    pub mode: Option<(Mode, Mode)>,
}

impl PlanDiff {
    /// What has to happen to come from `old` to `new`.
    pub fn between(old: &PartitionPlan, new: &PartitionPlan) -> Self {
        let (before, after) = (old.installed(), new.installed());
        Self {
            installs: after.difference(&before).cloned().collect(),
            evictions: before.difference(&after).cloned().collect(),
            mode: (old.mode != new.mode).then_some((old.mode, new.mode)),
        }
    }

    /// The way back.
    pub fn invert(&self) -> Self {
        Self {
            installs: self.evictions.clone(),
            evictions: self.installs.clone(),
            mode: self.mode.map(|(old, new)| (new, old)),
        }
    }

    /// Whether both plans do the same, whatever they are called.
    pub fn is_empty(&self) -> bool {
        self.installs.is_empty() && self.evictions.is_empty() && self.mode.is_none()
    }

    /// Units to be started: those that something is installed on and that are not in `old` with the same hardware.
    pub fn units_started(&self, old: &PartitionPlan) -> BTreeSet<UnitId> {
        let new = self.installs.iter().filter(|i| old.units.get(&i.unit) != Some(&i.spec));
        new.map(|installed| installed.unit.clone()).collect()
    }

    /// Carries the diff out on a set of installed stages.
    ///
    /// Panics if the set is not the one that the diff starts from.
    pub fn apply(&self, installed: &mut BTreeSet<Installed>) {
        for stage in &self.evictions {
            assert!(installed.remove(stage), "{} was not on {}", stage.stage, stage.unit);
        }
        for stage in &self.installs {
            assert!(installed.insert(stage.clone()), "{} was on {}", stage.stage, stage.unit);
        }
    }
}

impl fmt::Display for PlanDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "no change");
        }
        for (sign, stages) in [('-', &self.evictions), ('+', &self.installs)] {
            for Installed { unit, spec, stage, model } in stages {
                let of = model.iter().map(|model| format!(" of {model}")).collect::<String>();
                writeln!(f, "{sign} {stage}{of} on {unit} ({spec})")?;
            }
        }
        if let Some((old, new)) = self.mode {
            writeln!(f, "- {old}\n+ {new}")?;
        }
        Ok(())
    }
}
