//! The dot products of a tile in plain Rust: the definition that every other instruction set must meet bit for bit.
//!
//! In each block the dot product of integers is exact; it is scaled and added to one accumulator per (row, output), in
//! the order of the blocks. *Invariant:* that order depends on nothing but the number of inputs.

use half::f16;

use super::lanes::Line;
use super::tile::{BLOCK, Packing, Run, TILE, q4_place, q8_place};
use super::{Operand, ROWS};

/// A little-endian half at half-word `index`.
fn half_at(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}

/// Row `row` times a tile of `Q8`.
fn q8(tile: &[u8], x: &Operand<'_>, row: usize) -> Line {
    let mut out = [0.0f32; TILE];
    for block in 0..x.cols / BLOCK {
        let place = Packing::Q8.place(block);
        let (scales, weights) = (&tile[place.scales..], &tile[place.weights..]);
        let q = x.block(row, block);
        for (output, sum) in out.iter_mut().enumerate() {
            let dot: i32 = (0..BLOCK)
                .map(|i| i32::from(weights[q8_place(i, output)] as i8) * i32::from(q[i]))
                .sum();
            let scale = half_at(scales, output) * x.scale(row, block);
            *sum = (dot as f32).mul_add(scale, *sum);
        }
    }
    out
}

/// The exact dot product of nibbles (0 to 15) of output `output` with a block of activations.
fn nibble_dot(weights: &[u8], q: &[i8], output: usize) -> i32 {
    (0..BLOCK)
        .map(|i| {
            let (place, upper) = q4_place(i, output);
            let nibble = if upper { weights[place] >> 4 } else { weights[place] & 15 };
            i32::from(nibble) * i32::from(q[i])
        })
        .sum()
}

/// Row `row` times a tile of `Q4`.
fn q4(tile: &[u8], x: &Operand<'_>, row: usize) -> Line {
    let mut out = [0.0f32; TILE];
    for block in 0..x.cols / BLOCK {
        let place = Packing::Q4.place(block);
        let (scales, weights) = (&tile[place.scales..], &tile[place.weights..]);
        for (output, sum) in out.iter_mut().enumerate() {
            let dot = nibble_dot(weights, x.block(row, block), output) - 8 * x.sum(row, block);
            let scale = half_at(scales, output) * x.scale(row, block);
            *sum = (dot as f32).mul_add(scale, *sum);
        }
    }
    out
}

/// Row `row` times a tile of `Q4K`: the minimum's share follows the product's in each block.
fn q4k(tile: &[u8], x: &Operand<'_>, row: usize) -> Line {
    let mut out = [0.0f32; TILE];
    for block in 0..x.cols / BLOCK {
        let place = Packing::Q4K.place(block);
        let (supers, weights) = (&tile[place.supers..], &tile[place.weights..]);
        let factors = &tile[place.scales..][..2 * TILE];
        for (output, sum) in out.iter_mut().enumerate() {
            let dot = nibble_dot(weights, x.block(row, block), output);
            let scale = half_at(supers, output) * f32::from(factors[output]);
            let min = half_at(supers, TILE + output) * f32::from(factors[TILE + output]);
            *sum = (dot as f32).mul_add(scale * x.scale(row, block), *sum);
            let shift = x.scale(row, block) * x.sum(row, block) as f32;
            *sum = (-min).mul_add(shift, *sum);
        }
    }
    out
}

fn each_row(
    run: Run<'_>,
    x: &Operand<'_>,
    (first, rows): (usize, usize),
    out: &mut [[Line; ROWS]],
    dot: fn(&[u8], &Operand<'_>, usize) -> Line,
) {
    for (tile, out) in run.each().zip(out) {
        for (row, out) in out[..rows].iter_mut().enumerate() {
            *out = dot(tile, x, first + row);
        }
    }
}

/// See [`super::Kernels::dot`].
pub(crate) fn dot_q8(
    run: Run<'_>,
    x: &Operand<'_>,
    rows: (usize, usize),
    out: &mut [[Line; ROWS]],
) {
    each_row(run, x, rows, out, q8);
}

/// See [`super::Kernels::dot`].
pub(crate) fn dot_q4(
    run: Run<'_>,
    x: &Operand<'_>,
    rows: (usize, usize),
    out: &mut [[Line; ROWS]],
) {
    each_row(run, x, rows, out, q4);
}

/// See [`super::Kernels::dot`].
pub(crate) fn dot_q4k(
    run: Run<'_>,
    x: &Operand<'_>,
    rows: (usize, usize),
    out: &mut [[Line; ROWS]],
) {
    each_row(run, x, rows, out, q4k);
}
