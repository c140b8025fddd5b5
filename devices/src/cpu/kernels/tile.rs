//! How packed weights lie in memory: tiles of 16 output rows, each one contiguous stream.
//!
//! In a quantised tile four consecutive inputs of an output lie together, and the 16 outputs side by side: 64 bytes
//! feed 16 dot products of length 4. A block is 32 inputs of all 16 outputs. As many blocks as fill a cache line with their
//! scales are a chunk: that line, then their weights. So a core follows one stream and no second one of scales, beside which
//! the processor's prefetchers lose their way. *Invariant:* chunks begin at cache lines, and this file alone knows the
//! offsets.

use super::super::memory::LINE;
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

    /// Blocks that share a line of scales; of `Q4K`, a super-block's.
    const fn chunk_blocks(self) -> usize {
        match self {
            Packing::Q8 | Packing::Q4 => LINE / (2 * TILE),
            Packing::Q4K => SUPER / BLOCK,
            Packing::F16 | Packing::Bf16 | Packing::F32 => 1,
        }
    }

    /// Bytes before the weights of a chunk.
    const fn scales_bytes(self) -> usize {
        match self {
            Packing::Q8 | Packing::Q4 => LINE,
            Packing::Q4K => 4 * TILE + SUPER / BLOCK * 2 * TILE,
            Packing::F16 | Packing::Bf16 | Packing::F32 => 0,
        }
    }

    /// Bytes of a chunk.
    pub(crate) const fn chunk_bytes(self) -> usize {
        self.scales_bytes() + self.chunk_blocks() * self.block_bytes()
    }

    /// Bytes of a chunk that fall to a block, its part of the scales included.
    #[cfg(target_arch = "x86_64")]
    const fn share_bytes(self) -> usize {
        self.chunk_bytes() / self.chunk_blocks()
    }

    /// Cache lines that a block's share of the stream may touch.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const fn share_lines(self) -> usize {
        self.share_bytes().div_ceil(LINE)
    }

    /// Where a block lies.
    #[inline(always)]
    pub(crate) const fn place(self, block: usize) -> BlockPlace {
        let chunk = block / self.chunk_blocks() * self.chunk_bytes();
        let nth = block % self.chunk_blocks();
        let supers = if matches!(self, Packing::Q4K) { 4 * TILE } else { 0 };
        BlockPlace {
            #[cfg(target_arch = "x86_64")]
            stream: chunk + nth * self.share_bytes(),
            supers: chunk,
            scales: chunk + supers + nth * 2 * TILE,
            weights: chunk + self.scales_bytes() + nth * self.block_bytes(),
        }
    }

    /// Bytes of the weights of one block.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Packing::Q8 => BLOCK * TILE,
            Packing::Q4 | Packing::Q4K => BLOCK * TILE / 2,
            Packing::F16 | Packing::Bf16 => BLOCK * TILE * 2,
            Packing::F32 => BLOCK * TILE * 4,
        }
    }

    /// Bytes of a tile of `cols` inputs, a multiple of 32. The last chunk is whole, whatever it holds.
    pub(crate) const fn tile_bytes(self, cols: usize) -> usize {
        (cols / BLOCK).div_ceil(self.chunk_blocks()) * self.chunk_bytes()
    }
}

/// Tiles that one call of a dot kernel goes through: what precedes the first block is then done once for all of them.
pub(crate) const RUN: usize = 4;

/// Some tiles of one width and packing, at equal distances.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    /// From the first tile's first byte on.
    pub(crate) bytes: &'a [u8],
    /// From a tile to the next, bytes.
    pub(crate) stride: usize,
    /// How many there are; at least 1.
    pub(crate) tiles: usize,
}

impl<'a> Run<'a> {
    /// A single tile.
    #[cfg(test)]
    pub(crate) fn of_one(bytes: &'a [u8]) -> Self {
        Self { bytes, stride: bytes.len(), tiles: 1 }
    }

    /// The bytes of each tile, and what follows.
    pub(crate) fn each(self) -> impl Iterator<Item = &'a [u8]> {
        (0..self.tiles).map(move |tile| &self.bytes[tile * self.stride..])
    }
}

/// Where a block lies in its tile, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockPlace {
    /// Its share of the chunk, scales and weights alike, if that is read from end to end.
    #[cfg(target_arch = "x86_64")]
    pub(crate) stream: usize,
    /// Of `Q4K`, the scales and the minima of its super-block.
    pub(crate) supers: usize,
    /// Its scales; of `Q4K`, its factors of scale and of minimum.
    pub(crate) scales: usize,
    /// Its weights.
    pub(crate) weights: usize,
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
