//! The decoding modes that a plan can name, with the numbers that each needs.
//!
//! *Invariant:* a [`Mode`] is within bounds: it cannot be built with a depth that a verification pass does not take.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use crate::error::PlanProblem;

/// Most tokens that may be drafted for one verification pass: with the row that checks the last of them, a pass has at
/// most 16 rows.
pub const DRAFT_TOKENS_MAX: u32 = 15;
/// Drafted tokens for one pass where a plan does not say.
pub const DRAFT_TOKENS_DEFAULT: u32 = 4;
/// Drafts that `overlap` waits for after a rejection, where a plan does not say.
pub const WAIT_DEFAULT: u32 = 1;
/// Longest n-gram that `lookup` matches, where a plan does not say.
pub const LOOKUP_NGRAM_DEFAULT: u32 = 3;
/// Longest n-gram that a plan may ask `lookup` to match.
pub const LOOKUP_NGRAM_MAX: u32 = 8;

/// How many tokens are drafted for one verification pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DraftTokens {
    /// At most so many, 1 to [`DRAFT_TOKENS_MAX`], whatever comes of them.
    Fixed(u32),
    /// As many as are worth their time, decided token by token while decoding.
    Auto,
}

impl DraftTokens {
    /// Most tokens that a pass may take.
    pub fn most(self) -> u32 {
        match self {
            DraftTokens::Fixed(tokens) => tokens,
            DraftTokens::Auto => DRAFT_TOKENS_MAX,
        }
    }

    /// The depths that a pass may have at its fullest: the number itself, or any.
    pub fn depths(self) -> std::ops::RangeInclusive<u32> {
        match self {
            DraftTokens::Fixed(tokens) => tokens..=tokens,
            DraftTokens::Auto => 1..=DRAFT_TOKENS_MAX,
        }
    }
}

impl fmt::Display for DraftTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DraftTokens::Fixed(tokens) => write!(f, "{tokens}"),
            DraftTokens::Auto => f.write_str("auto"),
        }
    }
}

/// A number, or the word `auto`.
impl Serialize for DraftTokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            DraftTokens::Fixed(tokens) => serializer.serialize_u32(*tokens),
            DraftTokens::Auto => serializer.serialize_str("auto"),
        }
    }
}

/// Text that is neither a depth within bounds nor `auto`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number of drafted tokens: choose 1 to {DRAFT_TOKENS_MAX}, or auto")]
pub struct UnknownDepth(pub String);

impl FromStr for DraftTokens {
    type Err = UnknownDepth;

    fn from_str(word: &str) -> Result<Self, UnknownDepth> {
        if word == "auto" {
            return Ok(DraftTokens::Auto);
        }
        let number = word.parse().ok().filter(|tokens| (1..=DRAFT_TOKENS_MAX).contains(tokens));
        number.map(DraftTokens::Fixed).ok_or_else(|| UnknownDepth(word.to_owned()))
    }
}

/// A mode without its numbers: what `mode = ".."` says in a plan file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeKind {
    /// The target alone.
    Plain,
    /// Draft some tokens, then verify them in one pass.
    Sequential,
    /// The draft goes on while the target verifies.
    Overlap,
    /// Drafts come from n-grams of the text so far, then from the draft model if the plan has one.
    Lookup,
}

impl ModeKind {
    /// Every mode.
    pub const ALL: [ModeKind; 4] =
        [ModeKind::Plain, ModeKind::Sequential, ModeKind::Overlap, ModeKind::Lookup];

    /// The word in plan files, flags and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            ModeKind::Plain => "plain",
            ModeKind::Sequential => "sequential",
            ModeKind::Overlap => "overlap",
            ModeKind::Lookup => "lookup",
        }
    }

    /// The mode with its default numbers.
    pub fn with_defaults(self) -> Mode {
        let draft_tokens = DraftTokens::Fixed(DRAFT_TOKENS_DEFAULT);
        match self {
            ModeKind::Plain => Mode::Plain,
            ModeKind::Sequential => Mode::Sequential { draft_tokens },
            ModeKind::Overlap => Mode::Overlap { draft_tokens, wait: WAIT_DEFAULT },
            ModeKind::Lookup => {
                Mode::Lookup { draft_tokens: DRAFT_TOKENS_DEFAULT, ngram: LOOKUP_NGRAM_DEFAULT }
            }
        }
    }

    /// Whether the mode cannot run without a draft model.
    pub fn needs_draft(self) -> bool {
        matches!(self, ModeKind::Sequential | ModeKind::Overlap)
    }
}

