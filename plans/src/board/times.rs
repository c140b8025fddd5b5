//! The roofline: a board's numbers as the tables that calibration would have measured.
//!
//! *Invariant:* integers throughout; a time never falls with the rows, and never rises with the cores.

use std::collections::BTreeMap;

use super::file::{AdapterEntry, BoardFile, ClusterEntry, ModelEntry};
use crate::cost::{
    AroundJobs, CostModel, LinkProfile, MemoryDomain, PartsProfile, RoleProfile, TimeTable,
    UnitClass, UnitProfile,
};
use crate::role::ModelRole;

/// Rows of the tables.
const ROWS: [u32; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 96, 128];

/// What a unit can do.
#[derive(Clone, Copy)]
struct Unit {
    bytes_per_second: u64,
    products_per_second: u64,
    job_ns: u64,
    layer_ns: u64,
}

pub(super) fn model(file: &BoardFile) -> CostModel {
    let mut units = BTreeMap::new();
    for (cluster, entry) in file.clusters.iter().enumerate() {
        for cores in 1..=entry.cores.value {
            let class = UnitClass::cores(cluster as u32, cores as u32);
            let unit = of_cores(entry, cores, file.bus_bytes_per_second.value);
            let profile = UnitProfile {
                memory: MemoryDomain::Main,
                roles: roles(file, unit, &format!("cpu:{cluster}x{cores}")),
                around: around(file),
                power_mw: cores * entry.power_mw.value,
            };
            units.insert(class, profile);
        }
    }
    for (adapter, entry) in file.adapters.iter().enumerate() {
        let class = UnitClass::Gpu { adapter, name: entry.name.clone() };
        let own = entry.memory_bytes.is_some();
        let profile = UnitProfile {
            memory: if own { MemoryDomain::Own } else { MemoryDomain::Main },
            roles: roles(file, of_adapter(entry), &format!("gpu:{adapter}")),
            around: around(file),
            power_mw: entry.power_mw.value,
        };
        units.insert(class, profile);
    }
    CostModel {
        units,
        links: Vec::new(),
        link_default: LinkProfile {
            latency_ns: file.hop_ns.value,
            bytes_per_second: file.bus_bytes_per_second.value,
        },
        contention: Vec::new(),
        bus_bytes_per_second: file.bus_bytes_per_second.value,
    }
}

fn of_cores(entry: &ClusterEntry, cores: u64, bus: u64) -> Unit {
    let all = cores * entry.bytes_per_second.value;
    Unit {
        bytes_per_second: if bus == 0 { all } else { all.min(bus) },
        products_per_second: cores * entry.products_per_second.value,
        job_ns: 0,
        layer_ns: 0,
    }
}

fn of_adapter(entry: &AdapterEntry) -> Unit {
    Unit {
        bytes_per_second: entry.bytes_per_second.value,
        products_per_second: entry.products_per_second.value,
        job_ns: entry.job_ns.value,
        layer_ns: entry.layer_ns.value,
    }
}

fn around(file: &BoardFile) -> AroundJobs {
    let hop_ns = file.hop_ns.value;
    AroundJobs { target_hop_ns: hop_ns, draft_hop_ns: hop_ns, ..AroundJobs::default() }
}

fn roles(file: &BoardFile, unit: Unit, name: &str) -> BTreeMap<ModelRole, RoleProfile> {
    let of = |role: ModelRole| {
        let entry = file.entry(role);
        let profile = profile(entry, unit);
        let said = file.measured.iter().find(|m| m.model == role && m.unit == name);
        let profile = match said {
            None => profile,
            Some(measured) => {
                let permille = measured.permille_of_target_on_one_core.value;
                let one = of_cores(&file.clusters[0], 1, file.bus_bytes_per_second.value);
                let base = pass_ns(file.entry(ModelRole::Target), one, 1, 1);
                let wanted = u128::from(base) * u128::from(permille) / 1000;
                scaled(&profile, wanted, u128::from(profile.verify.at_ns(1, 0).max(1)))
            }
        };
        (role, profile)
    };
    [ModelRole::Target, ModelRole::Draft].map(of).into()
}

/// Time of `rows` rows through weights of so many parameters.
fn product_ns(entry: &ModelEntry, parameters: u64, unit: Unit, rows: u32) -> u64 {
    let bytes = u128::from(parameters * entry.bits_per_parameter.value / 8);
    let products = u128::from(parameters) * u128::from(rows);
    let second = 1_000_000_000;
    let reading = bytes * second / u128::from(unit.bytes_per_second);
    let computing = products * second / u128::from(unit.products_per_second);
    reading.max(computing) as u64
}

fn layer_ns(entry: &ModelEntry, unit: Unit, rows: u32) -> u64 {
    product_ns(entry, entry.layer_parameters.value, unit, rows) + unit.layer_ns
}

fn pass_ns(entry: &ModelEntry, unit: Unit, rows: u32, heads: u32) -> u64 {
    unit.job_ns
        + entry.layers.value * layer_ns(entry, unit, rows)
        + product_ns(entry, entry.head_parameters.value, unit, heads)
}

fn profile(entry: &ModelEntry, unit: Unit) -> RoleProfile {
    let table = |of: &dyn Fn(u32) -> u64, rows: &[u32]| {
        let points: Vec<_> = rows.iter().map(|rows| (*rows, of(*rows))).collect();
        TimeTable::by_rows(&points).expect("the rows ascend")
    };
    let few: Vec<u32> = ROWS.iter().copied().filter(|rows| *rows <= 16).collect();
    RoleProfile {
        layers: entry.layers.value as u32,
        verify: table(&|rows| pass_ns(entry, unit, rows, rows), &few),
        fill: table(&|rows| pass_ns(entry, unit, rows, 1), &ROWS),
        // A GPU runs all steps of a draft in one submission.
        draft_step: table(&|rows| pass_ns(entry, unit, rows, rows) - unit.job_ns, &few),
        parts: Some(PartsProfile {
            base: table(&|_| unit.job_ns, &[1]),
            layer: table(&|rows| layer_ns(entry, unit, rows), &ROWS),
            head: table(&|rows| product_ns(entry, entry.head_parameters.value, unit, rows), &few),
        }),
        scratch_bytes: 0,
    }
}

fn scaled(profile: &RoleProfile, wanted: u128, was: u128) -> RoleProfile {
    let table = |table: &TimeTable| table.map(|_, _, ns| (u128::from(ns) * wanted / was) as u64);
    let parts = profile.parts.as_ref().map(|parts| PartsProfile {
        base: table(&parts.base),
        layer: table(&parts.layer),
        head: table(&parts.head),
    });
    RoleProfile {
        verify: table(&profile.verify),
        fill: table(&profile.fill),
        draft_step: table(&profile.draft_step),
        parts,
        ..profile.clone()
    }
}
