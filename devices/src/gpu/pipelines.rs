//! Compiles shaders, each text once, and binds buffers to them.

use std::collections::HashMap;
use std::sync::Arc;

use wgpu::StorageTextureAccess as Access;

use super::compiled::Compiled;
use super::context::{Context, Doing};
use super::kernels::{Bind, Shader};
use crate::DeviceError;

/// A compiled kernel.
pub(super) type Pipeline = Arc<wgpu::ComputePipeline>;

/// The pipelines of one stage.
pub(super) struct Pipelines<'a> {
    context: &'a Context,
    /// Name of the stage, for errors.
    stage: &'a str,
    compiled: HashMap<Shader, Pipeline>,
    layouts: HashMap<Vec<Bind>, wgpu::BindGroupLayout>,
}

impl<'a> Pipelines<'a> {
    pub(super) fn new(context: &'a Context, stage: &'a str) -> Self {
        Self { context, stage, compiled: HashMap::new(), layouts: HashMap::new() }
    }

    /// The layout of a bind group with these bindings.
    pub(super) fn layout(&mut self, binds: &[Bind]) -> wgpu::BindGroupLayout {
        let device = &self.context.device;
        let texture = |format, access| wgpu::BindingType::StorageTexture {
            access,
            format,
            view_dimension: wgpu::TextureViewDimension::D2,
        };
        let entry = |(binding, bind): (usize, &Bind)| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: match bind {
                Bind::Read | Bind::Write => wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: *bind == Bind::Read },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                Bind::Words => texture(wgpu::TextureFormat::Rgba32Uint, Access::ReadOnly),
                Bind::VectorsIn => texture(wgpu::TextureFormat::Rgba32Float, Access::ReadOnly),
                Bind::VectorsOut => texture(wgpu::TextureFormat::Rgba32Float, Access::WriteOnly),
                Bind::NumbersIn => texture(wgpu::TextureFormat::R32Float, Access::ReadOnly),
                Bind::NumbersOut => texture(wgpu::TextureFormat::R32Float, Access::WriteOnly),
                Bind::PairsIn => texture(wgpu::TextureFormat::Rg32Uint, Access::ReadOnly),
                Bind::PairsOut => texture(wgpu::TextureFormat::Rg32Uint, Access::WriteOnly),
            },
            count: None,
        };
        let make = || {
            let entries: Vec<_> = binds.iter().enumerate().map(entry).collect();
            let layout = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
            device.create_bind_group_layout(&layout)
        };
        self.layouts.entry(binds.to_vec()).or_insert_with(make).clone()
    }

    /// Compiles `shader`, unless it has been already.
    pub(super) fn compile(&mut self, shader: &Shader) -> Result<Pipeline, DeviceError> {
        if let Some(pipeline) = self.compiled.get(shader) {
            return Ok(Arc::clone(pipeline));
        }
        let layouts = [self.layout(&shader.binds), self.layout(&[shader.state])];
        let context = self.context;
        let source = context.shader_source(shader.code.clone());
        let pipeline = context.scoped(Doing::Compiling(self.stage), || {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(shader.label),
                source: wgpu::ShaderSource::Wgsl(source.into()),
            };
            // SAFETY: the text is this crate's own. Its indices are inside their bindings by the invariant of
            // `kernels`: they are sums of constants that the buffers were sized by, of workgroup and lane numbers
            // below the recorded grid, and of state words that `state` bounds; every loop has a bound that its
            // counter reaches; no divisor is zero, all being positive constants.
            let module = unsafe {
                let checks = wgpu::ShaderRuntimeChecks::unchecked();
                context.device.create_shader_module_trusted(descriptor, checks)
            };
            let layouts = [Some(&layouts[0]), Some(&layouts[1])];
            let layout = context.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(shader.label),
                bind_group_layouts: &layouts,
                immediate_size: 0,
            });
            context.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(shader.label),
                layout: Some(&layout),
                module: &module,
                entry_point: None,
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: context.compiled.as_ref().map(Compiled::cache),
            })
        })?;
        let pipeline = Arc::new(pipeline);
        self.compiled.insert(shader.clone(), Arc::clone(&pipeline));
        Ok(pipeline)
    }

    /// Binds `resources` in order, as `binds` says.
    pub(super) fn bind(
        &mut self,
        binds: &[Bind],
        resources: Vec<wgpu::BindingResource<'_>>,
    ) -> Result<wgpu::BindGroup, DeviceError> {
        assert_eq!(binds.len(), resources.len(), "bindings of a kernel");
        let layout = self.layout(binds);
        let entries: Vec<_> = resources
            .into_iter()
            .zip(0..)
            .map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        self.context.scoped(Doing::Compiling(self.stage), || {
            self.context.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &layout,
                entries: &entries,
            })
        })
    }
}
