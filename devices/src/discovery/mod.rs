//! What this machine offers a process: the CPUs it may use and their clusters, and memory.
//!
//! *Invariant:* discovery never fails. What cannot be read is `None`, with the reason in [`Machine::unknown`]; all that
//! is read comes from files under one root, so that a test can lay out a machine that is not there.

mod cgroup;
mod cpu_list;
mod cpuinfo;
mod topology;

#[cfg(test)]
mod machines;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

pub use cgroup::{CgroupLimits, MemoryLimit};
pub use cpu_list::{format_cpu_list, parse_cpu_list};
pub use cpuinfo::{Processor, parse_cpuinfo};
pub use topology::{Cache, Cluster, Cpu, clusters};

/// What a process may use of a machine.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Machine {
    /// Name of the board, where there is a device tree.
    pub board: Option<String>,
    /// Relevant instruction sets that every usable CPU has, as the kernel calls them.
    pub instructions: Vec<String>,
    /// The CPUs that are online and that the process may run on; never empty.
    pub cpus: Vec<Cpu>,
    /// These CPUs by kind, the fastest first; never empty.
    pub clusters: Vec<Cluster>,
    /// Memory.
    pub memory: Memory,
    /// Limits of the process's control groups.
    pub limits: CgroupLimits,
    /// What could not be read.
    pub unknown: Vec<String>,
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// All of the machine's.
    pub total: Option<u64>,
    /// What can be had without swapping.
    pub available: Option<u64>,
}

/// Reads files below a root.
struct Files<'a> {
    root: &'a Path,
}

impl Machine {
    /// This machine and this process.
    pub fn here() -> Self {
        Self::of(&Files { root: Path::new("/") }, affinity())
    }

    /// The machine whose `/proc` and `/sys` lie under `root`.
    pub fn read(root: &Path) -> Self {
        Self::of(&Files { root }, None)
    }

    fn of(files: &Files<'_>, affinity: Option<Vec<usize>>) -> Self {
        let mut unknown = Vec::new();
        let processors = parse_cpuinfo(&files.read("proc/cpuinfo").unwrap_or_default());
        if processors.is_empty() {
            unknown.push("/proc/cpuinfo names no processor".to_owned());
        }
        let allowed = affinity.or_else(|| files.allowed());
        if allowed.is_none() {
            unknown.push("/proc/self/status does not say which CPUs are allowed".to_owned());
        }
        let online = files.read("sys/devices/system/cpu/online").and_then(|t| parse_cpu_list(&t));
        if online.is_none() {
            unknown.push("/sys/devices/system/cpu/online cannot be read".to_owned());
        }
        let known: Vec<usize> = processors.keys().copied().collect();
        let usable = usable(online, allowed, known);
        let cpus = topology::read_cpus(files, &usable);
        let memory = files.memory();
        if memory.total.is_none() {
            unknown.push("/proc/meminfo does not tell the size of the memory".to_owned());
        }
        Self {
            board: files
                .read("proc/device-tree/model")
                .map(|m| m.trim_matches('\0').trim().to_owned()),
            instructions: cpuinfo::common_instructions(
                usable.iter().filter_map(|c| processors.get(c)),
            ),
            clusters: clusters(&cpus, &processors),
            cpus,
            memory,
            limits: cgroup::read_limits(files),
            unknown,
        }
    }

    /// Threads that can run at once without sharing a core or being throttled; at least 1.
    pub fn threads_max(&self) -> usize {
        let cores: usize = self.clusters.iter().map(|c| c.cores.len()).sum();
        let quota = self.limits.cpus.map_or(cores, |cpus| cpus as usize);
        cores.min(quota).max(1)
    }

    /// Bytes of memory that the process can still get; `None` if nothing tells.
    pub fn memory_free(&self) -> Option<u64> {
        let machine = self.memory.available.or(self.memory.total);
        let group = self.limits.memory.map(MemoryLimit::free);
        machine.into_iter().chain(group).min()
    }
}

/// CPUs that are online and allowed, as far as known; else those that are described; else the one that runs this.
fn usable(
    online: Option<Vec<usize>>,
    allowed: Option<Vec<usize>>,
    described: Vec<usize>,
) -> Vec<usize> {
    let both = match (online, allowed) {
        (Some(online), Some(allowed)) => {
            let allowed: BTreeSet<usize> = allowed.into_iter().collect();
            online.into_iter().filter(|cpu| allowed.contains(cpu)).collect()
        }
        (one, other) => one.or(other).unwrap_or_default(),
    };
    [both, described].into_iter().find(|list| !list.is_empty()).unwrap_or_else(|| vec![0])
}

/// CPUs that the calling thread may run on; `None` if the kernel does not say.
fn affinity() -> Option<Vec<usize>> {
    // SAFETY: `cpu_set_t` is a plain array of integers, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to `set`, which lives for the whole call and has the size given.
    let failed = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } != 0;
    // SAFETY: every number asked for is below the set's size in bits.
    let has = |cpu: usize| unsafe { libc::CPU_ISSET(cpu, &set) };
    (!failed).then(|| (0..8 * size_of_val(&set)).filter(|&cpu| has(cpu)).collect())
}

impl Files<'_> {
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok()
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    fn allowed(&self) -> Option<Vec<usize>> {
        let status = self.read("proc/self/status")?;
        parse_cpu_list(status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?)
    }

    fn memory(&self) -> Memory {
        let text = self.read("proc/meminfo").unwrap_or_default();
        let bytes = |key: &str| {
            let value = text.lines().find_map(|l| l.strip_prefix(key))?;
            value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Memory { total: bytes("MemTotal:"), available: bytes("MemAvailable:") }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        if let Some(board) = &self.board {
            writeln!(f, "{board}")?;
        }
        for cluster in &self.clusters {
            let Cluster { cores, capacity, .. } = cluster;
            let name = cluster.processor.as_deref().unwrap_or("unnamed processor");
            write!(f, "{} x {name}, CPUs {}", cores.len(), format_cpu_list(cores))?;
            write!(f, ", capacity {capacity}")?;
            if !cluster.spare_threads.is_empty() {
                write!(f, ", spare threads {}", format_cpu_list(&cluster.spare_threads))?;
            }
            writeln!(f)?;
        }
        writeln!(f, "instructions: {}", self.instructions.join(" "))?;
        if let Some(cpus) = self.limits.cpus {
            writeln!(f, "limited to {cpus:.2} CPUs")?;
        }
        if let Some(limit) = self.limits.memory {
            writeln!(f, "limited to {} MiB of memory", mib(limit.bytes))?;
        }
        if let (Some(total), Some(free)) = (self.memory.total, self.memory_free()) {
            writeln!(f, "memory: {} MiB, {} MiB free", mib(total), mib(free))?;
        }
        self.unknown.iter().try_for_each(|reason| writeln!(f, "unknown: {reason}"))
    }
}
