//! The matrix kernels: norm and projection, then what follows it in the block (rotation and cache, residual, SwiGLU, or
//! nothing), for 1, 2, 4 or 8 rows of the batch at once.
//!
//! A workgroup computes some tiles of 4 output rows; its lanes share the columns, chunk by chunk, and join at the end. Where
//! weights are streams, a lane computes tiles of its own instead (`streams`).
//! *Invariant:* the operations on one batch row, and their order, depend neither on the number of rows nor of tiles.

use super::{Bind, CacheShape, Join, Lanes, RowKind, Rows, Shader, Writer, halves};
use crate::gpu::format::StoredFormat;
use crate::gpu::pack::{Layout, Order};
use crate::gpu::tuning::Backing;

/// Where a kernel's rows lie in its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) enum Gather {
    /// Row i of the batch is row i of the input.
    AllRows,
    /// The rows that the state lists as wanting a result, for a pass of this many rows at most.
    HeadRows { capacity: u32 },
}

/// Root-mean-square norm of the input, whose weight is in the input already: the sums of squares come in parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::gpu) struct Norm {
    /// Elements that were squared.
    pub(in crate::gpu) width: u32,
    /// Parts in a row, a multiple of 4.
    pub(in crate::gpu) stride: u32,
    /// 4-vectors that a part is the sum of the squares of.
    pub(in crate::gpu) joined: u32,
    pub(in crate::gpu) epsilon: f32,
}

impl Norm {
    /// The factor of a row with this sum of squares.
    pub(super) fn inverse(self, square: &str) -> String {
        format!("1.0 / sqrt({square} / {}.0 + {:e})", self.width, self.epsilon)
    }
}

/// Where a row's sums of squares go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) struct Squares {
    /// Parts in a row, a multiple of 4.
    pub(in crate::gpu) stride: u32,
    /// 4-vectors of a part: 1, or the lanes of a subgroup that have one each.
    pub(in crate::gpu) joined: u32,
}

impl Squares {
    /// Emits what stores those of the 4-vector `x` at place `place` of row `row`.
    pub(super) fn put(self, w: &mut Writer, row: &str, place: &str) {
        let joined = self.joined;
        if joined == 1 {
            w.line(format!("put_squares({row}, {place}, dot4(x));"));
            return;
        }
        w.line("{ let squared = subgroupAdd(dot4(x));");
        w.line(format!(
            "if ({place} % {joined}u == 0u) {{ put_squares({row}, {place} / {joined}u, squared); }} }}"
        ));
    }
}

/// What becomes of the products.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::gpu) enum Epilogue {
    /// Queries and keys are rotated; queries go on, keys and values into the cache.
    Qkv { q_tiles: u32, kv_tiles: u32, cache: CacheShape },
    /// Added to the residual stream; with the weight of the norm that follows, if there is one.
    Residual { stride: u32, next_norm: Option<Squares> },
    /// Tiles alternate between gate and up.
    GateUp { stride: u32 },
    /// Logits.
    Logits { stride: u32 },
}

/// One matrix kernel.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::gpu) struct MatMul {
    pub(in crate::gpu) layout: Layout,
    /// First tile of the matrix that the layout's part begins with; even if tiles come in pairs.
    pub(in crate::gpu) first_tile: u32,
    pub(in crate::gpu) backing: Backing,
    pub(in crate::gpu) lanes: Lanes,
    /// Batch rows of a workgroup: 1, 2, 4 or 8.
    pub(in crate::gpu) rows: u32,
    /// Tiles of a workgroup.
    pub(in crate::gpu) tiles: u32,
    /// Units of 4 columns in a loop's iteration.
    pub(in crate::gpu) unroll: u32,
    /// 4-vectors in a row of the input.
    pub(in crate::gpu) input_stride: u32,
    pub(in crate::gpu) gather: Gather,
    pub(in crate::gpu) norm: Option<Norm>,
    pub(in crate::gpu) epilogue: Epilogue,
    /// Columns of a chunk of the matrix that the epilogue's rows are the input of.
    pub(in crate::gpu) next_chunk: usize,
}

