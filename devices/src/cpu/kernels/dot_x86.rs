//! The dot products of quantised tiles on x86-64.
//!
//! The integers are exact whatever the instructions, and the float steps are those of `portable`: convert, one product
//! of the scales, one fused multiply-add a block. *Invariant:* every pointer below stays inside its slice, by the lengths that
//! [`checked`] asserts: a tile holds `blocks` blocks, a row of the operand `32 * blocks` bytes and `blocks` scales.

use std::arch::x86_64::{
    __m256, __m256i, __m512, _MM_HINT_T1, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch,
    _mm256_abs_epi8, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtph_ps,
    _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_srli_epi16, _mm256_storeu_ps,
    _mm256_sub_epi32, _mm256_xor_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_xor_si512,
};

use std::arch::asm;

use super::lanes::{AHEAD, FAR_AHEAD, Line};
use super::tile::{BLOCK, Packing, Run, SUPER, TILE};
use super::{Operand, ROWS};

/// Pointers into `R` rows of an operand, which like the tiles of a run were checked to be long enough.
struct Checked<const R: usize> {
    blocks: usize,
    q: [*const i8; R],
    scales: [*const f32; R],
    sums: [*const i32; R],
}

#[inline(always)]
fn checked<const R: usize>(
    packing: Packing,
    run: Run<'_>,
    x: &Operand<'_>,
    first: usize,
) -> Checked<R> {
    let blocks = x.cols / BLOCK;
    let end = run.tiles.saturating_sub(1) * run.stride + packing.tile_bytes(x.cols);
    assert!(run.bytes.len() >= end, "a tile is shorter than its shape");
    assert!(packing != Packing::Q4K || x.cols.is_multiple_of(SUPER), "not whole super-blocks");
    let mut checked = Checked {
        blocks,
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

/// Asks for a block's share of the stream that lies ahead of it, in this tile or beyond, for `R` rows. A single row waits for
/// memory: the processor's own prefetchers are then the fastest, and need no more than to be led over the ends of pages. Several
/// rows compute meanwhile, slowly enough for those to lose the stream among the rows' own: every line is asked for, early.
#[inline(always)]
pub(super) fn fetch_ahead<const LINES: usize, const R: usize>(stream: *const u8) {
    let (ahead, step) = if R == 1 { (AHEAD, 4) } else { (FAR_AHEAD, 1) };
    for line in (0..LINES).step_by(step) {
        let place = stream.wrapping_add(ahead + line * 64);
        // SAFETY: a hint, which reads nothing and is ignored where nothing is mapped.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(place.cast()) };
    }
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

/// Takes each tile of a run through the kernel for the right number of rows, which are checked once for all of them. The
/// caller's features must be the kernel's.
macro_rules! by_rows {
    ($kernel:ident, $packing:ident, $run:expr, $x:expr, ($first:expr, $row:expr, $count:expr), $out:expr,
        [$($rows:literal),*]) => {
        match $count {
            $($rows => {
                let at = checked::<$rows>(Packing::$packing, $run, $x, $first + $row);
                for (tile, out) in $run.each().zip($out.iter_mut()) {
                    // SAFETY: the features are those of the caller, which is this kernel's only one; rows and tiles were
                    // checked.
                    unsafe { $kernel::<$rows>(&at, tile.as_ptr(), &mut out[$row..$row + $rows]) }
                }
            })*
            n => panic!("{n} rows in one call"),
        }
    };
}

type Pair = [__m256; 2];

/// 16 halves as floats.
///
/// # Safety
/// 32 bytes are readable at `halves`; the machine has F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
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
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store<const R: usize>(sums: &[Pair; R], out: &mut [Line]) {
    for r in 0..R {
        // SAFETY: a line holds 16 floats.
        unsafe {
            _mm256_storeu_ps(out[r].as_mut_ptr(), sums[r][0]);
            _mm256_storeu_ps(out[r][8..].as_mut_ptr(), sums[r][1]);
        }
    }
}

/// Adds to the sums of 16 outputs the products of a group: four inputs of each, in 64 bytes at `weights`.
///
/// The pairwise product takes one factor unsigned: |w| times x with the sign of w, which is exact since x lies in
/// -127..=127 and two products of at most 128 * 127 fit an i16. In assembly, because the compiler reorders the integer sums of
/// a whole block into trees, for which the registers do not suffice.
///
/// # Safety
/// 64 bytes are readable at `weights`, of which `magnitudes` are the absolute values; the machine has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_group(
    sums: &mut [__m256i; 2],
    x: __m256i,
    (weights, magnitudes): (*const u8, [__m256i; 2]),
    ones: __m256i,
) {
    // SAFETY: reads the 64 bytes, changes the named registers only.
    unsafe {
        asm!(
            "vpsignb {t}, {x}, [{w}]",
            "vpsignb {u}, {x}, [{w} + 32]",
            "vpmaddubsw {t}, {m0}, {t}",
            "vpmaddubsw {u}, {m1}, {u}",
            "vpmaddwd {t}, {t}, {ones}",
            "vpmaddwd {u}, {u}, {ones}",
            "vpaddd {a}, {a}, {t}",
            "vpaddd {b}, {b}, {u}",
            a = inout(ymm_reg) sums[0],
            b = inout(ymm_reg) sums[1],
            t = out(ymm_reg) _,
            u = out(ymm_reg) _,
            x = in(ymm_reg) x,
            w = in(reg) weights,
            m0 = in(ymm_reg) magnitudes[0],
            m1 = in(ymm_reg) magnitudes[1],
            ones = in(ymm_reg) ones,
            options(readonly, nostack, preserves_flags),
        );
    }
}

/// Bytes with AVX2, up to five rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q8_avx2<const R: usize>(at: &Checked<R>, tile: *const u8, out: &mut [Line]) {
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut sums: [Pair; R] = [[_mm256_setzero_ps(); 2]; R];
        for block in 0..at.blocks {
            let place = Packing::Q8.place(block);
            let weights = tile.add(place.weights);
            fetch_ahead::<{ Packing::Q8.share_lines() }, R>(tile.add(place.stream));
            let mut dots = [[_mm256_setzero_si256(); 2]; R];
            for group in 0..BLOCK / 4 {
                let weights = weights.add(group * 4 * TILE);
                let magnitudes = [
                    _mm256_abs_epi8(_mm256_loadu_si256(weights.cast())),
                    _mm256_abs_epi8(_mm256_loadu_si256(weights.add(32).cast())),
                ];
                for r in 0..R {
                    let xs = _mm256_set1_epi32(four(at.q[r], block, group));
                    add_group(&mut dots[r], xs, (weights, magnitudes), ones);
                }
            }
            let scales = halves(tile.add(place.scales));
            for r in 0..R {
                let xs = _mm256_set1_ps(*at.scales[r].add(block));
                for v in 0..2 {
                    let scale = _mm256_mul_ps(scales[v], xs);
                    sums[r][v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r][v]), scale, sums[r][v]);
                }
            }
        }
        store(&sums, out);
    }
}

