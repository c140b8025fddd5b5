//! What a speculator asks of the two models, and what it makes of their answers.

use outrider_devices::Pick;

use crate::pacing::Outcome;

/// Rows for the target: token `tokens[i]` at position `base + i`, the cache cut to `base` first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyWork {
    /// Position of the first row.
    pub base: u32,
    /// The rows; never empty.
    pub tokens: Vec<u32>,
    /// Picks wanted after the last so many rows; 0 for a piece of a prompt.
    pub picks_wanted: u32,
}

/// Rows for the draft, to be continued by up to `steps` drafted tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftWork {
    /// To be handed back with the answer.
    pub epoch: u64,
    /// Position of the first row; the cache is cut to it first.
    pub base: u32,
    /// The rows; never empty.
    pub tokens: Vec<u32>,
    /// Most tokens to draft; at least 1, even for a piece of a prompt, whose one pick is not used.
    pub steps: u32,
}

/// What the target could do next for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it is at work, waits for drafts, or the text is finished.
    Nothing,
    /// Text that its cache lacks, in pieces of any size.
    Prefill,
    /// The last confirmed token, and the drafts after it.
    Decode,
}

/// Why a text ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The last token is a stop token.
    Stop,
    /// The text has its full length.
    Length,
}

/// A token of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Confirmed {
    /// The target's pick.
    pub pick: Pick,
    /// Whether it had been drafted when the target picked it.
    pub drafted: bool,
}

/// What one pass of the target decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// New tokens of the text, in order; empty after a piece of a prompt.
    pub tokens: Vec<Confirmed>,
    /// Drafted tokens that were put to the target, the one checked for free included.
    pub offered: u32,
    /// How many of them the target picked too.
    pub accepted: u32,
    /// Set once, by the verdict that ends the text.
    pub end: Option<End>,
    /// How the drafted tokens fared that were put to the target: the right ones, and the first wrong one.
    pub outcomes: Vec<Outcome>,
}

/// Counts of one sequence. Every drafted token ends up in `offered` or in `discarded`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Passes of the target that picked tokens.
    pub rounds: u32,
    /// Those that checked no drafted token.
    pub plain_rounds: u32,
    /// Drafted tokens that were compared with the target's.
    pub offered: u32,
    /// Those that were equal.
    pub accepted: u32,
    /// Drafted tokens that were never compared.
    pub discarded: Discarded,
}

/// Drafted tokens that were never compared with the target's, by the reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// They followed a wrong one.
    pub diverged: u32,
    /// They came for a text that had taken another turn.
    pub stale: u32,
    /// The rules for drafting had changed.
    pub policy: u32,
    /// The text ended before them.
    pub finished: u32,
}

impl Discarded {
    /// All of them.
    pub fn total(self) -> u32 {
        self.diverged + self.stale + self.policy + self.finished
    }
}
