//! The dot products of quantised tiles on aarch64: with products of byte matrices, with the byte dot product, or with neither.
//!
//! The integers are exact either way, and the float steps are those of `portable`. *Invariant:* every pointer below
//! stays inside its slice, by the lengths that [`checked`] asserts: a tile holds `blocks` blocks, a row of the operand
//! `32 * blocks` bytes and `blocks` scales.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, vandq_u8, vcombine_s8, vcvtq_f32_s32, vcvtq_f32_u32,
    vdupq_n_f32, vdupq_n_s32, vdupq_n_u8, vfmaq_f32, vfmsq_f32, vget_high_s8, vget_high_u16,
    vget_low_s8, vget_low_u16, vld1_s8, vld1_u8, vld1_u16, vld1q_s8, vld1q_u8, vmovl_u8, vmovl_u16,
    vmull_s8, vmulq_f32, vpadalq_s16, vpaddq_s32, vreinterpretq_s8_s32, vreinterpretq_s8_u8,
    vreinterpretq_s32_s8, vreinterpretq_s32_s64, vreinterpretq_s64_s32, vshrq_n_u8, vst1q_f32,
    vsubq_s32, vzip1q_s32, vzip1q_s64, vzip2q_s32, vzip2q_s64,
};
use std::arch::asm;

use super::lanes::Line;
use super::tile::{BLOCK, Packing, Run, SUPER, TILE};
use super::{Operand, ROWS};

/// Rows at a time, which is what 32 registers hold.
const TOGETHER: usize = 4;

/// With instructions that every aarch64 processor has.
const PLAIN: u8 = 0;
/// With the byte dot product.
const DOT: u8 = 1;
/// With the byte dot product, and products of matrices for pairs of rows.
const MATRICES: u8 = 2;

type Quad = [float32x4_t; 4];

/// Pointers into a tile and into `R` rows of an operand, checked to be long enough.
struct Checked<const R: usize> {
    blocks: usize,
    tile: *const u8,
    q: [*const i8; R],
    scales: [*const f32; R],
    sums: [*const i32; R],
}

#[inline(always)]
fn checked<const R: usize>(
    packing: Packing,
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
) -> Checked<R> {
    let blocks = x.cols / BLOCK;
    assert!(tile.len() >= packing.tile_bytes(x.cols), "a tile is shorter than its shape");
    assert!(packing != Packing::Q4K || x.cols.is_multiple_of(SUPER), "not whole super-blocks");
    let mut checked = Checked {
        blocks,
        tile: tile.as_ptr(),
        q: [std::ptr::null(); R],
        scales: [std::ptr::null(); R],
        sums: [std::ptr::null(); R],
    };
    for r in 0..R {
        let row = first + r;
        checked.q[r] = x.q[row * x.cols..][..x.cols].as_ptr();
        checked.scales[r] = x.scales[row * blocks..][..blocks].as_ptr();
        checked.sums[r] = x.sums[row * blocks..][..blocks].as_ptr();
    }
    checked
}

/// `sums` plus, for each of four outputs, the dot product of its four weights with the four activations of lane 0.
///
/// # Safety
/// The machine has the byte dot product.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot(sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut out = sums;
    // SAFETY: one instruction on registers, of a feature that the function demands.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) out, in(vreg) weights, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// `sums` plus the products of two rows of eight activations with two outputs' eight weights: row 0 with both outputs, then
