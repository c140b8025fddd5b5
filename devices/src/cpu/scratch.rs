//! Operands of projections on their way from float rows to bytes: one set for the team, and one for each member.

use super::kernels::tile::BLOCK;
use super::kernels::{Operand, QUERIES};
use super::memory::{Pages, Shared};

/// Room for some rows, as floats and as bytes.
pub(crate) struct OperandRows {
    floats: Pages<f32>,
    q: Pages<i8>,
    scales: Pages<f32>,
    sums: Pages<i32>,
}

impl OperandRows {
    /// Room for `rows` of `widest`; as floats only where these are read.
    pub(crate) fn new(rows: usize, widest: usize, floats: bool) -> Option<Self> {
        let len = rows * widest;
        Some(Self {
            floats: Pages::zeroed(if floats { len } else { 0 })?,
            q: Pages::zeroed(len)?,
            scales: Pages::zeroed(len / BLOCK)?,
            sums: Pages::zeroed(len / BLOCK)?,
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.floats.bytes() + self.q.bytes() + self.scales.bytes() + self.sums.bytes()
    }

    /// A view for the team.
    pub(crate) fn share(&mut self) -> OperandView<'_> {
        OperandView {
            floats: self.floats.share(),
            q: self.q.share(),
            scales: self.scales.share(),
            sums: self.sums.share(),
        }
    }
}

/// A view of [`OperandRows`].
#[derive(Clone, Copy)]
pub(crate) struct OperandView<'a> {
    pub(crate) floats: Shared<'a, f32>,
    pub(crate) q: Shared<'a, i8>,
    pub(crate) scales: Shared<'a, f32>,
    pub(crate) sums: Shared<'a, i32>,
}

impl<'a> OperandView<'a> {
    /// The first `rows` rows of `cols` as an operand, with floats and bytes as wanted.
    ///
    /// # Safety
    /// Nobody writes these rows while the operand is in use.
    pub(crate) unsafe fn operand(
        &self,
        rows: usize,
        cols: usize,
        (floats, bytes): (bool, bool),
    ) -> Operand<'a> {
        let (len, blocks) = (rows * cols, rows * cols / BLOCK);
        // SAFETY: the caller's promise, for each of the parts.
        unsafe {
            Operand {
                cols,
                floats: self.floats.read(0, if floats { len } else { 0 }),
                q: self.q.read(0, if bytes { len } else { 0 }),
                scales: self.scales.read(0, if bytes { blocks } else { 0 }),
                sums: self.sums.read(0, if bytes { blocks } else { 0 }),
            }
        }
    }
}

/// One member's own buffers.
pub(crate) struct Scratch {
    pub(crate) operand: OperandRows,
    /// One row between norm and quantisation.
    pub(crate) row: Pages<f32>,
    /// Scores of the queries of one attention call.
    pub(crate) scores: Pages<f32>,
    /// Results of one attention call.
    pub(crate) attended: Pages<f32>,
}

impl Scratch {
    /// Buffers for `rows` private operand rows of `widest`, `positions` of attention, and heads of `head_dim`.
    pub(crate) fn new(
        (rows, widest, floats): (usize, usize, bool),
        positions: usize,
        head_dim: usize,
    ) -> Option<Self> {
        Some(Self {
            operand: OperandRows::new(rows, widest, floats)?,
            row: Pages::zeroed(widest)?,
            scores: Pages::zeroed(QUERIES * positions)?,
            attended: Pages::zeroed(QUERIES * head_dim)?,
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.operand.bytes() + self.row.bytes() + self.scores.bytes() + self.attended.bytes()
    }
}
