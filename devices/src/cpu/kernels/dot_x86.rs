//! The dot products of quantised tiles on x86-64.
//!
//! The integers are exact whatever the instructions, and the float steps are those of `portable`: convert, one product
//! of the scales, one fused multiply-add a block. *Invariant:* every pointer below stays inside its slice, by the lengths that
//! [`checked`] asserts: a tile holds `blocks` blocks, a row of the operand `32 * blocks` bytes and `blocks` scales.

use std::arch::x86_64::{
    __m256, __m256i, __m512, _mm_loadl_epi64, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtph_ps,
    _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8,
    _mm256_srli_epi16, _mm256_storeu_ps, _mm256_sub_epi32, _mm256_xor_si256, _mm512_add_epi32,
    _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_srli_epi16,
    _mm512_storeu_ps, _mm512_xor_si512,
};

use super::lanes::Line;
use super::tile::{BLOCK, Packing, SUPER, TILE};
use super::{Operand, ROWS};

/// Pointers into a tile and into `R` rows of an operand, checked to be long enough.
struct Checked<const R: usize> {
    blocks: usize,
    head: *const u8,
    weights: *const u8,
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
    let (head, weights) = tile.split_at(packing.head_bytes(x.cols));
    let mut checked = Checked {
        blocks,
        head: head.as_ptr(),
        weights: weights.as_ptr(),
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

/// Four consecutive activations of a block, as one integer.
///
/// # Safety
/// `q` points to at least `32 * (block + 1)` readable bytes; `group < 8`.
#[inline(always)]
unsafe fn four(q: *const i8, block: usize, group: usize) -> i32 {
    // SAFETY: 32 * block + 4 * group + 4 <= 32 * (block + 1).
    unsafe { q.add(block * BLOCK + group * 4).cast::<i32>().read_unaligned() }
}

/// Calls the kernel for the right number of rows.
macro_rules! by_rows {
    ($rows:expr, $kernel:ident, ($($argument:expr),*)) => {
        match $rows {
            // SAFETY: the features are those of the caller, which is this kernel's only one.
            1 => unsafe { $kernel::<1>($($argument),*) },
            // SAFETY: as above.
            2 => unsafe { $kernel::<2>($($argument),*) },
            // SAFETY: as above.
            3 => unsafe { $kernel::<3>($($argument),*) },
            // SAFETY: as above.
            4 => unsafe { $kernel::<4>($($argument),*) },
            // SAFETY: as above.
            5 => unsafe { $kernel::<5>($($argument),*) },
            // SAFETY: as above.
            6 => unsafe { $kernel::<6>($($argument),*) },
            // SAFETY: as above.
            7 => unsafe { $kernel::<7>($($argument),*) },
            // SAFETY: as above.
            8 => unsafe { $kernel::<8>($($argument),*) },
            n => panic!("{n} rows in one call"),
        }
    };
}

type Pair = [__m256; 2];

/// 16 halves as floats.
///
/// # Safety
/// 32 bytes are readable at `halves`; the machine has F16C.
#[inline(always)]
unsafe fn halves(halves: *const u8) -> Pair {
    // SAFETY: as above.
    unsafe {
        [
            _mm256_cvtph_ps(_mm_loadu_si128(halves.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(halves.add(16).cast())),
        ]
    }
}

/// # Safety
/// The machine has AVX2, FMA and F16C; `out` has a place for each row.
#[inline(always)]
unsafe fn store<const R: usize>(sums: &[Pair; R], out: &mut [Line; ROWS]) {
    for r in 0..R {
        // SAFETY: a line holds 16 floats.
        unsafe {
            _mm256_storeu_ps(out[r].as_mut_ptr(), sums[r][0]);
            _mm256_storeu_ps(out[r][8..].as_mut_ptr(), sums[r][1]);
        }
    }
}

/// Bytes with AVX2. The pairwise product takes one factor unsigned: |w| times x with the sign of w, which is exact
/// since x lies in -127..=127 and two products of at most 128 * 127 fit an i16. Up to four rows the accumulators of
/// all 16 outputs stay in registers; beyond, 8 outputs at a time.
#[inline(always)]
unsafe fn q8_avx2<const R: usize>(
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line; ROWS],
) {
    let at = checked::<R>(Packing::Q8, tile, x, first);
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut sums: [Pair; R] = [[_mm256_setzero_ps(); 2]; R];
        for block in 0..at.blocks {
            let weights = at.weights.add(block * BLOCK * TILE);
            let scales = halves(at.head.add(block * TILE * 2));
            let step = if R <= 4 { 2 } else { 1 };
            let mut part = 0;
            while part < 2 {
                let mut dots = [[_mm256_setzero_si256(); 2]; R];
                for group in 0..BLOCK / 4 {
                    for v in 0..step {
                        let w: __m256i = _mm256_loadu_si256(
                            weights.add(group * 4 * TILE + (part + v) * 32).cast(),
                        );
                        let magnitude = _mm256_abs_epi8(w);
                        for r in 0..R {
                            let xs = _mm256_set1_epi32(four(at.q[r], block, group));
                            let signed = _mm256_sign_epi8(xs, w);
                            let pairs = _mm256_maddubs_epi16(magnitude, signed);
                            let fours = _mm256_madd_epi16(pairs, ones);
                            dots[r][v] = _mm256_add_epi32(dots[r][v], fours);
                        }
                    }
                }
                for r in 0..R {
                    let xs = _mm256_set1_ps(*at.scales[r].add(block));
                    for v in 0..step {
                        let scale = _mm256_mul_ps(scales[part + v], xs);
                        let dot = _mm256_cvtepi32_ps(dots[r][v]);
                        sums[r][part + v] = _mm256_fmadd_ps(dot, scale, sums[r][part + v]);
                    }
                }
                part += step;
            }
        }
        store(&sums, out);
    }
}

/// Bytes with the 256-bit byte dot product, whose first factor is unsigned: w + 128, less 128 times the sum of x.
#[inline(always)]
unsafe fn q8_avx_vnni<const R: usize>(
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line; ROWS],
) {
    let at = checked::<R>(Packing::Q8, tile, x, first);
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let offset = _mm256_set1_epi8(-128);
        let mut sums: [Pair; R] = [[_mm256_setzero_ps(); 2]; R];
        for block in 0..at.blocks {
            let weights = at.weights.add(block * BLOCK * TILE);
            let scales = halves(at.head.add(block * TILE * 2));
            let step = if R <= 4 { 2 } else { 1 };
            let mut part = 0;
            while part < 2 {
                let mut dots = [[_mm256_setzero_si256(); 2]; R];
                for r in 0..R {
                    dots[r] = [_mm256_set1_epi32(-128 * *at.sums[r].add(block)); 2];
                }
                for group in 0..BLOCK / 4 {
                    for v in 0..step {
                        let w: __m256i = _mm256_loadu_si256(
                            weights.add(group * 4 * TILE + (part + v) * 32).cast(),
                        );
                        let w = _mm256_xor_si256(w, offset);
                        for r in 0..R {
                            let xs = _mm256_set1_epi32(four(at.q[r], block, group));
                            dots[r][v] = _mm256_dpbusd_avx_epi32(dots[r][v], w, xs);
                        }
                    }
                }
                for r in 0..R {
                    let xs = _mm256_set1_ps(*at.scales[r].add(block));
                    for v in 0..step {
                        let scale = _mm256_mul_ps(scales[part + v], xs);
                        let dot = _mm256_cvtepi32_ps(dots[r][v]);
                        sums[r][part + v] = _mm256_fmadd_ps(dot, scale, sums[r][part + v]);
                    }
                }
                part += step;
            }
        }
        store(&sums, out);
    }
}

