//! Causal attention of one query head of one row over its sequence's cache, with an online softmax.
//!
//! The lanes of a subgroup take one position each for the scores, then share out the elements of a head for the
//! weighted sum of the values. Several subgroups share the positions in turns and join at the end. Where some row's
//! positions are more than a span, spans are workgroups of their own, and a second kernel joins them. *Invariant:* the
//! order of operations depends on the row's position alone: a row within one span gets the same bits either way.

use super::{Bind, CacheShape, Join, Lanes, Rows, Shader, Writer};
use crate::gpu::tuning::Backing;

/// The attention kernel.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::gpu) struct Attend {
    pub(in crate::gpu) heads: u32,
    pub(in crate::gpu) cache: CacheShape,
    /// 4-vectors in a row of the output.
    pub(in crate::gpu) stride: u32,
    pub(in crate::gpu) backing: Backing,
    /// One subgroup, or a workgroup where there are no subgroup operations.
    pub(in crate::gpu) lanes: Lanes,
    /// Subgroups of a workgroup; 1 without subgroup operations.
    pub(in crate::gpu) subgroups: u32,
    /// Columns of a chunk of the matrix that reads the output.
    pub(in crate::gpu) chunk: usize,
    /// Where positions are shared between workgroups: along z of the grid, by spans.
    pub(in crate::gpu) spans: Option<Spans>,
}

/// Shares of the positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) struct Spans {
    /// Positions of a share.
    pub(in crate::gpu) span: u32,
    /// Most shares.
    pub(in crate::gpu) count: u32,
}

impl Spans {
    /// 64-bit words that all shares of a head take for one row: of each its largest score and sum, then its elements.
    pub(in crate::gpu) fn words(&self, head_dim: u32) -> u32 {
        self.count * (head_dim / 2 + 1)
    }
}

/// The logarithm's base change: softmax through powers of two.
const LOG2_E: f32 = std::f32::consts::LOG2_E;

impl Attend {
    /// Bindings: queries, keys, values (both the cache; a texture is bound once), then attended, or the shares. The grid is
    /// heads by rows by shares.
    pub(in crate::gpu) fn shader(&self) -> Shader {
        let CacheShape { kv_heads, head_dim, .. } = self.cache;
        let mut w = Writer::new("attend", Bind::Read);
        let share = self.share();
        w.rows_in("queries", Rows::queries(self.backing, self.heads * head_dim / 4));
        match self.cache.backing {
            Backing::Buffer => {
                w.read("keys", "vec4<u32>");
                w.read("values", word_type(share));
            }
            Backing::Texture => w.pairs_in("cache"),
        }
        match self.spans {
            None => w.rows_out("attended", Rows::vectors(self.backing, self.stride, self.chunk)),
            Some(_) => w.write("shares", "vec2<f32>"),
        }
        let (lane, turn) = if self.subgroups > 1 { ("sub_lane", "sub_id") } else { ("lane", "0u") };
        w.line("let at = state[group.y];");
        w.line("let whole = select(0u, at.y + 1u, at.w != 0u);");
        match self.spans {
            None => w.line("let begin = 0u;\nlet count = whole;"),
            Some(Spans { span, .. }) => {
                w.line(format!(
                    "let begin = group.z * {span}u;\nlet count = min(whole, begin + {span}u);"
                ));
            }
        }
        w.line(format!("let kv = group.x / {}u;", self.heads / kv_heads));
        self.locate(&mut w);
        let scale = LOG2_E / (head_dim as f32).sqrt();
        for i in 0..head_dim / 4 {
            w.line(format!(
                "let q_{i} = queries_at(group.y, 0u, group.x * {}u + {i}u) * {scale:e};",
                head_dim / 4
            ));
        }
        w.line("var most = -3.0e38;\nvar sum = 0.0;");
        for i in 0..share {
            w.line(format!("var o_{i} = vec2<f32>(0.0);"));
        }
        let (width, all) = (self.lanes.count, self.lanes.count * self.subgroups);
        w.line(format!("for (var g = begin + {turn} * {width}u; g < count; g += {all}u) {{"));
        self.score(&mut w, lane);
        self.weigh(&mut w, lane);
        w.line("}");
        self.join(&mut w, lane);
        w.finish(all)
    }

    /// Emits where `key` and `value` of this head begin.
    fn locate(&self, w: &mut Writer) {
        let CacheShape { positions, head_dim, .. } = self.cache;
        match self.cache.backing {
            Backing::Buffer => {
                let half = self.cache.half_slot_words();
                let words = head_dim / 8 * positions;
                w.line(format!("let key = at.x * {}u + kv * {words}u;", 2 * half));
                w.line(format!(
                    "let value = (at.x * {}u + {half}u + kv * {words}u) * {}u;",
                    2 * half,
                    4 / vector(self.share())
                ));
            }
            Backing::Texture => {
                let (half, rows) = (self.cache.half_slot_rows(), self.cache.head_rows());
                w.line(format!("let key = at.x * {}u + kv * {rows}u;", 2 * half));
                w.line(format!("let value = key + {half}u;"));
            }
        }
    }