/// Bytes with the 256-bit byte dot product, whose first factor is unsigned: w + 128, less 128 times the sum of x.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn q8_avx_vnni<const R: usize>(at: &Checked<R>, tile: *const u8, out: &mut [Line]) {
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let offset = _mm256_set1_epi8(-128);
        let mut sums: [Pair; R] = [[_mm256_setzero_ps(); 2]; R];
        for block in 0..at.blocks {
            let place = Packing::Q8.place(block);
            let weights = tile.add(place.weights);
            fetch_ahead::<{ Packing::Q8.share_lines() }, R>(tile.add(place.stream));
            let scales = halves(tile.add(place.scales));
            let mut dots = [[_mm256_setzero_si256(); 2]; R];
            for r in 0..R {
                dots[r] = [_mm256_set1_epi32(-128 * *at.sums[r].add(block)); 2];
            }
            for group in 0..BLOCK / 4 {
                for v in 0..2 {
                    let w: __m256i =
                        _mm256_loadu_si256(weights.add(group * 4 * TILE + v * 32).cast());
                    let w = _mm256_xor_si256(w, offset);
                    for r in 0..R {
                        let xs = _mm256_set1_epi32(four(at.q[r], block, group));
                        dots[r][v] = _mm256_dpbusd_avx_epi32(dots[r][v], w, xs);
                    }
                }
            }
            for r in 0..R {
                let xs = _mm256_set1_ps(*at.scales[r].add(block));
                for v in 0..2 {
                    let scale = _mm256_mul_ps(scales[v], xs);
                    let dot = _mm256_cvtepi32_ps(dots[r][v]);
                    sums[r][v] = _mm256_fmadd_ps(dot, scale, sums[r][v]);
                }
            }
        }
        store(&sums, out);
    }
}