/// row 1.
///
/// # Safety
/// The machine has the product of byte matrices.
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn smmla(sums: int32x4_t, x: int8x16_t, weights: int8x16_t) -> int32x4_t {
    let mut out = sums;
    // SAFETY: one instruction on registers, of a feature that the function demands.
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) out, in(vreg) x, in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// The weights of group `group` (four inputs) of outputs `4 * quarter..`, as bytes or as nibbles.
///
/// # Safety
/// A block's bytes are readable at `weights`.
#[inline(always)]
unsafe fn group_of<const NIBBLES: bool>(
    weights: *const u8,
    group: usize,
    quarter: usize,
) -> int8x16_t {
    // SAFETY: 64 * group + 16 * quarter + 16 is inside the block: 512 bytes hold 8 groups, 256 bytes of nibbles 4.
    unsafe {
        if !NIBBLES {
            return vld1q_s8(weights.add(group * 64 + quarter * 16).cast());
        }
        let both = vld1q_u8(weights.add(group % 4 * 64 + quarter * 16));
        let nibbles =
            if group < 4 { vandq_u8(both, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(both) };
        vreinterpretq_s8_u8(nibbles)
    }
}

/// The exact dot products of one block with R rows, two rows at a time; an odd row takes the byte dot product.
///
/// # Safety
/// As for [`integers`]; the machine has the byte dot product and the product of byte matrices.
#[inline(always)]
unsafe fn by_matrices<const R: usize, const NIBBLES: bool>(
    weights: *const u8,
    q: &[*const i8; R],
    block: usize,
) -> [[int32x4_t; 4]; R] {
    // SAFETY: 32 * block + 4 * group + 8 <= 32 * (block + 1), for groups 0, 2, 4 and 6; the rest as above.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); 4]; R];
        for quarter in 0..4 {
            let mut pairs = [[vdupq_n_s32(0); 2]; TOGETHER / 2];
            let mut odd = vdupq_n_s32(0);
            for group in (0..BLOCK / 4).step_by(2) {
                let first = group_of::<NIBBLES>(weights, group, quarter);
                let second = group_of::<NIBBLES>(weights, group + 1, quarter);
                let (a, b) = (vreinterpretq_s32_s8(first), vreinterpretq_s32_s8(second));
                // Eight weights of one output side by side: outputs 0 and 1, and 2 and 3.
                let low = vreinterpretq_s8_s32(vzip1q_s32(a, b));
                let high = vreinterpretq_s8_s32(vzip2q_s32(a, b));
                let at = block * BLOCK + group * 4;
                for pair in 0..R / 2 {
                    let x =
                        vcombine_s8(vld1_s8(q[2 * pair].add(at)), vld1_s8(q[2 * pair + 1].add(at)));
                    pairs[pair][0] = smmla(pairs[pair][0], x, low);
                    pairs[pair][1] = smmla(pairs[pair][1], x, high);
                }
                if R % 2 == 1 {
                    let four = |at| vdupq_n_s32(q[R - 1].add(at).cast::<i32>().read_unaligned());
                    odd = sdot(odd, first, vreinterpretq_s8_s32(four(at)));
                    odd = sdot(odd, second, vreinterpretq_s8_s32(four(at + 4)));
                }
            }
            for pair in 0..R / 2 {
                let [low, high] = pairs[pair];
                let (low, high) = (vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high));
                sums[2 * pair][quarter] = vreinterpretq_s32_s64(vzip1q_s64(low, high));
                sums[2 * pair + 1][quarter] = vreinterpretq_s32_s64(vzip2q_s64(low, high));
            }
            if R % 2 == 1 {
                sums[R - 1][quarter] = odd;
            }
        }
        sums
    }
}

