//! A head's cache of bytes: 16 consecutive elements of a key or a value share a 16-bit scale.
//!
//! A block is what one tile of a projection writes of one position, so that no thread waits for another's elements before
//! it can scale its own. *Invariant:* a block's bytes and scale depend on its own 16 numbers; sums run in the order of a key's
//! elements or of positions.

use half::f16;

use super::attention::CachedHead;
use super::lanes::{LANES, Lanes, Line};

/// One key/value head as bytes.
#[derive(Clone, Copy)]
pub(crate) struct ByteHead<'a> {
    /// Keys as `positions / 16 x dim x 16` bytes.
    pub(crate) keys: &'a [i8],
    /// Their scales as `dim / 16 x positions` halves.
    pub(crate) key_scales: &'a [u16],
    /// Values as `positions x dim` bytes.
    pub(crate) values: &'a [i8],
    /// Their scales as `dim / 16 x positions` halves.
    pub(crate) value_scales: &'a [u16],
    /// Elements of a head, a multiple of 16.
    pub(crate) dim: usize,
}

/// The scales of block `block` of all positions, by groups of 16 positions.
#[inline(always)]
fn scales_of(scales: &[u16], block: usize, blocks: usize) -> &[[u16; LANES]] {
    let positions = scales.len() / blocks;
    scales[block * positions..][..positions].as_chunks::<LANES>().0
}

impl CachedHead for ByteHead<'_> {
    #[inline(always)]
    fn dim(&self) -> usize {
        self.dim
    }

    #[inline(always)]
    fn products<L: Lanes, const Q: usize>(
        &self,
        l: L,
        group: usize,
        queries: &[&[f32]; Q],
    ) -> [L::F; Q] {
        let keys = &self.keys.as_chunks::<LANES>().0[group * self.dim..][..self.dim];
        let blocks = keys.as_chunks::<LANES>().0;
        let mut sums = [l.splat(0.0); Q];
        for (block, keys) in blocks.iter().enumerate() {
            let mut parts = [l.splat(0.0); Q];
            for (i, key) in keys.iter().enumerate() {
                let key = l.load_i8(key);
                for q in 0..Q {
                    parts[q] = l.fma(key, l.splat(queries[q][block * LANES + i]), parts[q]);
                }
            }
            let scale = l.load_f16(&scales_of(self.key_scales, block, blocks.len())[group]);
            for q in 0..Q {
                sums[q] = l.fma(parts[q], scale, sums[q]);
            }
        }
        sums
    }

    /// Weights and scales of 16 positions are multiplied first; then as with halves.
    #[inline(always)]
    fn weighted<L: Lanes, const Q: usize>(
        &self,
        l: L,
        first: usize,
        (rows, lengths): (&[&mut [f32]; Q], &[usize; Q]),
    ) -> [L::F; Q] {
        let shortest = lengths.iter().fold(usize::MAX, |a, &b| a.min(b));
        let longest = lengths.iter().fold(0, |a, &b| a.max(b));
        let scales = scales_of(self.value_scales, first / LANES, self.dim / LANES);
        let value = |position: usize| -> &[i8; LANES] {
            self.values[position * self.dim + first..].first_chunk().expect("a cached position")
        };
        let mut sums = [l.splat(0.0); Q];
        for group in 0..longest.div_ceil(LANES) {
            let (begin, end) = (group * LANES, (group + 1) * LANES);
            let scale = l.load_f16(&scales[group]);
            let mut weights = [[0.0; LANES]; Q];
            for q in 0..Q {
                let row = &rows[q].as_chunks::<LANES>().0[group];
                l.store(l.mul(l.load(row), scale), &mut weights[q]);
            }
            for position in begin..end.min(shortest) {
                let v = l.load_i8(value(position));
                for q in 0..Q {
                    sums[q] = l.fma(v, l.splat(weights[q][position - begin]), sums[q]);
                }
            }
            for q in 0..Q {
                for position in begin.max(shortest)..end.min(lengths[q]) {
                    let v = l.load_i8(value(position));
                    sums[q] = l.fma(v, l.splat(weights[q][position - begin]), sums[q]);
                }
            }
        }
        sums
    }
}

/// Rounds 16 floats to bytes; returns the bits of their scale, a half.
#[inline(always)]
pub(crate) fn narrow_to_bytes<L: Lanes>(l: L, x: &Line, out: &mut [i8; LANES]) -> u16 {
    let v = l.load(x);
    let scale = f16::from_f32((l.greatest(l.abs(v)) / 127.0).min(f16::MAX.to_f32()));
    let step = scale.to_f32();
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    // A scale near the smallest half is rounded so coarsely that a quotient may pass 127.
    let q = l.min(l.mul(v, l.splat(inverse)), l.splat(127.0));
    l.store_i8(l.max(q, l.splat(-127.0)), out);
    scale.to_bits()
}