/// The exact dot products of one block of nibbles with R rows. Sums of pairs stay below 8 * 2 * 15 * 127 = 30,480,
/// so all eight groups add up in an i16.
///
/// # Safety
/// 256 bytes are readable at `weights` and 32 at each of `q`'s block; the machine has AVX2.
#[inline(always)]
unsafe fn nibbles_avx2<const R: usize>(
    weights: *const u8,
    q: &[*const i8; R],
    block: usize,
) -> [[__m256i; 2]; R] {
    // SAFETY: as above.
    unsafe {
        let mask = _mm256_set1_epi8(15);
        let ones = _mm256_set1_epi16(1);
        let mut pairs = [[_mm256_setzero_si256(); 2]; R];
        for group in 0..4 {
            for v in 0..2 {
                let both: __m256i = _mm256_loadu_si256(weights.add(group * 64 + v * 32).cast());
                let low = _mm256_and_si256(both, mask);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask);
                for r in 0..R {
                    let xs = _mm256_set1_epi32(four(q[r], block, group));
                    let products = _mm256_maddubs_epi16(low, xs);
                    pairs[r][v] = _mm256_add_epi16(pairs[r][v], products);
                    let xs = _mm256_set1_epi32(four(q[r], block, group + 4));
                    let products = _mm256_maddubs_epi16(high, xs);
                    pairs[r][v] = _mm256_add_epi16(pairs[r][v], products);
                }
            }
        }
        for r in 0..R {
            for v in 0..2 {
                pairs[r][v] = _mm256_madd_epi16(pairs[r][v], ones);
            }
        }
        pairs
    }
}

