//! The limits that a control group sets, version 2 or 1: processor time and memory.
//!
//! *Invariant:* the tightest limit on the way from the process's group up to the root counts, for that is the one that
//! the kernel enforces.

use super::Files;

/// Limits of the process's control groups; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct CgroupLimits {
    /// Processor time, in CPUs.
    pub cpus: Option<f64>,
    /// Memory, and how much of it is used.
    pub memory: Option<MemoryLimit>,
}

/// A limit on memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MemoryLimit {
    /// Bytes allowed.
    pub bytes: u64,
    /// Bytes in use.
    pub used: u64,
}

impl MemoryLimit {
    /// Bytes that are left.
    pub fn free(self) -> u64 {
        self.bytes.saturating_sub(self.used)
    }
}

/// Version 1 writes "no limit" as a number of about 2^63.
const UNLIMITED_MIN: u64 = 1 << 60;

/// Reads the limits of the process whose groups `proc/self/cgroup` lists.
pub(super) fn read_limits(files: &Files<'_>) -> CgroupLimits {
    let groups = files.read("proc/self/cgroup").unwrap_or_else(|| "0::/".to_owned());
    let mut limits = CgroupLimits::default();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        for mount in mounts(controllers) {
            for group in with_ancestors(path) {
                let folder = format!("{mount}{group}");
                limits.cpus = tighter(limits.cpus, cpus(files, &folder), |cpus| cpus);
                limits.memory = tighter(limits.memory, memory(files, &folder), |m: MemoryLimit| {
                    m.free() as f64
                });
            }
        }
    }
    limits
}

/// Where the hierarchy of these controllers may be mounted.
fn mounts(controllers: &str) -> Vec<String> {
    let root = "sys/fs/cgroup";
    if controllers.is_empty() {
        return vec![root.to_owned(), format!("{root}/unified")];
    }
    let mut names: Vec<&str> =
        controllers.split(',').filter(|c| ["cpu", "memory"].contains(c)).collect();
    if !names.is_empty() && names != [controllers] {
        names.push(controllers);
    }
    names.iter().map(|name| format!("{root}/{name}")).collect()
}

/// `/a/b` -> `/a/b`, `/a` and the root.
fn with_ancestors(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_end_matches('/');
    std::iter::successors(Some(path), |p| p.rfind('/').map(|at| &p[..at]))
}

fn tighter<T: Copy>(a: Option<T>, b: Option<T>, room: impl Fn(T) -> f64) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if room(b) < room(a) { b } else { a }),
        (a, b) => a.or(b),
    }
}

fn cpus(files: &Files<'_>, folder: &str) -> Option<f64> {
    let (quota, period) = match files.read(&format!("{folder}/cpu.max")) {
        Some(text) => parse_cpu_max(&text)?,
        None => (
            files.number(&format!("{folder}/cpu.cfs_quota_us"))?,
            files.number(&format!("{folder}/cpu.cfs_period_us"))?,
        ),
    };
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

/// `quota period` in microseconds; `None` for `max period`.
fn parse_cpu_max(text: &str) -> Option<(u64, u64)> {
    let (quota, period) = text.trim().split_once(' ')?;
    Some((quota.parse().ok()?, period.parse().ok()?))
}

fn memory(files: &Files<'_>, folder: &str) -> Option<MemoryLimit> {
    let number = |name: &str| files.number(&format!("{folder}/{name}"));
    let bytes = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes")).unwrap_or(0);
    (bytes < UNLIMITED_MIN).then_some(MemoryLimit { bytes, used })
}
