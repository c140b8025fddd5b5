//! The ops on matrices, a row being a row of the batch.
//!
//! *Invariant:* row r of a result depends on row r of the inputs alone (and, for attention, on its sequence's cache).

use half::f16;

use crate::device::CacheFormat;
use crate::graph::{Rope, RopeStyle};

/// `rows x cols` values, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Matrix {
    pub(super) cols: usize,
    pub(super) data: Vec<f32>,
}

impl Matrix {
    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.data.chunks_exact(self.cols)
    }

    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.cols..][..self.cols]
    }

    /// The rows named by `indices`, in that order.
    pub(super) fn gather(&self, indices: &[usize]) -> Self {
        Self { cols: self.cols, data: indices.iter().flat_map(|&i| self.row(i)).copied().collect() }
    }
}

/// `sum_i a[i] b[i]`: eight partial sums in `f64` (products of two `f32` are exact there), rounded once.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut sums = [0f64; 8];
    let (a_eights, a_rest) = a.as_chunks::<8>();
    let (b_eights, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_eights.iter().zip(b_eights) {
        for lane in 0..8 {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    (sums.iter().sum::<f64>() + rest) as f32
}

/// tokens (rows) -> x (rows x cols): row `token` of `table` (vocabulary x cols).
pub(super) fn embed(table: &[f32], cols: usize, tokens: &[u32]) -> Matrix {
    let data = tokens.iter().flat_map(|&t| &table[t as usize * cols..][..cols]).copied().collect();
    Matrix { cols, data }
}

/// x (rows x cols) -> y (rows x cols): `x / sqrt(mean(x^2) + epsilon) * weight` (cols).
pub(super) fn rms_norm(x: &Matrix, weight: &[f32], epsilon: f32) -> Matrix {
    let mut data = Vec::with_capacity(x.data.len());
    for row in x.rows() {
        let squares: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let scale = 1.0 / (squares / x.cols as f64 + f64::from(epsilon)).sqrt();
        data.extend(
            row.iter().zip(weight).map(|(&v, &w)| (f64::from(v) * scale * f64::from(w)) as f32),
        );
    }
    Matrix { cols: x.cols, data }
}

/// x (rows x inputs) -> y (rows x outputs): `y = x W^T`, W (outputs x inputs).
pub(super) fn matmul(x: &Matrix, weight: &[f32]) -> Matrix {
    let outputs = weight.len() / x.cols;
    let mut y = Matrix { cols: outputs, data: vec![0.0; x.rows().len() * outputs] };
    for (output, weights) in weight.chunks_exact(x.cols).enumerate() {
        for (index, row) in x.rows().enumerate() {
            y.data[index * outputs + output] = dot(row, weights);
        }
    }
    y
}

/// x (rows x heads * head_dim) -> the same, each pair (a, b) of a head turned by `position * inverse_frequency`.
/// The angle is rounded to `f32` as in the frameworks that checkpoints are trained with.
pub(super) fn rotate(mut x: Matrix, rope: &Rope, positions: &[u32]) -> Matrix {
    let half = rope.head_dim / 2;
    for (row, &position) in x.data.chunks_exact_mut(x.cols).zip(positions) {
        for (pair, &frequency) in rope.inverse_frequencies.iter().enumerate() {
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            let (at_a, at_b) = match rope.style {
                RopeStyle::Adjacent => (2 * pair, 2 * pair + 1),
                RopeStyle::Halves => (pair, pair + half),
            };
            for head in row.chunks_exact_mut(rope.head_dim) {
                let (a, b) = (f64::from(head[at_a]), f64::from(head[at_b]));
                head[at_a] = (a * cos - b * sin) as f32;
                head[at_b] = (a * sin + b * cos) as f32;
            }
        }
    }
    x
}

/// Elements of a head that share a scale in a cache of bytes.
const CACHE_BLOCK: usize = 16;

/// keys or values (rows x kv_heads * head_dim) -> the numbers that are left of them in a cache of `format`. As bytes, each
/// 16 consecutive elements of a head become multiples of a 127th of the greatest, that step being a 16-bit float.
pub(super) fn kept(x: &Matrix, head_dim: usize, format: CacheFormat) -> Matrix {
    let mut kept = x.clone();
    if format == CacheFormat::F16 {
        return kept;
    }
    for head in kept.data.chunks_exact_mut(head_dim) {
        for block in head.chunks_mut(CACHE_BLOCK) {
            let greatest = block.iter().fold(0f32, |most, v| most.max(v.abs()));
            let step = f64::from(f16::from_f32(greatest / 127.0));
            for v in block {
                let steps = if step > 0.0 { (f64::from(*v) / step).round_ties_even() } else { 0.0 };
                *v = (steps.clamp(-127.0, 127.0) * step) as f32;
            }
        }
    }
    kept
}

/// One query row (heads * head_dim) over `keys` and `values` (positions x kv_heads * head_dim) -> y (heads * head_dim):
/// query head h reads key and value head `h * kv_heads / heads`; `softmax(q k / sqrt(head_dim)) v`.
pub(super) fn attend(query: &[f32], keys: &[f32], values: &[f32], heads: [usize; 2]) -> Vec<f32> {
    let [heads, kv_heads] = heads;
    let head_dim = query.len() / heads;
    let kv_cols = kv_heads * head_dim;
    let mut y = Vec::with_capacity(query.len());
    for (head, q) in query.chunks_exact(head_dim).enumerate() {
        let at = head * kv_heads / heads * head_dim;
        let scores: Vec<f64> = keys
            .chunks_exact(kv_cols)
            .map(|k| f64::from(dot(q, &k[at..][..head_dim])) / (head_dim as f64).sqrt())
            .collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sums = vec![0f64; head_dim];
        for (weight, v) in weights.iter().zip(values.chunks_exact(kv_cols)) {
            for (sum, &v) in sums.iter_mut().zip(&v[at..][..head_dim]) {
                *sum += weight / total * f64::from(v);
            }
        }
        y.extend(sums.iter().map(|&sum| sum as f32));
    }
    y
}

/// gate, up (rows x cols) -> `gate / (1 + exp(-gate)) * up` (rows x cols).
pub(super) fn silu_mul(gate: &Matrix, up: &Matrix) -> Matrix {
    let silu = |g: f64| g / (1.0 + (-g).exp());
    let pairs = gate.data.iter().zip(&up.data);
    let data = pairs.map(|(&g, &u)| (silu(f64::from(g)) * f64::from(u)) as f32).collect();
    Matrix { cols: gate.cols, data }
}

/// a, b (rows x cols) -> a + b (rows x cols).
pub(super) fn add(a: &Matrix, b: &Matrix) -> Matrix {
    Matrix { cols: a.cols, data: a.data.iter().zip(&b.data).map(|(a, b)| a + b).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    fn matrix(cols: usize, data: &[f32]) -> Matrix {
        Matrix { cols, data: data.to_vec() }
    }

    #[test]
    fn matmul_multiplies_by_the_transposed_weight() {
        let x = matrix(3, &[1.0, 2.0, 3.0, 0.0, 1.0, 0.0]);
        let y = matmul(&x, &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(y, matrix(2, &[1.0, 6.0, 0.0, 1.0]));
    }

    #[test]
    fn a_dot_of_any_length_sums_every_product() {
        for len in 0..40 {
            let a: Vec<f32> = (1..=len).map(|i| i as f32).collect();
            let expected = (len * (len + 1) * (2 * len + 1) / 6) as f32;
            assert_eq!(dot(&a, &a), expected, "length {len}");
        }
    }

    #[test]
    fn a_norm_brings_the_root_mean_square_to_one() {
        let y = rms_norm(&matrix(4, &[3.0, -3.0, 3.0, 3.0]), &[1.0, 1.0, 2.0, 0.5], 0.0);
        assert_eq!(y, matrix(4, &[1.0, -1.0, 2.0, 0.5]));
    }

    #[test]
    fn both_styles_turn_pairs_by_position_times_frequency() {
        let mut rope = synthetic::tiny(1).rope;
        rope.head_dim = 4;
        rope.inverse_frequencies = vec![std::f32::consts::FRAC_PI_2, 0.0].into();
        let x = matrix(4, &[1.0, 2.0, 3.0, 4.0]);
        let round = |m: Matrix| m.data.iter().map(|v| v.round()).collect::<Vec<_>>();
        rope.style = RopeStyle::Adjacent;
        assert_eq!(round(rotate(x.clone(), &rope, &[1])), [-2.0, 1.0, 3.0, 4.0]);
        rope.style = RopeStyle::Halves;
        assert_eq!(round(rotate(x.clone(), &rope, &[1])), [-3.0, 2.0, 1.0, 4.0]);
        assert_eq!(rotate(x.clone(), &rope, &[0]), x);
    }

    #[test]
    fn a_cache_of_bytes_keeps_multiples_of_a_step_for_each_sixteen() {
        let data: Vec<f32> = (0..40).map(|i| (i * i) as f32 / 7.0 - 60.0).collect();
        let x = matrix(40, &data);
        assert_eq!(kept(&x, 20, CacheFormat::F16), x);
        let kept = kept(&x, 20, CacheFormat::Q8);
        for (was, is) in x.data.chunks(20).zip(kept.data.chunks(20)) {
            for (was, is) in was.chunks(16).zip(is.chunks(16)) {
                let greatest = was.iter().fold(0f32, |most, v| most.max(v.abs()));
                let step = f16::from_f32(greatest / 127.0).to_f32();
                for (was, is) in was.iter().zip(is) {
                    assert!((was - is).abs() <= 0.51 * step, "{was} became {is}");
                    assert_eq!((is / step).fract(), 0.0);
                }
            }
        }
    }

    #[test]
    fn attention_averages_values_by_the_softmax_of_scores() {
        let (q, ln3) = ([1.0, 0.0, 1.0, 0.0], 3f32.ln() * 2f32.sqrt());
        let (keys, values) = ([0.0, 9.0, ln3, 9.0], [4.0, 0.0, 8.0, 4.0]);
        let y = attend(&q, &keys, &values, [2, 1]);
        for (found, expected) in y.iter().zip([7.0, 3.0, 7.0, 3.0]) {
            assert!((found - expected).abs() < 1e-5, "{y:?}");
        }
    }
}
