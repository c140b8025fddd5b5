//! The dot products of a tile of float weights with unquantised rows.
//!
//! *Invariant:* written once over [`Lanes`]; the order of a row's sum depends on nothing but the number of inputs.

use super::lanes::{Lanes, Line};
use super::tile::{Run, TILE};
use super::{Operand, ROWS};

/// How weights of a tile of floats are stored.
pub(crate) trait Element {
    /// One weight.
    type Raw: bytemuck::Pod;

    /// The 16 outputs' weights of one input as `f32`.
    fn lanes<L: Lanes>(l: L, weights: &[Self::Raw; TILE]) -> L::F;
}

/// Half precision.
pub(crate) struct Half;

/// bfloat16.
pub(crate) struct Brain;

/// Single precision.
pub(crate) struct Single;

impl Element for Half {
    type Raw = u16;

    #[inline(always)]
    fn lanes<L: Lanes>(l: L, weights: &[u16; TILE]) -> L::F {
        l.load_f16(weights)
    }
}

impl Element for Brain {
    type Raw = u16;

    #[inline(always)]
    fn lanes<L: Lanes>(l: L, weights: &[u16; TILE]) -> L::F {
        l.load_bf16(weights)
    }
}

impl Element for Single {
    type Raw = f32;

    #[inline(always)]
    fn lanes<L: Lanes>(l: L, weights: &[f32; TILE]) -> L::F {
        l.load(weights)
    }
}

/// Rows `first..first + R` times a tile of floats: even inputs in one accumulator, odd inputs in another.
#[inline(always)]
fn floats<L: Lanes, E: Element, const R: usize>(
    l: L,
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line],
) {
    let weights: &[[[E::Raw; TILE]; 2]] = bytemuck::cast_slice(tile);
    let mut rows: [&[[f32; 2]]; R] = [&[]; R];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = &x.floats(first + r).as_chunks::<2>().0[..weights.len()];
    }
    let mut even = [l.splat(0.0); R];
    let mut odd = [l.splat(0.0); R];
    for (i, [a, b]) in weights.iter().enumerate() {
        l.fetch_ahead(a);
        if size_of::<E::Raw>() == 4 {
            l.fetch_ahead(b);
        }
        let (a, b) = (E::lanes(l, a), E::lanes(l, b));
        for r in 0..R {
            even[r] = l.fma(a, l.splat(rows[r][i][0]), even[r]);
            odd[r] = l.fma(b, l.splat(rows[r][i][1]), odd[r]);
        }
    }
    for r in 0..R {
        l.store(l.add(even[r], odd[r]), &mut out[r]);
    }
}

/// See [`super::Kernels::dot`]; three rows at a time, which is what 16 registers hold.
#[inline(always)]
pub(crate) fn dot_floats<L: Lanes, E: Element>(
    l: L,
    run: Run<'_>,
    x: &Operand<'_>,
    (first, rows): (usize, usize),
    out: &mut [[Line; ROWS]],
) {
    let bytes = x.cols * TILE * size_of::<E::Raw>();
    for (tile, out) in run.each().zip(out) {
        let (tile, mut row) = (&tile[..bytes], 0);
        while row < rows {
            let out = &mut out[row..];
            match rows - row {
                1 => floats::<L, E, 1>(l, tile, x, first + row, out),
                2 | 4 => floats::<L, E, 2>(l, tile, x, first + row, out),
                _ => floats::<L, E, 3>(l, tile, x, first + row, out),
            }
            row += match rows - row {
                1 => 1,
                2 | 4 => 2,
                _ => 3,
            };
        }
    }
}
