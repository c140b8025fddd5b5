//! Finds the GPUs of this machine and says of each whether it can be used, and if not, why.
//!
//! *Invariant:* discovery never fails. A machine without a GPU or a driver has no adapters and a reason. The order is
//! the same on every call: usable ones first, a card before an integrated GPU before a software rasteriser, then as the
//! drivers list them.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::DeviceError;
use crate::discovery::Machine;

/// What kind of hardware an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// Shares its memory with the CPU.
    Integrated,
    /// Passed through by a hypervisor.
    Virtual,
    /// The driver does not say.
    Other,
    /// A software rasteriser on the CPU's cores.
    Software,
}

/// The limits that decide what fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AdapterLimits {
    /// Most bytes of one storage binding.
    pub binding_bytes_max: u64,
    /// Most bytes of one buffer.
    pub buffer_bytes_max: u64,
    /// Most texels of a texture's side.
    pub texture_side_max: u32,
    /// Lanes that execute together, fewest and most; equal on most hardware.
    pub subgroup: (u32, u32),
}

/// One adapter as the driver reports it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct GpuAdapter {
    /// Position in the list, for [`GpuSelector::Index`].
    pub index: usize,
    /// The driver's name for the hardware.
    pub name: String,
    /// Driver and its version.
    pub driver: String,
    /// The interface that it is reached through, such as `vulkan`.
    pub backend: String,
    /// Kind of hardware.
    pub kind: AdapterKind,
    /// Sizes that bind.
    pub limits: AdapterLimits,
    /// Bytes of the memory that is fast for the device, where the driver tells.
    pub memory_bytes: Option<u64>,
    /// Whether a unit can be opened on it; else the reason.
    pub usable: Result<(), String>,
}

impl GpuAdapter {
    /// Bytes that the executables of one unit may hold together unless told otherwise: nine tenths of the memory that the
    /// driver tells, the rest being for its own buffers and for others; else half of the machine's.
    pub fn budget_bytes(&self) -> Option<u64> {
        let tenths = |bytes: u64| bytes / 10 * 9;
        let half = || Some(Machine::here().memory.total? / 2);
        self.memory_bytes.map(tenths).or_else(half)
    }
}

impl fmt::Display for GpuAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({:?}, {}, {}",
            self.index, self.name, self.kind, self.backend, self.driver
        )?;
        if let Some(bytes) = self.memory_bytes {
            write!(f, ", {} MiB", bytes >> 20)?;
        }
        match &self.usable {
            Ok(()) => write!(f, ")"),
            Err(reason) => write!(f, "): unusable: {reason}"),
        }
    }
}

/// What discovery found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Discovery {
    /// The adapters: usable ones first, the best kind first.
    pub adapters: Vec<GpuAdapter>,
    /// Why there are none; `None` if there is at least one.
    pub reason: Option<String>,
}

impl Discovery {
    /// The adapters that a unit can be opened on: the first of the list, so that their indices are `0..`.
    pub fn usable(&self) -> impl Iterator<Item = &GpuAdapter> {
        self.adapters.iter().filter(|adapter| adapter.usable.is_ok())
    }
}

impl fmt::Display for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = &self.reason {
            return writeln!(f, "no GPU: {reason}");
        }
        self.adapters.iter().try_for_each(|adapter| writeln!(f, "gpu {adapter}"))
    }
}

/// Which adapter to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuSelector {
    /// Position in [`discover`]'s list.
    Index(usize),
    /// The first usable one whose name contains this, without regard to case.
    NameContains(String),
    /// The first usable one of the best kind: a card before an integrated GPU before a software rasteriser.
    Best,
}

impl fmt::Display for GpuSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GpuSelector::Index(index) => write!(f, "number {index}"),
            GpuSelector::NameContains(part) => write!(f, "named *{part}*"),
            GpuSelector::Best => write!(f, "of the best kind"),
        }
    }
}

/// Lists the adapters of this machine.
pub fn discover() -> Discovery {
    let (adapters, reason) = enumerate();
    Discovery { adapters: adapters.into_iter().map(|(described, _)| described).collect(), reason }
}

/// The adapter that `selector` names, as its driver describes it.
///
/// # Errors
/// There is none, or it is unusable.
pub fn find(selector: &GpuSelector) -> Result<GpuAdapter, DeviceError> {
    select(selector).map(|(described, _)| described)
}

/// The adapter that `selector` names, or why there is none.
pub(super) fn select(selector: &GpuSelector) -> Result<(GpuAdapter, wgpu::Adapter), DeviceError> {
    let unsupported =
        |detail: String| DeviceError::Unsupported { device: format!("gpu {selector}"), detail };
    let (adapters, reason) = enumerate();
    if let Some(reason) = reason {
        return Err(unsupported(reason));
    }
    let names = adapters.iter().map(|(a, _)| a.to_string()).collect::<Vec<_>>().join("; ");
    let wanted = |a: &GpuAdapter| match selector {
        GpuSelector::Index(index) => a.index == *index,
        GpuSelector::NameContains(part) => a.name.to_lowercase().contains(&part.to_lowercase()),
        GpuSelector::Best => true,
    };
    match adapters.into_iter().find(|(a, _)| wanted(a)) {
        None => Err(unsupported(format!("no such adapter; there are: {names}"))),
        Some((GpuAdapter { name, usable: Err(reason), .. }, _)) => {
            Err(unsupported(format!("{name} is unusable: {reason}")))
        }
        Some(found) => Ok(found),
    }
}