impl MatMul {
    /// Workgroups along x.
    pub(in crate::gpu) fn groups(&self) -> u32 {
        let tiles = self.tiles * self.layout.piece_tiles() as u32;
        (self.layout.tiles as u32).div_ceil(tiles)
    }

    /// Bindings: input, words, [scales], [parts], then those of the epilogue.
    pub(in crate::gpu) fn shader(&self) -> Shader {
        let label = match self.epilogue {
            Epilogue::Qkv { .. } => "norm+qkv+rope+cache",
            Epilogue::Residual { .. } => "matmul+add",
            Epilogue::GateUp { .. } => "norm+gate_up+silu_mul",
            Epilogue::Logits { .. } => "norm+head",
        };
        let mut w = Writer::new(label, Bind::Read);
        self.declare(&mut w);
        match self.layout.order {
            Order::Planes { chunk } => {
                self.locate_tiles(&mut w);
                self.locate_rows(&mut w);
                self.multiply(&mut w, chunk);
                match self.lanes.halving() {
                    Some(size) => self.join_halves(&mut w, size),
                    None => self.join_whole(&mut w),
                }
                self.finish_item(&mut w);
                w.line("}");
            }
            Order::Streams { row_blocks, .. } => self.stream(&mut w, row_blocks as u32),
        }
        w.finish(self.lanes.count)
    }

    fn declare(&self, w: &mut Writer) {
        w.rows_in("input", Rows::vectors(self.backing, self.input_stride, self.layout.chunk()));
        w.weights(self.layout);
        if let Some(Norm { stride, .. }) = self.norm {
            w.rows_in("parts", Rows::squares(self.backing, stride).squares_in());
        }
        match self.epilogue {
            Epilogue::Qkv { q_tiles, cache, .. } => {
                w.read("turns", "vec4<f32>");
                w.rows_out("queries", Rows::queries(self.backing, q_tiles));
                match cache.backing {
                    Backing::Buffer => w.write("cache", "vec2<u32>"),
                    Backing::Texture => w.pairs_out("cache"),
                }
            }
            Epilogue::Residual { stride, next_norm } => {
                w.write("stream", "vec4<f32>");
                if let Some(squares) = next_norm {
                    w.declare(DOT4);
                    w.read("gains", "vec4<f32>");
                    w.rows_out("scaled", Rows::vectors(self.backing, stride, self.next_chunk));
                    w.rows_out("squares", Rows::squares(self.backing, squares.stride));
                }
            }
            Epilogue::GateUp { stride } => {
                w.rows_out("hidden", Rows::vectors(self.backing, stride, self.next_chunk));
            }
            Epilogue::Logits { .. } => w.write("logits", "vec4<f32>"),
        }
    }

    /// `first` tile, and `tile_t` to read (clamped to the last).
    fn locate_tiles(&self, w: &mut Writer) {
        let last = self.layout.tiles - 1;
        w.line(format!("let first = group.x * {}u;", self.tiles));
        for t in 0..self.tiles {
            w.line(format!("let tile_{t} = min(first + {t}u, {last}u);"));
        }
    }

    /// `row_n` of the input.
    pub(super) fn locate_rows(&self, w: &mut Writer) {
        for n in 0..self.rows {
            let at = format!("group.y * {}u + {n}u", self.rows);
            match self.gather {
                Gather::AllRows => w.line(format!("let row_{n} = {at};")),
                Gather::HeadRows { capacity } => {
                    w.line(format!("let row_{n} = state[{capacity}u + 2u * ({at})].x;"));
                }
            }
        }
    }

    pub(super) fn each(&self) -> impl Iterator<Item = (u32, u32)> {
        let rows = self.rows;
        (0..self.tiles).flat_map(move |t| (0..rows).map(move |n| (t, n)))
    }

