//! What lies between a stage's kernels: the sizes that they share, and the buffers through which rows go on.
//!
//! *Invariant:* every size is computed once, here, and is the one that the kernels are generated with.

use super::context::{Context, Doing};
use super::kernels::{CacheShape, Spans, Squares};
use super::lower::Stack;
use super::state::StateBounds;
use super::tuning::Backing;
use crate::DeviceError;
use crate::device::SlotLimits;

/// Sizes that several kernels share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) bounds: StateBounds,
    pub(super) cache: CacheShape,
    pub(super) width: u32,
    /// 4-vectors in a row of the stream.
    pub(super) stream: u32,
    /// 4-vectors of sums of squares in a row.
    pub(super) squares: u32,
    /// 4-vectors whose squares make one sum.
    pub(super) joined: u32,
    pub(super) query_width: u32,
    /// 4-vectors in a row of attention's output, and of the widest feed-forward layer.
    pub(super) attended: u32,
    pub(super) hidden: u32,
    pub(super) heads: u32,
    /// The shares of attention, where sequences may be longer than one.
    pub(super) spans: Option<Spans>,
}

/// What a kernel is bound to.
#[derive(Clone)]
pub(super) enum Resource {
    Buffer(wgpu::Buffer),
    Texture(wgpu::TextureView),
}

impl Resource {
    pub(super) fn binding(&self) -> wgpu::BindingResource<'_> {
        match self {
            Resource::Buffer(buffer) => buffer.as_entire_binding(),
            Resource::Texture(view) => wgpu::BindingResource::TextureView(view),
        }
    }
}

impl From<wgpu::Buffer> for Resource {
    fn from(buffer: wgpu::Buffer) -> Self {
        Resource::Buffer(buffer)
    }
}

/// What lies between kernels.
#[derive(Clone)]
pub(super) struct Scratch {
    pub(super) stream: wgpu::Buffer,
    pub(super) scaled: Resource,
    pub(super) squares: Resource,
    pub(super) queries: Resource,
    pub(super) attended: Resource,
    /// Where sequences may be longer than a span.
    pub(super) shares: Option<wgpu::Buffer>,
    pub(super) hidden: Resource,
    pub(super) turns: wgpu::Buffer,
}

impl Sizes {
    pub(super) fn of(context: &Context, stack: &Stack, limits: SlotLimits) -> Self {
        let capacity = context.tuning.pass_rows.min(limits.rows_max).next_multiple_of(16);
        let vectors = |columns: usize| (columns.next_multiple_of(32) / 4) as u32;
        let cache = stack.cache(limits);
        // A texture, if weights are textures too and it fits.
        let side = context.limits.max_texture_dimension_2d;
        let fits = cache.positions.max(cache.rows()) <= side;
        let backing = if fits { context.tuning.backing } else { Backing::Buffer };
        let cache = CacheShape { backing, ..cache };
        let span = context.tuning.attention_span;
        let query_width = stack.blocks[0].heads as u32 * cache.head_dim;
        let ffn = stack.blocks.iter().map(|b| stack.weight(b.down).cols).max();
        let tokens = stack.table.map(|t| stack.weight(t).rows);
        Self {
            bounds: StateBounds {
                capacity,
                slots: limits.sequences_max,
                positions: limits.positions_max,
                tokens,
            },
            cache,
            width: stack.width as u32,
            stream: vectors(stack.width),
            squares: (stack.width / 4).div_ceil(4) as u32,
            joined: match context.tuning.backing {
                Backing::Buffer => 1,
                Backing::Texture => context.tuning.subgroup.unwrap_or(1),
            },
            query_width,
            attended: vectors(query_width as usize),
            hidden: vectors(ffn.unwrap_or(0)),
            heads: stack.blocks[0].heads as u32,
            spans: (cache.positions > span)
                .then(|| Spans { span, count: cache.positions.div_ceil(span) }),
        }
    }

    /// Bytes of `vectors` 4-vectors for each row.
    pub(super) fn rows(&self, vectors: u32) -> u64 {
        self.bounds.capacity as u64 * u64::from(vectors) * 16
    }

    fn turns(&self) -> u64 {
        u64::from(self.cache.positions) * u64::from(self.cache.head_dim) * 4
    }