/// Adds to the pairwise sums of 16 outputs the products of two groups of nibbles. In assembly for the reason of
/// [`add_group`].
///
/// # Safety
/// The machine has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_nibbles(
    sums: &mut [__m256i; 2],
    (x, y): (__m256i, __m256i),
    low: [__m256i; 2],
    high: [__m256i; 2],
) {
    // SAFETY: changes the named registers only.
    unsafe {
        asm!(
            "vpmaddubsw {t}, {l0}, {x}",
            "vpmaddubsw {u}, {l1}, {x}",
            "vpaddw {a}, {a}, {t}",
            "vpaddw {b}, {b}, {u}",
            "vpmaddubsw {t}, {h0}, {y}",
            "vpmaddubsw {u}, {h1}, {y}",
            "vpaddw {a}, {a}, {t}",
            "vpaddw {b}, {b}, {u}",
            a = inout(ymm_reg) sums[0],
            b = inout(ymm_reg) sums[1],
            t = out(ymm_reg) _,
            u = out(ymm_reg) _,
            x = in(ymm_reg) x,
            y = in(ymm_reg) y,
            l0 = in(ymm_reg) low[0],
            l1 = in(ymm_reg) low[1],
            h0 = in(ymm_reg) high[0],
            h1 = in(ymm_reg) high[1],
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// The exact dot products of one block of nibbles with up to four rows. Sums of pairs stay below 8 * 2 * 15 * 127 =
/// 30,480, so all eight groups add up in an i16.
///
/// # Safety
/// 256 bytes are readable at `weights` and 32 at each of `q`'s block; the machine has AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles_avx2<const R: usize>(
    weights: *const u8,
    q: &[*const i8; R],
    block: usize,
) -> [[__m256i; 2]; R] {
    // SAFETY: as above.
    unsafe {
        let mask = _mm256_set1_epi8(15);
        let mut pairs = [[_mm256_setzero_si256(); 2]; R];
        for group in 0..4 {
            let (mut low, mut high) = ([mask; 2], [mask; 2]);
            for v in 0..2 {
                let both: __m256i = _mm256_loadu_si256(weights.add(group * 64 + v * 32).cast());
                low[v] = _mm256_and_si256(both, mask);
                high[v] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask);
            }
            for r in 0..R {
                let x = _mm256_set1_epi32(four(q[r], block, group));
                let y = _mm256_set1_epi32(four(q[r], block, group + 4));
                add_nibbles(&mut pairs[r], (x, y), low, high);
            }
        }
        let ones = _mm256_set1_epi16(1);
        for r in 0..R {
            for v in 0..2 {
                pairs[r][v] = _mm256_madd_epi16(pairs[r][v], ones);
            }
        }
        pairs
    }
}

/// Nibbles less 8 with AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_avx2<const R: usize>(at: &Checked<R>, tile: *const u8, out: &mut [Line]) {
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let mut sums: [Pair; R] = [[_mm256_setzero_ps(); 2]; R];
        for block in 0..at.blocks {
            let place = Packing::Q4.place(block);
            let scales = halves(tile.add(place.scales));
            let weights = tile.add(place.weights);
            fetch_ahead::<{ Packing::Q4.share_lines() }, R>(tile.add(place.stream));
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
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bytes_as_floats(bytes: *const u8) -> __m256 {
    // SAFETY: as above.
    unsafe {
        let eight = _mm_loadl_epi64(bytes.cast());
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight))
    }
}

