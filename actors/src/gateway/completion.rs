//! The OpenAI wire format of answers, as they go.
//!
//! *Invariant:* a field that OpenAI's clients do not know (`timings`, `plan`, `tokens`) only adds; theirs mean what they
//! mean there.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Tokens counted, as OpenAI clients read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Usage {
    /// Tokens of the prompt.
    pub(super) prompt_tokens: u64,
    /// Tokens of all answers.
    pub(super) completion_tokens: u64,
    /// The sum of both.
    pub(super) total_tokens: u64,
}

/// Time and speculation of one request; of several answers, counts are summed and times are the longest.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct WireTimings {
    /// Milliseconds from arrival to a place.
    pub queue_ms: f64,
    /// Tokens of the prompt.
    pub prompt_n: u64,
    /// Of these, how many were found in a cache that an earlier request had left.
    pub cache_n: u64,
    /// Milliseconds from the first row to the first token.
    pub prompt_ms: f64,
    /// Tokens written.
    pub predicted_n: u64,
    /// Milliseconds from the first token to the last.
    pub predicted_ms: f64,
    /// Tokens drafted and verified.
    pub draft_n: u64,
    /// Of these, accepted.
    pub draft_n_accepted: u64,
    /// Passes of the target that wrote something: `draft_n` over those that were not plain is the mean depth of its drafts.
    pub rounds_n: u64,
    /// Of these, without a drafted token.
    pub rounds_n_plain: u64,
    /// Of these, because the never-slower guard kept the request from drafting.
    pub rounds_n_guarded: u64,
    /// The guard when the text ended: `on` (drafts are made), `off`, or `trial`.
    pub guard: &'static str,
}

/// An answer, or a part of a streamed one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Completion {
    /// Names the request; `/v1/requests` lists it while it is open.
    pub(super) id: String,
    /// `chat.completion`, `chat.completion.chunk` or `text_completion`.
    pub(super) object: &'static str,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// The model's name.
    pub(super) model: String,
    /// The answers, or what is new of one of them.
    pub(super) choices: Vec<Choice>,
    /// Tokens counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) usage: Option<Usage>,
    /// Time and speculation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) timings: Option<WireTimings>,
    /// Identity of the partition plan that ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) plan: Option<String>,
}

/// One answer; which of `message`, `delta` and `text` is there depends on route and streaming.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Choice {
    /// Which answer.
    pub(super) index: u32,
    /// The whole answer to a chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) message: Option<Message>,
    /// What is new of an answer to a chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) delta: Option<Message>,
    /// The answer's text, or what is new of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) text: Option<String>,
    /// Log-probabilities, in the form of the route.
    #[schema(value_type = Option<Object>)]
    pub(super) logprobs: Option<Value>,
    /// `stop` or `length`; null until the end.
    pub(super) finish_reason: Option<&'static str>,
    /// The tokens, if `speculative.mark_tokens` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) tokens: Option<Vec<MarkedToken>>,
}

/// A token of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct MarkedToken {
    /// Its id.
    pub(super) id: u32,
    /// The text that it completes.
    pub(super) text: String,
    /// Whether it had been drafted, and accepted; else it is the target's own.
    pub(super) drafted: bool,
}

/// Who says what.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Message {
    /// `assistant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) role: Option<&'static str>,
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) content: Option<String>,
}
