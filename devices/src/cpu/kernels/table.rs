//! The table of kernels of one instruction set, and its instances.
//!
//! *Invariant:* [`Kernels::of`] is the only constructor, and asks the machine first. That is the proof of every call
//! through the table.

use super::attention::Queries;
use super::cached_bytes::ByteHead;
use super::cached_halves::HalfHead;
use super::lanes::Line;
use super::tile::{Packing, Run};
use super::{Operand, ROWS, portable};
use crate::cpu::Isa;

type Dot = unsafe fn(Run<'_>, &Operand<'_>, (usize, usize), &mut [[Line; ROWS]]);
type Norm = unsafe fn(&[f32], (&[f32], f32), usize, &mut [f32]);
type Quantise = unsafe fn(&[f32], &mut [i8], &mut [f32], &mut [i32]);

/// The kernels of one instruction set.
pub(crate) struct Kernels {
    isa: Isa,
    dot_q8: Dot,
    dot_q4: Dot,
    dot_q4k: Dot,
    dot_f16: Dot,
    dot_bf16: Dot,
    dot_f32: Dot,
    norm: Norm,
    quantise: Quantise,
    swiglu: unsafe fn(&[Line], &mut [Line]),
    narrow: unsafe fn(&Line, &mut [u16; 16]),
    narrow_to_bytes: unsafe fn(&Line, &mut [i8; 16]) -> u16,
    attend_halves: unsafe fn(&HalfHead<'_>, &Queries<'_>, &mut [f32], &mut [f32]),
    attend_bytes: unsafe fn(&ByteHead<'_>, &Queries<'_>, &mut [f32], &mut [f32]),
}

impl Kernels {
    /// The table of `isa`; `None` if the machine lacks it.
    pub(crate) fn of(isa: Isa) -> Option<&'static Kernels> {
        if !isa.is_available() {
            return None;
        }
        match isa {
            Isa::Portable => Some(&PORTABLE),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(&AVX2),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Some(&AVX_VNNI),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Some(&AVX512),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(&NEON),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => Some(&NEON_DOT),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => Some(&NEON_I8MM),
            _ => None,
        }
    }

    /// The instruction set.
    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// Multiplies rows `first..first + rows` (at most [`ROWS`]) of `x` with the 16 outputs of each tile of a run of
    /// `packing`; each tile has its lines in `out`.
    pub(crate) fn dot(
        &self,
        packing: Packing,
        run: Run<'_>,
        x: &Operand<'_>,
        rows: (usize, usize),
        out: &mut [[Line; ROWS]],
    ) {
        assert_eq!(run.tiles, out.len(), "lines for each tile");
        let dot = match packing {
            Packing::Q8 => self.dot_q8,
            Packing::Q4 => self.dot_q4,
            Packing::Q4K => self.dot_q4k,
            Packing::F16 => self.dot_f16,
            Packing::Bf16 => self.dot_bf16,
            Packing::F32 => self.dot_f32,
        };
        // SAFETY: the machine has the table's features, see the file's invariant.
        unsafe { dot(run, x, rows, out) }
    }

    /// See [`super::float::norm`].
    pub(crate) fn norm(&self, x: &[f32], norm: (&[f32], f32), cols: usize, out: &mut [f32]) {
        // SAFETY: as in `dot`.
        unsafe { (self.norm)(x, norm, cols, out) }
    }

    /// See [`super::float::quantise`].
    pub(crate) fn quantise(&self, x: &[f32], q: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
        // SAFETY: as in `dot`.
        unsafe { (self.quantise)(x, q, scales, sums) }
    }

    /// See [`super::float::swiglu`].
    pub(crate) fn swiglu(&self, gates: &[Line], ups: &mut [Line]) {
        // SAFETY: as in `dot`.
        unsafe { (self.swiglu)(gates, ups) }
    }

    /// Rounds 16 floats to half precision.
    pub(crate) fn narrow(&self, x: &Line, out: &mut [u16; 16]) {
        // SAFETY: as in `dot`.
        unsafe { (self.narrow)(x, out) }
    }

    /// See [`super::cached_bytes::narrow_to_bytes`].
    pub(crate) fn narrow_to_bytes(&self, x: &Line, out: &mut [i8; 16]) -> u16 {
        // SAFETY: as in `dot`.
        unsafe { (self.narrow_to_bytes)(x, out) }
    }

    /// See [`super::attention::attend`].
    pub(crate) fn attend_halves(
        &self,
        head: &HalfHead<'_>,
        queries: &Queries<'_>,
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        // SAFETY: as in `dot`.
        unsafe { (self.attend_halves)(head, queries, scores, out) }
    }

    /// See [`super::attention::attend`].
    pub(crate) fn attend_bytes(
        &self,
        head: &ByteHead<'_>,
        queries: &Queries<'_>,
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        // SAFETY: as in `dot`.
        unsafe { (self.attend_bytes)(head, queries, scores, out) }
    }
}

