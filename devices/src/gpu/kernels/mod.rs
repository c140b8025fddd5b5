//! The WGSL generator: one function a kernel, every size a constant of the generated text.
//!
//! *Invariant:* every index that a kernel forms lies inside its binding for any state that the host may write (rows
//! below the pass's capacity, slots below the slots, positions below the positions, tokens below the vocabulary); the
//! shaders run without bounds checks on the strength of it.

mod attend;
mod embed;
mod halves;
mod matmul;
mod pick;
mod streams;

use std::fmt::Write;

pub(super) use attend::{Attend, JoinSpans, Spans};
pub(super) use embed::{Embed, EmbedSource};
pub(super) use matmul::{Epilogue, Gather, MatMul, Norm, Squares};
pub(super) use pick::{Feed, PickBest, PickMerge};

use super::pack::{Layout, Order};
use super::tuning::{Backing, Sums, Tuning};

/// What a binding of a kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Bind {
    Read,
    Write,
    /// A texture of packed weights.
    Words,
    /// Textures of rows between kernels, of 4-vectors or numbers, as `rows_in` and `rows_out` declare them.
    VectorsIn,
    VectorsOut,
    NumbersIn,
    NumbersOut,
    /// A texture of 64-bit words: a layer's caches.
    PairsIn,
    PairsOut,
}

/// A generated kernel: its text, and its bindings in group 0 in order. The state is group 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shader {
    pub(super) label: &'static str,
    pub(super) code: String,
    pub(super) binds: Vec<Bind>,
    pub(super) state: Bind,
}

/// Sizes of the caches of one layer. In a buffer, in 128-bit words: keys `[slot][kv head][head_dim / 8][position]`, each
/// word 8 elements of one position, then values `[kv head][position][head_dim / 8]`. In a texture, in 64-bit words of 4
/// elements of one position: `[slot][keys, values][kv head][head_dim / 4]` rows of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CacheShape {
    pub(super) slots: u32,
    pub(super) positions: u32,
    pub(super) kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) backing: Backing,
}

impl CacheShape {
    /// Rows of one head's keys, or values, in a texture.
    pub(super) fn head_rows(&self) -> u32 {
        self.head_dim / 4
    }

    /// Rows of all keys, or all values, of a slot in a texture.
    pub(super) fn half_slot_rows(&self) -> u32 {
        self.kv_heads * self.head_rows()
    }

    /// Rows of a texture.
    pub(super) fn rows(&self) -> u32 {
        self.slots * 2 * self.half_slot_rows()
    }

    /// 128-bit words of all keys of a slot; values take as many.
    pub(super) fn half_slot_words(&self) -> u32 {
        self.kv_heads * self.head_dim / 8 * self.positions
    }

    /// Bytes of one layer.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.slots) * u64::from(self.half_slot_words()) * 32
    }
}

/// Rows that one kernel writes and others read, one for each row of the pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) backing: Backing,
    pub(super) kind: RowKind,
    /// Elements of a row.
    pub(super) stride: u32,
    /// Elements of a chunk: a buffer holds the first of every chunk, then the second of every chunk, and so on, so that
    /// lanes that take a chunk each read side by side. 1 where order is all.
    pub(super) chunk: u32,
}

/// What a row consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKind {
    /// 4-vectors of `f32`.
    Vectors,
    /// `f32`.
    Numbers,
}

impl RowKind {
    fn element(self) -> &'static str {
        match self {
            RowKind::Vectors => "vec4<f32>",
            RowKind::Numbers => "f32",
        }
    }
}

impl Rows {
    /// The input of a matrix whose chunks have `columns` columns.
    pub(super) fn vectors(backing: Backing, stride: u32, columns: usize) -> Self {
        Self { backing, kind: RowKind::Vectors, stride, chunk: columns as u32 / 4 }
    }

    /// Sums of squares of 4 columns each, `stride` of them a row; read 4 at a time where they lie in a buffer.
    pub(super) fn squares(backing: Backing, stride: u32) -> Self {
        Self { backing, kind: RowKind::Numbers, stride, chunk: 1 }
    }

    /// Queries of `stride` 4-vectors a row.
    pub(super) fn queries(backing: Backing, stride: u32) -> Self {
        Self { backing, kind: RowKind::Vectors, stride, chunk: stride }
    }

    fn squares_in(self) -> Self {
        match self.backing {
            Backing::Buffer => Self { kind: RowKind::Vectors, stride: self.stride / 4, ..self },
            Backing::Texture => self,
        }
    }
}

/// Builds a shader's text: declarations as they are asked for, then the body of `main`.
pub(super) struct Writer {
    label: &'static str,
    declarations: String,
    pub(super) body: String,
    binds: Vec<Bind>,
    state: Bind,
}

impl Writer {
    pub(super) fn new(label: &'static str, state: Bind) -> Self {
        let access = if state == Bind::Write { "read_write" } else { "read" };
        let declarations =
            format!("@group(1) @binding(0) var<storage, {access}> state: array<vec4<u32>>;\n");
        Self { label, declarations, body: String::new(), binds: Vec::new(), state }
    }