/// Nibbles less 8 with AVX2.
#[inline(always)]
unsafe fn q4_avx2<const R: usize>(
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line; ROWS],
) {
    let at = checked::<R>(Packing::Q4, tile, x, first);
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let mut sums: [Pair; R] = [[_mm256_setzero_ps(); 2]; R];
        for block in 0..at.blocks {
            let scales = halves(at.head.add(block * TILE * 2));
            let weights = at.weights.add(block * BLOCK * TILE / 2);
            let dots = nibbles_avx2::<R>(weights, &at.q, block);
            for r in 0..R {
                let xs = _mm256_set1_ps(*at.scales[r].add(block));
                let offset = _mm256_set1_epi32(8 * *at.sums[r].add(block));
                for v in 0..2 {
                    let scale = _mm256_mul_ps(scales[v], xs);
                    let dot = _mm256_cvtepi32_ps(_mm256_sub_epi32(dots[r][v], offset));
                    sums[r][v] = _mm256_fmadd_ps(dot, scale, sums[r][v]);
                }
            }
        }
        store(&sums, out);
    }
}

/// Eight bytes as floats.
///
/// # Safety
/// 8 bytes are readable; the machine has AVX2.
#[inline(always)]
unsafe fn bytes_as_floats(bytes: *const u8) -> __m256 {
    // SAFETY: as above.
    unsafe {
        let eight = _mm_loadl_epi64(bytes.cast());
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight))
    }
}

/// Nibbles with scales and minima of two levels, with AVX2.
#[inline(always)]
unsafe fn q4k_avx2<const R: usize>(
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line; ROWS],
) {
    let at = checked::<R>(Packing::Q4K, tile, x, first);
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let factors = at.head.add(x.cols / SUPER * TILE * 4);
        let mut sums: [Pair; R] = [[_mm256_setzero_ps(); 2]; R];
        for block in 0..at.blocks {
            let first = at.head.add(block / (SUPER / BLOCK) * TILE * 4);
            let (d, dmin) = (halves(first), halves(first.add(TILE * 2)));
            let factors = factors.add(block * TILE * 2);
            let weights = at.weights.add(block * BLOCK * TILE / 2);
            let dots = nibbles_avx2::<R>(weights, &at.q, block);
            for v in 0..2 {
                let scales = _mm256_mul_ps(d[v], bytes_as_floats(factors.add(v * 8)));
                let mins = _mm256_mul_ps(dmin[v], bytes_as_floats(factors.add(TILE + v * 8)));
                for r in 0..R {
                    let xs = *at.scales[r].add(block);
                    let scale = _mm256_mul_ps(scales, _mm256_set1_ps(xs));
                    let dot = _mm256_cvtepi32_ps(dots[r][v]);
                    let sum = _mm256_fmadd_ps(dot, scale, sums[r][v]);
                    let shift = _mm256_set1_ps(xs * *at.sums[r].add(block) as f32);
                    sums[r][v] = _mm256_fnmadd_ps(mins, shift, sum);
                }
            }
        }
        store(&sums, out);
    }
}