/// The exact dot products of one block with R rows.
///
/// # Safety
/// The block's bytes are readable at `weights` and 32 at each of `q`'s block; the machine has NEON, and what `WITH` names.
#[inline(always)]
unsafe fn integers<const R: usize, const WITH: u8, const NIBBLES: bool>(
    weights: *const u8,
    q: &[*const i8; R],
    block: usize,
) -> [[int32x4_t; 4]; R] {
    // SAFETY: as above.
    unsafe {
        if WITH == MATRICES {
            return by_matrices::<R, NIBBLES>(weights, q, block);
        }
        let mut sums = [[vdupq_n_s32(0); 4]; R];
        for quarter in 0..4 {
            let mut halves = [[vdupq_n_s32(0); 2]; R];
            for group in 0..BLOCK / 4 {
                let w = group_of::<NIBBLES>(weights, group, quarter);
                for r in 0..R {
                    let four = q[r].add(block * BLOCK + group * 4).cast::<i32>().read_unaligned();
                    let x = vreinterpretq_s8_s32(vdupq_n_s32(four));
                    if WITH == DOT {
                        halves[r][0] = sdot(halves[r][0], w, x);
                    } else {
                        let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
                        let high = vmull_s8(vget_high_s8(w), vget_high_s8(x));
                        halves[r][0] = vpadalq_s16(halves[r][0], low);
                        halves[r][1] = vpadalq_s16(halves[r][1], high);
                    }
                }
            }
            for r in 0..R {
                sums[r][quarter] =
                    if WITH == DOT { halves[r][0] } else { vpaddq_s32(halves[r][0], halves[r][1]) };
            }
        }
        sums
    }
}

/// 16 halves as floats.
///
/// # Safety
/// 32 bytes are readable at `halves`.
#[inline(always)]
unsafe fn halves(halves: *const u8) -> Quad {
    let mut out = [
        // SAFETY: NEON is there.
        unsafe { vdupq_n_f32(0.0) };
        4
    ];
    for (i, out) in out.iter_mut().enumerate() {
        // SAFETY: 8 * i + 8 <= 32; a conversion between registers that every aarch64 processor has.
        unsafe {
            let four = vld1_u16(halves.add(8 * i).cast());
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) *out, in(vreg) four,
                options(pure, nomem, nostack, preserves_flags));
        }
    }
    out
}

/// 16 bytes as floats.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn bytes_as_floats(bytes: *const u8) -> Quad {
    // SAFETY: as above.
    unsafe {
        let (low, high) = (vmovl_u8(vld1_u8(bytes)), vmovl_u8(vld1_u8(bytes.add(8))));
        [
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
            vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
            vcvtq_f32_u32(vmovl_u16(vget_high_u16(high))),
        ]
    }
}

/// # Safety
/// The machine has NEON.
#[inline(always)]
unsafe fn store<const R: usize>(sums: &[Quad; R], out: &mut [Line]) {
    for r in 0..R {
        for quarter in 0..4 {
            // SAFETY: a line holds 16 floats.
            unsafe { vst1q_f32(out[r][quarter * 4..].as_mut_ptr(), sums[r][quarter]) }
        }
    }
}

/// Bytes.
#[inline(always)]
unsafe fn q8<const R: usize, const WITH: u8>(
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line],
) {
    let at = checked::<R>(Packing::Q8, tile, x, first);
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let mut sums: [Quad; R] = [[vdupq_n_f32(0.0); 4]; R];
        for block in 0..at.blocks {
            let place = Packing::Q8.place(block);
            let scales = halves(at.tile.add(place.scales));
            let weights = at.tile.add(place.weights);
            let dots = integers::<R, WITH, false>(weights, &at.q, block);
            for r in 0..R {
                let xs = vdupq_n_f32(*at.scales[r].add(block));
                for v in 0..4 {
                    let scale = vmulq_f32(scales[v], xs);
                    sums[r][v] = vfmaq_f32(sums[r][v], vcvtq_f32_s32(dots[r][v]), scale);
                }
            }
        }
        store(&sums, out);
    }
}

/// Nibbles less 8.
#[inline(always)]
unsafe fn q4<const R: usize, const WITH: u8>(
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line],
) {
    let at = checked::<R>(Packing::Q4, tile, x, first);
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let mut sums: [Quad; R] = [[vdupq_n_f32(0.0); 4]; R];
        for block in 0..at.blocks {
            let place = Packing::Q4.place(block);
            let scales = halves(at.tile.add(place.scales));
            let weights = at.tile.add(place.weights);
            let dots = integers::<R, WITH, true>(weights, &at.q, block);
            for r in 0..R {
                let xs = vdupq_n_f32(*at.scales[r].add(block));
                let offset = vdupq_n_s32(8 * *at.sums[r].add(block));
                for v in 0..4 {
                    let scale = vmulq_f32(scales[v], xs);
                    let dot = vcvtq_f32_s32(vsubq_s32(dots[r][v], offset));
                    sums[r][v] = vfmaq_f32(sums[r][v], dot, scale);
                }
            }
        }
        store(&sums, out);
    }
}

