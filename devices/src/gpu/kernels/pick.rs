//! The kernels that pick a token from a row of logits, greedily or with Gumbel noise, and say how likely it was.
//!
//! First each workgroup finds the best of a span of the vocabulary, then one workgroup a row joins the spans. In a
//! draft the second kernel also writes the token into the state of the next step. The noise is that of
//! `sampling::noise`: the same random words, and the same logarithms up to rounding. *Invariant:* ties go to the
//! lowest token; a logit that is not a number is never picked, and without any number token 0 is.

use super::{Bind, Join, Lanes, Shader, Writer};

/// Finds the best of each span of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) struct PickBest {
    pub(in crate::gpu) vocabulary: u32,
    /// 4-vectors in a row of logits.
    pub(in crate::gpu) stride: u32,
    /// Logits of a span, a multiple of 4.
    pub(in crate::gpu) span: u32,
    /// Rows of a pass.
    pub(in crate::gpu) capacity: u32,
    pub(in crate::gpu) lanes: Lanes,
}

impl PickBest {
    /// Spans of the vocabulary: workgroups along x.
    pub(in crate::gpu) fn spans(&self) -> u32 {
        self.vocabulary.div_ceil(self.span)
    }

    /// Bindings: logits, bests. Two 4-vectors a span: best score, its token, its logit, nothing; largest logit, sum of
    /// the exponentials relative to it.
    pub(in crate::gpu) fn shader(&self) -> Shader {
        let mut w = Writer::new("pick best", Bind::Read);
        w.read("logits", "vec4<f32>");
        w.write("bests", "vec4<f32>");
        declare_noise(&mut w);
        let Self { vocabulary, stride, span, capacity, lanes } = *self;
        w.line(format!("let at = {capacity}u + 2u * group.y;"));
        w.line("let how = state[at];");
        w.line("let inverse = bitcast<f32>(how.y);");
        w.line("let position = state[how.x].y + 1u;");
        w.line(BEGIN);
        let last = vocabulary.div_ceil(4);
        w.line(format!("let end = min((group.x + 1u) * {}u, {last}u);", span / 4));
        w.line(format!(
            "for (var i = group.x * {}u + lane; i < end; i += {}u) {{",
            span / 4,
            lanes.count
        ));
        w.line(format!("let row = logits[group.y * {stride}u + i];"));
        w.line("var noise = vec4<f32>(0.0);");
        w.line("if (inverse > 0.0) { noise = gumbel(philox(i, position, how.zw)); }");
        w.line("let scale = select(1.0, inverse, inverse > 0.0);");
        w.line("for (var k = 0u; k < 4u; k += 1u) {");
        w.line("let token = i * 4u + k;");
        w.line("let number = (bitcast<u32>(row[k]) & 0x7fffffffu) <= 0x7f800000u;");
        w.line("let x = min(row[k], 3.4e38);");
        w.line("let s = fma(x, scale, noise[k]);");
        w.line(format!("if (token < {vocabulary}u && number && x > -3.4e38) {{"));
        w.line("if (s > score) { score = s; best = token; logit = x; }");
        w.line("if (x > most) { sum *= exp(most - x); most = x; }");
        w.line("sum += exp(x - most);");
        w.line("}\n}\n}");
        join_bests(&mut w, lanes);
        w.line("if (lane == 0u) {");
        w.line(format!("let to = (group.y * {}u + group.x) * 2u;", self.spans()));
        w.line("bests[to] = vec4<f32>(score, bitcast<f32>(best), logit, 0.0);");
        w.line("bests[to + 1u] = vec4<f32>(most, sum, 0.0, 0.0);");
        w.line("}");
        w.finish(lanes.count)
    }
}

/// Where a picked token goes besides the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) enum Feed {
    /// Nowhere: one row, one answer.
    Answer,
    /// A draft's first pick, into the rows of the state's second half, which begins at this 4-vector.
    FirstOf { second: u32 },
    /// A later pick of a draft, into the rows that it came from.
    NextOf { second: u32 },
}

/// Joins the spans of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gpu) struct PickMerge {
    pub(in crate::gpu) spans: u32,
    pub(in crate::gpu) capacity: u32,
    pub(in crate::gpu) lanes: Lanes,
    pub(in crate::gpu) feed: Feed,
}

