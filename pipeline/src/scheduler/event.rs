//! What happens to the scheduler, and what it wants done.
//!
//! *Invariant:* every admitted sequence is answered by exactly one [`Action::Reject`], or by any number of
//! [`Action::Emit`], one [`Action::Finish`] and then one [`Action::Release`].

use std::fmt;

use outrider_devices::{Batch, DraftBatch, Drafted, Pick, SequenceId};
use outrider_plans::{Caches, ModelRole};

use super::Units;
use super::admission::{Admission, RejectReason};
use crate::draft_policy::DraftPolicy;
use crate::pacing::GuardState;
use crate::speculator::Discarded;

/// Names one batch until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {}", self.0)
    }
}

/// Something that happened. Answers to a ticket that is not under way (late ones, from a unit given up on) and news of
/// sequences that are no more change nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A request arrived.
    Admit(Admission),
    /// Nobody wants the text any more.
    Cancel(SequenceId),
    /// The text cannot be completed.
    Abort {
        /// Which.
        sequence: SequenceId,
        /// Why, for whoever asked for it.
        reason: String,
    },
    /// The target ran a batch.
    TargetDone {
        /// Which.
        ticket: Ticket,
        /// One pick for each wanted row, in batch order.
        picks: Vec<Pick>,
    },
    /// The draft ran a batch.
    DraftDone {
        /// Which.
        ticket: Ticket,
        /// What came of each segment, in batch order.
        drafted: Vec<Drafted>,
    },
    /// A batch was lost. Its role pauses, as by [`Event::Pause`]; its work is given out again after
    /// [`Event::Resume`].
    Failed {
        /// Whose batch.
        role: ModelRole,
        /// Which.
        ticket: Ticket,
    },
    /// The caches of a role are gone; they are rebuilt from the texts.
    CachesLost {
        /// Whose caches.
        role: ModelRole,
    },
    /// No more batches of this role. Without the draft, decoding goes on as far as it can.
    Pause {
        /// Whose batches.
        role: ModelRole,
    },
    /// The opposite of [`Event::Pause`].
    Resume {
        /// Whose batches.
        role: ModelRole,
    },
    /// New rules for drafting, from here on.
    Configure(DraftPolicy),
    /// Fill a second set of this role's caches, beside the live ones, from the texts of all sequences.
    Warm {
        /// Whose caches.
        role: ModelRole,
    },
    /// A batch for the second set of caches has run.
    WarmDone {
        /// Whose caches.
        role: ModelRole,
        /// Which batch.
        ticket: Ticket,
    },
    /// The second set of caches is not wanted any more.
    StopWarming {
        /// Whose caches.
        role: ModelRole,
    },
    /// Start no more batches of this role until [`Event::CutOver`].
    Hold {
        /// Whose batches.
        role: ModelRole,
    },
    /// Both roles run elsewhere or otherwise from now on. No batch of a role that moves may be under way.
    CutOver(Takeover),
}

/// What one plan hands to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Takeover {
    /// The rules for drafting.
    pub policy: DraftPolicy,
    /// Whether the roles compete for the same cores.
    pub units: Units,
    /// The target's caches.
    pub target: Caches,
    /// The draft's caches; `None` if there is no draft any more.
    pub draft: Option<Caches>,
}

/// A token of the output.
#[derive(Clone, Debug, PartialEq)]
pub struct EmittedToken {
    /// The target's pick: id, probability, alternatives.
    pub pick: Pick,
    /// The text that the token itself completes; empty for a stop token.
    pub text: String,
    /// Whether it had been drafted.
    pub drafted: bool,
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// With an end-of-text or other stop token, the last one emitted.
    Stop,
    /// Before a stop string.
    StopString,
    /// At `max_tokens`, or at the end of the context.
    Length,
    /// On request.
    Cancelled,
    /// By an [`Event::Abort`].
    Failed {
        /// Its reason.
        reason: String,
    },
}

/// Counts of one finished sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Tokens of the prompt.
    pub prompt_n: u32,
    /// Of these, how many an earlier sequence had left in a cache.
    pub cached_n: u32,
    /// Tokens emitted.
    pub predicted_n: u32,
    /// Drafted tokens that were put to the target.
    pub draft_n: u32,
    /// Those that the target picked too.
    pub draft_n_accepted: u32,
    /// Passes of the target that picked tokens.
    pub rounds: u32,
    /// Those that checked no drafted token.
    pub plain_rounds: u32,
    /// Those of them in which the guard kept the request from drafting.
    pub guarded_rounds: u32,
    /// The guard when the text ended.
    pub guard: GuardState,
    /// Drafted tokens that were never put to the target.
    pub discarded: Discarded,
}

/// Something to be done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Run a batch on the target; answer with [`Event::TargetDone`] or [`Event::Failed`].
    RunTarget {
        /// Its name.
        ticket: Ticket,
        /// The rows.
        batch: Batch,
    },
    /// Run a batch on the draft; answer with [`Event::DraftDone`] or [`Event::Failed`].
    RunDraft {
        /// Its name.
        ticket: Ticket,
        /// The rows, and how far to go on from them.
        batch: DraftBatch,
    },
    /// Run a batch that fills the second set of a role's caches; answer with [`Event::WarmDone`] or
    /// [`Event::StopWarming`].
    RunWarm {
        /// Whose caches.
        role: ModelRole,
        /// Its name.
        ticket: Ticket,
        /// The rows; no pick is wanted.
        batch: Batch,
    },
    /// The second set of caches holds what the live one holds, but for a few rows that the first batch after an
    /// [`Event::CutOver`] fills in.
    Warmed {
        /// Whose caches.
        role: ModelRole,
    },
    /// More of a text.
    Emit {
        /// Whose.
        sequence: SequenceId,
        /// New tokens; empty if only text held back is shown.
        tokens: Vec<EmittedToken>,
        /// Text that may be shown now. It lags behind the tokens' own while a stop string is possible.
        text: String,
        /// Drafted tokens put to the target in this round.
        offered: u32,
        /// How many of them, from the first on, the target picked too.
        accepted: u32,
    },
    /// A text has ended; nothing more is emitted.
    Finish {
        /// Which.
        sequence: SequenceId,
        /// Why.
        reason: FinishReason,
        /// Its counts.
        statistics: Statistics,
    },
    /// No work of a finished sequence is under way any more: its caches may go.
    Release {
        /// Which.
        sequence: SequenceId,
    },
    /// A request is turned away.
    Reject {
        /// Which.
        sequence: SequenceId,
        /// Why.
        reason: RejectReason,
    },
}
