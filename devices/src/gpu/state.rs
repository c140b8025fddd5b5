//! What the kernels know of a pass: for each row its slot, position and token, and which rows want a result how.
//!
//! The state is two regions of the same layout: the first is of the pass that the host writes, the second of the later
//! steps of a draft, which the device fills in. *Invariant:* every word that a kernel uses as an index is below the
//! bound that the kernel was generated for; [`State::row`] asserts it.

use crate::Sampling;

/// Most steps of one draft submission.
pub(super) const DRAFT_STEPS_MAX: usize = 32;

/// Bounds of the words of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateBounds {
    /// Rows of a pass, a multiple of 16, so that a region is a multiple of 256 bytes.
    pub(super) capacity: usize,
    pub(super) slots: usize,
    pub(super) positions: usize,
    /// `None` where the stage reads no tokens.
    pub(super) tokens: Option<usize>,
}

impl StateBounds {
    /// Picks that a submission may answer with. One more place takes those that nobody asked for.
    pub(super) fn picks(&self) -> usize {
        self.capacity.max(DRAFT_STEPS_MAX * self.slots.min(self.capacity))
    }

    /// 4-vectors of a region: a row is one, a wanted row two.
    pub(super) fn region(&self) -> usize {
        3 * self.capacity
    }

    /// Bytes of both regions.
    pub(super) fn bytes(&self) -> u64 {
        self.region() as u64 * 2 * 16
    }
}

/// A row of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) slot: u32,
    pub(super) position: u32,
    pub(super) token: u32,
    /// Steps left to run of this row: 0 computes nothing that lasts.
    pub(super) live: u32,
}

/// A row that runs through the head.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadRow<'a> {
    /// Its row of the pass.
    pub(super) row: usize,
    pub(super) sampling: &'a Sampling,
    /// Where its pick goes, and by how much that moves on after each step of a draft.
    pub(super) answer: (usize, usize),
}

/// One region, being written.
#[derive(Clone, Debug)]
pub(super) struct State {
    bounds: StateBounds,
    words: Vec<[u32; 4]>,
}

impl State {
    /// Rows that compute nothing that lasts.
    pub(super) fn new(bounds: StateBounds) -> Self {
        let mut words = vec![[0; 4]; bounds.region()];
        for index in 0..bounds.capacity {
            words[bounds.capacity + 2 * index + 1][0] = bounds.picks() as u32;
        }
        Self { bounds, words }
    }

    /// Writes row `index`.
    pub(super) fn row(&mut self, index: usize, row: Row) {
        let Row { slot, position, token, live } = row;
        assert!(index < self.bounds.capacity, "row {index} of a pass");
        assert!((slot as usize) < self.bounds.slots, "slot {slot}");
        assert!((position as usize) < self.bounds.positions, "position {position}");
        assert!(
            self.bounds.tokens.is_none_or(|n| (token as usize) < n),
            "token {token} of a vocabulary of {:?}",
            self.bounds.tokens
        );
        // A stage that reads no tokens never looks at them.
        self.words[index] = [slot, position, token, live];
    }

    /// Writes wanted row `index`.
    pub(super) fn head_row(&mut self, index: usize, head: HeadRow<'_>) {
        assert!(index < self.bounds.capacity && head.row < self.bounds.capacity, "wanted row");
        let Sampling { temperature, seed, .. } = *head.sampling;
        let inverse = if head.sampling.is_greedy() { 0.0 } else { 1.0 / temperature };
        let at = self.bounds.capacity + 2 * index;
        self.words[at] = [head.row as u32, inverse.to_bits(), seed as u32, (seed >> 32) as u32];
        self.words[at + 1] = [head.answer.0 as u32, head.answer.1 as u32, 0, 0];
    }

    pub(super) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }
}