    /// 32-bit words of a head's values that a lane owns: an even number, as it writes 4-vectors.
    fn share(&self) -> u32 {
        (self.cache.head_dim / 2).div_ceil(self.lanes.count).next_multiple_of(2)
    }

    /// The score of this lane's position becomes its weight `e`; what came before is scaled to the new maximum.
    fn score(&self, w: &mut Writer, lane: &str) {
        let CacheShape { positions, head_dim, .. } = self.cache;
        w.line(format!("let mine = g + {lane};"));
        w.line("let p = min(mine, count - 1u);");
        w.line("var score = 0.0;");
        for i in 0..head_dim / 8 {
            match self.cache.backing {
                Backing::Buffer => {
                    w.line(format!("let k_{i} = keys[key + {}u + p];", i * positions));
                }
                Backing::Texture => w.line(format!(
                    "let k_{i} = vec4<u32>(cache_at(key + {}u, p), cache_at(key + {}u, p));",
                    2 * i,
                    2 * i + 1
                )),
            }
            for (part, j) in ["x", "y", "z", "w"].into_iter().zip(0..) {
                let q = format!("q_{}", i * 2 + j / 2);
                let (a, b) = if j % 2 == 0 { ("x", "y") } else { ("z", "w") };
                w.line(format!(
                    "{{ let h = unpack2x16float(k_{i}.{part}); \
                     score = fma(h.y, {q}.{b}, fma(h.x, {q}.{a}, score)); }}"
                ));
            }
        }
        w.line("score = select(-3.0e38, score, mine < count);");
        w.line("var top = score;");
        self.lanes.reduce(w, Join::Max, "f32", &["top".to_owned()]);
        w.line("top = max(top, most);");
        w.line("let e = select(0.0, exp2(score - top), mine < count);");
        w.line("let shrink = exp2(most - top);");
        w.line("sum = fma(sum, shrink, e);");
        for i in 0..self.share() {
            w.line(format!("o_{i} *= shrink;"));
        }
        w.line("most = top;");
    }

    /// Adds the weighted values of the group's positions to this lane's elements.
    fn weigh(&self, w: &mut Writer, lane: &str) {
        let CacheShape { head_dim, .. } = self.cache;
        let share = self.share();
        let (words, vector) = (head_dim / 2, vector(share));
        w.line(format!("let here = min(count - g, {}u);", self.lanes.count));
        let weight = if self.lanes.subgroup.is_some() {
            "subgroupShuffle(e, j)"
        } else {
            w.declare(&format!("var<workgroup> weights: array<f32, {}>;", self.lanes.count));
            w.line("weights[lane] = e;\nworkgroupBarrier();");
            "weights[j]"
        };
        w.line(format!("let own = min({lane} * {share}u, {}u);", words - share));
        w.line("for (var j = 0u; j < here; j += 1u) {");
        w.line(format!("let weight = {weight};"));
        let vector = match self.cache.backing {
            Backing::Buffer => vector,
            Backing::Texture => 2,
        };
        if self.cache.backing == Backing::Buffer {
            w.line(format!("let start = value + ((g + j) * {words}u + own) / {vector}u;"));
        }
        for i in 0..share / vector {
            match self.cache.backing {
                Backing::Buffer => w.line(format!("let v_{i} = values[start + {i}u];")),
                Backing::Texture => {
                    w.line(format!("let v_{i} = cache_at(value + own / 2u + {i}u, g + j);"));
                }
            }
            for (part, j) in ["x", "y", "z", "w"].into_iter().zip(0..vector) {
                let word = format!("v_{i}.{part}");
                let o = format!("o_{}", i * vector + j);
                w.line(format!("{o} = fma(unpack2x16float({word}), vec2<f32>(weight), {o});"));
            }
        }
        w.line("}");
        if self.lanes.subgroup.is_none() {
            w.line("workgroupBarrier();");
        }
    }

