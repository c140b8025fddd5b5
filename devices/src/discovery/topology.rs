//! CPUs and their clusters, from `/sys/devices/system/cpu`.
//!
//! *Invariant:* every usable CPU is in exactly one cluster, as a core or as the spare thread of one.

use std::collections::{BTreeMap, BTreeSet};

use super::{Files, parse_cpu_list};
use crate::discovery::Processor;

/// Capacity of the fastest cores.
const CAPACITY_FULL: u64 = 1024;

/// Cores whose capacities differ by less than this share are of one kind: boost clocks vary a little from core to core.
const SAME_KIND_SHARE: f64 = 0.1;

/// One logical CPU that the process may run on.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cpu {
    /// The kernel's number.
    pub id: usize,
    /// Speed beside the machine's fastest CPU, which has 1024, as the kernel's scheduler sees it.
    pub capacity: Option<u64>,
    /// Highest clock, kHz.
    pub frequency_khz_max: Option<u64>,
    /// Physical package.
    pub package: Option<u64>,
    /// Usable CPUs that are threads of the same core, itself among them.
    pub siblings: Vec<usize>,
    /// Largest cache that the CPU can use.
    pub last_cache: Option<Cache>,
}

/// A cache of the last level.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Cache {
    /// 3 for an L3 cache.
    pub level: u64,
    /// Size, if told.
    pub bytes: Option<u64>,
    /// Usable CPUs that share it.
    pub cpus: Vec<usize>,
}

/// Cores of one kind.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Cluster {
    /// Name of the cores, if they have one in common.
    pub processor: Option<String>,
    /// Speed of a core beside the machine's fastest, which has 1024.
    pub capacity: u64,
    /// One CPU for each physical core, ascending.
    pub cores: Vec<usize>,
    /// The other threads of these cores.
    pub spare_threads: Vec<usize>,
    /// `cores` by shared last-level cache; one group if that is unknown.
    pub cache_groups: Vec<Vec<usize>>,
}

/// Describes each of these CPUs as far as the files tell.
pub(super) fn read_cpus(files: &Files<'_>, usable: &[usize]) -> Vec<Cpu> {
    let only_usable = |list: Option<Vec<usize>>| {
        list.map(|l| l.into_iter().filter(|c| usable.contains(c)).collect::<Vec<_>>())
    };
    let describe = |&id: &usize| {
        let folder = format!("sys/devices/system/cpu/cpu{id}");
        let list =
            |name: &str| only_usable(parse_cpu_list(&files.read(&format!("{folder}/{name}"))?));
        let number = |name: &str| files.number(&format!("{folder}/{name}"));
        let siblings =
            list("topology/core_cpus_list").or_else(|| list("topology/thread_siblings_list"));
        let last_cache = (0..8)
            .filter_map(|index| {
                let cache = format!("cache/index{index}");
                let size = files.read(&format!("{folder}/{cache}/size"));
                Some(Cache {
                    level: number(&format!("{cache}/level"))?,
                    bytes: size.and_then(|s| parse_size(&s)),
                    cpus: list(&format!("{cache}/shared_cpu_list"))?,
                })
            })
            .max_by_key(|cache| cache.level);
        Cpu {
            id,
            capacity: number("cpu_capacity"),
            frequency_khz_max: number("cpufreq/cpuinfo_max_freq"),
            package: number("topology/physical_package_id"),
            siblings: siblings.filter(|s| s.contains(&id)).unwrap_or_else(|| vec![id]),
            last_cache,
        }
    };
    usable.iter().map(describe).collect()
}

/// `512K`, `32M` or bytes.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit = match text.bytes().last()? {
        b'K' => 1 << 10,
        b'M' => 1 << 20,
        _ => 1,
    };
    text.trim_end_matches(['K', 'M']).parse::<u64>().ok()?.checked_mul(unit)
}

