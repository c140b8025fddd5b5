//! From a plan as written to a plan that is right: one rule a file, the first broken rule is the answer.
//!
//! *Invariant:* a plan that passes covers each model it places exactly once, on units that exist, run something, share
//! no core or adapter, and hold what is put on them.

mod caches;
mod cover;
pub(crate) mod memory;
mod numbers;
mod units;

use std::collections::BTreeMap;

use crate::context::PlanContext;
use crate::error::{PlanError, PlanProblem, Position};
use crate::plan::PartitionPlan;
use crate::role::UnitId;
use crate::spec::PlanSpec;

/// Most units in one plan: they are labels of metrics and threads of the process.
pub const UNITS_MAX: usize = 16;
/// Longest name of a plan or a unit, in bytes.
pub const NAME_MAX: usize = 64;

/// A mistake and its place.
pub(crate) struct Fault {
    at: Position,
    problem: PlanProblem,
}

impl PlanProblem {
    fn at(self, at: Position) -> Fault {
        Fault { at, problem: self }
    }
}

impl PlanSpec {
    /// Checks the plan against a machine and models, and resolves its units there. If it names models, `context` has to be
    /// about these.
    ///
    /// Fails with the first mistake in the order: names, mode and numbers, units, layers, caches, memory.
    pub fn check(&self, context: &PlanContext) -> Result<PartitionPlan, PlanError> {
        self.resolve(context).map_err(|Fault { at, problem }| PlanError {
            file: self.file.clone(),
            at: Some(at),
            problem,
        })
    }

    fn resolve(&self, context: &PlanContext) -> Result<PartitionPlan, Fault> {
        name("plan name", &self.name.value, self.name.at)?;
        for (unit, entry) in &self.units {
            name("unit", unit, entry.at)?;
        }
        let mode = numbers::mode(self)?;
        let units = units::resolve(self, &context.machine)?;
        let stages = cover::stages(self, context)?;
        let memory =
            stages.iter().map(|placement| (placement.stage, context.stage_memory(placement.stage)));
        let memory = BTreeMap::from_iter(memory);
        let (name, models) = (self.name.value.clone(), self.models.clone());
        let caches = context.caches.format;
        let plan = PartitionPlan { name, mode, models, units, stages, caches, memory };
        caches::kept(&plan).map_err(|(unit, problem)| problem.at(self.units[unit.as_str()].at))?;
        memory::fits(&plan, context)
            .map_err(|(unit, problem)| problem.at(self.units[unit.as_str()].at))?;
        Ok(plan)
    }
}

impl PartitionPlan {
    /// Reads and checks a plan in one step. `file` is named in errors.
    pub fn from_toml(
        text: &str,
        file: Option<&str>,
        context: &PlanContext,
    ) -> Result<Self, PlanError> {
        PlanSpec::parse(text, file)?.check(context)
    }
}

fn name(what: &'static str, given: &str, at: Position) -> Result<(), Fault> {
    let usable = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !given.is_empty() && given.len() <= NAME_MAX && given.chars().all(usable) {
        return Ok(());
    }
    Err(PlanProblem::Name { what, given: given.to_owned(), longest: NAME_MAX }.at(at))
}

/// Names of the units of a plan, for an error's way out.
fn unit_names<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    crate::wording::names(names)
}

fn unit_id(name: &str) -> UnitId {
    UnitId::new(name)
}
