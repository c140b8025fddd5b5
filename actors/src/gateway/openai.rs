//! The OpenAI wire format: requests as they come, answers as they go.
//!
//! *Invariant:* no field is ignored in silence. A field that is not listed here is refused by name; `user`, `metadata`
//! and `store` are accepted and have no effect, because clients send them for their own bookkeeping.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `POST /v1/chat/completions`.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    pub(super) messages: Vec<ChatMessage>,
    pub(super) logprobs: Option<bool>,
    pub(super) top_logprobs: Option<u32>,
    pub(super) max_completion_tokens: Option<u32>,
    #[serde(flatten)]
    pub(super) common: Common,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, Value>,
}

/// `POST /v1/completions`.
#[derive(Debug, Deserialize)]
pub(super) struct CompletionRequest {
    pub(super) prompt: Prompt,
    pub(super) logprobs: Option<u32>,
    pub(super) echo: Option<bool>,
    #[serde(flatten)]
    pub(super) common: Common,
    #[serde(flatten)]
    pub(super) unknown: BTreeMap<String, Value>,
}

/// What both routes take.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Common {
    pub(super) model: Option<String>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) max_tokens: Option<u32>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<u32>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) logit_bias: Option<BTreeMap<String, f32>>,
    pub(super) seed: Option<i64>,
    pub(super) stop: Option<Stop>,
    pub(super) n: Option<u32>,
    pub(super) ignore_eos: Option<bool>,
    pub(super) speculative: Option<SpeculativeOptions>,
    #[serde(rename = "user")]
    pub(super) _user: Option<Value>,
    #[serde(rename = "metadata")]
    pub(super) _metadata: Option<Value>,
    #[serde(rename = "store")]
    pub(super) _store: Option<Value>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
}

/// Speculation of one request: `{"enabled": false}`, or `{"draft_tokens": 2}`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpeculativeOptions {
    pub(super) enabled: Option<bool>,
    pub(super) draft_tokens: Option<u32>,
}

/// One stop string or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Stop {
    One(String),
    Many(Vec<String>),
}

/// Text, one text in a list, or token ids.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChatMessage {
    pub(super) role: String,
    pub(super) content: Content,
    pub(super) name: Option<String>,
}

/// A message's text, whole or in parts.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ContentPart {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) text: Option<String>,
}

/// Tokens counted, as OpenAI clients read them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) total_tokens: u64,
}

/// Time and speculation of one request.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WireTimings {
    /// Tokens of the prompt.
    pub prompt_n: u64,
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
}

/// An answer, or a part of a streamed one.
#[derive(Debug, Serialize)]
pub(super) struct Completion {
    pub(super) id: String,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timings: Option<WireTimings>,
    /// Identity of the partition plan that ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) plan: Option<String>,
}

/// The one choice of an answer; which of `message`, `delta` and `text` is there depends on route and streaming.
#[derive(Debug, Default, Serialize)]
pub(super) struct Choice {
    pub(super) index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delta: Option<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
    pub(super) logprobs: Option<Value>,
    pub(super) finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Message {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
}
