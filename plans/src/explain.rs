//! A plan in words: what `plan explain` prints.
//!
//! *Invariant:* a function of the plan alone; the same plan is always explained alike.

use std::fmt;

use crate::context::{CacheFormat, StageMemory};
use crate::mode::Mode;
use crate::plan::{PartitionPlan, UnitSpec};
use crate::role::{ModelRole, UnitId};
use crate::wording;

impl fmt::Display for UnitSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnitSpec::Cpu { cores } => write!(f, "cpu, {}", wording::cores(cores)),
            UnitSpec::Gpu { adapter, name } => write!(f, "gpu, adapter {adapter}, {name}"),
            UnitSpec::Reference => write!(f, "reference, one thread of plain loops"),
            UnitSpec::Sim => write!(f, "sim, no real hardware"),
        }
    }
}

impl fmt::Display for PartitionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {} ({})", self.name, self.fingerprint())?;
        writeln!(f, "  mode    {}", self.mode)?;
        for role in [ModelRole::Target, ModelRole::Draft] {
            if let Some(model) = self.models.of(role) {
                writeln!(f, "  model   {role} {model}")?;
            }
        }
        let width = self.units.keys().map(|unit| unit.as_str().len()).max().unwrap_or(0);
        for role in [ModelRole::Target, ModelRole::Draft] {
            for placement in self.chain(role) {
                let (stage, unit) = (placement.stage, placement.unit.as_str());
                let layers = format!("{}..{}", stage.layer_first, stage.layer_end);
                let memory = in_words(self.stage_memory(stage), self.caches());
                writeln!(
                    f,
                    "  {:<6}  layers {layers:<7} on {unit:<width$}  {memory}",
                    role.as_str()
                )?;
            }
        }
        for (unit, spec) in &self.units {
            let memory = wording::bytes(self.unit_memory(unit).total_bytes());
            writeln!(f, "  unit    {:<width$}  {spec}; {memory}", unit.as_str())?;
        }
        for note in self.notes() {
            writeln!(f, "  note    {note}")?;
        }
        Ok(())
    }
}

impl PartitionPlan {
    /// What is allowed in this plan but hardly meant.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let (Mode::Overlap { .. }, Some(unit)) = (self.mode, self.only_unit()) {
            notes.push(format!(
                "draft and target share unit {unit}, so nothing overlaps: move one of them, or choose sequential"
            ));
        }
        for pair in self.stages.windows(2) {
            let [one, two] = pair else { continue };
            if one.stage.role == two.stage.role && one.unit == two.unit {
                let (role, unit) = (one.stage.role, &one.unit);
                let (first, middle) = (one.stage.layer_first, one.stage.layer_end);
                let end = two.stage.layer_end;
                notes.push(format!(
                    "{role} layers {first}..{middle} and {middle}..{end} follow each other on {unit}: one stage \
                     {first}..{end} costs one hop less"
                ));
            }
        }
        notes
    }

    fn only_unit(&self) -> Option<&UnitId> {
        let mut units = self.units.keys();
        units.next().filter(|_| units.next().is_none())
    }
}

fn in_words(memory: StageMemory, format: CacheFormat) -> String {
    let StageMemory { weight_bytes, cache_bytes } = memory;
    let caches = match format {
        CacheFormat::F16 => "caches".to_owned(),
        other => format!("{other} caches"),
    };
    format!("{} weights, {} {caches}", wording::bytes(weight_bytes), wording::bytes(cache_bytes))
}
