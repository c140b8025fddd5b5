//! The matrix kernels of a software rasteriser: each lane computes tiles of its own, so that nothing is added up over lanes,
//! and a workgroup reads its weights as one stream.
//!
//! The input is the same for all lanes: each lane reads one 4-vector of a block of it, and hands it to the others. *Invariant:*
//! as in `matmul`: the operations on one batch row, and their order, depend neither on the number of rows nor of tiles.

use super::matmul::{Epilogue, MatMul, columns};
use super::{Join, Writer};
use crate::gpu::format::StoredFormat;

/// 4-vectors of the input in a block.
const UNITS: u32 = 8;

impl MatMul {
    /// Emits everything after the declarations.
    pub(super) fn stream(&self, w: &mut Writer, row_blocks: u32) {
        let (lanes, blocks) = (self.lanes.count, self.layout.blocks() as u32);
        let group_rows = self.layout.group_rows() as u32;
        let last = self.layout.pieces() - 1;
        self.locate_rows(w);
        for t in 0..self.tiles {
            let group = format!("min(group.x * {}u + {t}u, {last}u)", self.tiles);
            w.line(format!("let y_{t} = {group} * {group_rows}u;"));
        }
        for (t, n) in self.each() {
            w.line(format!("var acc_{t}_{n} = vec4<f32>(0.0);"));
        }
        let mut end = format!("{row_blocks}u");
        if group_rows > 1 {
            w.line(format!("for (var r = 0u; r < {group_rows}u; r += 1u) {{"));
            end = format!("min({row_blocks}u, {blocks}u - r * {row_blocks}u)");
        }
        let (first, row) = if group_rows > 1 {
            (format!("r * {row_blocks}u + "), " + r")
        } else {
            (String::new(), "")
        };
        w.line(format!("for (var b = 0u; b < {end}; b += 1u) {{"));
        w.line(format!("let block = {first}b;"));
        w.line(format!("let x = b * {}u + lane;", self.layout.planes() as u32 * lanes));
        self.multiply_block(w, |t, plane| format!("word(x + ({plane}) * {lanes}u, y_{t}{row})"));
        w.line("}");
        if group_rows > 1 {
            w.line("}");
        }
        self.finish_rows(w);
    }

    /// Whether each lane of a subgroup reads one 4-vector of a block for all.
    fn shares_input(&self) -> bool {
        self.lanes.subgroup.is_some_and(|size| size >= UNITS)
    }

    /// Emits `a_n_u`, unit u of the block's input of row n, in every lane.
    fn spread_unit(&self, w: &mut Writer, u: u32) {
        for n in 0..self.rows {
            let unit = match self.shares_input() {
                true => format!("subgroupBroadcast(mine_{n}, {u}u)"),
                false => format!("input_at(row_{n}, 0u, block * {UNITS}u + {u}u)"),
            };
            w.line(format!("let a_{n}_{u} = {unit};"));
        }
    }

    /// Adds the products of a block, times its scales, to the accumulators; `word` reads a plane of a tile.
    fn multiply_block(&self, w: &mut Writer, word: impl Fn(u32, String) -> String) {
        let format = self.layout.format;
        let into = if format == StoredFormat::F16 { "acc" } else { "sum" };
        let own = if self.lanes.subgroup == Some(self.lanes.count) { "lane" } else { "sub_lane" };
        if self.shares_input() {
            for n in 0..self.rows {
                w.line(format!(
                    "let mine_{n} = input_at(row_{n}, 0u, block * {UNITS}u + {own} % {UNITS}u);"
                ));
            }
        }
        if format != StoredFormat::F16 {
            for (t, n) in self.each() {
                w.line(format!("var sum_{t}_{n} = vec4<f32>(0.0);"));
            }
        }
        w.line("let u = 0u;");
        for u in 0..UNITS {
            self.spread_unit(w, u);
            for t in 0..self.tiles {
                let columns = columns(w, format, (t, u as usize), |plane| word(t, plane));
                for (column, part) in columns.iter().zip(["x", "y", "z", "w"]) {
                    for n in 0..self.rows {
                        w.line(format!(
                            "{into}_{t}_{n} = fma({column}, vec4<f32>(a_{n}_{u}.{part}), {into}_{t}_{n});"
                        ));
                    }
                }
            }
        }
        self.scale_block(w, word);
    }

    fn scale_block(&self, w: &mut Writer, word: impl Fn(u32, String) -> String) {
        let format = self.layout.format;
        if format == StoredFormat::F16 {
            return;
        }
        if format != StoredFormat::Q8 {
            for n in 0..self.rows {
                let unit =
                    |u| format!("((a_{n}_{u}.x + a_{n}_{u}.y) + (a_{n}_{u}.z + a_{n}_{u}.w))");
                let total: Vec<_> = (0..UNITS).map(unit).collect();
                w.line(format!("let total_{n} = vec4<f32>({});", total.join(" + ")));
            }
        }
        let planes = self.layout.word_planes();
        for t in 0..self.tiles {
            let floats = |plane| format!("bitcast<vec4<f32>>({})", word(t, format!("{plane}u")));
            w.line(format!("let scale_{t} = {};", floats(planes)));
            if format == StoredFormat::Q4Offset {
                w.line(format!("let offset_{t} = {};", floats(planes + 1)));
            }
        }
        for (t, n) in self.each() {
            match format {
                StoredFormat::Q4 => {
                    w.line(format!("sum_{t}_{n} = fma(vec4<f32>(-8.0), total_{n}, sum_{t}_{n});"))
                }
                StoredFormat::Q4Offset => {
                    w.line(format!("acc_{t}_{n} = fma(offset_{t}, total_{n}, acc_{t}_{n});"));
                }
                StoredFormat::Q8 | StoredFormat::F16 => {}
            }
            w.line(format!("acc_{t}_{n} = fma(sum_{t}_{n}, scale_{t}, acc_{t}_{n});"));
        }
    }

    /// Emits what becomes of each row of this lane's tiles.
    fn finish_rows(&self, w: &mut Writer) {
        if let Some(norm) = self.norm {
            self.add_squares(w, norm);
            let parts: Vec<_> = (0..self.rows).map(|n| format!("part_{n}")).collect();
            self.lanes.reduce(w, Join::Add, "f32", &parts);
        }
        let (lanes, step) = (self.lanes.count, self.step());
        for item in 0..self.tiles / step {
            w.line(format!(
                "{{ let tile = (group.x * {}u + {item}u) * {lanes}u + lane;",
                self.tiles / step
            ));
            w.line(format!("let place = tile * {step}u + {}u;", self.first_tile));
            let bound = match self.epilogue {
                // The other half of the tiles is beside.
                Epilogue::GateUp { stride } => format!("place < {}u", 2 * stride),
                _ => format!("tile < {}u", self.layout.tiles),
            };
            w.line(format!("if ({bound}) {{"));
            for n in 0..self.rows {
                w.line(format!("{{ let row = group.y * {}u + {n}u;", self.rows));
                for (name, second) in self.parts_of_item() {
                    w.line(format!("var {name} = acc_{}_{n};", item * step + second));
                }
                if let Some(norm) = self.norm {
                    w.line(format!("let inverse = {};", norm.inverse(&format!("part_{n}"))));
                }
                self.finish_item(w);
                w.line("}");
            }
            w.line("} }");
        }
    }
}
