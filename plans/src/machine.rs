//! The machine that a plan is made for, as data: cores, GPU adapters, memory.
//!
//! *Invariant:* a description only. It may be of the machine at hand (discovery fills it) or of a board elsewhere.

use std::cmp::Reverse;

use crate::plan::UnitSpec;

/// A processor core that the process may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Core {
    /// The operating system's number, which pinning takes.
    pub id: usize,
    /// Relative speed: 1024 for the fastest core of the machine.
    pub capacity: u32,
    /// Cores of one cluster share their last private level of cache and their clock.
    pub cluster: u32,
    /// Hardware threads of one physical core have the same number here.
    pub physical: u32,
}

/// What kind of hardware is behind a GPU adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterKind {
    /// With memory of its own.
    Discrete,
    /// On the processor's chip, in main memory.
    Integrated,
    /// A GPU that the processor's cores imitate.
    Software,
}

impl AdapterKind {
    /// Name for listings.
    pub fn as_str(self) -> &'static str {
        match self {
            AdapterKind::Discrete => "discrete",
            AdapterKind::Integrated => "integrated",
            AdapterKind::Software => "software",
        }
    }
}

/// A GPU adapter; plans name it by its index in [`Machine::adapters`] or by a part of its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// Name as the driver gives it.
    pub name: String,
    /// Kind of hardware.
    pub kind: AdapterKind,
    /// Bytes of its own memory that are free; `None` if it lives in main memory.
    pub memory_bytes: Option<u64>,
}

/// What a plan can count on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores that the process may use (affinity and cgroup limits already taken off), each id once.
    pub cores: Vec<Core>,
    /// GPU adapters.
    pub adapters: Vec<Adapter>,
    /// Bytes of main memory that the plan may fill.
    pub memory_bytes: u64,
}

impl Machine {
    /// A machine of `cores` equal cores in one cluster, without a GPU.
    pub fn uniform(cores: usize, memory_bytes: u64) -> Self {
        let core = |id| Core { id, capacity: 1024, cluster: 0, physical: id as u32 };
        Self { cores: (0..cores).map(core).collect(), adapters: Vec::new(), memory_bytes }
    }

    /// Ids of the big cores: those with more than half of the fastest core's capacity. Ascending.
    pub fn big_cores(&self) -> Vec<usize> {
        self.cores_where(|capacity, fastest| 2 * u64::from(capacity) > u64::from(fastest))
    }

    /// Ids of the other cores; empty on a machine of equal cores. Ascending.
    pub fn little_cores(&self) -> Vec<usize> {
        self.cores_where(|capacity, fastest| 2 * u64::from(capacity) <= u64::from(fastest))
    }

    /// Ids of all cores, ascending.
    pub fn all_cores(&self) -> Vec<usize> {
        self.cores_where(|_, _| true)
    }

    /// Ids of all cores, best first: the fastest, one hardware thread of each physical core before its second, then
    /// by cluster and id, so that a few cores taken from the front lie together.
    pub fn cores_best_first(&self) -> Vec<usize> {
        let rank = |core: &Core| {
            let before = |c: &&Core| c.physical == core.physical && c.id < core.id;
            self.cores.iter().filter(before).count()
        };
        let mut order: Vec<_> = self
            .cores
            .iter()
            .map(|core| (Reverse(core.capacity), rank(core), core.cluster, core.id))
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, _, _, id)| id).collect()
    }

    /// Each adapter as a unit, in order.
    pub fn adapter_units(&self) -> impl Iterator<Item = UnitSpec> {
        let all = self.adapters.iter().enumerate();
        all.map(|(adapter, Adapter { name, .. })| UnitSpec::Gpu { adapter, name: name.clone() })
    }

    /// Those of them that are hardware, and so other units than the cores.
    pub fn gpus(&self) -> impl Iterator<Item = UnitSpec> {
        self.adapter_units().filter(|spec| !self.is_software(spec))
    }

    /// Whether a unit is an adapter that is not hardware: the processor's cores by another name.
    pub fn is_software(&self, spec: &UnitSpec) -> bool {
        let UnitSpec::Gpu { adapter, .. } = spec else { return false };
        self.adapters.get(*adapter).is_some_and(|adapter| adapter.kind == AdapterKind::Software)
    }

    fn cores_where(&self, keep: impl Fn(u32, u32) -> bool) -> Vec<usize> {
        let fastest = self.cores.iter().map(|c| c.capacity).max().unwrap_or(0);
        let mut ids: Vec<_> =
            self.cores.iter().filter(|c| keep(c.capacity, fastest)).map(|c| c.id).collect();
        ids.sort_unstable();
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::{Core, Machine};

    /// Four little cores, then two big ones with two hardware threads each.
    fn big_little() -> Machine {
        let little = (0..4).map(|id| Core { id, capacity: 400, cluster: 0, physical: id as u32 });
        let big =
            (4..8).map(|id| Core { id, capacity: 1024, cluster: 1, physical: 4 + (id as u32 & 1) });
        Machine { cores: little.chain(big).collect(), adapters: Vec::new(), memory_bytes: 1 << 30 }
    }

    #[test]
    fn big_and_little_cores_are_told_apart() {
        assert_eq!(big_little().big_cores(), [4, 5, 6, 7]);
        assert_eq!(big_little().little_cores(), [0, 1, 2, 3]);
        assert_eq!(Machine::uniform(2, 0).big_cores(), [0, 1]);
        assert!(Machine::uniform(2, 0).little_cores().is_empty());
    }

    #[test]
    fn the_second_hardware_thread_of_a_core_comes_after_every_first() {
        assert_eq!(big_little().cores_best_first(), [4, 5, 6, 7, 0, 1, 2, 3]);
        let mut machine = big_little();
        machine.cores[5].physical = 4;
        machine.cores[6].physical = 5;
        assert_eq!(machine.cores_best_first()[..4], [4, 6, 5, 7]);
    }
}
