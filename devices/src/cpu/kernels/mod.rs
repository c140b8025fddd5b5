//! The kernels of every instruction set behind one table of functions.
//!
//! *Invariant:* a [`Kernels`] table exists only for an instruction set that the machine has, and all tables compute the
//! same bits.

mod attention;
#[expect(clippy::needless_range_loop, reason = "rows and registers go by number")]
mod cached_bytes;
#[expect(clippy::needless_range_loop, reason = "rows and registers go by number")]
mod cached_halves;
#[cfg(target_arch = "aarch64")]
#[expect(clippy::needless_range_loop, reason = "rows and registers go by number")]
mod dot_neon;
#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "rows and registers go by number")]
mod dot_x86;
mod float;
mod float_dot;
pub(crate) mod lanes;
#[cfg(target_arch = "aarch64")]
mod lanes_neon;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
mod portable;
mod table;
#[cfg(test)]
mod tests;
pub(crate) mod tile;

pub(crate) use attention::{QUERIES, Queries};
pub(crate) use cached_bytes::ByteHead;
pub(crate) use cached_halves::HalfHead;
pub(crate) use table::Kernels;

/// Asks for the memory some way ahead of `place`, as the kernels do for their weights; a hint.
pub(crate) fn fetch_ahead<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    dot_x86::fetch_ahead::<1, 1>(std::ptr::from_ref(place).cast());
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Most rows of one call of a dot kernel.
pub(crate) const ROWS: usize = 8;

/// The rows that a projection multiplies: quantised, as floats, or both, each row `cols` wide.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// Width of a row, a multiple of 32.
    pub(crate) cols: usize,
    /// Rows as floats; empty if no packing in use reads them.
    pub(crate) floats: &'a [f32],
    /// Rows as bytes; empty if no packing in use reads them.
    pub(crate) q: &'a [i8],
    /// One for each 32 bytes.
    pub(crate) scales: &'a [f32],
    /// Sum of each 32 bytes.
    pub(crate) sums: &'a [i32],
}

impl<'a> Operand<'a> {
    fn block(&self, row: usize, block: usize) -> &'a [i8] {
        &self.q[row * self.cols + block * tile::BLOCK..][..tile::BLOCK]
    }

    fn scale(&self, row: usize, block: usize) -> f32 {
        self.scales[row * (self.cols / tile::BLOCK) + block]
    }

    fn sum(&self, row: usize, block: usize) -> i32 {
        self.sums[row * (self.cols / tile::BLOCK) + block]
    }

    fn floats(&self, row: usize) -> &'a [f32] {
        &self.floats[row * self.cols..][..self.cols]
    }
}