/// Groups CPUs into clusters, the fastest first: by capacity where all have one, else by highest clock, else in one.
pub fn clusters(cpus: &[Cpu], processors: &BTreeMap<usize, Processor>) -> Vec<Cluster> {
    let speeds = |of: fn(&Cpu) -> Option<u64>| cpus.iter().map(of).collect::<Option<Vec<u64>>>();
    let speeds = speeds(|c| c.capacity)
        .or_else(|| speeds(|c| c.frequency_khz_max))
        .unwrap_or_else(|| vec![CAPACITY_FULL; cpus.len()]);
    let fastest = speeds.iter().copied().max().unwrap_or(1).max(1);
    let mut by_speed: Vec<(u64, &Cpu)> = speeds.iter().copied().zip(cpus).collect();
    by_speed.sort_by_key(|&(speed, cpu)| (std::cmp::Reverse(speed), cpu.id));
    let mut clusters = Vec::new();
    while let Some(&(first, _)) = by_speed.first() {
        let same_kind = |speed: u64| speed as f64 >= first as f64 * (1.0 - SAME_KIND_SHARE);
        let count = by_speed.iter().take_while(|&&(speed, _)| same_kind(speed)).count();
        let members: Vec<&Cpu> = by_speed.drain(..count).map(|(_, cpu)| cpu).collect();
        let capacity =
            (u128::from(first) * u128::from(CAPACITY_FULL)).div_ceil(u128::from(fastest));
        clusters.push(cluster(members, capacity as u64, processors));
    }
    clusters
}

fn cluster(
    mut members: Vec<&Cpu>,
    capacity: u64,
    processors: &BTreeMap<usize, Processor>,
) -> Cluster {
    members.sort_by_key(|cpu| cpu.id);
    let ids: BTreeSet<usize> = members.iter().map(|c| c.id).collect();
    let is_core =
        |cpu: &Cpu| cpu.siblings.iter().filter(|s| ids.contains(s)).min() == Some(&cpu.id);
    let (cores, spare): (Vec<&Cpu>, Vec<&Cpu>) = members.iter().partition(|c| is_core(c));
    let mut cache_groups: Vec<(Option<&Cache>, Vec<usize>)> = Vec::new();
    for core in &cores {
        let cache = core.last_cache.as_ref();
        match cache_groups.iter_mut().find(|(shared, _)| *shared == cache) {
            Some((_, group)) => group.push(core.id),
            None => cache_groups.push((cache, vec![core.id])),
        }
    }
    let mut names: Vec<_> = ids.iter().map(|id| processors.get(id)?.name.clone()).collect();
    names.dedup();
    Cluster {
        processor: if names.len() == 1 { names.remove(0) } else { None },
        capacity,
        cores: cores.iter().map(|c| c.id).collect(),
        spare_threads: spare.iter().map(|c| c.id).collect(),
        cache_groups: cache_groups.into_iter().map(|(_, group)| group).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use proptest::{collection, prop_assert_eq};

    use super::*;

    #[test]
    fn sizes_as_the_kernel_writes_them() {
        assert_eq!(parse_size("32768K\n"), Some(32 << 20));
        assert_eq!(parse_size("4M"), Some(4 << 20));
        assert_eq!(parse_size("64"), Some(64));
        assert_eq!(parse_size(""), None);
    }

    proptest! {
        #[test]
        fn every_cpu_is_in_exactly_one_cluster(
            machine in collection::vec((any::<Option<u64>>(), any::<Option<u64>>(), 0usize..8), 1..20)
        ) {
            let cpus: Vec<Cpu> = machine
                .iter()
                .enumerate()
                .map(|(id, &(capacity, frequency_khz_max, sibling))| {
                    let siblings = vec![id, sibling];
                    Cpu { id, capacity, frequency_khz_max, siblings, ..Cpu::default() }
                })
                .collect();
            let clusters = clusters(&cpus, &BTreeMap::new());
            let mut seen: Vec<usize> = clusters
                .iter()
                .flat_map(|c| c.cores.iter().chain(&c.spare_threads))
                .copied()
                .collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..cpus.len()).collect::<Vec<_>>());
            prop_assert_eq!(clusters[0].capacity, 1024);
            for cluster in &clusters {
                prop_assert_eq!(&cluster.cache_groups, &vec![cluster.cores.clone()]);
            }
        }
    }
}
