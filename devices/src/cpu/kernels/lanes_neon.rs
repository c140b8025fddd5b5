//! The lanes of aarch64: four 128-bit registers.
//!
//! *Invariant:* a value of [`Neon`] exists only where NEON was detected, which is the proof of every block below: each
//! calls instructions of it on registers, or on arrays that hold exactly the bytes read or written.

use std::arch::aarch64::{
    float32x4_t, uint16x4_t, vabsq_f32, vaddq_f32, vaddq_s32, vbslq_f32, vcgtq_f32, vcltq_f32,
    vcombine_s8, vcombine_s16, vcvtnq_s32_f32, vcvtq_f32_s32, vdivq_f32, vdupq_n_f32, vdupq_n_s32,
    vfmaq_f32, vget_high_s8, vget_high_s16, vget_low_s8, vget_low_s16, vld1_u16, vld1q_f32,
    vld1q_s8, vmaxvq_f32, vmovl_s8, vmovl_s16, vmovl_u16, vmovn_s16, vmovn_s32, vmulq_f32,
    vreinterpretq_f32_s32, vreinterpretq_f32_u32, vreinterpretq_s32_f32, vshlq_n_s32, vshlq_n_u32,
    vst1_u16, vst1q_f32, vst1q_s8, vsubq_f32,
};
use std::arch::asm;

use super::lanes::{LANES, Lanes, Line};

/// Four 128-bit registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The machine has NEON.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

type Quad = [float32x4_t; 4];

/// Four halves as floats.
#[inline(always)]
fn widen(halves: uint16x4_t) -> float32x4_t {
    let out: float32x4_t;
    // SAFETY: a conversion between registers that every aarch64 processor has.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) out, in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// Four floats as halves, rounded to nearest even.
#[inline(always)]
fn narrow(floats: float32x4_t) -> uint16x4_t {
    let out: uint16x4_t;
    // SAFETY: a conversion between registers that every aarch64 processor has.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) out, in(vreg) floats,
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// Applies an expression to each of the four registers.
macro_rules! four {
    (|$($name:ident: $value:ident),+| $body:expr) => {{
        let apply = |i: usize| {
            $(let $name = $value[i];)+
            // SAFETY: see the file's invariant.
            unsafe { $body }
        };
        [apply(0), apply(1), apply(2), apply(3)]
    }};
}

impl Lanes for Neon {
    type F = Quad;

    #[inline(always)]
    fn splat(self, x: f32) -> Quad {
        // SAFETY: see the file's invariant.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn load(self, x: &Line) -> Quad {
        let (parts, _) = x.as_chunks::<4>();
        four!(|part: parts| vld1q_f32(part.as_ptr()))
    }
    #[inline(always)]
    fn store(self, v: Quad, out: &mut Line) {
        for (part, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(v) {
            // SAFETY: see the file's invariant.
            unsafe { vst1q_f32(part.as_mut_ptr(), v) }
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Quad {
        let (parts, _) = x.as_chunks::<4>();
        four!(|part: parts| widen(vld1_u16(part.as_ptr())))
    }
    #[inline(always)]
    fn store_f16(self, v: Quad, out: &mut [u16; LANES]) {
        for (part, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(v) {
            // SAFETY: see the file's invariant.
            unsafe { vst1_u16(part.as_mut_ptr(), narrow(v)) }
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u16; LANES]) -> Quad {
        let (parts, _) = x.as_chunks::<4>();
        four!(|part: parts| {
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(part.as_ptr()))))
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Quad {
        // SAFETY: see the file's invariant.
        unsafe {
            let all = vld1q_s8(x.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(all)), vmovl_s8(vget_high_s8(all)));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))),
            ]
        }
    }
    #[inline(always)]
    fn store_i8(self, v: Quad, out: &mut [i8; LANES]) {
        // SAFETY: see the file's invariant.
        unsafe {
            let low =
                vcombine_s16(vmovn_s32(vcvtnq_s32_f32(v[0])), vmovn_s32(vcvtnq_s32_f32(v[1])));
            let high =
                vcombine_s16(vmovn_s32(vcvtnq_s32_f32(v[2])), vmovn_s32(vcvtnq_s32_f32(v[3])));
            vst1q_s8(out.as_mut_ptr(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
    }
    #[inline(always)]
    fn add(self, a: Quad, b: Quad) -> Quad {
        four!(|a: a, b: b| vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Quad, b: Quad) -> Quad {
        four!(|a: a, b: b| vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Quad, b: Quad) -> Quad {
        four!(|a: a, b: b| vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: Quad, b: Quad) -> Quad {
        four!(|a: a, b: b| vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Quad, b: Quad, c: Quad) -> Quad {
        four!(|a: a, b: b, c: c| vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn max(self, a: Quad, b: Quad) -> Quad {
        four!(|a: a, b: b| vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn min(self, a: Quad, b: Quad) -> Quad {
        four!(|a: a, b: b| vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn abs(self, a: Quad) -> Quad {
        four!(|a: a| vabsq_f32(a))
    }
    #[inline(always)]
    fn greatest(self, a: Quad) -> f32 {
        let m = four!(|a: a| vmaxvq_f32(a));
        m[0].max(m[1]).max(m[2].max(m[3]))
    }
    #[inline(always)]
    fn power_of_two(self, a: Quad) -> Quad {
        four!(|a: a| {
            let shifted = vshlq_n_s32::<23>(vreinterpretq_s32_f32(a));
            vreinterpretq_f32_s32(vaddq_s32(shifted, vdupq_n_s32(0x3f80_0000)))
        })
    }
}