/// Nibbles with scales and minima of two levels.
#[inline(always)]
unsafe fn q4k<const R: usize, const WITH: u8>(
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line],
) {
    let at = checked::<R>(Packing::Q4K, tile, x, first);
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let mut sums: [Quad; R] = [[vdupq_n_f32(0.0); 4]; R];
        for block in 0..at.blocks {
            let place = Packing::Q4K.place(block);
            let first = at.tile.add(place.supers);
            let (d, dmin) = (halves(first), halves(first.add(TILE * 2)));
            let factors = at.tile.add(place.scales);
            let (factor, min) = (bytes_as_floats(factors), bytes_as_floats(factors.add(TILE)));
            let weights = at.tile.add(place.weights);
            let dots = integers::<R, WITH, true>(weights, &at.q, block);
            for v in 0..4 {
                let (scales, mins) = (vmulq_f32(d[v], factor[v]), vmulq_f32(dmin[v], min[v]));
                for r in 0..R {
                    let xs = *at.scales[r].add(block);
                    let scale = vmulq_f32(scales, vdupq_n_f32(xs));
                    let sum = vfmaq_f32(sums[r][v], vcvtq_f32_s32(dots[r][v]), scale);
                    let shift = vdupq_n_f32(xs * *at.sums[r].add(block) as f32);
                    sums[r][v] = vfmsq_f32(sum, mins, shift);
                }
            }
        }
        store(&sums, out);
    }
}

/// An entry of the table: any number of rows of one packing with the named features.
macro_rules! entry {
    ($name:ident, $kernel:ident, $with:ident, $features:literal) => {
        /// See [`super::Kernels::dot`].
        ///
        /// # Safety
        /// The machine has the features that the name says.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(
            run: Run<'_>,
            x: &Operand<'_>,
            (first, rows): (usize, usize),
            out: &mut [[Line; ROWS]],
        ) {
            for (tile, out) in run.each().zip(out) {
                let mut row = 0;
                while row < rows {
                    let (at, out) = (first + row, &mut out[row..rows]);
                    match out.len() {
                        // SAFETY: the features are those of the caller, which is this kernel's only one.
                        1 => unsafe { $kernel::<1, $with>(tile, x, at, out) },
                        // SAFETY: as above.
                        2 => unsafe { $kernel::<2, $with>(tile, x, at, out) },
                        // SAFETY: as above.
                        3 => unsafe { $kernel::<3, $with>(tile, x, at, out) },
                        // SAFETY: as above.
                        _ => unsafe { $kernel::<TOGETHER, $with>(tile, x, at, out) },
                    }
                    row += TOGETHER;
                }
            }
        }
    };
}

entry!(dot_q8_neon, q8, PLAIN, "neon");
entry!(dot_q4_neon, q4, PLAIN, "neon");
entry!(dot_q4k_neon, q4k, PLAIN, "neon");
entry!(dot_q8_dot, q8, DOT, "neon,dotprod");
entry!(dot_q4_dot, q4, DOT, "neon,dotprod");
entry!(dot_q4k_dot, q4k, DOT, "neon,dotprod");
entry!(dot_q8_i8mm, q8, MATRICES, "neon,dotprod,i8mm");
entry!(dot_q4_i8mm, q4, MATRICES, "neon,dotprod,i8mm");
entry!(dot_q4k_i8mm, q4k, MATRICES, "neon,dotprod,i8mm");