    fn multiply(&self, w: &mut Writer, chunk: usize) {
        let Layout { format, columns, .. } = self.layout;
        let chunks = columns / chunk;
        for (t, n) in self.each() {
            w.line(format!("var acc_{t}_{n} = vec4<f32>(0.0);"));
        }
        let scaled = format != StoredFormat::F16;
        let offset = matches!(format, StoredFormat::Q4 | StoredFormat::Q4Offset);
        let lanes = self.lanes.count;
        if chunks <= lanes as usize {
            w.line(format!("let c = lane;\nif (c < {chunks}u) {{"));
        } else {
            w.line(format!("for (var c = lane; c < {chunks}u; c += {lanes}u) {{"));
        }
        if scaled {
            for (t, n) in self.each() {
                w.line(format!("var sum_{t}_{n} = vec4<f32>(0.0);"));
            }
        }
        if offset {
            for n in 0..self.rows {
                w.line(format!("var total_{n} = 0.0;"));
            }
        }
        let units = chunk / 4;
        let unroll = (self.unroll as usize).max(format.word_columns() / 4).min(units);
        if unroll == units {
            w.line("{ let u = 0u;");
        } else {
            w.line(format!("for (var u = 0u; u < {units}u; u += {unroll}u) {{"));
        }
        for k in 0..unroll {
            self.multiply_unit(w, (k, chunks), offset);
        }
        w.line("}");
        if scaled {
            self.scale(w, chunk);
        }
        w.line("}");
    }

    /// Adds the products of 4 columns, the k-th unit of an iteration, to the sums.
    fn multiply_unit(&self, w: &mut Writer, (k, chunks): (usize, usize), offset: bool) {
        let Layout { format, .. } = self.layout;
        let tile_words = self.layout.tile_words();
        let into = if format == StoredFormat::F16 { "acc" } else { "sum" };
        for n in 0..self.rows {
            w.line(format!("let a_{n}_{k} = input_at(row_{n}, c, u + {k}u);"));
            if offset {
                let a = format!("a_{n}_{k}");
                w.line(format!("total_{n} += ({a}.x + {a}.y) + ({a}.z + {a}.w);"));
            }
        }
        for t in 0..self.tiles {
            let word = |plane: String| {
                format!("word(tile_{t} * {tile_words}u + ({plane}) * {chunks}u + c)")
            };
            let columns = columns(w, format, (t, k), word);
            for (column, part) in columns.iter().zip(["x", "y", "z", "w"]) {
                for n in 0..self.rows {
                    w.line(format!(
                        "{into}_{t}_{n} = fma({column}, vec4<f32>(a_{n}_{k}.{part}), {into}_{t}_{n});"
                    ));
                }
            }
        }
    }

    /// Adds a chunk's sums, times their scale, to the accumulators.
    fn scale(&self, w: &mut Writer, chunk: usize) {
        let blocks = self.layout.blocks();
        let chunks_a_block = 32 / chunk;
        for t in 0..self.tiles {
            w.line(format!("let s_{t} = scales[tile_{t} * {blocks}u + c / {chunks_a_block}u];"));
            w.line(format!(
                "let scale_{t} = vec4<f32>(unpack2x16float(s_{t}.x), unpack2x16float(s_{t}.y));"
            ));
            if self.layout.format == StoredFormat::Q4Offset {
                w.line(format!(
                    "let offset_{t} = vec4<f32>(unpack2x16float(s_{t}.z), unpack2x16float(s_{t}.w));"
                ));
            }
        }
        for (t, n) in self.each() {
            match self.layout.format {
                StoredFormat::Q4 => w.line(format!(
                    "sum_{t}_{n} = fma(vec4<f32>(-8.0), vec4<f32>(total_{n}), sum_{t}_{n});"
                )),
                StoredFormat::Q4Offset => w.line(format!(
                    "acc_{t}_{n} = fma(offset_{t}, vec4<f32>(total_{n}), acc_{t}_{n});"
                )),
                StoredFormat::Q8 | StoredFormat::F16 => {}
            }
            w.line(format!("acc_{t}_{n} = fma(sum_{t}_{n}, scale_{t}, acc_{t}_{n});"));
        }
    }

