//! The first kernel of a stage: rows of the embedding table, or the activations of the stage before, become the
//! residual stream, times the weight of the first norm, with the sums of squares that the norm needs.

use super::matmul::{DOT4, Squares};
use super::{Bind, Rows, Shader, Writer};
use crate::gpu::format::StoredFormat;
use crate::gpu::pack::{Layout, Order};
use crate::gpu::tuning::Backing;

/// Where the rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) enum EmbedSource {
    /// The table, packed like any matrix; this kernel writes the rows whose token lies in its part, from `first_tile`.
    Table { layout: Layout, first_tile: u32 },
    /// The stream itself, filled by the host.
    Stream,
}

/// The embedding kernel. Its grid is groups of lanes by rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) struct Embed {
    pub(in crate::gpu) source: EmbedSource,
    pub(in crate::gpu) backing: Backing,
    /// Width of the stream, a multiple of 4.
    pub(in crate::gpu) width: u32,
    /// 4-vectors in a row of the stream.
    pub(in crate::gpu) stride: u32,
    pub(in crate::gpu) squares: Squares,
    pub(in crate::gpu) lanes: u32,
    /// Columns of a chunk of the matrices that read the rows.
    pub(in crate::gpu) chunk: usize,
}

impl Embed {
    /// Workgroups along x.
    pub(in crate::gpu) fn groups(&self) -> u32 {
        (self.width / 4).div_ceil(self.lanes)
    }

    /// Bindings: \[words, \[scales\]\], stream, gains, scaled, squares.
    pub(in crate::gpu) fn shader(&self) -> Shader {
        let mut w = Writer::new("embed", Bind::Read);
        if let EmbedSource::Table { layout, .. } = self.source {
            w.weights(layout);
        }
        w.write("stream", "vec4<f32>");
        w.read("gains", "vec4<f32>");
        w.rows_out("scaled", Rows::vectors(self.backing, self.stride, self.chunk));
        w.rows_out("squares", Rows::squares(self.backing, self.squares.stride));
        w.declare(DOT4);
        w.line(format!("let unit = group.x * {}u + lane;", self.lanes));
        w.line(format!("let at = group.y * {}u + unit;", self.stride));
        let width = self.width / 4;
        match self.source {
            EmbedSource::Table { layout, first_tile, .. } => {
                w.line(format!("let token = state[group.y].z - {}u;", first_tile * 4));
                let tokens = layout.tiles * 4;
                w.line(format!("if (unit < {width}u && token < {tokens}u) {{"));
                look_up(&mut w, layout);
                w.line("stream[at] = x;");
            }
            EmbedSource::Stream => {
                w.line(format!("if (unit < {width}u) {{"));
                w.line("let x = stream[at];");
            }
        }
        w.line("put_scaled(group.y, unit, x * gains[unit]);");
        self.squares.put(&mut w, "group.y", "unit");
        w.line("}");
        w.finish(self.lanes)
    }
}

/// Emits `x`, columns `4 * unit..` of row `token`.
fn look_up(w: &mut Writer, layout: Layout) {
    let Layout { format, .. } = layout;
    let columns = format.word_columns();
    w.line("let tile = token / 4u;\nlet part = token % 4u;");
    let word = match layout.order {
        Order::Planes { chunk } => {
            let (planes, chunks) = (chunk / columns, layout.columns / chunk);
            w.line(format!("let index = unit * 4u / {columns}u;"));
            w.line(format!("let start = tile * {}u + index / {planes}u;", layout.tile_words()));
            Box::new(move |i: usize| {
                format!("word(start + ((index + {i}u) % {planes}u) * {chunks}u)[part]")
            }) as Box<dyn Fn(usize) -> String>
        }
        Order::Streams { lanes, row_blocks } => {
            let (group_rows, planes) = (layout.group_rows(), layout.planes());
            w.line("let block = unit / 8u;");
            w.line(format!(
                "let row_of = tile / {lanes}u * {group_rows}u + block / {row_blocks}u;"
            ));
            w.line(format!(
                "let first_of = block % {row_blocks}u * {}u + tile % {lanes}u;",
                planes * lanes
            ));
            w.line(format!("let index = unit % 8u * 4u / {columns}u;"));
            Box::new(move |i| format!("word(first_of + (index + {i}u) * {lanes}u, row_of)[part]"))
        }
    };
    w.line(format!("let a = {};", word(0)));
    match format {
        StoredFormat::F16 => {
            w.line(format!("let b = {};", word(1)));
            w.line("let x = vec4<f32>(unpack2x16float(a), unpack2x16float(b));");
        }
        StoredFormat::Q8 => w.line("let q = vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(a << 24u, a << 16u, a << 8u, a)) >> vec4<u32>(24u));"),
        StoredFormat::Q4 | StoredFormat::Q4Offset => w.line(
            "let q = vec4<f32>((vec4<u32>(a) >> (vec4<u32>(0u, 4u, 8u, 12u) + vec4<u32>(unit % 2u * 16u))) & vec4<u32>(15u));",
        ),
    }
    if format == StoredFormat::F16 {
        return;
    }
    match layout.order {
        Order::Planes { .. } => {
            w.line(format!("let s = scales[tile * {}u + unit / 8u];", layout.blocks()));
            let half = |a: &str, b: &str| {
                format!("unpack2x16float(select(s.{a}, s.{b}, part >= 2u) >> (part % 2u * 16u)).x")
            };
            w.line(format!("let scale = {};", half("x", "y")));
            if format == StoredFormat::Q4Offset {
                w.line(format!("let offset = {};", half("z", "w")));
            }
        }
        Order::Streams { lanes, .. } => {
            let plane = |plane: usize| {
                format!("bitcast<f32>(word(first_of + {}u, row_of)[part])", plane * lanes)
            };
            w.line(format!("let scale = {};", plane(layout.word_planes())));
            if format == StoredFormat::Q4Offset {
                w.line(format!("let offset = {};", plane(layout.word_planes() + 1)));
            }
        }
    }
    match format {
        StoredFormat::Q8 => w.line("let x = q * scale;"),
        StoredFormat::Q4 => w.line("let x = (q - vec4<f32>(8.0)) * scale;"),
        StoredFormat::Q4Offset => {
            w.line("let x = fma(q, vec4<f32>(scale), vec4<f32>(offset));");
        }
        StoredFormat::F16 => {}
    }
}
