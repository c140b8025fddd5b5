//! The classes of units to measure on a machine, each with cores that stand for it.
//!
//! *Invariant:* every core count that is not measured lies between two that are.

use std::collections::{BTreeMap, BTreeSet};

use outrider_plans::{Machine, UnitClass, UnitSpec};

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
    machine.adapter_units().for_each(add);
    found.into_iter().collect()
}

/// Pairs of units on which the target and the draft are measured at the same time: parts of the fastest cluster, that cluster
/// beside each other one and each real GPU, and each real GPU beside each cluster.
pub(super) fn pairs(machine: &Machine) -> Vec<(UnitSpec, UnitSpec)> {
    let mut found = Vec::new();
    let mut clusters = clusters(machine).into_values();
    let cores = clusters.next().unwrap_or_default();
    let others: Vec<UnitSpec> = clusters.map(|cores| cpu(&cores)).collect();
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
    found.extend(others.iter().map(|other| (cpu(&cores), other.clone())));
    for gpu in machine.gpus() {
        found.push((cpu(&cores), gpu.clone()));
        found.push((gpu.clone(), cpu(&cores)));
        found.extend(others.iter().map(|other| (gpu.clone(), other.clone())));
    }
    found
}

/// Pairs of units on which the target is measured in two halves: those of the fastest cluster, that cluster and each other one,
/// and each real GPU with the cores beside the one that serves it.
pub(super) fn splits(machine: &Machine) -> Vec<(UnitSpec, UnitSpec)> {
    let mut clusters = clusters(machine).into_values();
    let cores = clusters.next().unwrap_or_default();
    let (front, back) = cores.split_at(cores.len().div_ceil(2));
    let halves = (!back.is_empty()).then(|| (cpu(front), cpu(back)));
    let others = clusters.map(|other| (cpu(&cores), cpu(&other)));
    let beside = match cores.split_last() {
        Some((_, rest)) if !rest.is_empty() => rest,
        _ => &cores,
    };
    let gpus = machine.gpus().map(|gpu| (gpu, cpu(beside)));
    halves.into_iter().chain(others).chain(gpus).collect()
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
    use outrider_plans::{Adapter, AdapterKind, Core, Machine, UnitClass, UnitSpec};

    use super::{classes, pairs, splits};

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

    #[test]
    fn clusters_and_real_gpus_are_measured_beside_each_other_and_software_ones_never() {
        let core =
            |id: usize, cluster, capacity| Core { id, capacity, cluster, physical: id as u32 };
        let mut machine = Machine::uniform(0, 0);
        machine.cores = vec![core(0, 0, 1024), core(1, 0, 1024), core(2, 1, 400)];
        let adapter = |name: &str, kind| Adapter { name: name.into(), kind, memory_bytes: None };
        machine.adapters =
            vec![adapter("llvm", AdapterKind::Software), adapter("mali", AdapterKind::Integrated)];
        let of = |found: fn(&Machine) -> Vec<(UnitSpec, UnitSpec)>, machine: &Machine| {
            let name = |spec: &UnitSpec| UnitClass::of(spec, machine).to_string();
            let both =
                |(one, other): &(UnitSpec, UnitSpec)| format!("{} {}", name(one), name(other));
            found(machine).iter().map(both).collect::<Vec<_>>()
        };
        assert_eq!(
            of(pairs, &machine),
            [
                "cpu:0x1 cpu:0x1",
                "cpu:0x2 cpu:1x1",
                "cpu:0x2 gpu:1:mali",
                "gpu:1:mali cpu:0x2",
                "gpu:1:mali cpu:1x1"
            ]
        );
        let split = of(splits, &machine);
        assert_eq!(split, ["cpu:0x1 cpu:0x1", "cpu:0x2 cpu:1x1", "gpu:1:mali cpu:0x1"]);
        // A single fastest core has no halves, but a way to the others.
        machine.cores.remove(1);
        assert_eq!(of(splits, &machine), ["cpu:0x1 cpu:1x1", "gpu:1:mali cpu:0x1"]);
    }
}
