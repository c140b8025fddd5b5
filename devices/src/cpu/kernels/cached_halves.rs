//! A head's cache of 16-bit floats.
//!
//! *Invariant:* every element takes one fused multiply-add, in the order of a key's elements or of positions.

use super::attention::CachedHead;
use super::lanes::{LANES, Lanes};

/// One key/value head as halves.
#[derive(Clone, Copy)]
pub(crate) struct HalfHead<'a> {
    /// Keys as `positions / 16 x dim x 16` halves.
    pub(crate) keys: &'a [u16],
    /// Values as `positions x dim` halves.
    pub(crate) values: &'a [u16],
    /// Elements of a head, a multiple of 16.
    pub(crate) dim: usize,
}

impl CachedHead for HalfHead<'_> {
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
        let mut sums = [l.splat(0.0); Q];
        for (d, key) in keys.iter().enumerate() {
            let key = l.load_f16(key);
            for q in 0..Q {
                sums[q] = l.fma(key, l.splat(queries[q][d]), sums[q]);
            }
        }
        sums
    }

    /// The positions that only the longer queries reach follow one query at a time.
    #[inline(always)]
    fn weighted<L: Lanes, const Q: usize>(
        &self,
        l: L,
        first: usize,
        (rows, lengths): (&[&mut [f32]; Q], &[usize; Q]),
    ) -> [L::F; Q] {
        let shortest = lengths.iter().fold(usize::MAX, |a, &b| a.min(b));
        let value = |position: usize| -> &[u16; LANES] {
            self.values[position * self.dim + first..].first_chunk().expect("a cached position")
        };
        let mut sums = [l.splat(0.0); Q];
        for position in 0..shortest {
            let v = l.load_f16(value(position));
            for q in 0..Q {
                sums[q] = l.fma(v, l.splat(rows[q][position]), sums[q]);
            }
        }
        for q in 0..Q {
            for position in shortest..lengths[q] {
                sums[q] = l.fma(l.load_f16(value(position)), l.splat(rows[q][position]), sums[q]);
            }
        }
        sums
    }
}
