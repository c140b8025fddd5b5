//! Uploads packed matrices: each in as few parts as the adapter's limits allow, repacked straight into mapped memory.

use std::ops::Range;

use super::context::{Context, Doing};
use super::kernels::TEXTURE_SIDE;
use super::pack::{Layout, Matrix};
use super::tuning::Backing;
use crate::DeviceError;

/// Workgroups along one side of a grid.
const GRID_MAX: usize = 65_535;

/// Some tiles of a matrix on the device.
pub(super) struct Part {
    pub(super) layout: Layout,
    /// First tile of the matrix that is here.
    pub(super) first_tile: usize,
    words: Words,
    scales: Option<wgpu::Buffer>,
}

enum Words {
    Buffer(wgpu::Buffer),
    /// Kept for the view's sake.
    Texture(wgpu::TextureView),
}

impl Part {
    /// The bindings of words and, if the format has them, scales.
    pub(super) fn bindings(&self) -> impl Iterator<Item = wgpu::BindingResource<'_>> {
        let words = match &self.words {
            Words::Buffer(buffer) => buffer.as_entire_binding(),
            Words::Texture(view) => wgpu::BindingResource::TextureView(view),
        };
        std::iter::once(words).chain(self.scales.as_ref().map(wgpu::Buffer::as_entire_binding))
    }
}

/// Tiles of a part under the adapter's limits.
fn tiles_max(context: &Context, layout: &Layout) -> usize {
    let limits = &context.limits;
    let binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) as usize;
    let words = match context.tuning.backing {
        Backing::Buffer => binding / 16,
        Backing::Texture => {
            // The rows are staged through one buffer.
            let side = limits.max_texture_dimension_2d as usize;
            (side * TEXTURE_SIDE as usize).min(limits.max_buffer_size as usize / 16)
        }
    };
    let by_words = words / layout.tile_words();
    let by_scales = binding / layout.tile_scale_bytes().max(1);
    let most = by_words.min(by_scales).min(GRID_MAX).min(context.tuning.part_tiles);
    // Tiles may come in pairs, which stay together.
    most & !1
}

/// Bytes that `layout` takes on the device.
pub(super) fn bytes(layout: &Layout, backing: Backing) -> u64 {
    let words = match backing {
        Backing::Buffer => layout.tiles * layout.tile_words(),
        Backing::Texture => {
            (layout.tiles * layout.tile_words()).next_multiple_of(TEXTURE_SIDE as usize)
        }
    };
    (words * 16 + layout.tiles * layout.tile_scale_bytes()) as u64
}

/// Uploads `matrix`.
pub(super) fn upload(
    context: &Context,
    name: &str,
    matrix: &Matrix<'_>,
) -> Result<Vec<Part>, DeviceError> {
    let layout = matrix.layout;
    let most = tiles_max(context, &layout);
    if most == 0 {
        return Err(context.unsupported(format!(
            "{name}: two tiles of {} columns exceed the adapter's binding limit",
            layout.columns
        )));
    }
    let mut parts = Vec::new();
    let mut first_tile = 0;
    while first_tile < layout.tiles {
        let tiles = most.min(layout.tiles - first_tile);
        let part = Layout { tiles, ..layout };
        parts.push(upload_part(context, name, matrix, (first_tile, part))?);
        first_tile += tiles;
    }
    Ok(parts)
}