/// Bytes with the 512-bit byte dot product, whose first factor is unsigned: w + 128, less 128 times the sum of x. Few
/// rows use two chains of integer sums each, to hide the instruction's latency.
#[inline(always)]
unsafe fn q8_avx512<const R: usize>(
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line; ROWS],
) {
    let at = checked::<R>(Packing::Q8, tile, x, first);
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let offset = _mm512_set1_epi8(-128);
        let mut sums: [__m512; R] = [_mm512_setzero_ps(); R];
        for block in 0..at.blocks {
            let weights = at.weights.add(block * BLOCK * TILE);
            let scales = _mm512_cvtph_ps(_mm256_loadu_si256(at.head.add(block * TILE * 2).cast()));
            let mut dots = [[_mm512_set1_epi32(0); 2]; R];
            for r in 0..R {
                dots[r][0] = _mm512_set1_epi32(-128 * *at.sums[r].add(block));
            }
            for group in 0..BLOCK / 4 {
                let w = _mm512_loadu_si512(weights.add(group * 4 * TILE).cast());
                let w = _mm512_xor_si512(w, offset);
                let chain = if R <= 4 { group % 2 } else { 0 };
                for r in 0..R {
                    let xs = _mm512_set1_epi32(four(at.q[r], block, group));
                    dots[r][chain] = _mm512_dpbusd_epi32(dots[r][chain], w, xs);
                }
            }
            for r in 0..R {
                let xs = _mm512_set1_ps(*at.scales[r].add(block));
                let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dots[r][0], dots[r][1]));
                sums[r] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scales, xs), sums[r]);
            }
        }
        for r in 0..R {
            _mm512_storeu_ps(out[r].as_mut_ptr(), sums[r]);
        }
    }
}

/// The exact dot products of one block of nibbles with R rows, plus `start` of each row.
///
/// # Safety
/// 256 bytes are readable at `weights` and 32 at each of `q`'s block; the machine has AVX512-VNNI.
#[inline(always)]
unsafe fn nibbles_avx512<const R: usize>(
    weights: *const u8,
    q: &[*const i8; R],
    block: usize,
    start: [i32; R],
) -> [__m512; R] {
    // SAFETY: as above.
    unsafe {
        let mask = _mm512_set1_epi8(15);
        let mut dots = [[_mm512_set1_epi32(0); 2]; R];
        for r in 0..R {
            dots[r][0] = _mm512_set1_epi32(start[r]);
        }
        for group in 0..4 {
            let both = _mm512_loadu_si512(weights.add(group * 64).cast());
            let low = _mm512_and_si512(both, mask);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask);
            for r in 0..R {
                let xs = _mm512_set1_epi32(four(q[r], block, group));
                dots[r][0] = _mm512_dpbusd_epi32(dots[r][0], low, xs);
                let xs = _mm512_set1_epi32(four(q[r], block, group + 4));
                dots[r][1] = _mm512_dpbusd_epi32(dots[r][1], high, xs);
            }
        }
        let mut floats = [_mm512_setzero_ps(); R];
        for r in 0..R {
            floats[r] = _mm512_cvtepi32_ps(_mm512_add_epi32(dots[r][0], dots[r][1]));
        }
        floats
    }
}