impl PickMerge {
    /// Bindings: bests, picks (token and bits of its probability).
    pub(in crate::gpu) fn shader(&self) -> Shader {
        let Self { spans, capacity, lanes, feed } = *self;
        let mut w = Writer::new("pick", Bind::Write);
        w.read("bests", "vec4<f32>");
        w.write("picks", "vec2<u32>");
        w.line(BEGIN);
        w.line(format!("for (var i = lane; i < {spans}u; i += {}u) {{", lanes.count));
        w.line(format!("let start = (group.x * {spans}u + i) * 2u;"));
        w.line("let a = bests[start];\nlet b = bests[start + 1u];");
        w.line("let token = bitcast<u32>(a.y);");
        w.line("if (a.x > score || (a.x == score && token < best)) { score = a.x; best = token; logit = a.z; }");
        w.line("let top = max(most, b.x);");
        w.line("sum = fma(sum, exp(most - top), b.y * exp(b.x - top));");
        w.line("most = top;\n}");
        join_bests(&mut w, lanes);
        w.line("if (lane == 0u) {");
        w.line("let known = best != 0xffffffffu;");
        w.line("let token = select(0u, best, known);");
        w.line("let likely = select(0.0, exp(logit - most) / sum, known);");
        let second = match feed {
            Feed::Answer => 0,
            Feed::FirstOf { second } | Feed::NextOf { second } => second,
        };
        let head = format!(
            "{}u + 2u * group.x + 1u",
            capacity + if matches!(feed, Feed::NextOf { .. }) { second } else { 0 }
        );
        w.line(format!("let to = state[{head}].x;"));
        w.line("picks[to] = vec2<u32>(token, bitcast<u32>(likely));");
        match feed {
            Feed::Answer => {}
            Feed::FirstOf { .. } => w.line(format!("state[{second}u + group.x].z = token;")),
            Feed::NextOf { .. } => {
                w.line(format!("let row = {second}u + group.x;"));
                w.line("let old = state[row];");
                w.line("let left = max(old.w, 1u) - 1u;");
                w.line("state[row] = vec4<u32>(old.x, old.y + min(left, 1u), token, left);");
                w.line(format!("state[{head}].x = to + state[{head}].y;"));
            }
        }
        w.line("}");
        w.finish(lanes.count)
    }
}

const BEGIN: &str = "var score = -3.4e38;\nvar best = 0xffffffffu;\nvar logit = 0.0;\nvar most = -3.4e38;\nvar sum = 0.0;";

/// Joins the lanes' `score`, `best`, `logit`, `most` and `sum`.
fn join_bests(w: &mut Writer, lanes: Lanes) {
    w.line("var joined = vec2<f32>(score, most);");
    lanes.reduce(w, Join::Max, "vec2<f32>", &["joined".to_owned()]);
    w.line("var winner = select(0xffffffffu, best, score == joined.x);");
    lanes.reduce(w, Join::Min, "u32", &["winner".to_owned()]);
    w.line("let won = winner != 0xffffffffu && best == winner;");
    w.line("var parts = vec2<f32>(sum * exp(most - joined.y), select(0.0, logit, won));");
    lanes.reduce(w, Join::Add, "vec2<f32>", &["parts".to_owned()]);
    w.line("score = joined.x;\nmost = joined.y;\nbest = winner;\nsum = parts.x;\nlogit = parts.y;");
}

/// Declares `philox(counter, position, key)` and `gumbel(words)`.
fn declare_noise(w: &mut Writer) {
    w.declare(
        "fn mul_high(a: u32, b: u32) -> u32 {
let low = (a & 0xffffu) * (b & 0xffffu);
let mid = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
let rest = (a & 0xffffu) * (b >> 16u) + (mid & 0xffffu);
return (a >> 16u) * (b >> 16u) + (mid >> 16u) + (rest >> 16u);
}
fn philox(first: u32, second: u32, seed: vec2<u32>) -> vec4<u32> {
var c = vec4<u32>(first, second, 0u, 0u);
var key = seed;
for (var i = 0u; i < 10u; i += 1u) {
c = vec4<u32>(mul_high(c.z, 0xCD9E8D57u) ^ c.y ^ key.x, c.z * 0xCD9E8D57u, mul_high(c.x, 0xD2511F53u) ^ c.w ^ key.y, c.x * 0xD2511F53u);
key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
}
return c;
}
fn artanh2(s: f32) -> f32 {
let z = s * s;
var p = 1.0 / 17.0;
p = fma(p, z, 1.0 / 15.0);
p = fma(p, z, 1.0 / 13.0);
p = fma(p, z, 1.0 / 11.0);
p = fma(p, z, 1.0 / 9.0);
p = fma(p, z, 1.0 / 7.0);
p = fma(p, z, 1.0 / 5.0);
p = fma(p, z, 1.0 / 3.0);
p = fma(p, z, 1.0);
return 2.0 * s * p;
}
fn natural_log(x: f32) -> f32 {
let bits = bitcast<u32>(x);
var e = f32(bits >> 23u) - 127.0;
var m = bitcast<f32>((bits & 0x7fffffu) | 0x3f800000u);
if (m > 1.41421356) { m *= 0.5; e += 1.0; }
return fma(e, 0.69314718, artanh2((m - 1.0) / (m + 1.0)));
}
fn gumbel(words: vec4<u32>) -> vec4<f32> {
var g = vec4<f32>(0.0);
for (var k = 0u; k < 4u; k += 1u) {
let word = words[k];
let low = word < 0x80000000u;
let u = (f32(select(~word, word, low)) + 0.5) * 2.3283064365386963e-10;
var e = 0.0;
if (low) { e = -natural_log(u); } else { e = artanh2(u / (2.0 - u)); }
g[k] = -natural_log(e);
}
return g;
}",
    );
}