    /// Joins sums, and the subgroups where there are several, and writes the head's elements.
    fn join(&self, w: &mut Writer, lane: &str) {
        let share = self.share();
        let words = self.cache.head_dim / 2;
        self.lanes.reduce(w, Join::Add, "f32", &["sum".to_owned()]);
        let owners = words.div_ceil(share);
        let owns = format!("{lane} < {owners}u");
        if self.subgroups > 1 {
            let subgroups = self.subgroups;
            w.declare(&format!("var<workgroup> tops: array<vec2<f32>, {subgroups}>;"));
            w.declare(&format!("var<workgroup> outs: array<vec2<f32>, {}>;", subgroups * words));
            w.line("if (sub_lane == 0u) { tops[sub_id] = vec2<f32>(most, sum); }");
            w.line(format!("if ({owns}) {{"));
            w.line(format!(
                "let own = sub_id * {words}u + min(sub_lane * {share}u, {}u);",
                words - share
            ));
            for i in 0..share {
                w.line(format!("outs[own + {i}u] = o_{i};"));
            }
            w.line("}\nworkgroupBarrier();");
            w.line("most = tops[0].x;");
            for s in 1..subgroups {
                w.line(format!("most = max(most, tops[{s}].x);"));
            }
            w.line(format!("let own = min(sub_lane * {share}u, {}u);", words - share));
            w.line("sum = 0.0;");
            for i in 0..share {
                w.line(format!("o_{i} = vec2<f32>(0.0);"));
            }
            for s in 0..subgroups {
                w.line(format!("{{ let f = exp2(tops[{s}].x - most);"));
                w.line(format!("sum = fma(tops[{s}].y, f, sum);"));
                for i in 0..share {
                    w.line(format!(
                        "o_{i} = fma(outs[{}u + own + {i}u], vec2<f32>(f), o_{i});",
                        s * words
                    ));
                }
                w.line("}");
            }
            w.line(format!("if (sub_id == 0u && {owns} && count > 0u) {{"));
        } else {
            w.line(format!("if ({owns} && count > 0u) {{"));
        }
        w.line(format!("let mine = min({lane} * {share}u, {}u);", words - share));
        match self.spans {
            None => {
                w.line(format!("let to = (group.x * {words}u + mine) / 2u;"));
                for i in (0..share).step_by(2) {
                    let both = format!("vec4<f32>(o_{i}, o_{}) / sum", i + 1);
                    w.line(format!("put_attended(group.y, to + {}u, {both});", i / 2));
                }
            }
            Some(spans) => {
                w.line(format!(
                    "let to = (group.y * {}u + group.x) * {}u + group.z * {}u;",
                    self.heads,
                    spans.words(self.cache.head_dim),
                    words + 1
                ));
                w.line("if (mine == 0u) { shares[to] = vec2<f32>(most, sum); }");
                for i in 0..share {
                    w.line(format!("shares[to + 1u + mine + {i}u] = o_{i};"));
                }
            }
        }
        w.line("}");
    }
}

/// The kernel that joins the shares of a head. Its grid is heads by rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) struct JoinSpans {
    pub(in crate::gpu) heads: u32,
    pub(in crate::gpu) head_dim: u32,
    pub(in crate::gpu) spans: Spans,
    /// 4-vectors in a row of the output, and columns of a chunk of the matrix that reads it.
    pub(in crate::gpu) stride: u32,
    pub(in crate::gpu) chunk: usize,
    pub(in crate::gpu) backing: Backing,
    pub(in crate::gpu) lanes: u32,
}

impl JoinSpans {
    /// Bindings: shares, attended.
    pub(in crate::gpu) fn shader(&self) -> Shader {
        let Self { heads, head_dim, spans, lanes, .. } = *self;
        let mut w = Writer::new("attend join", Bind::Read);
        w.read("shares", "vec2<f32>");
        w.rows_out("attended", Rows::vectors(self.backing, self.stride, self.chunk));
        let (words, units) = (head_dim / 2 + 1, head_dim / 4);
        w.line("let at = state[group.y];");
        w.line("let whole = select(0u, at.y + 1u, at.w != 0u);");
        w.line(format!("let count = (whole + {}u) / {}u;", spans.span - 1, spans.span));
        w.line(format!(
            "let origin = (group.y * {heads}u + group.x) * {}u;",
            spans.words(head_dim)
        ));
        w.line("var most = -3.0e38;");
        w.line(format!(
            "for (var s = 0u; s < count; s += 1u) {{ most = max(most, shares[origin + s * {words}u].x); }}"
        ));
        w.line(format!("for (var u = lane; u < {units}u; u += {lanes}u) {{"));
        w.line("var sum = 0.0;\nvar out = vec4<f32>(0.0);");
        w.line("for (var s = 0u; s < count; s += 1u) {");
        w.line(format!("let part = origin + s * {words}u;"));
        w.line("let top = shares[part];");
        // One share alone stays as it is, also where a driver's exp2(0) is not quite 1.
        w.line("let f = select(exp2(top.x - most), 1.0, top.x == most);");
        w.line("sum = fma(top.y, f, sum);");
        w.line("let own = vec4<f32>(shares[part + 1u + 2u * u], shares[part + 2u + 2u * u]);");
        w.line("out = fma(own, vec4<f32>(f), out);");
        w.line("}");
        w.line(format!(
            "if (count > 0u) {{ put_attended(group.y, group.x * {units}u + u, out / sum); }}"
        ));
        w.line("}");
        w.finish(lanes)
    }
}

/// Words that one load of the values takes.
fn vector(share: u32) -> u32 {
    if share.is_multiple_of(4) { 4 } else { 2 }
}

fn word_type(share: u32) -> &'static str {
    if vector(share) == 4 { "vec4<u32>" } else { "vec2<u32>" }
}
