//! Units: each used, each on hardware that exists and is its own.
//!
//! Lists and words (`"all"`, `"big"`, `"little"`) name cores outright; a number takes the best that are left, unit by
//! unit in the order of their names.

use std::collections::BTreeMap;

use toml::Value;

use super::{Fault, UNITS_MAX, unit_id, unit_names};
use crate::error::PlanProblem;
use crate::machine::Machine;
use crate::plan::{UnitKind, UnitSpec};
use crate::role::UnitId;
use crate::spec::{At, PlanSpec, UnitEntry};
use crate::wording;

pub(super) fn resolve(
    spec: &PlanSpec,
    machine: &Machine,
) -> Result<BTreeMap<UnitId, UnitSpec>, Fault> {
    if let Some(entry) = spec.units.values().nth(UNITS_MAX) {
        let problem = PlanProblem::TooManyUnits { given: spec.units.len(), most: UNITS_MAX };
        return Err(problem.at(entry.at));
    }
    names_agree(spec)?;
    let mut taken = Taken { machine, cores: BTreeMap::new(), adapters: BTreeMap::new() };
    let mut units = BTreeMap::new();
    let mut counted = Vec::new();
    for (name, At { value: entry, at }) in &spec.units {
        let unit = unit_id(name);
        keys_fit(&unit, entry)?;
        let resolved = match entry.kind {
            UnitKind::Reference => UnitSpec::Reference,
            UnitKind::Sim => UnitSpec::Sim,
            UnitKind::Gpu => taken.adapter(&unit, entry, *at)?,
            UnitKind::Cpu => match &entry.cores {
                None => return Err(PlanProblem::CoresMissing { unit }.at(*at)),
                Some(cores) => match &cores.value {
                    Value::Integer(wanted) => {
                        counted.push((unit, *wanted, cores.at));
                        continue;
                    }
                    _ => taken.named_cores(&unit, cores)?,
                },
            },
        };
        units.insert(unit, resolved);
    }
    for (unit, wanted, at) in counted {
        let cores = taken.best_cores(&unit, wanted).map_err(|problem| problem.at(at))?;
        units.insert(unit, cores);
    }
    Ok(units)
}

/// Every stage's unit is there, and every unit has a stage.
fn names_agree(spec: &PlanSpec) -> Result<(), Fault> {
    for At { value: stage, .. } in &spec.stages {
        if !spec.units.contains_key(&stage.unit.value) {
            let known = unit_names(spec.units.keys());
            let unit = unit_id(&stage.unit.value);
            return Err(PlanProblem::UnitUnknown { unit, known }.at(stage.unit.at));
        }
    }
    for (name, entry) in &spec.units {
        if !spec.stages.iter().any(|stage| stage.value.unit.value == *name) {
            return Err(PlanProblem::UnitUnused { unit: unit_id(name) }.at(entry.at));
        }
    }
    Ok(())
}

fn keys_fit(unit: &UnitId, entry: &UnitEntry) -> Result<(), Fault> {
    let kind = entry.kind;
    let keys = [("cores", UnitKind::Cpu, &entry.cores), ("adapter", UnitKind::Gpu, &entry.adapter)];
    for (key, reader, given) in keys {
        if let (true, Some(given)) = (kind != reader, given) {
            return Err(PlanProblem::KeyNotForKind { unit: unit.clone(), key, kind }.at(given.at));
        }
    }
    Ok(())
}

/// Hardware that units of the plan already have.
struct Taken<'a> {
    machine: &'a Machine,
    cores: BTreeMap<usize, UnitId>,
    adapters: BTreeMap<usize, UnitId>,
}

