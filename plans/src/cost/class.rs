//! What two units must have in common for one measurement to hold for both.
//!
//! Cores of one cluster are alike, so a unit of two of them is measured once, whichever two they are.
//! *Invariant:* units of one class on one machine take the same time for the same work.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::machine::Machine;
use crate::plan::UnitSpec;

/// A class of compute units. Written as `cpu:0x2` (two cores of cluster 0), `cpu:0x4+1x2`, `cpu:0x2t1` (two cores and the
/// second hardware thread of one of them), `gpu:0:NAME`, `reference` or `sim`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitClass {
    /// Cores, counted by cluster.
    Cpu(BTreeMap<u32, CoreCount>),
    /// An adapter.
    Gpu {
        /// Its index.
        adapter: usize,
        /// Its name.
        name: String,
    },
    /// The oracle.
    Reference,
    /// The simulated unit.
    Sim,
}

/// Cores of one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CoreCount {
    /// Physical cores.
    pub cores: u32,
    /// Further hardware threads of these cores.
    pub threads: u32,
}

impl UnitClass {
    /// The class of a unit of this machine. A core that the machine does not list counts as one of cluster 0.
    pub fn of(spec: &UnitSpec, machine: &Machine) -> Self {
        let cores = match spec {
            UnitSpec::Cpu { cores } => cores,
            UnitSpec::Gpu { adapter, name } => {
                return UnitClass::Gpu { adapter: *adapter, name: name.clone() };
            }
            UnitSpec::Reference => return UnitClass::Reference,
            UnitSpec::Sim => return UnitClass::Sim,
        };
        let mut counts: BTreeMap<u32, CoreCount> = BTreeMap::new();
        let mut seen = Vec::new();
        for id in cores {
            let core = machine.cores.iter().find(|core| core.id == *id);
            let (cluster, physical) = core.map_or((0, *id as u32), |c| (c.cluster, c.physical));
            let count = counts.entry(cluster).or_default();
            if seen.contains(&physical) {
                count.threads += 1;
            } else {
                seen.push(physical);
                count.cores += 1;
            }
        }
        UnitClass::Cpu(counts)
    }

    /// A class of `cores` whole cores of one cluster.
    pub fn cores(cluster: u32, cores: u32) -> Self {
        UnitClass::Cpu(BTreeMap::from([(cluster, CoreCount { cores, threads: 0 })]))
    }

    /// Cluster and number of cores, if these are whole cores of one cluster.
    pub fn single_cluster(&self) -> Option<(u32, u32)> {
        match self {
            UnitClass::Cpu(counts) if counts.len() == 1 => {
                let (cluster, count) = counts.first_key_value()?;
                (count.threads == 0).then_some((*cluster, count.cores))
            }
            _ => None,
        }
    }

    /// Physical cores; 1 for anything else.
    pub fn core_count(&self) -> u32 {
        match self {
            UnitClass::Cpu(counts) => counts.values().map(|count| count.cores).sum(),
            _ => 1,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "reference" => Some(UnitClass::Reference),
            None if text == "sim" => Some(UnitClass::Sim),
            Some(("gpu", rest)) => {
                let (adapter, name) = rest.split_once(':')?;
                Some(UnitClass::Gpu { adapter: adapter.parse().ok()?, name: name.to_owned() })
            }
            Some(("cpu", rest)) => {
                let counts = rest.split('+').map(|part| {
                    let (cluster, count) = part.split_once('x')?;
                    let (cores, threads) = count.split_once('t').unwrap_or((count, "0"));
                    let (cores, threads) = (cores.parse().ok()?, threads.parse().ok()?);
                    Some((cluster.parse().ok()?, CoreCount { cores, threads }))
                });
                counts.collect::<Option<BTreeMap<_, _>>>().map(UnitClass::Cpu)
            }
            _ => None,
        }
    }
}

impl fmt::Display for UnitClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnitClass::Cpu(counts) => {
                f.write_str("cpu:")?;
                for (index, (cluster, CoreCount { cores, threads })) in counts.iter().enumerate() {
                    let plus = if index > 0 { "+" } else { "" };
                    write!(f, "{plus}{cluster}x{cores}")?;
                    if *threads > 0 {
                        write!(f, "t{threads}")?;
                    }
                }
                Ok(())
            }
            UnitClass::Gpu { adapter, name } => write!(f, "gpu:{adapter}:{name}"),
            UnitClass::Reference => f.write_str("reference"),
            UnitClass::Sim => f.write_str("sim"),
        }
    }
}

impl Serialize for UnitClass {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnitClass {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad = || serde::de::Error::custom(format!("`{text}` is not a class of units"));
        UnitClass::parse(&text).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::{CoreCount, UnitClass};
    use crate::machine::Machine;
    use crate::plan::UnitSpec;

    #[test]
    fn cores_of_one_cluster_are_alike_and_second_threads_are_not() {
        let mut machine = Machine::uniform(4, 0);
        machine.cores[3].physical = 2;
        let class = |cores: &[usize]| {
            UnitClass::of(&UnitSpec::Cpu { cores: cores.to_vec() }, &machine).to_string()
        };
        assert_eq!(class(&[0, 1]), "cpu:0x2");
        assert_eq!(class(&[1, 2]), "cpu:0x2");
        assert_eq!(class(&[2, 3]), "cpu:0x1t1");
    }

    #[test]
    fn names_are_read_back() {
        let both =
            [(0, CoreCount { cores: 4, threads: 0 }), (1, CoreCount { cores: 2, threads: 1 })];
        let gpu = UnitClass::Gpu { adapter: 1, name: "Mali: G310".into() };
        for class in [UnitClass::Cpu(both.into()), gpu, UnitClass::Sim, UnitClass::Reference] {
            assert_eq!(UnitClass::parse(&class.to_string()), Some(class));
        }
        assert_eq!(UnitClass::parse("cpu:0y2"), None);
    }
}