    /// Emits `part_n`, what this lane has of the sum of squares of row n.
    pub(super) fn add_squares(&self, w: &mut Writer, Norm { width, stride, joined, .. }: Norm) {
        let Rows { kind, stride, .. } = Rows::squares(self.backing, stride).squares_in();
        let (count, sum) = match kind {
            RowKind::Vectors => (stride, "(part.x + part.y) + (part.z + part.w)"),
            RowKind::Numbers => ((width / 4).div_ceil(joined), "part"),
        };
        for n in 0..self.rows {
            w.line(format!("var part_{n} = 0.0;"));
        }
        w.line(format!("for (var p = lane; p < {count}u; p += {}u) {{", self.lanes.count));
        for n in 0..self.rows {
            w.line(format!("{{ let part = parts_at(row_{n}, p, 0u); part_{n} += {sum}; }}"));
        }
        w.line("}");
    }

    /// Joins the lanes, value by value, and begins the loop over what a lane finishes: `tile`, its `place` in the matrix,
    /// `row` of the pass, its value `v` and, for SwiGLU, `up`.
    fn join_whole(&self, w: &mut Writer) {
        let mut names: Vec<_> = self.each().map(|(t, n)| format!("acc_{t}_{n}")).collect();
        if let Some(norm) = self.norm {
            self.add_squares(w, norm);
            for (quad, rows) in (0..self.rows).collect::<Vec<_>>().chunks(4).enumerate() {
                let part = |i: usize| match rows.get(i) {
                    Some(n) => format!("part_{n}"),
                    None => "0.0".to_owned(),
                };
                let all = [0, 1, 2, 3].map(part).join(", ");
                w.line(format!("var square_{quad} = vec4<f32>({all});"));
                names.push(format!("square_{quad}"));
            }
        }
        self.lanes.reduce(w, Join::Add, "vec4<f32>", &names);
        if let Some(norm) = self.norm {
            for n in 0..self.rows {
                let part = ["x", "y", "z", "w"][n as usize % 4];
                let square = format!("square_{}.{part}", n / 4);
                w.line(format!("let inverse_{n} = {};", norm.inverse(&square)));
            }
        }
        let (items, lanes) = (self.items(), self.lanes.count);
        w.line(format!("for (var item = lane; item < {items}u; item += {lanes}u) {{"));
        self.locate_item(w);
        w.line(format!("if (tile >= {}u) {{ continue; }}", self.layout.tiles));
        for (name, second) in self.parts_of_item() {
            w.line(format!("var {name} = acc_{second}_0;"));
            for item in 1..items {
                let (t, n) = (item / self.rows * self.step() + second, item % self.rows);
                w.line(format!("{name} = select({name}, acc_{t}_{n}, item == {item}u);"));
            }
        }
        if self.norm.is_some() {
            w.line("var inverse = inverse_0;");
            for n in 1..self.rows {
                w.line(format!("inverse = select(inverse, inverse_{n}, n == {n}u);"));
            }
        }
    }