    /// Bytes of the shares of attention.
    fn shares(&self) -> u64 {
        let words = self.spans.map_or(0, |spans| spans.words(self.cache.head_dim));
        self.bounds.capacity as u64 * u64::from(self.heads) * u64::from(words) * 8
    }

    pub(super) fn scratch_bytes(&self) -> u64 {
        let all =
            2 * self.stream + self.squares + self.query_width / 4 + self.attended + self.hidden;
        self.rows(all) + self.turns() + self.shares()
    }
}

impl Sizes {
    /// Parts of the sum of squares in a row.
    pub(super) fn square_parts(&self) -> Squares {
        Squares { stride: self.squares * 4, joined: self.joined }
    }
}

/// A layer's caches.
pub(super) fn caches(context: &Context, cache: CacheShape) -> Result<Resource, DeviceError> {
    match cache.backing {
        Backing::Buffer => Ok(buffer(context, "cache", cache.bytes())?.into()),
        Backing::Texture => {
            let size = (cache.positions, cache.rows());
            texture(context, "cache", wgpu::TextureFormat::Rg32Uint, size)
        }
    }
}

impl Scratch {
    pub(super) fn new(context: &Context, stack: &Stack, sizes: Sizes) -> Result<Self, DeviceError> {
        let capacity = sizes.bounds.capacity as u32;
        let make = |name: &str, vectors: u32| buffer(context, name, sizes.rows(vectors));
        let vectors = |name: &str, stride: u32| match context.tuning.backing {
            Backing::Buffer => make(name, stride).map(Resource::from),
            Backing::Texture => {
                texture(context, name, wgpu::TextureFormat::Rgba32Float, (stride, capacity))
            }
        };
        let squares = match context.tuning.backing {
            Backing::Buffer => make("squares", sizes.squares)?.into(),
            Backing::Texture => texture(
                context,
                "squares",
                wgpu::TextureFormat::R32Float,
                (sizes.squares * 4, capacity),
            )?,
        };
        Ok(Self {
            stream: make("stream", sizes.stream)?,
            scaled: vectors("scaled", sizes.stream)?,
            squares,
            queries: vectors("queries", sizes.query_width / 4)?,
            attended: vectors("attended", sizes.attended)?,
            shares: match sizes.spans {
                Some(_) => Some(buffer(context, "shares", sizes.shares())?),
                None => None,
            },
            hidden: vectors("hidden", sizes.hidden)?,
            turns: filled(context, "turns", &turns(stack, sizes))?,
        })
    }
}

/// A texture that kernels write and read.
fn texture(
    context: &Context,
    name: &str,
    format: wgpu::TextureFormat,
    (width, height): (u32, u32),
) -> Result<Resource, DeviceError> {
    let texture = context.scoped(Doing::Allocating(name), || {
        context.device.create_texture(&wgpu::TextureDescriptor {
            label: Some(name),
            size: wgpu::Extent3d { width, height, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format,
            usage: wgpu::TextureUsages::STORAGE_BINDING,
            view_formats: &[],
        })
    })?;
    Ok(Resource::Texture(texture.create_view(&Default::default())))
}

/// Cosine and sine of each pair at each position.
fn turns(stack: &Stack, sizes: Sizes) -> Vec<f32> {
    let frequencies = &stack.blocks[0].rope.inverse_frequencies;
    (0..sizes.cache.positions)
        .flat_map(|position| {
            frequencies.iter().flat_map(move |frequency| {
                let (sine, cosine) = (position as f32 * frequency).sin_cos();
                [cosine, sine]
            })
        })
        .collect()
}

pub(super) fn buffer(
    context: &Context,
    name: &str,
    size: u64,
) -> Result<wgpu::Buffer, DeviceError> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    context.scoped(Doing::Allocating(name), || {
        context.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(name),
            size: size.max(16),
            usage: usage | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        })
    })
}

pub(super) fn filled(
    context: &Context,
    name: &str,
    values: &[f32],
) -> Result<wgpu::Buffer, DeviceError> {
    let padded: Vec<f32> = {
        let mut values = values.to_vec();
        values.resize(values.len().next_multiple_of(4), 0.0);
        values
    };
    let buffer = buffer(context, name, padded.len() as u64 * 4)?;
    context.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&padded));
    Ok(buffer)
}
