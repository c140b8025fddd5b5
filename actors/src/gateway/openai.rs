//! The OpenAI wire format of requests, as they come.
//!
//! *Invariant:* no field is ignored in silence. A field that is not listed here is refused by name; `user`, `metadata`
//! and `store` are accepted and have no effect, because clients send them for their own bookkeeping. `/openapi.json` is
//! made of these types, so their comments are its text.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A conversation to continue.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ChatRequest {
    /// The conversation; at least one message.
    #[schema(min_items = 1)]
    pub(super) messages: Vec<ChatMessage>,
    /// Report the log-probability of each token.
    pub(super) logprobs: Option<bool>,
    /// Report so many of the likeliest tokens at each position; needs `logprobs`.
    #[schema(maximum = 20)]
    pub(super) top_logprobs: Option<u32>,
    /// Most tokens of the answer; goes before `max_tokens`.
    #[schema(minimum = 1)]
    pub(super) max_completion_tokens: Option<u32>,
    /// What both routes take.
    #[serde(flatten)]
    pub(super) common: Common,
    /// Anything else, which is refused.
    #[serde(flatten)]
    #[schema(ignore)]
    pub(super) unknown: BTreeMap<String, Value>,
}

/// A text to continue.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CompletionRequest {
    /// What to continue.
    pub(super) prompt: Prompt,
    /// Report the log-probability of each token, and so many of the likeliest at its position.
    #[schema(maximum = 20)]
    pub(super) logprobs: Option<u32>,
    /// Put the prompt before the answer.
    pub(super) echo: Option<bool>,
    /// What both routes take.
    #[serde(flatten)]
    pub(super) common: Common,
    /// Anything else, which is refused.
    #[serde(flatten)]
    #[schema(ignore)]
    pub(super) unknown: BTreeMap<String, Value>,
}

/// What both routes take.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct Common {
    /// The model's name, as `/v1/models` lists it; may be left out.
    pub(super) model: Option<String>,
    /// Send the answer as server-sent events while it is written.
    pub(super) stream: Option<bool>,
    /// What a streamed answer ends with; needs `stream`.
    pub(super) stream_options: Option<StreamOptions>,
    /// Most tokens of the answer. Default: as many as fit.
    #[schema(minimum = 1)]
    pub(super) max_tokens: Option<u32>,
    /// 0, the default, always picks the likeliest token.
    #[schema(minimum = 0)]
    pub(super) temperature: Option<f32>,
    /// Keep the likeliest tokens that together have this probability.
    #[schema(minimum = 0, maximum = 1)]
    pub(super) top_p: Option<f32>,
    /// Keep so many of the likeliest tokens; 0 keeps all.
    pub(super) top_k: Option<u32>,
    /// Keep tokens at least this fraction as likely as the likeliest.
    #[schema(minimum = 0, maximum = 1)]
    pub(super) min_p: Option<f32>,
    /// Divides the logits of tokens that were there before; 1 changes nothing.
    pub(super) repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens in the answer.
    pub(super) presence_penalty: Option<f32>,
    /// Subtracted from the logits of tokens in the answer, once per occurrence.
    pub(super) frequency_penalty: Option<f32>,
    /// Added to the logits of single tokens, by token id.
    pub(super) logit_bias: Option<BTreeMap<String, f32>>,
    /// The same seed writes the same text; several answers take this seed and those after it.
    pub(super) seed: Option<i64>,
    /// The answer ends before the first of these.
    pub(super) stop: Option<Stop>,
    /// Number of answers.
    #[schema(minimum = 1, maximum = 8)]
    pub(super) n: Option<u32>,
    /// Go on after the model's own end of text.
    pub(super) ignore_eos: Option<bool>,
    /// The request's say in speculation.
    pub(super) speculative: Option<SpeculativeOptions>,
    /// Has no effect.
    #[serde(rename = "user")]
    pub(super) _user: Option<String>,
    /// Has no effect.
    #[serde(rename = "metadata")]
    #[schema(value_type = Option<Object>)]
    pub(super) _metadata: Option<BTreeMap<String, Value>>,
    /// Has no effect: nothing is stored.
    #[serde(rename = "store")]
    pub(super) _store: Option<bool>,
}

/// What a streamed answer ends with.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    /// Send the number of tokens before the end.
    #[serde(default)]
    pub(super) include_usage: bool,
}

/// Speculation of one request: `{"enabled": false}`, or `{"draft_tokens": 2}`. The text is the same in any case.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SpeculativeOptions {
    /// False: the target writes alone.
    pub(super) enabled: Option<bool>,
    /// Most tokens drafted for one verification; 0 is off.
    #[schema(maximum = 16)]
    pub(super) draft_tokens: Option<u32>,
    /// List the answer's tokens in `tokens`, each with whether it was drafted.
    pub(super) mark_tokens: Option<bool>,
}

/// One stop string or a list of them.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "`stop` takes a string or a list of strings")]
pub(super) enum Stop {
    One(String),
    Many(Vec<String>),
}

/// Text, one text in a list, or token ids.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "`prompt` takes a text or a list of token ids")]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
}

/// One message of a conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChatMessage {
    /// Who speaks: `system`, `user` or `assistant`, as the model's template knows them.
    pub(super) role: String,
    /// What was said.
    pub(super) content: Content,
    /// Not supported: must be absent or empty.
    pub(super) name: Option<String>,
}

/// A message's text, whole or in parts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "`content` takes a text or a list of text parts")]
pub(super) enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ContentPart {
    /// Must be `text`.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// The text.
    pub(super) text: Option<String>,
}