    /// As [`Self::join_whole`], by halves: a lane finishes one item at most.
    fn join_halves(&self, w: &mut Writer, size: u32) {
        if let Some(norm) = self.norm {
            self.add_squares(w, norm);
        }
        let rows = self.rows;
        let mut spreads = Vec::new();
        for t in 0..self.tiles {
            let part = |n: u32| ["x", "y", "z", "w"].map(|part| format!("acc_{t}_{n}.{part}"));
            let values: Vec<_> = (0..rows).flat_map(part).collect();
            spreads.push(halves::sum(w, size, &format!("sum_{t}"), &values));
        }
        let squares = self.norm.map(|_| {
            let values: Vec<_> = (0..rows).map(|n| format!("part_{n}")).collect();
            halves::sum(w, size, "square", &values)
        });
        let groups = self.lanes.count / size;
        let all = (self.tiles * rows * 4 + if squares.is_some() { rows } else { 0 }) as usize;
        if groups > 1 {
            w.declare(&format!("var<workgroup> sums: array<f32, {}>;", groups as usize * all));
            let mut first = 0;
            for spread in spreads.iter().chain(&squares) {
                spread.store(w, "sums", &format!("sub_id * {all}u + {first}u"));
                first += spread.values();
            }
            w.line("workgroupBarrier();");
        }
        w.line("let item = lane;");
        self.locate_item(w);
        let square_at = self.tiles * rows * 4;
        let joined = |at: &str| {
            let parts = (0..groups as usize).map(|g| format!("sums[{}u + {at}]", g * all));
            parts.reduce(|sum, part| format!("({sum} + {part})")).expect("a subgroup")
        };
        if groups > 1 {
            w.line(format!("if (item < {}u && tile < {}u) {{", self.items(), self.layout.tiles));
            for (name, second) in self.parts_of_item() {
                let start = format!(
                    "(item / {rows}u * {}u + {second}u) * {}u + n * 4u",
                    self.step(),
                    rows * 4
                );
                w.line(format!("let at_{name} = {start};"));
                let parts = [0, 1, 2, 3].map(|i| joined(&format!("at_{name} + {i}u")));
                w.line(format!("var {name} = vec4<f32>({});", parts.join(", ")));
            }
            if let Some(norm) = self.norm {
                let square = joined(&format!("{square_at}u + n"));
                w.line(format!("let inverse = {};", norm.inverse(&square)));
            }
            return;
        }
        for (name, second) in self.parts_of_item() {
            for i in 0..4 {
                w.line(format!("var {name}_{i} = 0.0;"));
            }
            for (t, spread) in
                spreads.iter().enumerate().skip(second as usize).step_by(self.step() as usize)
            {
                for i in 0..4 {
                    let fetched = format!("{name}_{t}_{i}");
                    spread.fetch(w, &fetched, &format!("n * 4u + {i}u"));
                    let turn = t as u32 / self.step();
                    w.line(format!(
                        "{name}_{i} = select({name}_{i}, {fetched}, item / {rows}u == {turn}u);"
                    ));
                }
            }
            w.line(format!("var {name} = vec4<f32>({name}_0, {name}_1, {name}_2, {name}_3);"));
        }
        if let (Some(norm), Some(squares)) = (self.norm, &squares) {
            squares.fetch(w, "square", "n");
            w.line(format!("let inverse = {};", norm.inverse("square")));
        }
        w.line(format!("if (item < {}u && tile < {}u) {{", self.items(), self.layout.tiles));
    }

    /// Tiles that make one item: gate and up go together.
    pub(in crate::gpu) fn step(&self) -> u32 {
        if self.is_paired() { 2 } else { 1 }
    }

    /// What a workgroup finishes: rows of tiles, or of pairs of tiles.
    fn items(&self) -> u32 {
        self.tiles / self.step() * self.rows
    }

    /// The variables of an item, and which of its tiles they are of.
    pub(super) fn parts_of_item(&self) -> impl Iterator<Item = (&'static str, u32)> {
        [("v", 0), ("up", 1)].into_iter().take(self.step() as usize)
    }

    fn locate_item(&self, w: &mut Writer) {
        w.line(format!("let n = item % {}u;", self.rows));
        w.line(format!("let tile = first + item / {}u * {}u;", self.rows, self.step()));
        w.line(format!("let place = tile + {}u;", self.first_tile));
        w.line(format!("let row = group.y * {}u + n;", self.rows));
    }

    /// Whether tiles come in pairs: gate, then up.
    pub(in crate::gpu) fn is_paired(&self) -> bool {
        matches!(self.epilogue, Epilogue::GateUp { .. })
    }

    pub(super) fn finish_item(&self, w: &mut Writer) {
        if self.norm.is_some() {
            for (name, _) in self.parts_of_item() {
                w.line(format!("{name} *= inverse;"));
            }
        }
        match &self.epilogue {
            Epilogue::Qkv { q_tiles, kv_tiles, cache } => finish_qkv(w, *q_tiles, *kv_tiles, cache),
            Epilogue::Residual { stride, next_norm } => {
                w.line(format!("let at = row * {stride}u + place;"));
                w.line("let x = stream[at] + v;");
                w.line("stream[at] = x;");
                if let Some(squares) = next_norm {
                    w.line("put_scaled(row, place, x * gains[place]);");
                    squares.put(w, "row", "place");
                }
            }
            Epilogue::GateUp { .. } => {
                w.line("put_hidden(row, place / 2u, v / (1.0 + exp(-v)) * up);");
            }
            Epilogue::Logits { stride } => {
                w.line(format!("logits[row * {stride}u + place] = v;"));
            }
        }
    }
}

