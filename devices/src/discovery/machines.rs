//! Machines laid out as files, read back.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Cluster, Machine, MemoryLimit};

/// A folder that is removed when dropped.
struct Tree(PathBuf);

impl Tree {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("outrider-discovery-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn with(self, path: &str, text: &str) -> Self {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("it is ours");
        fs::write(path, text).expect("it is ours");
        self
    }

    fn cpu(self, id: usize, name: &str, text: &str) -> Self {
        self.with(&format!("sys/devices/system/cpu/cpu{id}/{name}"), text)
    }

    fn read(&self) -> Machine {
        Machine::read(&self.0)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // A tree without files was never made.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An Arm board whose CPUs have these part numbers and capacities.
fn arm_board(model: &str, cpus: &[(&str, u64)]) -> Tree {
    let all = format!("0-{}\n", cpus.len() - 1);
    let cpuinfo: Vec<String> = cpus
        .iter()
        .enumerate()
        .map(|(id, (part, _))| {
            format!(
                "processor\t: {id}\nFeatures\t: fp asimd asimdhp asimddp\n\
                 CPU implementer\t: 0x41\nCPU part\t: {part}\n"
            )
        })
        .collect();
    let tree = Tree::new()
        .with("proc/device-tree/model", &format!("{model}\0"))
        .with("proc/cpuinfo", &cpuinfo.join("\n"))
        .with("proc/meminfo", "MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 6000000 kB\n")
        .with("proc/self/status", &format!("Name: x\nCpus_allowed_list:\t{all}"))
        .with("proc/self/cgroup", "0::/user.slice/session-1.scope\n")
        .with("sys/devices/system/cpu/online", &all);
    cpus.iter().enumerate().fold(tree, |tree, (id, (_, capacity))| {
        tree.cpu(id, "cpu_capacity", &format!("{capacity}\n"))
            .cpu(id, "topology/physical_package_id", "0\n")
            .cpu(id, "topology/core_cpus_list", &format!("{id}\n"))
            .cpu(id, "cache/index3/level", "3\n")
            .cpu(id, "cache/index3/size", "3072K\n")
            .cpu(id, "cache/index3/shared_cpu_list", &all)
    })
}

#[test]
fn six_equal_cores_are_one_cluster() {
    let machine = arm_board("NXP i.MX95 19X19 board", &[("0xd05", 1024); 6]).read();
    assert_eq!(
        machine.clusters,
        [Cluster {
            processor: Some("Cortex-A55".to_owned()),
            capacity: 1024,
            cores: (0..6).collect(),
            spare_threads: vec![],
            cache_groups: vec![(0..6).collect()],
        }]
    );
    assert_eq!(machine.board.as_deref(), Some("NXP i.MX95 19X19 board"));
    assert_eq!(machine.instructions, ["asimd", "asimdhp", "asimddp"]);
    assert_eq!(machine.memory_free(), Some(6_000_000 << 10));
    assert_eq!((machine.threads_max(), machine.unknown.len()), (6, 0));
}

#[test]
fn big_and_little_cores_are_two_clusters_the_big_ones_first() {
    let (little, big) = (("0xd05", 530), ("0xd0b", 1024));
    let nearly = ("0xd0b", 1010);
    let cpus = [little, little, little, little, big, big, nearly, nearly];
    let machine = arm_board("Rockchip RK3588", &cpus).read();
    let found: Vec<_> = machine
        .clusters
        .iter()
        .map(|c| (c.processor.as_deref().unwrap_or(""), c.capacity, c.cores.clone()))
        .collect();
    let expected = [("Cortex-A76", 1024, vec![4, 5, 6, 7]), ("Cortex-A55", 530, vec![0, 1, 2, 3])];
    assert_eq!(found, expected);
    let text = machine.to_string();
    assert!(
        text.starts_with("Rockchip RK3588\n4 x Cortex-A76, CPUs 4-7, capacity 1024\n"),
        "{text}"
    );
}

#[test]
fn clocks_tell_clusters_where_capacities_do_not() {
    let tree = Tree::new().with("sys/devices/system/cpu/online", "0-2");
    let machine = [(0, "1800000"), (1, "2400000"), (2, "1800000")]
        .into_iter()
        .fold(tree, |tree, (id, khz)| tree.cpu(id, "cpufreq/cpuinfo_max_freq", khz))
        .read();
    let cores: Vec<_> = machine.clusters.iter().map(|c| (c.capacity, c.cores.clone())).collect();
    assert_eq!(cores, [(1024, vec![1]), (768, vec![0, 2])]);
}

#[test]
fn threads_of_one_core_count_once() {
    let tree = Tree::new()
        .with("sys/devices/system/cpu/online", "0-3")
        .with("proc/self/status", "Cpus_allowed_list:\t0,2-3\n");
    let machine = (0..4)
        .fold(tree, |tree, id| {
            let pair = ["0,2", "1,3"][id % 2];
            tree.cpu(id, "topology/thread_siblings_list", pair)
        })
        .read();
    assert_eq!(machine.clusters[0].cores, [0, 3]);
    assert_eq!(machine.clusters[0].spare_threads, [2]);
    assert_eq!(machine.threads_max(), 2);
}

#[test]
fn the_tightest_group_of_a_container_counts() {
    let machine = arm_board("board", &[("0xd05", 1024); 6])
        .with("proc/self/cgroup", "0::/pod/box\n")
        .with("sys/fs/cgroup/pod/cpu.max", "150000 100000\n")
        .with("sys/fs/cgroup/pod/box/cpu.max", "max 100000\n")
        .with("sys/fs/cgroup/pod/memory.max", "max\n")
        .with("sys/fs/cgroup/pod/box/memory.max", "1000000\n")
        .with("sys/fs/cgroup/pod/box/memory.current", "400000\n")
        .read();
    assert_eq!(machine.limits.cpus, Some(1.5));
    assert_eq!(machine.limits.memory, Some(MemoryLimit { bytes: 1_000_000, used: 400_000 }));
    assert_eq!((machine.threads_max(), machine.memory_free()), (1, Some(600_000)));
}

#[test]
fn groups_of_version_1_limit_too() {
    let machine = arm_board("board", &[("0xd05", 1024); 6])
        .with("proc/self/cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n")
        .with("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
        .with("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
        .with("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "300000\n")
        .with("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
        .with("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        .with("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "5000\n")
        .with("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "6000\n")
        .read();
    assert_eq!(machine.limits.cpus, Some(3.0));
    assert_eq!((machine.threads_max(), machine.memory_free()), (3, Some(0)));
}

#[test]
fn a_machine_that_tells_nothing_has_one_core_and_says_what_is_missing() {
    let machine = Tree::new().read();
    assert_eq!(machine.clusters.len(), 1);
    assert_eq!(machine.clusters[0].cores, [0]);
    assert_eq!((machine.threads_max(), machine.memory_free()), (1, None));
    assert_eq!(machine.unknown.len(), 4, "{:?}", machine.unknown);
}

#[test]
fn this_machine_offers_at_least_the_core_that_runs_the_test() {
    let machine = Machine::here();
    assert!(!machine.cpus.is_empty());
    assert!(machine.threads_max() <= machine.cpus.len());
}
