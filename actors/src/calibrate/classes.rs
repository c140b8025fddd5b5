//! The classes of units to measure on a machine, each with cores that stand for it.
//!
//! *Invariant:* every core count that is not measured lies between two that are.

use std::collections::{BTreeMap, BTreeSet};

use outrider_plans::{Adapter, AdapterKind, Machine, UnitClass, UnitSpec};

/// Classes and, for each, hardware to measure it on. Cores of each cluster by 1, 2, 4, .., all of them and
/// all but one; all big cores
/// together if they are of several clusters; every adapter.
pub fn classes(machine: &Machine) -> Vec<(UnitClass, UnitSpec)> {
    let mut found: BTreeMap<UnitClass, UnitSpec> = BTreeMap::new();
    let mut add = |spec: UnitSpec| {
        found.entry(UnitClass::of(&spec, machine)).or_insert(spec);
    };
    for cores in clusters(machine).into_values() {
        let mut count = 1;
        while count < cores.len() {
            add(cpu(&cores[..count]));
            count *= 2;
        }
        // A core is best left to everything else where there are many.
        if let Some(most) = cores.len().checked_sub(1).filter(|most| *most > 0) {
            add(cpu(&cores[..most]));
        }
        add(cpu(&cores));
    }
    add(cpu(&machine.big_cores()));
    for (adapter, Adapter { name, .. }) in machine.adapters.iter().enumerate() {
        add(UnitSpec::Gpu { adapter, name: name.clone() });
    }
    found.into_iter().collect()
}

/// Pairs of units on which the target and the draft are measured at the same time.
pub(super) fn pairs(machine: &Machine) -> Vec<(UnitSpec, UnitSpec)> {
    let mut found = Vec::new();
    let cores: Vec<usize> = clusters(machine).into_values().next().unwrap_or_default();
    if let Some((last, rest)) = cores.split_last()
        && !rest.is_empty()
    {
        found.push((cpu(rest), cpu(&[*last])));
        // Few cores are disturbed otherwise than many.
        for count in BTreeSet::from([cores.len() / 4, cores.len() / 2]) {
            if count > 0 && rest.len() > 1 {
                found.push((cpu(&cores[..count]), cpu(&cores[cores.len() - count..])));
            }
        }
    }
    for gpu in gpus(machine) {
        found.push((cpu(&cores), gpu.clone()));
        found.push((gpu, cpu(&cores)));
    }
    found
}

/// Pairs of units on which the target is measured in two halves: those of the fastest cluster, and each real GPU with the cores
/// beside the one that serves it.
pub(super) fn splits(machine: &Machine) -> Vec<(UnitSpec, UnitSpec)> {
    let cores = clusters(machine).into_values().next().unwrap_or_default();
    let (front, back) = cores.split_at(cores.len().div_ceil(2));
    let halves = (!back.is_empty()).then(|| (cpu(front), cpu(back)));
    let beside = match cores.split_last() {
        Some((_, rest)) if !rest.is_empty() => rest,
        _ => &cores,
    };
    halves.into_iter().chain(gpus(machine).map(|gpu| (gpu, cpu(beside)))).collect()
}

/// Whether a unit is an adapter of this machine that is not software.
pub(crate) fn is_real_gpu(spec: &UnitSpec, machine: &Machine) -> bool {
    match spec {
        UnitSpec::Gpu { adapter, .. } => {
            let adapter = machine.adapters.get(*adapter);
            adapter.is_some_and(|adapter| adapter.kind != AdapterKind::Software)
        }
        _ => false,
    }
}

/// Adapters that are not software.
fn gpus(machine: &Machine) -> impl Iterator<Item = UnitSpec> {
    let all = machine.adapters.iter().enumerate();
    let real = all.filter(|(_, adapter)| adapter.kind != AdapterKind::Software);
    real.map(|(adapter, Adapter { name, .. })| UnitSpec::Gpu { adapter, name: name.clone() })
}

/// Whole cores of each cluster, best first.
fn clusters(machine: &Machine) -> BTreeMap<u32, Vec<usize>> {
    let mut clusters: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let mut seen = Vec::new();
    for id in machine.cores_best_first() {
        let core = machine.cores.iter().find(|core| core.id == id).expect("it is listed");
        if !seen.contains(&core.physical) {
            seen.push(core.physical);
            clusters.entry(core.cluster).or_default().push(id);
        }
    }
    clusters
}

fn cpu(cores: &[usize]) -> UnitSpec {
    let mut cores = cores.to_vec();
    cores.sort_unstable();
    UnitSpec::Cpu { cores }
}

#[cfg(test)]
mod tests {
    use outrider_plans::{Core, Machine};

    use super::{classes, pairs};

    fn names(machine: &Machine) -> Vec<String> {
        classes(machine).into_iter().map(|(class, _)| class.to_string()).collect()
    }

    #[test]
    fn core_counts_double_up_to_all() {
        assert_eq!(names(&Machine::uniform(1, 0)), ["cpu:0x1"]);
        assert_eq!(
            names(&Machine::uniform(6, 0)),
            ["cpu:0x1", "cpu:0x2", "cpu:0x4", "cpu:0x5", "cpu:0x6"]
        );
        assert_eq!(pairs(&Machine::uniform(1, 0)).len(), 0);
        assert_eq!(pairs(&Machine::uniform(2, 0)).len(), 1);
        assert_eq!(pairs(&Machine::uniform(6, 0)).len(), 3);
    }

    #[test]
    fn clusters_are_measured_apart_and_second_threads_left_out() {
        let core =
            |id: usize, cluster, capacity| Core { id, capacity, cluster, physical: id as u32 };
        let mut machine = Machine::uniform(0, 0);
        machine.cores = vec![core(0, 1, 400), core(1, 1, 400), core(2, 0, 1024), core(3, 0, 1024)];
        machine.cores[3].physical = 2;
        // The two threads of core 2 are the machine's big cores.
        assert_eq!(names(&machine), ["cpu:0x1", "cpu:0x1t1", "cpu:1x1", "cpu:1x2"]);
    }
}
