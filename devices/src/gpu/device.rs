//! Opens a GPU as a [`Device`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::adapter::{GpuAdapter, GpuSelector, select};
use super::compiled::Compiled;
use super::context::{Context, ContextParts, GpuFault};
use super::executable::GpuExecutable;
use super::format::StoredFormat;
use super::tuning::{Subgroups, Tuning};
use crate::device::{Device, DeviceDescriptor, DeviceError, DeviceKind, Executable, SlotLimits};
use crate::graph::{Subgraph, WeightFormat};

/// How a GPU is opened.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// A submission that takes longer is taken for a hang, and the device for lost.
    pub submission_timeout: Duration,
    /// Most bytes that all executables of the device may hold together; `None` takes [`GpuAdapter::budget_bytes`].
    pub memory_budget_bytes: Option<u64>,
    /// Shape of the kernels; `None` chooses by the adapter.
    pub tuning: Option<Tuning>,
    /// Where what the driver compiles is kept for the next device that is opened with this file; `None` keeps nothing.
    pub compiled: Option<PathBuf>,
    /// Faults to inject, for tests of what happens above.
    pub faults: Vec<GpuFault>,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            submission_timeout: Duration::from_secs(20),
            memory_budget_bytes: None,
            tuning: None,
            compiled: None,
            faults: Vec::new(),
        }
    }
}

/// A GPU through wgpu.
pub struct GpuDevice {
    adapter: GpuAdapter,
    context: Arc<Context>,
}

impl GpuDevice {
    /// Opens the adapter that `selector` names.
    ///
    /// Fails with [`DeviceError::Unsupported`] if there is none or it is unusable, and with [`DeviceError::Lost`] if
    /// the driver refuses.
    pub fn open(selector: &GpuSelector, options: GpuOptions) -> Result<Self, DeviceError> {
        let (described, adapter) = select(selector)?;
        let name = format!("{} ({})", described.name, described.driver);
        let wanted = wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE;
        let features = adapter.features() & wanted;
        let request = wgpu::DeviceDescriptor {
            label: Some("outrider"),
            required_features: features,
            required_limits: adapter.limits(),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&request))
            .map_err(|e| DeviceError::Lost { device: name.clone(), detail: e.to_string() })?;
        let subgroups = if features.contains(wgpu::Features::SUBGROUP) {
            Subgroups::Offered
        } else {
            Subgroups::Missing
        };
        let tuning = match options.tuning {
            Some(tuning) => tuning,
            None => Tuning::for_adapter(&described, subgroups),
        };
        tuning
            .check()
            .map_err(|detail| DeviceError::Unsupported { device: name.clone(), detail })?;
        if tuning.subgroup.is_some() && subgroups == Subgroups::Missing {
            let detail = "the tuning asks for subgroup operations, which it lacks".into();
            return Err(DeviceError::Unsupported { device: name, detail });
        }
        let keeps = features.contains(wgpu::Features::PIPELINE_CACHE);
        let file = options.compiled.as_deref().filter(|_| keeps);
        let context = Context::new(ContextParts {
            compiled: file.map(|file| Compiled::open(&device, file)),
            device,
            queue,
            name,
            tuning,
            memory_budget: options.memory_budget_bytes.or_else(|| described.budget_bytes()),
            submission_timeout: options.submission_timeout,
            faults: options.faults,
        });
        Ok(Self { adapter: described, context: Arc::new(context) })
    }

    /// The adapter that was opened.
    pub fn adapter(&self) -> &GpuAdapter {
        &self.adapter
    }

    /// The shape of this device's kernels.
    pub fn tuning(&self) -> &Tuning {
        &self.context.tuning
    }

    /// What weights of `format` are stored as.
    pub fn stored_format(format: WeightFormat) -> StoredFormat {
        StoredFormat::of(format)
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Device for GpuDevice {
    fn descriptor(&self) -> DeviceDescriptor {
        DeviceDescriptor { kind: DeviceKind::Gpu, name: self.context.name.clone(), threads: 1 }
    }

    fn prepare(
        &mut self,
        subgraph: &Subgraph,
        limits: SlotLimits,
    ) -> Result<Box<dyn Executable>, DeviceError> {
        let executable = GpuExecutable::prepare(&self.context, subgraph, limits)?;
        if let Some(compiled) = &self.context.compiled {
            compiled.keep();
        }
        Ok(Box::new(executable))
    }
}
