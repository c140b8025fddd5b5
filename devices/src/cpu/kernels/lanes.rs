//! Sixteen floats at a time: the vocabulary in which every floating-point kernel is written once.
//!
//! *Invariant:* each operation is one IEEE operation on each lane, so a kernel gives the same bits whichever
//! implementation it is compiled with. A value of an implementing type is the proof that the machine can run it.

use half::{bf16, f16};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// How many bytes ahead of the weights in use their stream is fetched where one row of bytes or nibbles follows it: the
/// processor's own prefetchers stop at page ends, and lag behind where a block takes little arithmetic.
#[cfg(target_arch = "x86_64")]
pub(crate) const AHEAD: usize = 1024;
/// The same where several rows share each weight, and for weights that are floats.
#[cfg(target_arch = "x86_64")]
pub(crate) const FAR_AHEAD: usize = 16 << 10;

/// One memory image of a vector.
pub(crate) type Line = [f32; LANES];

/// The operations. `F` holds 16 lanes of `f32`.
pub(crate) trait Lanes: Copy {
    /// A vector in registers.
    type F: Copy;

    /// The same number in each lane.
    fn splat(self, x: f32) -> Self::F;
    /// From memory.
    fn load(self, x: &Line) -> Self::F;
    /// To memory.
    fn store(self, v: Self::F, out: &mut Line);
    /// From half precision; exact.
    fn load_f16(self, x: &[u16; LANES]) -> Self::F;
    /// To half precision, rounding to nearest even.
    fn store_f16(self, v: Self::F, out: &mut [u16; LANES]);
    /// From bfloat16; exact.
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F;
    /// From bytes; exact.
    fn load_i8(self, x: &[i8; LANES]) -> Self::F;
    /// Asks for the weights some way ahead of `place`; a hint.
    fn fetch_ahead<T>(self, _place: &T) {}
    /// To bytes, rounding to nearest even; lanes must lie in -127..=127.
    fn store_i8(self, v: Self::F, out: &mut [i8; LANES]);
    /// a + b.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a - b.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The greater; b if they are equal or either is no number.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The lesser; b if they are equal or either is no number.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Without sign.
    fn abs(self, a: Self::F) -> Self::F;
    /// The greatest lane, none being NaN.
    fn greatest(self, a: Self::F) -> f32;
    /// 2^n, where n is the integer in the low bits of the lane, as adding 1.5 * 2^23 leaves it there.
    fn power_of_two(self, a: Self::F) -> Self::F;
}

/// Plain arrays.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map2(a: Line, b: Line, f: impl Fn(f32, f32) -> f32) -> Line {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Portable {
    type F = Line;

    #[inline(always)]
    fn splat(self, x: f32) -> Line {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &Line) -> Line {
        *x
    }
    #[inline(always)]
    fn store(self, v: Line, out: &mut Line) {
        *out = v;
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Line {
        x.map(|h| f16::from_bits(h).to_f32())
    }
    #[inline(always)]
    fn store_f16(self, v: Line, out: &mut [u16; LANES]) {
        *out = v.map(|x| f16::from_f32(x).to_bits());
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Line {
        x.map(|h| bf16::from_bits(h).to_f32())
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Line {
        x.map(f32::from)
    }
    #[inline(always)]
    fn store_i8(self, v: Line, out: &mut [i8; LANES]) {
        *out = v.map(|x| x.round_ties_even() as i8);
    }
    #[inline(always)]
    fn add(self, a: Line, b: Line) -> Line {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Line, b: Line) -> Line {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Line, b: Line) -> Line {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Line, b: Line) -> Line {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Line, b: Line, c: Line) -> Line {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Line, b: Line) -> Line {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Line, b: Line) -> Line {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Line) -> Line {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn greatest(self, a: Line) -> f32 {
        a.iter().fold(a[0], |m, &x| if x > m { x } else { m })
    }
    #[inline(always)]
    fn power_of_two(self, a: Line) -> Line {
        a.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(1.0f32.to_bits())))
    }
}