/// Nibbles with scales and minima of two levels, with AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4k_avx2<const R: usize>(at: &Checked<R>, tile: *const u8, out: &mut [Line]) {
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let mut sums: [Pair; R] = [[_mm256_setzero_ps(); 2]; R];
        for block in 0..at.blocks {
            let place = Packing::Q4K.place(block);
            let first = tile.add(place.supers);
            let (d, dmin) = (halves(first), halves(first.add(TILE * 2)));
            let factors = tile.add(place.scales);
            let weights = tile.add(place.weights);
            fetch_ahead::<{ Packing::Q4K.share_lines() }, R>(tile.add(place.stream));
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
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
unsafe fn q8_avx512<const R: usize>(at: &Checked<R>, tile: *const u8, out: &mut [Line]) {
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let offset = _mm512_set1_epi8(-128);
        let mut sums: [__m512; R] = [_mm512_setzero_ps(); R];
        for block in 0..at.blocks {
            let place = Packing::Q8.place(block);
            let weights = tile.add(place.weights);
            fetch_ahead::<{ Packing::Q8.share_lines() }, R>(tile.add(place.stream));
            let scales = _mm512_cvtph_ps(_mm256_loadu_si256(tile.add(place.scales).cast()));
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
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
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
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
unsafe fn q4_avx512<const R: usize>(at: &Checked<R>, tile: *const u8, out: &mut [Line]) {
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let mut sums: [__m512; R] = [_mm512_setzero_ps(); R];
        for block in 0..at.blocks {
            let place = Packing::Q4.place(block);
            let scales = _mm512_cvtph_ps(_mm256_loadu_si256(tile.add(place.scales).cast()));
            let mut start = [0; R];
            for r in 0..R {
                start[r] = -8 * *at.sums[r].add(block);
            }
            let weights = tile.add(place.weights);
            fetch_ahead::<{ Packing::Q4.share_lines() }, R>(tile.add(place.stream));
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
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vnni")]
unsafe fn q4k_avx512<const R: usize>(at: &Checked<R>, tile: *const u8, out: &mut [Line]) {
    // SAFETY: the file's invariant; the caller has the features.
    unsafe {
        let mut sums: [__m512; R] = [_mm512_setzero_ps(); R];
        for block in 0..at.blocks {
            let place = Packing::Q4K.place(block);
            let first = tile.add(place.supers);
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(first.cast()));
            let dmin = _mm512_cvtph_ps(_mm256_loadu_si256(first.add(TILE * 2).cast()));
            let factors = tile.add(place.scales);
            let factor = _mm512_cvtepu8_epi32(_mm_loadu_si128(factors.cast()));
            let scales = _mm512_mul_ps(d, _mm512_cvtepi32_ps(factor));
            let factor = _mm512_cvtepu8_epi32(_mm_loadu_si128(factors.add(TILE).cast()));
            let mins = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(factor));
            let weights = tile.add(place.weights);
            fetch_ahead::<{ Packing::Q4K.share_lines() }, R>(tile.add(place.stream));
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

/// How many of the remaining rows the kernels of 16 registers take next: as many as fit, in parts of similar size.
const fn part(rows: usize, fit: usize) -> usize {
    rows.div_ceil(rows.div_ceil(fit))
}

/// An entry of the table: any number of rows of one packing with the named features, a part at a time.
macro_rules! entry {
    ($name:ident, $kernel:ident, $packing:ident, $features:literal, $fit:literal, $rows:tt) => {
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
            let mut row = 0;
            while row < rows {
                let count = part(rows - row, $fit);
                by_rows!($kernel, $packing, run, x, (first, row, count), out, $rows);
                row += count;
            }
        }
    };
}

entry!(dot_q8_avx2, q8_avx2, Q8, "avx2,fma,f16c", 5, [1, 2, 3, 4, 5]);
entry!(dot_q4_avx2, q4_avx2, Q4, "avx2,fma,f16c", 4, [1, 2, 3, 4]);
entry!(dot_q4k_avx2, q4k_avx2, Q4K, "avx2,fma,f16c", 4, [1, 2, 3, 4]);
entry!(dot_q8_avx_vnni, q8_avx_vnni, Q8, "avx2,fma,f16c,avxvnni", 5, [1, 2, 3, 4, 5]);
entry!(
    dot_q8_avx512,
    q8_avx512,
    Q8,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vnni",
    8,
    [1, 2, 3, 4, 5, 6, 7, 8]
);
entry!(
    dot_q4_avx512,
    q4_avx512,
    Q4,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vnni",
    8,
    [1, 2, 3, 4, 5, 6, 7, 8]
);
entry!(
    dot_q4k_avx512,
    q4k_avx512,
    Q4K,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vnni",
    8,
    [1, 2, 3, 4, 5, 6, 7, 8]
);