    /// Declares a storage array of `element` that is only read.
    pub(super) fn read(&mut self, name: &str, element: &str) {
        self.storage(name, element, Bind::Read);
    }

    /// Declares a storage array of `element` that is written.
    pub(super) fn write(&mut self, name: &str, element: &str) {
        self.storage(name, element, Bind::Write);
    }

    fn storage(&mut self, name: &str, element: &str, bind: Bind) {
        let access = if bind == Bind::Write { "read_write" } else { "read" };
        let number = self.binds.len();
        self.declare(&format!(
            "@group(0) @binding({number}) var<storage, {access}> {name}: array<{element}>;"
        ));
        self.binds.push(bind);
    }

    /// Declares the weights of a matrix: `words` and, where they lie apart, `scales`; with `word(i)`, which reads the i-th
    /// 128 bits, or `word(x, y)`, which reads a texel of a stream.
    pub(super) fn weights(&mut self, layout: Layout) {
        match layout.order {
            Order::Planes { .. } => {
                self.read("words", "vec4<u32>");
                self.declare("fn word(i: u32) -> vec4<u32> { return words[i]; }");
                match layout.format.scale_words() {
                    0 => {}
                    words => self.read("scales", &format!("vec{words}<u32>")),
                }
            }
            Order::Streams { .. } => {
                let number = self.binds.len();
                self.declare(&format!(
                    "@group(0) @binding({number}) var words: texture_storage_2d<rgba32uint, read>;"
                ));
                self.binds.push(Bind::Words);
                self.declare(
                    "fn word(x: u32, y: u32) -> vec4<u32> { return textureLoad(words, vec2<u32>(x, y)); }",
                );
            }
        }
    }

    /// Declares rows that an earlier kernel wrote, and `{name}_at(row, c, i)`, which reads element i of chunk c of a row.
    pub(super) fn rows_in(&mut self, name: &str, rows: Rows) {
        let Rows { backing, kind, stride, chunk } = rows;
        let element = kind.element();
        let read = match backing {
            Backing::Buffer => {
                self.read(name, element);
                format!("{name}[row * {stride}u + i * {}u + c]", stride / chunk)
            }
            Backing::Texture => {
                let bind = if kind == RowKind::Vectors { Bind::VectorsIn } else { Bind::NumbersIn };
                self.row_texture(name, bind, kind);
                let part = if kind == RowKind::Vectors { "" } else { ".x" };
                format!("textureLoad({name}, vec2<u32>(c * {chunk}u + i, row)){part}")
            }
        };
        self.declare(&format!(
            "fn {name}_at(row: u32, c: u32, i: u32) -> {element} {{ return {read}; }}"
        ));
    }

    /// Declares rows that a later kernel reads, and `put_{name}(row, i, v)`, which writes element i of a row.
    pub(super) fn rows_out(&mut self, name: &str, rows: Rows) {
        let Rows { backing, kind, stride, chunk } = rows;
        let element = kind.element();
        let write = match backing {
            Backing::Buffer => {
                self.write(name, element);
                let chunks = stride / chunk;
                format!("{name}[row * {stride}u + i % {chunk}u * {chunks}u + i / {chunk}u] = v")
            }
            Backing::Texture => {
                let vectors = kind == RowKind::Vectors;
                let bind = if vectors { Bind::VectorsOut } else { Bind::NumbersOut };
                self.row_texture(name, bind, kind);
                let v = if vectors { "v" } else { "vec4<f32>(v, 0.0, 0.0, 0.0)" };
                format!("textureStore({name}, vec2<u32>(i, row), {v})")
            }
        };
        self.declare(&format!("fn put_{name}(row: u32, i: u32, v: {element}) {{ {write}; }}"));
    }

    fn row_texture(&mut self, name: &str, bind: Bind, kind: RowKind) {
        let number = self.binds.len();
        let format = if kind == RowKind::Vectors { "rgba32float" } else { "r32float" };
        let reads = matches!(bind, Bind::VectorsIn | Bind::NumbersIn);
        let access = if reads { "read" } else { "write" };
        self.declare(&format!(
            "@group(0) @binding({number}) var {name}: texture_storage_2d<{format}, {access}>;"
        ));
        self.binds.push(bind);
    }

    /// Declares a texture of caches to read: `{name}_at(row, position)` is a 64-bit word.
    pub(super) fn pairs_in(&mut self, name: &str) {
        let number = self.binds.len();
        self.declare(&format!(
            "@group(0) @binding({number}) var {name}: texture_storage_2d<rg32uint, read>;\n\
             fn {name}_at(row: u32, p: u32) -> vec2<u32> {{ return textureLoad({name}, vec2<u32>(p, row)).xy; }}"
        ));
        self.binds.push(Bind::PairsIn);
    }

    /// Declares a texture of caches to write: `put_{name}(row, position, v)` stores a 64-bit word.
    pub(super) fn pairs_out(&mut self, name: &str) {
        let number = self.binds.len();
        self.declare(&format!(
            "@group(0) @binding({number}) var {name}: texture_storage_2d<rg32uint, write>;\n\
             fn put_{name}(row: u32, p: u32, v: vec2<u32>) \
             {{ textureStore({name}, vec2<u32>(p, row), vec4<u32>(v, 0u, 0u)); }}"
        ));
        self.binds.push(Bind::PairsOut);
    }

