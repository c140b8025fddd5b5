//! The instruction sets that kernels exist for, and which of them this machine has.
//!
//! *Invariant:* which one runs changes no bit of any result.

use std::fmt;

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust on any machine: the oracle of the others.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// As `Avx2`, with the 256-bit byte dot product.
    AvxVnni,
    /// x86-64 with AVX-512 and its byte dot product.
    Avx512Vnni,
    /// aarch64 as every such processor has it.
    Neon,
    /// As `Neon`, with the byte dot product.
    NeonDot,
    /// As `NeonDot`, with the product of two by eight matrices of bytes (i8mm).
    NeonI8mm,
}

impl Isa {
    /// Those that this machine can run, best first; never empty.
    pub fn available() -> Vec<Isa> {
        [
            Isa::Avx512Vnni,
            Isa::AvxVnni,
            Isa::Avx2,
            Isa::NeonI8mm,
            Isa::NeonDot,
            Isa::Neon,
            Isa::Portable,
        ]
        .into_iter()
        .filter(|isa| isa.is_available())
        .collect()
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => has_avx2() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                has_avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => {
                std::arch::is_aarch64_feature_detected!("neon")
                    && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => {
                Isa::NeonDot.is_available() && std::arch::is_aarch64_feature_detected!("i8mm")
            }
            _ => false,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "AVX2",
            Isa::AvxVnni => "AVX-VNNI",
            Isa::Avx512Vnni => "AVX512-VNNI",
            Isa::Neon => "NEON",
            Isa::NeonDot => "NEON dotprod",
            Isa::NeonI8mm => "NEON i8mm",
        })
    }
}