fn upload_part(
    context: &Context,
    name: &str,
    matrix: &Matrix<'_>,
    (first_tile, layout): (usize, Layout),
) -> Result<Part, DeviceError> {
    let tile_bytes = layout.tile_words() * 16;
    let scale_bytes = layout.tile_scale_bytes();
    let side = TEXTURE_SIDE as usize * 16;
    let (usage, size) = match context.tuning.backing {
        Backing::Buffer => (wgpu::BufferUsages::STORAGE, layout.tiles * tile_bytes),
        Backing::Texture => {
            (wgpu::BufferUsages::COPY_SRC, (layout.tiles * tile_bytes).next_multiple_of(side))
        }
    };
    let words = mapped(context, name, usage, size)?;
    let scales = match scale_bytes {
        0 => None,
        n => Some(mapped(context, name, wgpu::BufferUsages::STORAGE, layout.tiles * n)?),
    };
    {
        let gone = |e: wgpu::MapRangeError| context.lost(format!("{name}: {e}"));
        let mut word_view = words.get_mapped_range_mut(..).map_err(gone)?;
        let mut scale_view =
            scales.as_ref().map(|s| s.get_mapped_range_mut(..)).transpose().map_err(gone)?;
        let (mut word_at, mut scale_at) = (0, 0);
        for tiles in batches(layout.tiles, tile_bytes) {
            for (packed, packed_scales) in pack(matrix, first_tile, tiles) {
                let bytes: &[u8] = bytemuck::cast_slice(&packed);
                word_view.slice(word_at..word_at + bytes.len()).copy_from_slice(bytes);
                word_at += bytes.len();
                if let Some(view) = &mut scale_view {
                    let bytes: &[u8] = bytemuck::cast_slice(&packed_scales);
                    view.slice(scale_at..scale_at + bytes.len()).copy_from_slice(bytes);
                    scale_at += bytes.len();
                }
            }
        }
    }
    words.unmap();
    if let Some(scales) = &scales {
        scales.unmap();
    }
    let words = match context.tuning.backing {
        Backing::Buffer => Words::Buffer(words),
        Backing::Texture => Words::Texture(texture(context, name, &words)?),
    };
    Ok(Part { layout, first_tile, words, scales })
}

/// Ranges of tiles that are packed before they are copied: few bytes, so that loading a model needs little more memory
/// than the model.
fn batches(tiles: usize, tile_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    const BYTES: usize = 16 << 20;
    let step = (BYTES / tile_bytes).max(1);
    (0..tiles).step_by(step).map(move |first| first..tiles.min(first + step))
}

/// Words and scales of a range of tiles, in order, packed on every core that there is.
fn pack(
    matrix: &Matrix<'_>,
    first_tile: usize,
    tiles: Range<usize>,
) -> Vec<(Vec<[u32; 4]>, Vec<u32>)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = tiles.len().div_ceil(threads).max(1);
    let pack_range = |range: Range<usize>| {
        let (mut words, mut scales) = (Vec::new(), Vec::new());
        for tile in range {
            matrix.pack_tile(first_tile + tile, &mut words, &mut scales);
        }
        (words, scales)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = tiles
            .clone()
            .step_by(share)
            .map(|first| first..tiles.end.min(first + share))
            .map(|range| scope.spawn(move || pack_range(range)))
            .collect();
        let joined = |worker: std::thread::ScopedJoinHandle<'_, _>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().map(joined).collect()
    })
}

fn mapped(
    context: &Context,
    name: &str,
    usage: wgpu::BufferUsages,
    size: usize,
) -> Result<wgpu::Buffer, DeviceError> {
    context.scoped(Doing::Allocating(name), || {
        context.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(name),
            size: size as u64,
            usage,
            mapped_at_creation: true,
        })
    })
}

/// A texture with the words of `staged`, whose size is whole rows of texels.
fn texture(
    context: &Context,
    name: &str,
    staged: &wgpu::Buffer,
) -> Result<wgpu::TextureView, DeviceError> {
    let row_bytes = TEXTURE_SIDE * 16;
    let size = wgpu::Extent3d {
        width: TEXTURE_SIDE,
        height: (staged.size() / u64::from(row_bytes)) as u32,
        depth_or_array_layers: 1,
    };
    let texture = context.scoped(Doing::Allocating(name), || {
        context.device.create_texture(&wgpu::TextureDescriptor {
            label: Some(name),
            size,
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba32Uint,
            usage: wgpu::TextureUsages::STORAGE_BINDING | wgpu::TextureUsages::COPY_DST,
            view_formats: &[],
        })
    })?;
    let mut encoder = context.device.create_command_encoder(&Default::default());
    let layout = wgpu::TexelCopyBufferLayout {
        offset: 0,
        bytes_per_row: Some(row_bytes),
        rows_per_image: None,
    };
    let source = wgpu::TexelCopyBufferInfo { buffer: staged, layout };
    encoder.copy_buffer_to_texture(source, texture.as_image_copy(), size);
    let copied = context.submit(vec![context.finish(encoder)?])?;
    context.wait(copied)?;
    Ok(texture.create_view(&Default::default()))
}
