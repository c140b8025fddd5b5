//! How packed weights lie in memory: tiles of 16 output rows, each one contiguous stream.
//!
//! In a quantised tile four consecutive inputs of an output lie together, and the 16 outputs side by side: 64 bytes
//! feed 16 dot products of length 4. A block is 32 inputs of all 16 outputs. The scales of all blocks precede the
//! weights. *Invariant:* tiles begin at cache lines, and this file alone knows the offsets.

use super::lanes::LANES;

/// Outputs of a tile.
pub(crate) const TILE: usize = LANES;
/// Inputs of a block.
pub(crate) const BLOCK: usize = 32;
/// Inputs of a super-block of `Q4K`.
pub(crate) const SUPER: usize = 256;

/// How the weights of a tile are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Packing {
    /// Bytes with an f16 scale per block.
    Q8,
    /// Nibbles less 8 with an f16 scale per block.
    Q4,
    /// Nibbles with an f16 scale and minimum per 256 inputs, each times a six-bit factor per block.
    Q4K,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Single precision.
    F32,
}

impl Packing {
    /// Whether the activations are quantised for it.
    pub(crate) fn is_quantised(self) -> bool {
        matches!(self, Packing::Q8 | Packing::Q4 | Packing::Q4K)
    }

    /// Bytes before the weights of a tile of `cols` inputs.
    pub(crate) fn head_bytes(self, cols: usize) -> usize {
        let (blocks, line) = (cols / BLOCK, super::super::memory::LINE);
        match self {
            Packing::Q8 | Packing::Q4 => (blocks * TILE * 2).next_multiple_of(line),
            Packing::Q4K => cols / SUPER * TILE * 4 + (blocks * TILE * 2).next_multiple_of(line),
            Packing::F16 | Packing::Bf16 | Packing::F32 => 0,
        }
    }

    /// Bytes of the weights of one block.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Packing::Q8 => BLOCK * TILE,
            Packing::Q4 | Packing::Q4K => BLOCK * TILE / 2,
            Packing::F16 | Packing::Bf16 => BLOCK * TILE * 2,
            Packing::F32 => BLOCK * TILE * 4,
        }
    }

    /// Bytes of a tile of `cols` inputs, a multiple of 32.
    pub(crate) fn tile_bytes(self, cols: usize) -> usize {
        self.head_bytes(cols) + cols / BLOCK * self.block_bytes()
    }
}

/// The place of (input of the block, output) among the bytes of a block of `Q8`.
pub(crate) fn q8_place(input: usize, output: usize) -> usize {
    input / 4 * (4 * TILE) + output * 4 + input % 4
}

/// The place of (input of the block, output) in a block of nibbles: byte, and whether it is the upper half. Inputs
/// 0..16 are the lower halves.
pub(crate) fn q4_place(input: usize, output: usize) -> (usize, bool) {
    (q8_place(input % 16, output), input >= 16)
}
