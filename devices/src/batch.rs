//! What a unit is asked to compute and what it answers: ragged batches in, activations or picked tokens out.
//!
//! *Invariant:* a row's result depends on its own sequence alone, never on the rows beside it in the batch.

use std::fmt;
use std::sync::Arc;

use crate::Sampling;

/// Names one sequence (one request's text) for as long as any unit holds a cache of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// Which results a segment asks of a stage that ends in the output head; other stages ignore it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Only fill the cache.
    Nothing,
    /// Pick a token after each of the last `n` rows.
    Picks(u32),
    /// As `Picks`, and return the raw logits of these rows as well.
    Logits(u32),
}

impl Want {
    /// Number of trailing rows that run through the head.
    pub fn rows(self) -> usize {
        match self {
            Want::Nothing => 0,
            Want::Picks(n) | Want::Logits(n) => n as usize,
        }
    }
}

/// One sequence's consecutive rows of a batch: token `tokens[i]` at position `base + i`.
///
/// The sequence's cache is cut to `base` positions before the rows run, so a rollback needs no message of its own.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The sequence that the rows belong to.
    pub sequence: SequenceId,
    /// Position of the first row; at most the cached length.
    pub base: u32,
    /// Token ids, one a row; never empty.
    pub tokens: Vec<u32>,
    /// Results wanted of the trailing rows.
    pub want: Want,
    /// How a token is picked from a row's logits.
    pub sampling: Arc<Sampling>,
}

/// A ragged batch: the segments' rows one after the other. Each sequence appears at most once.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The shares of the sequences in this batch.
    pub segments: Vec<Segment>,
}

impl Batch {
    /// Total number of rows.
    pub fn rows(&self) -> usize {
        self.segments.iter().map(|s| s.tokens.len()).sum()
    }

    /// Total number of rows that run through the output head.
    pub fn head_rows(&self) -> usize {
        self.segments.iter().map(|s| s.want.rows()).sum()
    }
}

/// A segment to extend by up to `steps` drafted tokens, each fed back as the next row.
#[derive(Clone, Debug)]
pub struct DraftSegment {
    /// Rows to run first; its `want` is ignored, the last row picks the first drafted token.
    pub segment: Segment,
    /// Most tokens to draft; at least 1.
    pub steps: u32,
    /// Stop before the first token whose probability under the draft is lower than this (0 never stops). The first
    /// token is always returned.
    pub probability_min: f32,
}

/// Draft jobs of several sequences that run as one.
#[derive(Clone, Debug, Default)]
pub struct DraftBatch {
    /// What to extend.
    pub segments: Vec<DraftSegment>,
    /// Drafting of a sequence ends after one of these tokens (end of text).
    pub stop_tokens: Arc<[u32]>,
}

/// What came of a [`DraftSegment`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drafted {
    /// The drafted tokens; at least one.
    pub picks: Vec<Pick>,
    /// Steps that were run for them. A device that runs step after step has run one more than there are tokens if the next was too
    /// unlikely; one that is given all steps at once has run all that were asked for, wherever the text ends.
    pub steps: u32,
}

/// The residual stream between two stages of one model: `rows x cols`, row-major `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct Activations {
    /// Width of a row.
    pub cols: usize,
    /// `rows * cols` values.
    pub data: Vec<f32>,
}

/// A token chosen after one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Pick {
    /// The chosen token id.
    pub token: u32,
    /// Probability of `token` in the softmax of the row's unmodified logits (temperature 1), 0 to 1.
    pub probability: f32,
    /// The likeliest tokens with their natural-log probabilities, most likely first; empty unless
    /// [`Sampling::top_logprobs`] asks for some.
    pub top: Vec<(u32, f32)>,
}

/// What the output head produced for one batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picked {
    /// One pick per wanted row: the segments' rows in batch order.
    pub picks: Vec<Pick>,
    /// `vocabulary` logits for each row of the segments that asked for [`Want::Logits`], in batch order.
    pub logits: Vec<f32>,
}

/// A stage's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// The stage ends inside the model: one row of activations for each row of the batch.
    Activations(Activations),
    /// The stage ends in the output head.
    Picked(Picked),
}
