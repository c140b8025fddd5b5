//! From a plan's units to devices: reads the machine, and makes a factory for each unit.
//!
//! *Invariant:* a device is made on its unit's worker thread, by the factory, and again by the same factory after a loss.

use std::sync::Arc;

use outrider_devices::cpu::{CpuDevice, CpuOptions};
use outrider_devices::discovery;
use outrider_devices::gpu::{self, GpuAdapter, GpuSelector};
use outrider_devices::reference::ReferenceDevice;
use outrider_devices::sim::{RealDelay, SimDevice, SimOptions};
use outrider_devices::{Device, DeviceError};
use outrider_plans::{Adapter, AdapterKind, Core, Machine, UnitSpec};

use crate::gpu_tuning;
use crate::unit::DeviceFactory;

/// Memory that is assumed where the machine does not say: plans are then checked against what any board has.
const MEMORY_UNKNOWN_BYTES: u64 = 1 << 30;

/// The machine at hand, as plans see it: one core of each physical core, by cluster.
pub fn machine() -> Machine {
    let found = discovery::Machine::here();
    let clusters = found.clusters.iter().enumerate();
    let cores = clusters.flat_map(|(cluster, kind)| {
        let all = kind.cores.iter().map(|id| (*id, *id));
        let spare = kind.spare_threads.iter().map(|id| {
            let cpu = found.cpus.iter().find(|cpu| cpu.id == *id);
            (*id, cpu.and_then(|cpu| cpu.siblings.first().copied()).unwrap_or(*id))
        });
        all.chain(spare).map(move |(id, physical)| Core {
            id,
            capacity: kind.capacity as u32,
            cluster: cluster as u32,
            physical: physical as u32,
        })
    });
    Machine {
        cores: cores.collect(),
        adapters: gpu::discover().usable().map(adapter).collect(),
        memory_bytes: found.memory_free().unwrap_or(MEMORY_UNKNOWN_BYTES),
    }
}

/// Bytes of main memory that are free now.
pub fn memory_free() -> u64 {
    discovery::Machine::here().memory_free().unwrap_or(MEMORY_UNKNOWN_BYTES)
}

fn adapter(found: &GpuAdapter) -> Adapter {
    let kind = match found.kind {
        gpu::AdapterKind::Discrete | gpu::AdapterKind::Virtual => AdapterKind::Discrete,
        gpu::AdapterKind::Integrated | gpu::AdapterKind::Other => AdapterKind::Integrated,
        gpu::AdapterKind::Software => AdapterKind::Software,
    };
    let own = kind == AdapterKind::Discrete;
    let memory_bytes = found.memory_bytes.and_then(|_| found.budget_bytes()).filter(|_| own);
    Adapter { name: found.name.clone(), kind, memory_bytes }
}

/// Makes the device that a plan describes.
pub fn factory(spec: &UnitSpec) -> DeviceFactory {
    match spec.clone() {
        UnitSpec::Cpu { cores } => Arc::new(move || {
            let options = CpuOptions { cores: cores.clone(), ..CpuOptions::default() };
            Ok(Box::new(CpuDevice::new(options)?) as Box<dyn Device>)
        }),
        UnitSpec::Reference => Arc::new(|| Ok(Box::new(ReferenceDevice) as Box<dyn Device>)),
        UnitSpec::Gpu { adapter, name } => Arc::new(move || {
            let device = gpu_tuning::open(&GpuSelector::Index(adapter))?;
            let found = &device.adapter().name;
            if *found == name {
                return Ok(Box::new(device) as Box<dyn Device>);
            }
            // Adapters come and go, with a driver's restart or an unplugged card.
            let detail = format!("adapter {adapter} is {found} now; see `outrider devices`");
            Err(DeviceError::Unsupported { device: name.clone(), detail })
        }),
        UnitSpec::Sim => Arc::new(|| {
            let device = SimDevice::new(SimOptions::default(), Arc::new(RealDelay));
            Ok(Box::new(device) as Box<dyn Device>)
        }),
    }
}