/// The process's one way into its drivers, once it has found an adapter.
///
/// A driver's library is loaded with an instance and unloaded with it, and some cannot be loaded again any number of times: after
/// a dozen of units opened and closed, NVIDIA's reported no adapter for the rest of the process's life.
static DRIVERS: Mutex<Option<wgpu::Instance>> = Mutex::new(None);

fn enumerate() -> (Vec<(GpuAdapter, wgpu::Adapter)>, Option<String>) {
    let mut drivers = DRIVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut adapters = drivers.as_ref().map(adapters_of).unwrap_or_default();
    if adapters.is_empty() {
        // None before, or none any more: a driver may have been installed meanwhile.
        let fresh = new_instance();
        adapters = adapters_of(&fresh);
        *drivers = (!adapters.is_empty()).then_some(fresh);
    }
    adapters.sort_by_key(|(described, _)| (described.usable.is_err(), described.kind));
    for (index, (described, _)) in adapters.iter_mut().enumerate() {
        described.index = index;
    }
    let reason = adapters.is_empty().then(why_none);
    (adapters, reason)
}

fn new_instance() -> wgpu::Instance {
    let mut instance = wgpu::InstanceDescriptor::new_without_display_handle();
    instance.backends = wgpu::Backends::PRIMARY;
    instance.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(instance)
}

fn adapters_of(instance: &wgpu::Instance) -> Vec<(GpuAdapter, wgpu::Adapter)> {
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    found.into_iter().map(|adapter| (describe(&adapter), adapter)).collect()
}

fn why_none() -> String {
    if cfg!(target_os = "linux") && !vulkan_loader_present() {
        "no Vulkan loader: libvulkan.so.1 could not be opened (install the GPU's Vulkan driver)"
            .into()
    } else {
        "the drivers report no adapter (install the GPU's Vulkan driver, or check its permissions)"
            .into()
    }
}

#[cfg(target_os = "linux")]
fn vulkan_loader_present() -> bool {
    // SAFETY: the name is a NUL-terminated string that outlives the call; opening the Vulkan loader runs no code of
    // it but its own initialisers, which wgpu has run already where the library exists. The handle is kept open, as
    // wgpu does.
    let handle = unsafe { libc::dlopen(c"libvulkan.so.1".as_ptr(), libc::RTLD_LAZY) };
    !handle.is_null()
}

#[cfg(not(target_os = "linux"))]
fn vulkan_loader_present() -> bool {
    true
}

fn describe(adapter: &wgpu::Adapter) -> GpuAdapter {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Other => AdapterKind::Other,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
    };
    GpuAdapter {
        index: 0,
        name: info.name.clone(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        backend: format!("{:?}", info.backend).to_lowercase(),
        kind,
        limits: AdapterLimits {
            binding_bytes_max: limits.max_storage_buffer_binding_size,
            buffer_bytes_max: limits.max_buffer_size,
            texture_side_max: limits.max_texture_dimension_2d,
            subgroup: (info.subgroup_min_size, info.subgroup_max_size),
        },
        memory_bytes: local_memory(adapter),
        usable: usable(adapter, &limits),
    }
}

/// Storage bindings that the widest kernel needs.
const STORAGE_BINDINGS: u32 = 8;

fn usable(adapter: &wgpu::Adapter, limits: &wgpu::Limits) -> Result<(), String> {
    let flags = adapter.get_downlevel_capabilities().flags;
    if !flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Err("it has no compute shaders".into());
    }
    if limits.max_storage_buffers_per_shader_stage < STORAGE_BINDINGS {
        return Err(format!(
            "it binds {} storage buffers at a time, the kernels need {STORAGE_BINDINGS}",
            limits.max_storage_buffers_per_shader_stage
        ));
    }
    if limits.max_compute_invocations_per_workgroup < 128 {
        return Err(format!(
            "a workgroup has at most {} lanes, the kernels need 128",
            limits.max_compute_invocations_per_workgroup
        ));
    }
    Ok(())
}

/// Bytes of the device-local heaps, where the backend is Vulkan.
fn local_memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the guard is only read from, while `adapter` keeps the instance alive; nothing is destroyed through it.
    let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    // SAFETY: the physical device belongs to this very instance, which is alive as above; the query has no side effect.
    let memory = unsafe {
        let instance = vulkan.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
    };
    const DEVICE_LOCAL: u32 = 1;
    let heaps = memory.memory_heaps.iter().take(memory.memory_heap_count as usize);
    Some(heaps.filter(|h| h.flags.as_raw() & DEVICE_LOCAL != 0).map(|h| h.size).sum())
}
