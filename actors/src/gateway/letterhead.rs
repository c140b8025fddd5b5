//! How the parts of an answer are worded: what every part repeats, and what differs between the two routes.

use actix_web::web::Bytes;
use outrider_pipeline::pacing::GuardState;
use outrider_pipeline::scheduler::{EmittedToken, FinishReason, Statistics};
use serde::Serialize;

use super::completion::{Choice, Completion, MarkedToken, Message, Usage, WireTimings};
use super::error::ServeError;
use super::logprobs::logprobs;
use crate::engine::Engine;
use crate::request::Timings;

/// Which of the two routes an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Chat,
    Completion,
}

/// What every part of one answer repeats, and what its request asked to see.
#[derive(Clone)]
pub(super) struct Letterhead {
    pub(super) dialect: Dialect,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) plan: String,
    pub(super) logprobs: Option<u32>,
    pub(super) mark_tokens: bool,
    pub(super) engine: Engine,
}

/// The word for the end of a text; `Err` if it did not end as asked.
pub(super) fn finish_word(reason: &FinishReason) -> Result<&'static str, ServeError> {
    match reason {
        FinishReason::Stop | FinishReason::StopString => Ok("stop"),
        FinishReason::Length => Ok("length"),
        FinishReason::Cancelled => Err(ServeError::Cancelled),
        FinishReason::Failed { reason } => Err(ServeError::Lost(reason.clone())),
    }
}

/// Times and counts as they go over the wire.
pub fn wire_timings(statistics: &Statistics, timings: &Timings) -> WireTimings {
    WireTimings {
        queue_ms: timings.queue_ms,
        prompt_n: u64::from(statistics.prompt_n),
        cache_n: u64::from(statistics.cached_n),
        prompt_ms: timings.prompt_ms,
        predicted_n: u64::from(statistics.predicted_n),
        predicted_ms: timings.predicted_ms,
        draft_n: u64::from(statistics.draft_n),
        draft_n_accepted: u64::from(statistics.draft_n_accepted),
        rounds_n: u64::from(statistics.rounds),
        rounds_n_plain: u64::from(statistics.plain_rounds),
        rounds_n_guarded: u64::from(statistics.guarded_rounds),
        guard: match statistics.guard {
            GuardState::On => "on",
            GuardState::Off => "off",
            GuardState::Trial => "trial",
        },
    }
}

/// What the answers of one request took together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) usage: Usage,
    pub(super) timings: WireTimings,
}

impl Totals {
    /// Adds an answer: the prompt is the same for all, and they were written at the same time.
    pub(super) fn add(&mut self, statistics: &Statistics, timings: &Timings) {
        let Self { usage, timings: total } = self;
        let one = wire_timings(statistics, timings);
        usage.prompt_tokens = one.prompt_n;
        usage.completion_tokens += one.predicted_n;
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
        total.queue_ms = total.queue_ms.max(one.queue_ms);
        total.prompt_n = one.prompt_n;
        total.cache_n = total.cache_n.max(one.cache_n);
        total.prompt_ms = total.prompt_ms.max(one.prompt_ms);
        total.predicted_n += one.predicted_n;
        total.predicted_ms = total.predicted_ms.max(one.predicted_ms);
        total.draft_n += one.draft_n;
        total.draft_n_accepted += one.draft_n_accepted;
        total.rounds_n += one.rounds_n;
        total.rounds_n_plain += one.rounds_n_plain;
        total.rounds_n_guarded += one.rounds_n_guarded;
        total.guard = one.guard;
    }
}

/// One server-sent event.
pub(super) fn event(body: &impl Serialize) -> Bytes {
    let body = serde_json::to_string(body).expect("wire types have string keys only");
    Bytes::from(format!("data: {body}\n\n"))
}

impl Letterhead {
    /// The answer as one object.
    pub(super) fn whole(&self, choices: Vec<Choice>, totals: &Totals) -> Completion {
        let object = match self.dialect {
            Dialect::Chat => "chat.completion",
            Dialect::Completion => "text_completion",
        };
        Completion {
            usage: Some(totals.usage),
            timings: Some(totals.timings),
            plan: Some(self.plan.clone()),
            ..self.object(object, choices)
        }
    }

    /// A part of a streamed answer.
    pub(super) fn part(&self, choices: Vec<Choice>) -> Completion {
        let object = match self.dialect {
            Dialect::Chat => "chat.completion.chunk",
            Dialect::Completion => "text_completion",
        };
        self.object(object, choices)
    }

    fn object(&self, object: &'static str, choices: Vec<Choice>) -> Completion {
        Completion {
            id: self.id.clone(),
            object,
            created: self.created,
            model: self.engine.model_name().to_owned(),
            choices,
            usage: None,
            timings: None,
            plan: None,
        }
    }

    /// A finished choice with its whole text.
    pub(super) fn choice(
        &self,
        index: u32,
        text: String,
        tokens: &[EmittedToken],
        reason: &FinishReason,
    ) -> Result<Choice, ServeError> {
        let finish_reason = Some(finish_word(reason)?);
        let choice = Choice { index, finish_reason, ..self.about(tokens) };
        Ok(match self.dialect {
            Dialect::Chat => {
                let (role, content) = (Some("assistant"), Some(text));
                Choice { message: Some(Message { role, content }), ..choice }
            }
            Dialect::Completion => Choice { text: Some(text), ..choice },
        })
    }

    /// The first part of a streamed choice: who speaks, or the prompt that is echoed.
    pub(super) fn opening(&self, index: u32, echo: Option<&str>) -> Option<Choice> {
        match (self.dialect, echo) {
            (Dialect::Chat, _) => {
                let (role, content) = (Some("assistant"), Some(String::new()));
                let delta = Some(Message { role, content });
                Some(Choice { index, delta, ..Choice::default() })
            }
            (Dialect::Completion, Some(echo)) => Some(self.delta(index, echo.to_owned(), &[])),
            (Dialect::Completion, None) => None,
        }
    }

    /// More of a streamed choice.
    pub(super) fn delta(&self, index: u32, text: String, tokens: &[EmittedToken]) -> Choice {
        let choice = Choice { index, ..self.about(tokens) };
        match self.dialect {
            Dialect::Chat => {
                let delta = Some(Message { role: None, content: Some(text) });
                Choice { delta, ..choice }
            }
            Dialect::Completion => Choice { text: Some(text), ..choice },
        }
    }

    /// The last part of a streamed choice.
    pub(super) fn closing(&self, index: u32, word: &'static str) -> Choice {
        let choice = Choice { index, finish_reason: Some(word), ..Choice::default() };
        match self.dialect {
            Dialect::Chat => Choice { delta: Some(Message::default()), ..choice },
            Dialect::Completion => Choice { text: Some(String::new()), ..choice },
        }
    }

    /// Whether tokens are worth a part of their own, even if they complete no text.
    pub(super) fn shows_tokens(&self) -> bool {
        self.logprobs.is_some() || self.mark_tokens
    }

    /// What was asked to be seen of some tokens.
    fn about(&self, tokens: &[EmittedToken]) -> Choice {
        let marked = |token: &EmittedToken| MarkedToken {
            id: token.pick.token,
            text: token.text.clone(),
            drafted: token.drafted,
        };
        let told = self.logprobs.filter(|_| !tokens.is_empty());
        Choice {
            logprobs: told.map(|_| logprobs(self.dialect, self.engine.tokenizer(), tokens)),
            tokens: self.mark_tokens.then(|| tokens.iter().map(marked).collect()),
            ..Choice::default()
        }
    }
}