/// Sum of the squares of a 4-vector, in one fixed order.
pub(super) const DOT4: &str = "fn dot4(x: vec4<f32>) -> f32 \
    { return fma(x.w, x.w, fma(x.z, x.z, fma(x.y, x.y, x.x * x.x))); }";

fn finish_qkv(w: &mut Writer, q_tiles: u32, kv_tiles: u32, cache: &CacheShape) {
    let CacheShape { positions, head_dim, .. } = *cache;
    let head_tiles = head_dim / 4;
    w.line("let at = state[row];");
    w.line(format!("if (place < {}u) {{", q_tiles + kv_tiles));
    w.line(format!("let turn = turns[at.y * {head_tiles}u + place % {head_tiles}u];"));
    w.line("let s = vec4<f32>(-v.y, v.x, -v.w, v.z) * turn.yyww;");
    w.line("v = fma(v, turn.xxzz, s);");
    w.line("}");
    w.line(format!("if (place < {q_tiles}u) {{ put_queries(row, place, v); }}"));
    w.line("else if (at.w != 0u) {");
    w.line("let halves = vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));");
    w.line(format!("let is_value = place >= {}u;", q_tiles + kv_tiles));
    w.line(format!("let t = place - select({q_tiles}u, {}u, is_value);", q_tiles + kv_tiles));
    if cache.backing == Backing::Texture {
        let half = cache.half_slot_rows();
        w.line(format!("let cached = at.x * {}u + select(0u, {half}u, is_value) + t;", 2 * half));
        w.line("put_cache(cached, at.y, halves);\n}");
        return;
    }
    let half = cache.half_slot_words() * 2;
    w.line(format!("let slot = at.x * {}u;", half * 2));
    w.line(format!("let head = t / {head_tiles}u;"));
    w.line(format!("let part = t % {head_tiles}u;"));
    w.line(format!(
        "let key = slot + ((head * {}u + part / 2u) * {positions}u + at.y) * 2u + part % 2u;",
        head_dim / 8
    ));
    w.line(format!(
        "let value = slot + {half}u + (head * {positions}u + at.y) * {head_tiles}u + part;"
    ));
    w.line("cache[select(key, value, is_value)] = halves;");
    w.line("}");
}

/// Emits the loads of the k-th unit, 4 columns of tile `t`, and returns these as 4-vectors over the tile's rows.
pub(super) fn columns(
    w: &mut Writer,
    format: StoredFormat,
    (t, k): (u32, usize),
    word: impl Fn(String) -> String,
) -> [String; 4] {
    match format {
        StoredFormat::Q8 => {
            let name = format!("w_{t}_{k}");
            w.line(format!("let {name} = bitcast<vec4<i32>>({});", word(format!("u + {k}u"))));
            [24, 16, 8, 0].map(|up| match up {
                0 => format!("vec4<f32>({name} >> vec4<u32>(24u))"),
                _ => format!("vec4<f32>(({name} << vec4<u32>({up}u)) >> vec4<u32>(24u))"),
            })
        }
        StoredFormat::Q4 | StoredFormat::Q4Offset => {
            let name = format!("w_{t}_{}", k / 2);
            if k % 2 == 0 {
                w.line(format!("let {name} = {};", word(format!("u / 2u + {}u", k / 2))));
            }
            [0, 1, 2, 3].map(|i| {
                let down = (k % 2 * 4 + i) * 4;
                format!("vec4<f32>(({name} >> vec4<u32>({down}u)) & vec4<u32>(15u))")
            })
        }
        StoredFormat::F16 => {
            for half in 0..2 {
                let name = format!("w_{t}_{k}_{half}");
                let plane = format!("u * 2u + {}u", 2 * k + half);
                w.line(format!("let {name} = {};", word(plane)));
                for (row, part) in ["x", "y", "z", "w"].into_iter().enumerate() {
                    w.line(format!("let {name}_{row} = unpack2x16float({name}.{part});"));
                }
            }
            [(0, "x"), (0, "y"), (1, "x"), (1, "y")].map(|(half, part)| {
                let row = |row: u32| format!("w_{t}_{k}_{half}_{row}.{part}");
                format!("vec4<f32>({})", [0, 1, 2, 3].map(row).join(", "))
            })
        }
    }
}