/// Nibbles less 8 with AVX512-VNNI.
#[inline(always)]
unsafe fn q4_avx512<const R: usize>(
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line; ROWS],
) {
    let at = checked::<R>(Packing::Q4, tile, x, first);
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let mut sums: [__m512; R] = [_mm512_setzero_ps(); R];
        for block in 0..at.blocks {
            let scales = _mm512_cvtph_ps(_mm256_loadu_si256(at.head.add(block * TILE * 2).cast()));
            let mut start = [0; R];
            for r in 0..R {
                start[r] = -8 * *at.sums[r].add(block);
            }
            let weights = at.weights.add(block * BLOCK * TILE / 2);
            let dots = nibbles_avx512::<R>(weights, &at.q, block, start);
            for r in 0..R {
                let xs = _mm512_set1_ps(*at.scales[r].add(block));
                sums[r] = _mm512_fmadd_ps(dots[r], _mm512_mul_ps(scales, xs), sums[r]);
            }
        }
        for r in 0..R {
            _mm512_storeu_ps(out[r].as_mut_ptr(), sums[r]);
        }
    }
}

/// Nibbles with scales and minima of two levels, with AVX512-VNNI.
#[inline(always)]
unsafe fn q4k_avx512<const R: usize>(
    tile: &[u8],
    x: &Operand<'_>,
    first: usize,
    out: &mut [Line; ROWS],
) {
    let at = checked::<R>(Packing::Q4K, tile, x, first);
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let factors = at.head.add(x.cols / SUPER * TILE * 4);
        let mut sums: [__m512; R] = [_mm512_setzero_ps(); R];
        for block in 0..at.blocks {
            let first = at.head.add(block / (SUPER / BLOCK) * TILE * 4);
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(first.cast()));
            let dmin = _mm512_cvtph_ps(_mm256_loadu_si256(first.add(TILE * 2).cast()));
            let factors = factors.add(block * TILE * 2);
            let factor = _mm512_cvtepu8_epi32(_mm_loadu_si128(factors.cast()));
            let scales = _mm512_mul_ps(d, _mm512_cvtepi32_ps(factor));
            let factor = _mm512_cvtepu8_epi32(_mm_loadu_si128(factors.add(TILE).cast()));
            let mins = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(factor));
            let weights = at.weights.add(block * BLOCK * TILE / 2);
            let dots = nibbles_avx512::<R>(weights, &at.q, block, [0; R]);
            for r in 0..R {
                let xs = *at.scales[r].add(block);
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(xs));
                let sum = _mm512_fmadd_ps(dots[r], scale, sums[r]);
                let shift = _mm512_set1_ps(xs * *at.sums[r].add(block) as f32);
                sums[r] = _mm512_fnmadd_ps(mins, shift, sum);
            }
        }
        for r in 0..R {
            _mm512_storeu_ps(out[r].as_mut_ptr(), sums[r]);
        }
    }
}

/// An entry of the table: any number of rows of one packing with the named features.
macro_rules! entry {
    ($name:ident, $kernel:ident, $features:literal) => {
        /// See [`super::Kernels::dot`].
        ///
        /// # Safety
        /// The machine has the features that the name says.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(
            tile: &[u8],
            x: &Operand<'_>,
            (first, rows): (usize, usize),
            out: &mut [Line; ROWS],
        ) {
            by_rows!(rows, $kernel, (tile, x, first, out))
        }
    };
}

entry!(dot_q8_avx2, q8_avx2, "avx2,fma,f16c");
entry!(dot_q4_avx2, q4_avx2, "avx2,fma,f16c");
entry!(dot_q4k_avx2, q4k_avx2, "avx2,fma,f16c");
entry!(dot_q8_avx_vnni, q8_avx_vnni, "avx2,fma,f16c,avxvnni");
entry!(dot_q8_avx512, q8_avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512vnni");
entry!(dot_q4_avx512, q4_avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512vnni");
entry!(dot_q4k_avx512, q4k_avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512vnni");
