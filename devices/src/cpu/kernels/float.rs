//! The floating-point kernels outside attention: norm, quantisation of activations, SwiGLU.
//!
//! *Invariant:* every sum has a fixed order that depends on the length of the row alone.

use super::lanes::{LANES, Lanes, Line};

/// Activations in one quantised block, which share a scale.
pub(crate) const BLOCK: usize = 32;

/// Blocks whose greatest magnitude is below this are taken as zero: the reciprocal of their scale would overflow.
const AMAX_MIN: f32 = 1e-30;

/// The sum of the lanes, as a tree: lane i with lane i + 8, then + 4, + 2, + 1.
#[inline(always)]
pub(crate) fn sum_lanes<L: Lanes>(l: L, v: L::F) -> f32 {
    let mut a: Line = [0.0; LANES];
    l.store(v, &mut a);
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            a[i] += a[i + width];
        }
        width /= 2;
    }
    a[0]
}

/// `out = x / sqrt(mean(x^2) + epsilon) * weight`. The slices have the same length, a multiple of 16, of which the
/// first `cols` elements count and the others are zero.
#[inline(always)]
pub(crate) fn norm<L: Lanes>(
    l: L,
    x: &[f32],
    (weight, epsilon): (&[f32], f32),
    cols: usize,
    out: &mut [f32],
) {
    let (x, weight) = (x.as_chunks::<LANES>().0, weight.as_chunks::<LANES>().0);
    let (pairs, odd) = x.as_chunks::<2>();
    let mut sums = [l.splat(0.0); 2];
    for [a, b] in pairs {
        let (a, b) = (l.load(a), l.load(b));
        sums = [l.fma(a, a, sums[0]), l.fma(b, b, sums[1])];
    }
    for a in odd {
        let a = l.load(a);
        sums[0] = l.fma(a, a, sums[0]);
    }
    let mean = sum_lanes(l, l.add(sums[0], sums[1])) / cols as f32;
    let inverse = l.splat(1.0 / (mean + epsilon).sqrt());
    for ((x, weight), out) in x.iter().zip(weight).zip(out.as_chunks_mut::<LANES>().0) {
        l.store(l.mul(l.mul(l.load(x), inverse), l.load(weight)), out);
    }
}

/// Quantises a row: in each block of 32, `x = scale * q` with `scale = max|x| / 127`. `sums` are those of the block's q.
#[inline(always)]
pub(crate) fn quantise<L: Lanes>(
    l: L,
    x: &[f32],
    q: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(q.as_chunks_mut::<BLOCK>().0);
    for ((x, q), (scale, sum)) in blocks.zip(scales.iter_mut().zip(sums)) {
        let (x, _) = x.as_chunks::<LANES>();
        let (a, b) = (l.load(&x[0]), l.load(&x[1]));
        let amax = l.greatest(l.max(l.abs(a), l.abs(b)));
        let (inverse, step) =
            if amax > AMAX_MIN { (127.0 / amax, amax / 127.0) } else { (0.0, 0.0) };
        let inverse = l.splat(inverse);
        let (halves, _) = q.as_chunks_mut::<LANES>();
        l.store_i8(l.mul(a, inverse), &mut halves[0]);
        l.store_i8(l.mul(b, inverse), &mut halves[1]);
        *scale = step;
        *sum = q.iter().map(|&q| i32::from(q)).sum();
    }
}

/// e^x to about 1 unit in the last place, for x of -87 to 88; beyond these it saturates.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(l: L, x: L::F) -> L::F {
    const ROUND: f32 = 12_582_912.0;
    let x = l.min(l.max(x, l.splat(-87.0)), l.splat(88.0));
    let shifted = l.fma(x, l.splat(std::f32::consts::LOG2_E), l.splat(ROUND));
    let n = l.sub(shifted, l.splat(ROUND));
    // ln 2 in two parts, the first short enough that its product with n is exact.
    let r = l.fma(n, l.splat(-0.693_359_4), x);
    let r = l.fma(n, l.splat(2.121_944_4e-4), r);
    let mut p = l.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = l.fma(p, r, l.splat(c));
    }
    l.mul(p, l.power_of_two(shifted))
}

/// Replaces each line of `up` by `silu(gate) * up`, where `silu(g) = g / (1 + e^-g)`.
#[inline(always)]
pub(crate) fn swiglu<L: Lanes>(l: L, gates: &[Line], ups: &mut [Line]) {
    for (gate, up) in gates.iter().zip(ups) {
        let g = l.load(gate);
        let e = exp(l, l.sub(l.splat(0.0), g));
        let silu = l.div(g, l.add(l.splat(1.0), e));
        l.store(l.mul(silu, l.load(up)), up);
    }
}