    pub(super) fn declare(&mut self, text: &str) {
        self.declarations.push_str(text);
        self.declarations.push('\n');
    }

    pub(super) fn line(&mut self, text: impl AsRef<str>) {
        self.body.push_str(text.as_ref());
        self.body.push('\n');
    }

    /// The shader, with a workgroup of `lanes`.
    pub(super) fn finish(self, lanes: u32) -> Shader {
        let mut code = self.declarations;
        let subgroups = self.body.contains("sub_id") || self.body.contains("sub_lane");
        let more = if subgroups {
            ", @builtin(subgroup_id) sub_id: u32, @builtin(subgroup_invocation_id) sub_lane: u32"
        } else {
            ""
        };
        write!(
            code,
            "@compute @workgroup_size({lanes}) fn main(@builtin(workgroup_id) group: vec3<u32>, \
             @builtin(local_invocation_index) lane: u32{more}) {{\n{}}}\n",
            self.body
        )
        .expect("a string takes any text");
        Shader { label: self.label, code, binds: self.binds, state: self.state }
    }
}

/// How the lanes of a workgroup join their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lanes {
    pub(super) count: u32,
    pub(super) subgroup: Option<u32>,
    pub(super) sums: Sums,
}

impl Lanes {
    /// One subgroup of `tuning`, or its fallback.
    pub(super) fn narrow(tuning: &Tuning) -> Self {
        let count = tuning.subgroup.unwrap_or(tuning.lanes);
        Self { count, subgroup: tuning.subgroup, sums: tuning.sums }
    }

    /// The size of a subgroup, if its lanes add up by halves.
    pub(super) fn halving(self) -> Option<u32> {
        self.subgroup.filter(|_| self.sums == Sums::Halves)
    }

    /// Replaces each of the variables `names`, of type `kind`, by `join` over all lanes; all lanes get the result.
    /// Must be emitted where all lanes pass, and once a kernel for each `kind` and `join`.
    pub(super) fn reduce(self, writer: &mut Writer, join: Join, kind: &str, names: &[String]) {
        let array = format!("shared_{}", join.name());
        match self.subgroup {
            Some(size) if size == self.count => {
                for name in names {
                    writer.line(format!("{name} = {}({name});", join.subgroup()));
                }
            }
            Some(size) => {
                let groups = self.count / size;
                writer.declare(&format!(
                    "var<workgroup> {array}: array<{kind}, {}>;",
                    groups as usize * names.len()
                ));
                for (i, name) in names.iter().enumerate() {
                    let at = i as u32 * groups;
                    writer.line(format!("{name} = {}({name});", join.subgroup()));
                    writer.line(format!(
                        "if (sub_lane == 0u) {{ {array}[{at}u + sub_id] = {name}; }}"
                    ));
                }
                writer.line("workgroupBarrier();");
                for (i, name) in names.iter().enumerate() {
                    let at = i as u32 * groups;
                    writer.line(format!("{name} = {array}[{at}];"));
                    for other in 1..groups {
                        let joined = join.pair(name, &format!("{array}[{}]", at + other));
                        writer.line(format!("{name} = {joined};"));
                    }
                }
            }
            None => {
                let count = self.count;
                writer.declare(&format!(
                    "var<workgroup> {array}: array<{kind}, {}>;",
                    count as usize * names.len()
                ));
                for (i, name) in names.iter().enumerate() {
                    writer.line(format!("{array}[{}u + lane] = {name};", i as u32 * count));
                }
                writer.line("workgroupBarrier();");
                let mut half = count / 2;
                while half > 0 {
                    writer.line(format!("if (lane < {half}u) {{"));
                    for i in 0..names.len() as u32 {
                        let (a, b) = (i * count, i * count + half);
                        let mine = format!("{array}[{a}u + lane]");
                        let joined = join.pair(&mine, &format!("{array}[{b}u + lane]"));
                        writer.line(format!("{mine} = {joined};"));
                    }
                    writer.line("}");
                    writer.line("workgroupBarrier();");
                    half /= 2;
                }
                for (i, name) in names.iter().enumerate() {
                    writer.line(format!("{name} = {array}[{}];", i as u32 * count));
                }
            }
        }
    }
}

/// How two lanes' values become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    Add,
    Max,
    Min,
}

impl Join {
    fn name(self) -> &'static str {
        match self {
            Join::Add => "add",
            Join::Max => "max",
            Join::Min => "min",
        }
    }

    fn subgroup(self) -> &'static str {
        match self {
            Join::Add => "subgroupAdd",
            Join::Max => "subgroupMax",
            Join::Min => "subgroupMin",
        }
    }

    fn pair(self, a: &str, b: &str) -> String {
        match self {
            Join::Add => format!("{a} + {b}"),
            Join::Max => format!("max({a}, {b})"),
            Join::Min => format!("min({a}, {b})"),
        }
    }
}