/// Instantiates the kernels that are written over lanes, in a module of functions with the given attributes.
macro_rules! over_lanes {
    ($module:ident, $lanes:expr, [$($attribute:meta),*]) => {
        mod $module {
            #[cfg(target_arch = "x86_64")]
            #[allow(unused_imports, reason = "each instance names the lanes of its own target")]
            use crate::cpu::kernels::lanes_x86;
            #[cfg(target_arch = "aarch64")]
            #[allow(unused_imports, reason = "each instance names the lanes of its own target")]
            use crate::cpu::kernels::lanes_neon;
            use crate::cpu::kernels::attention::{self, Queries};
            use crate::cpu::kernels::cached_bytes::{self, ByteHead};
            use crate::cpu::kernels::cached_halves::HalfHead;
            use crate::cpu::kernels::lanes::{Lanes, Line};
            use crate::cpu::kernels::tile::Run;
            use crate::cpu::kernels::{Operand, ROWS, float, float_dot};

            $(#[$attribute])*
            pub(super) unsafe fn norm(
                x: &[f32],
                norm: (&[f32], f32),
                cols: usize,
                out: &mut [f32],
            ) {
                float::norm($lanes, x, norm, cols, out)
            }

            $(#[$attribute])*
            pub(super) unsafe fn quantise(
                x: &[f32],
                q: &mut [i8],
                scales: &mut [f32],
                sums: &mut [i32],
            ) {
                float::quantise($lanes, x, q, scales, sums)
            }

            $(#[$attribute])*
            pub(super) unsafe fn swiglu(gates: &[Line], ups: &mut [Line]) {
                float::swiglu($lanes, gates, ups)
            }

            $(#[$attribute])*
            pub(super) unsafe fn narrow(x: &Line, out: &mut [u16; 16]) {
                let lanes = $lanes;
                lanes.store_f16(lanes.load(x), out)
            }

            $(#[$attribute])*
            pub(super) unsafe fn narrow_to_bytes(x: &Line, out: &mut [i8; 16]) -> u16 {
                cached_bytes::narrow_to_bytes($lanes, x, out)
            }

            $(#[$attribute])*
            pub(super) unsafe fn attend_halves(
                head: &HalfHead<'_>,
                queries: &Queries<'_>,
                scores: &mut [f32],
                out: &mut [f32],
            ) {
                attention::attend($lanes, head, queries, scores, out)
            }

            $(#[$attribute])*
            pub(super) unsafe fn attend_bytes(
                head: &ByteHead<'_>,
                queries: &Queries<'_>,
                scores: &mut [f32],
                out: &mut [f32],
            ) {
                attention::attend($lanes, head, queries, scores, out)
            }

            $(#[$attribute])*
            pub(super) unsafe fn dot_f16(
                run: Run<'_>,
                x: &Operand<'_>,
                rows: (usize, usize),
                out: &mut [[Line; ROWS]],
            ) {
                float_dot::dot_floats::<_, float_dot::Half>($lanes, run, x, rows, out)
            }

            $(#[$attribute])*
            pub(super) unsafe fn dot_bf16(
                run: Run<'_>,
                x: &Operand<'_>,
                rows: (usize, usize),
                out: &mut [[Line; ROWS]],
            ) {
                float_dot::dot_floats::<_, float_dot::Brain>($lanes, run, x, rows, out)
            }

            $(#[$attribute])*
            pub(super) unsafe fn dot_f32(
                run: Run<'_>,
                x: &Operand<'_>,
                rows: (usize, usize),
                out: &mut [[Line; ROWS]],
            ) {
                float_dot::dot_floats::<_, float_dot::Single>($lanes, run, x, rows, out)
            }
        }
    };
}

/// A table of an instantiated module and the dot products of the quantised packings.
macro_rules! table {
    ($isa:expr, $module:ident, $q8:expr, $q4:expr, $q4k:expr) => {
        Kernels {
            isa: $isa,
            dot_q8: $q8,
            dot_q4: $q4,
            dot_q4k: $q4k,
            dot_f16: $module::dot_f16,
            dot_bf16: $module::dot_bf16,
            dot_f32: $module::dot_f32,
            norm: $module::norm,
            quantise: $module::quantise,
            swiglu: $module::swiglu,
            narrow: $module::narrow,
            narrow_to_bytes: $module::narrow_to_bytes,
            attend_halves: $module::attend_halves,
            attend_bytes: $module::attend_bytes,
        }
    };
}

over_lanes!(plain, crate::cpu::kernels::lanes::Portable, []);

const PORTABLE: Kernels =
    table!(Isa::Portable, plain, portable::dot_q8, portable::dot_q4, portable::dot_q4k);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Kernels;
    use crate::cpu::Isa;
    use crate::cpu::kernels::dot_x86;

    over_lanes!(
        avx2,
        // SAFETY: the function around it demands the features.
        unsafe { lanes_x86::Avx2::assume() },
        [target_feature(enable = "avx2,fma,f16c")]
    );
    over_lanes!(
        avx512,
        // SAFETY: the function around it demands the features.
        unsafe { lanes_x86::Avx512::assume() },
        [target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
    );

    pub(super) const AVX2: Kernels =
        table!(Isa::Avx2, avx2, dot_x86::dot_q8_avx2, dot_x86::dot_q4_avx2, dot_x86::dot_q4k_avx2);
    pub(super) const AVX_VNNI: Kernels = table!(
        Isa::AvxVnni,
        avx2,
        dot_x86::dot_q8_avx_vnni,
        dot_x86::dot_q4_avx2,
        dot_x86::dot_q4k_avx2
    );
    pub(super) const AVX512: Kernels = table!(
        Isa::Avx512Vnni,
        avx512,
        dot_x86::dot_q8_avx512,
        dot_x86::dot_q4_avx512,
        dot_x86::dot_q4k_avx512
    );
}

#[cfg(target_arch = "x86_64")]
use x86::{AVX_VNNI, AVX2, AVX512};

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Kernels;
    use crate::cpu::Isa;
    use crate::cpu::kernels::dot_neon;

    over_lanes!(
        neon,
        // SAFETY: the function around it demands the features.
        unsafe { lanes_neon::Neon::assume() },
        [target_feature(enable = "neon")]
    );

    pub(super) const NEON: Kernels = table!(
        Isa::Neon,
        neon,
        dot_neon::dot_q8_neon,
        dot_neon::dot_q4_neon,
        dot_neon::dot_q4k_neon
    );
    pub(super) const NEON_DOT: Kernels = table!(
        Isa::NeonDot,
        neon,
        dot_neon::dot_q8_dot,
        dot_neon::dot_q4_dot,
        dot_neon::dot_q4k_dot
    );
    pub(super) const NEON_I8MM: Kernels = table!(
        Isa::NeonI8mm,
        neon,
        dot_neon::dot_q8_i8mm,
        dot_neon::dot_q4_i8mm,
        dot_neon::dot_q4k_i8mm
    );
}

#[cfg(target_arch = "aarch64")]
use arm::{NEON, NEON_DOT, NEON_I8MM};
