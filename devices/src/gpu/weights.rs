//! Uploads packed matrices: each in as few parts as the adapter's limits allow, repacked straight into mapped memory.

use std::ops::Range;

use super::context::{Context, Doing};
use super::pack::{Layout, Matrix, Order};
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
    let buffer = limits.max_buffer_size as usize;
    let binding = buffer.min(limits.max_storage_buffer_binding_size as usize);
    let piece_bytes = layout.piece_words() * 16;
    let pieces = match layout.order {
        Order::Planes { .. } => {
            let by_scales = binding / layout.tile_scale_bytes().max(1);
            (binding / piece_bytes).min(by_scales).min(GRID_MAX)
        }
        // The rows are staged through one buffer.
        Order::Streams { .. } => {
            let side = limits.max_texture_dimension_2d as usize;
            (side / layout.group_rows()).min(buffer / piece_bytes).min(GRID_MAX)
        }
    };
    let asked = (context.tuning.part_tiles / layout.piece_tiles()).max(2);
    // Pieces may come in pairs, which stay together.
    (pieces.min(asked) & !1).saturating_mul(layout.piece_tiles())
}

/// Bytes that `layout` takes on the device.
pub(super) fn bytes(layout: &Layout) -> u64 {
    (layout.pieces() * layout.piece_words() * 16 + layout.tiles * layout.tile_scale_bytes()) as u64
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
    let piece_bytes = layout.piece_words() * 16;
    let scale_bytes = layout.tile_scale_bytes();
    let size = layout.pieces() * piece_bytes;
    let usage = match layout.order {
        Order::Planes { .. } => wgpu::BufferUsages::STORAGE,
        Order::Streams { .. } => wgpu::BufferUsages::COPY_SRC,
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
        for pieces in batches(layout.pieces(), piece_bytes) {
            for (packed, packed_scales) in pack(matrix, first_tile, pieces) {
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
    let words = match layout.order {
        Order::Planes { .. } => Words::Buffer(words),
        Order::Streams { .. } => Words::Texture(texture(context, name, (&words, layout))?),
    };
    Ok(Part { layout, first_tile, words, scales })
}

/// Ranges of pieces that are packed before they are copied: few bytes, so that loading a model needs little more memory
/// than the model.
fn batches(pieces: usize, piece_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    const BYTES: usize = 16 << 20;
    let step = (BYTES / piece_bytes).max(1);
    (0..pieces).step_by(step).map(move |first| first..pieces.min(first + step))
}

/// Words and scales of a range of pieces, in order, packed on every core that there is.
fn pack(
    matrix: &Matrix<'_>,
    first_tile: usize,
    pieces: Range<usize>,
) -> Vec<(Vec<[u32; 4]>, Vec<u32>)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = pieces.len().div_ceil(threads).max(1);
    let pack_range = |range: Range<usize>| {
        let (mut words, mut scales) = (Vec::new(), Vec::new());
        for piece in range {
            let tile = first_tile + piece * matrix.layout.piece_tiles();
            matrix.pack(tile, &mut words, &mut scales);
        }
        (words, scales)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = pieces
            .clone()
            .step_by(share)
            .map(|first| first..pieces.end.min(first + share))
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
    (staged, layout): (&wgpu::Buffer, Layout),
) -> Result<wgpu::TextureView, DeviceError> {
    let width = layout.row_texels() as u32;
    let row_bytes = width * 16;
    let size = wgpu::Extent3d {
        width,
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