impl Taken<'_> {
    fn named_cores(&mut self, unit: &UnitId, given: &At<Value>) -> Result<UnitSpec, Fault> {
        let mut ids = self.read_cores(unit, &given.value).map_err(|p| p.at(given.at))?;
        let unit = unit.clone();
        for &core in &ids {
            let problem = if !self.machine.cores.iter().any(|c| c.id == core) {
                let usable = wording::cores(&self.machine.all_cores());
                PlanProblem::CoreUnknown { unit, core, usable }
            } else if let Some(other) = self.cores.insert(core, unit.clone()) {
                match other == unit {
                    true => PlanProblem::CoreTwice { unit, core },
                    false => PlanProblem::CoreTaken { unit, core, other },
                }
            } else {
                continue;
            };
            return Err(problem.at(given.at));
        }
        ids.sort_unstable();
        Ok(UnitSpec::Cpu { cores: ids })
    }

    fn read_cores(&self, unit: &UnitId, given: &Value) -> Result<Vec<usize>, PlanProblem> {
        let unreadable =
            || PlanProblem::CoresUnreadable { unit: unit.clone(), given: given.to_string() };
        let ids = match given {
            Value::String(word) => match word.as_str() {
                "all" => self.machine.all_cores(),
                "big" => self.machine.big_cores(),
                "little" => {
                    let little = self.machine.little_cores();
                    if little.is_empty() {
                        return Err(PlanProblem::CoresLittle { unit: unit.clone() });
                    }
                    little
                }
                _ => return Err(unreadable()),
            },
            Value::Array(ids) => ids
                .iter()
                .map(|id| id.as_integer().and_then(|id| usize::try_from(id).ok()))
                .collect::<Option<Vec<usize>>>()
                .ok_or_else(unreadable)?,
            _ => return Err(unreadable()),
        };
        if ids.is_empty() { Err(unreadable()) } else { Ok(ids) }
    }

    fn best_cores(&mut self, unit: &UnitId, wanted: i64) -> Result<UnitSpec, PlanProblem> {
        let mut free = self.machine.cores_best_first();
        free.retain(|core| !self.cores.contains_key(core));
        let count = usize::try_from(wanted).ok().filter(|n| (1..=free.len()).contains(n));
        let Some(count) = count else {
            if wanted < 1 {
                let (unit, given) = (unit.clone(), wanted.to_string());
                return Err(PlanProblem::CoresUnreadable { unit, given });
            }
            let (free, cores) = (free.len(), self.machine.cores.len());
            return Err(PlanProblem::CoresTooFew { unit: unit.clone(), wanted, free, cores });
        };
        free.truncate(count);
        free.sort_unstable();
        self.cores.extend(free.iter().map(|&core| (core, unit.clone())));
        Ok(UnitSpec::Cpu { cores: free })
    }

    fn adapter(
        &mut self,
        unit: &UnitId,
        entry: &UnitEntry,
        unit_at: crate::error::Position,
    ) -> Result<UnitSpec, Fault> {
        let first = At { value: Value::Integer(0), at: unit_at };
        let given = entry.adapter.as_ref().unwrap_or(&first);
        let adapter = self.find_adapter(unit, &given.value).map_err(|p| p.at(given.at))?;
        if let Some(other) = self.adapters.insert(adapter, unit.clone()) {
            let unit = unit.clone();
            return Err(PlanProblem::AdapterTaken { unit, adapter, other }.at(given.at));
        }
        Ok(UnitSpec::Gpu { adapter, name: self.machine.adapters[adapter].name.clone() })
    }

    fn find_adapter(&self, unit: &UnitId, given: &Value) -> Result<usize, PlanProblem> {
        let adapters = &self.machine.adapters;
        let listed = |indices: &[usize]| {
            let one = |&i: &usize| format!("{i} is `{}`", adapters[i].name);
            indices.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        let fitting: Vec<usize> = match given {
            Value::Integer(wanted) => {
                (0..adapters.len()).filter(|&i| i64::try_from(i) == Ok(*wanted)).collect()
            }
            Value::String(part) if !part.is_empty() => {
                let part = part.to_lowercase();
                let fits = |&i: &usize| adapters[i].name.to_lowercase().contains(&part);
                (0..adapters.len()).filter(fits).collect()
            }
            _ => {
                let (unit, given) = (unit.clone(), given.to_string());
                return Err(PlanProblem::AdapterUnreadable { unit, given });
            }
        };
        match fitting.as_slice() {
            &[one] => Ok(one),
            [] => {
                let known = match adapters.len() {
                    0 => "this machine has none, so use a cpu unit".to_owned(),
                    n => listed(&(0..n).collect::<Vec<_>>()),
                };
                let (unit, wanted) = (unit.clone(), given.to_string());
                Err(PlanProblem::AdapterUnknown { unit, wanted, known })
            }
            several => {
                let (unit, given) = (unit.clone(), given.to_string());
                Err(PlanProblem::AdapterAmbiguous { unit, given, fitting: listed(several) })
            }
        }
    }
}