impl fmt::Display for ModeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is not a mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a mode: choose plain, sequential, overlap or lookup")]
pub struct UnknownMode(pub String);

impl FromStr for ModeKind {
    type Err = UnknownMode;

    fn from_str(word: &str) -> Result<Self, UnknownMode> {
        let found = ModeKind::ALL.into_iter().find(|mode| mode.as_str() == word);
        found.ok_or_else(|| UnknownMode(word.to_owned()))
    }
}

/// How tokens are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Mode {
    /// The target alone.
    Plain,
    /// Draft, verify, repeat.
    Sequential {
        /// Most tokens drafted for one verification pass.
        draft_tokens: DraftTokens,
    },
    /// Draft and verify at the same time.
    Overlap {
        /// Most drafted tokens that one verification pass takes.
        draft_tokens: DraftTokens,
        /// Drafts that the first pass after a rejection waits for, 0 to `draft_tokens`.
        wait: u32,
    },
    /// Draft from n-grams of prompt and output.
    Lookup {
        /// Most tokens drafted for one verification pass, 1 to [`DRAFT_TOKENS_MAX`].
        draft_tokens: u32,
        /// Longest n-gram to match, 1 to [`LOOKUP_NGRAM_MAX`]; shorter ones are tried after it.
        ngram: u32,
    },
}

impl Mode {
    /// The mode without its numbers.
    pub fn kind(self) -> ModeKind {
        match self {
            Mode::Plain => ModeKind::Plain,
            Mode::Sequential { .. } => ModeKind::Sequential,
            Mode::Overlap { .. } => ModeKind::Overlap,
            Mode::Lookup { .. } => ModeKind::Lookup,
        }
    }

    /// Most drafted tokens in one verification pass; 0 for [`Mode::Plain`].
    pub fn draft_tokens(self) -> u32 {
        self.depth().map_or(0, DraftTokens::most)
    }

    /// How the depth is chosen; `None` for [`Mode::Plain`].
    pub fn depth(self) -> Option<DraftTokens> {
        match self {
            Mode::Plain => None,
            Mode::Sequential { draft_tokens } | Mode::Overlap { draft_tokens, .. } => {
                Some(draft_tokens)
            }
            Mode::Lookup { draft_tokens, .. } => Some(DraftTokens::Fixed(draft_tokens)),
        }
    }

    /// The same mode with another depth; `wait` is lowered to it if need be.
    ///
    /// Fails if `depth` is out of bounds, for [`Mode::Plain`], which drafts nothing, and if [`Mode::Lookup`] is to choose
    /// by itself.
    pub fn with_draft_tokens(self, depth: DraftTokens) -> Result<Mode, PlanProblem> {
        let most = depth.most();
        if !(1..=DRAFT_TOKENS_MAX).contains(&most) {
            return Err(PlanProblem::Depth { given: i64::from(most) });
        }
        Ok(match self {
            Mode::Plain => {
                return Err(PlanProblem::KeyNotForMode { key: "draft_tokens", mode: self.kind() });
            }
            Mode::Sequential { .. } => Mode::Sequential { draft_tokens: depth },
            Mode::Overlap { wait, .. } => {
                Mode::Overlap { draft_tokens: depth, wait: wait.min(most) }
            }
            Mode::Lookup { ngram, .. } => match depth {
                DraftTokens::Fixed(draft_tokens) => Mode::Lookup { draft_tokens, ngram },
                DraftTokens::Auto => return Err(PlanProblem::AutoDepth { mode: self.kind() }),
            },
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Mode::Plain => write!(f, "plain: the target alone"),
            Mode::Sequential { draft_tokens: DraftTokens::Auto } => f.write_str(
                "sequential: as many drafted as are worth their time, then one pass verifies them",
            ),
            Mode::Overlap { draft_tokens: DraftTokens::Auto, wait } => write!(
                f,
                "overlap: drafts while the target verifies, as many a pass as are worth their time, {wait} awaited \
                 after a rejection"
            ),
            Mode::Sequential { draft_tokens } => {
                write!(f, "sequential: {draft_tokens} drafted at most, then one pass verifies them")
            }
            Mode::Overlap { draft_tokens, wait } => write!(
                f,
                "overlap: drafts while the target verifies, {draft_tokens} a pass at most, {wait} awaited after a \
                 rejection"
            ),
            Mode::Lookup { draft_tokens, ngram } => write!(
                f,
                "lookup: {draft_tokens} drafted at most from n-grams of the text, up to {ngram} tokens long"
            ),
        }
    }
}
