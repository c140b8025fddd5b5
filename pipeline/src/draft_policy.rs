//! How far a draft may run ahead, and how long the target waits for it: the numbers that a plan chooses and a request
//! may override.
//!
//! *Invariant:* a policy changes when a token is computed, never which token.

use crate::lookup::Ngrams;

/// Who drafts, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodingMode {
    /// The target alone.
    Plain,
    /// Drafts from earlier text (see [`DraftPolicy::lookup`]); no draft model.
    Lookup,
    /// Draft `depth` tokens, then verify them in one pass; the draft rests meanwhile.
    Sequential,
    /// The draft goes on while the target verifies what is pending.
    Overlap {
        /// Most tokens of one draft job; small jobs reach the target sooner, large ones cost fewer messages.
        chunk: u32,
        /// Drafts that the target waits for when a pass left none pending (g0); 0 never waits.
        wait: u32,
    },
}

/// Who decides how long a draft is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The policy: `depth` tokens, whatever comes of them.
    Fixed,
    /// The stop rule: as many of `depth` as are worth their time (see [`crate::pacing`]).
    Worth,
}

/// Whether drafting is switched off while it makes decoding slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarding {
    /// It goes on, whatever it costs.
    Off,
    /// It is.
    On,
}

/// A plan's rules for drafting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftPolicy {
    /// Who drafts, and when.
    pub mode: DecodingMode,
    /// Most drafted tokens in one pass of the target. An overlapped draft is at most a pass, its free check and
    /// another pass ahead.
    pub depth: u32,
    /// Who decides how long a draft is.
    pub pace: Pace,
    /// Whether drafting stops while it does not pay.
    pub guarding: Guarding,
    /// The draft stops before a token that it holds less likely than this; 0 never stops it.
    pub probability_min: f32,
    /// Where earlier text holds a continuation, it is drafted without asking the draft model. Required by
    /// [`DecodingMode::Lookup`], optional beside a draft model.
    pub lookup: Option<Ngrams>,
}

/// What a request asks of speculation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// Whatever the plan says.
    #[default]
    Plan,
    /// None.
    Off,
    /// As the plan says, but with exactly this depth. A plan without drafts stays without; 0 is off.
    Depth(u32),
}

impl DraftPolicy {
    /// The target alone.
    pub fn plain() -> Self {
        Self {
            mode: DecodingMode::Plain,
            depth: 0,
            pace: Pace::Fixed,
            guarding: Guarding::Off,
            probability_min: 0.0,
            lookup: None,
        }
    }

    /// Draft and target take turns.
    pub fn sequential(depth: u32) -> Self {
        Self { mode: DecodingMode::Sequential, depth, ..Self::plain() }
    }

    /// Draft and target run at the same time.
    pub fn overlap(depth: u32, chunk: u32, wait: u32) -> Self {
        Self { mode: DecodingMode::Overlap { chunk, wait }, depth, ..Self::plain() }
    }

    /// Earlier text is the draft.
    pub fn lookup(depth: u32, ngrams: Ngrams) -> Self {
        Self { mode: DecodingMode::Lookup, depth, lookup: Some(ngrams), ..Self::plain() }
    }

    /// The same policy with earlier text tried before the draft model.
    pub fn with_lookup(self, ngrams: Ngrams) -> Self {
        Self { lookup: Some(ngrams), ..self }
    }

    /// The same policy with the stop rule deciding how much of its depth is used, and the guard.
    pub fn by_worth(self) -> Self {
        Self { pace: Pace::Worth, ..self }.guarded()
    }

    /// The same policy with the guard.
    pub fn guarded(self) -> Self {
        Self { guarding: Guarding::On, ..self }
    }

    /// What is left of the policy while the draft model cannot run.
    pub fn without_draft(self) -> Self {
        match self.lookup {
            Some(ngrams) => Self { guarding: self.guarding, ..Self::lookup(self.depth, ngrams) },
            None => Self::plain(),
        }
    }

    /// The policy for one request.
    pub fn for_request(self, speculation: Speculation) -> Self {
        let (depth, pace) = match speculation {
            Speculation::Plan => (self.depth, self.pace),
            Speculation::Off => (0, self.pace),
            Speculation::Depth(depth) => (depth, Pace::Fixed),
        };
        if depth == 0 || self.depth == 0 || self.mode == DecodingMode::Plain {
            return Self::plain();
        }
        Self { depth, pace, ..self }
    }

    /// Whether a draft model takes part.
    pub fn uses_draft(self) -> bool {
        let drafts = matches!(self.mode, DecodingMode::Sequential | DecodingMode::Overlap { .. });
        drafts && self.depth > 0
    }

    /// Whether anything but the policy itself decides how far drafts go.
    pub fn is_paced(self) -> bool {
        self.mode != DecodingMode::Plain
            && (self.pace == Pace::Worth || self.guarding == Guarding::On)
    }

    /// How long the tail of unconfirmed tokens may grow while a pass of the target checks `checking` of them.
    pub(crate) fn tail_max(self, checking: Option<u32>) -> u32 {
        match (self.mode, checking) {
            (DecodingMode::Overlap { .. }, Some(checking)) => checking + 1 + self.depth,
            _ => self.depth,
        }
    }

    /// Most tokens of one draft job.
    pub(crate) fn chunk(self) -> u32 {
        match self.mode {
            DecodingMode::Overlap { chunk, .. } => chunk.max(1),
            _ => self.depth,
        }
    }

    /// How many drafts the target waits for, if more can still come, when the pass before left none.
    pub(crate) fn wait(self) -> u32 {
        match self.mode {
            DecodingMode::Plain | DecodingMode::Lookup => 0,
            DecodingMode::Sequential => self.depth,
            DecodingMode::Overlap { wait, .. } => wait.min(self.depth),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DecodingMode, DraftPolicy, Speculation};
    use crate::lookup::Ngrams;

    #[test]
    fn a_request_changes_the_depth_but_cannot_conjure_a_draft() {
        let plan = DraftPolicy::sequential(4);
        assert_eq!(plan.for_request(Speculation::Plan), plan);
        assert_eq!(plan.for_request(Speculation::Depth(7)), DraftPolicy::sequential(7));
        for off in [Speculation::Off, Speculation::Depth(0)] {
            assert_eq!(plan.for_request(off), DraftPolicy::plain());
        }
        let plain = DraftPolicy::plain().for_request(Speculation::Depth(7));
        assert!(!plain.uses_draft() && plain == DraftPolicy::plain());
    }

    #[test]
    fn without_its_draft_a_policy_keeps_its_lookup() {
        assert_eq!(DraftPolicy::overlap(4, 2, 1).without_draft(), DraftPolicy::plain());
        let mixed = DraftPolicy::overlap(4, 2, 1).with_lookup(Ngrams::default());
        assert_eq!(mixed.without_draft().mode, DecodingMode::Lookup);
    }
}
