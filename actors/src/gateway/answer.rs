//! From a request's events to a wire answer: one object, or server-sent events.

use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::HttpResponse;
use actix_web::web::Bytes;
use futures_util::StreamExt;
use outrider_pipeline::scheduler::{EmittedToken, FinishReason, Statistics};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::ask::Ask;
use super::error::ServeError;
use super::openai::{Choice, Completion, Message, Usage, WireTimings};
use crate::engine::Engine;
use crate::request::{RequestEvent, Timings};

/// Which of the two routes an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Chat,
    Completion,
}

/// What every part of one answer repeats.
#[derive(Clone)]
struct Letterhead {
    dialect: Dialect,
    id: String,
    created: u64,
    model: String,
    plan: String,
    logprobs: Option<u32>,
    echo: Option<String>,
    include_usage: bool,
    engine: Engine,
}

/// Serves a request that passed all checks.
pub(super) async fn answer(
    engine: &Engine,
    dialect: Dialect,
    ask: Ask,
) -> Result<HttpResponse, ServeError> {
    let (sequence, events) = engine.generate(ask.prompt, ask.params).await?;
    let prefix = match dialect {
        Dialect::Chat => "chatcmpl",
        Dialect::Completion => "cmpl",
    };
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let letterhead = Letterhead {
        dialect,
        id: format!("{prefix}-{:x}-{}", since_epoch.as_micros(), sequence.0),
        created: since_epoch.as_secs(),
        model: engine.model_name().to_owned(),
        plan: engine.plan().fingerprint().to_string(),
        logprobs: ask.logprobs,
        echo: ask.echo,
        include_usage: ask.include_usage,
        engine: engine.clone(),
    };
    if ask.streamed { Ok(letterhead.stream(events)) } else { letterhead.whole(events).await }
}

/// The word for the end of a request; `Err` if it did not end as asked.
fn finish_word(reason: &FinishReason) -> Result<&'static str, ServeError> {
    match reason {
        FinishReason::Stop | FinishReason::StopString => Ok("stop"),
        FinishReason::Length => Ok("length"),
        FinishReason::Cancelled => Err(ServeError::Failed("the request was cancelled".into())),
        FinishReason::Failed { reason } => Err(ServeError::Failed(reason.clone())),
    }
}

/// Times and counts as they go over the wire.
pub fn wire_timings(statistics: &Statistics, timings: &Timings) -> WireTimings {
    WireTimings {
        prompt_n: u64::from(statistics.prompt_n),
        prompt_ms: timings.prompt_ms,
        predicted_n: u64::from(statistics.predicted_n),
        predicted_ms: timings.predicted_ms,
        draft_n: u64::from(statistics.draft_n),
        draft_n_accepted: u64::from(statistics.draft_n_accepted),
    }
}

fn usage(statistics: &Statistics) -> Usage {
    let (prompt, completion) = (u64::from(statistics.prompt_n), u64::from(statistics.predicted_n));
    Usage {
        prompt_tokens: prompt,
        completion_tokens: completion,
        total_tokens: prompt + completion,
    }
}

impl Letterhead {
    async fn whole(
        self,
        mut events: mpsc::Receiver<RequestEvent>,
    ) -> Result<HttpResponse, ServeError> {
        let mut written = self.echo.clone().unwrap_or_default();
        let mut all_tokens = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                RequestEvent::Text { text, tokens } => {
                    written.push_str(&text);
                    all_tokens.extend(tokens);
                }
                RequestEvent::Finished { reason, statistics, timings } => {
                    let finish_reason = Some(finish_word(&reason)?);
                    let logprobs = self.logprobs_of(&all_tokens);
                    let mut choice = Choice { logprobs, finish_reason, ..Choice::default() };
                    match self.dialect {
                        Dialect::Chat => {
                            let (role, content) = (Some("assistant"), Some(written));
                            choice.message = Some(Message { role, content });
                        }
                        Dialect::Completion => choice.text = Some(written),
                    }
                    let mut completion = self.part(vec![choice], false);
                    completion.usage = Some(usage(&statistics));
                    completion.timings = Some(wire_timings(&statistics, &timings));
                    completion.plan = Some(self.plan.clone());
                    return Ok(HttpResponse::Ok().json(completion));
                }
            }
        }
        Err(ServeError::Failed("the engine ended before the answer was complete".into()))
    }

    fn stream(self, events: mpsc::Receiver<RequestEvent>) -> HttpResponse {
        let mut opening = Vec::new();
        if self.dialect == Dialect::Chat {
            opening.push(self.event(&self.opening()));
        } else if let Some(echo) = &self.echo {
            opening.push(self.event(&self.part(vec![self.text_choice(echo.clone())], true)));
        }
        let opening = futures_util::stream::iter(opening);
        let rest = ReceiverStream::new(events)
            .flat_map(move |event| futures_util::stream::iter(self.events_of(event)));
        HttpResponse::Ok()
            .content_type("text/event-stream")
            .insert_header(("cache-control", "no-cache"))
            .insert_header(("x-accel-buffering", "no"))
            .streaming(opening.chain(rest).map(Ok::<_, actix_web::Error>))
    }

    /// The server-sent events of one thing that happened.
    fn events_of(&self, event: RequestEvent) -> Vec<Bytes> {
        match event {
            RequestEvent::Text { text, tokens } => {
                if text.is_empty() && self.logprobs.is_none() {
                    return Vec::new();
                }
                let mut choice = self.text_choice(text);
                choice.logprobs = self.logprobs_of(&tokens);
                vec![self.event(&self.part(vec![choice], true))]
            }
            RequestEvent::Finished { reason, statistics, timings } => {
                let done = Bytes::from_static(b"data: [DONE]\n\n");
                let word = match finish_word(&reason) {
                    Ok(word) => word,
                    Err(error) => return vec![self.event(&error.body()), done],
                };
                let mut choice = self.text_choice(String::new());
                if let Some(delta) = &mut choice.delta {
                    delta.content = None;
                }
                choice.finish_reason = Some(word);
                let mut last = self.part(vec![choice], true);
                last.timings = Some(wire_timings(&statistics, &timings));
                last.plan = Some(self.plan.clone());
                let mut events = vec![self.event(&last)];
                if self.include_usage {
                    let mut part = self.part(Vec::new(), true);
                    part.usage = Some(usage(&statistics));
                    events.push(self.event(&part));
                }
                events.push(done);
                events
            }
        }
    }

    fn event(&self, body: &impl Serialize) -> Bytes {
        let body = serde_json::to_string(body).expect("wire types have string keys only");
        Bytes::from(format!("data: {body}\n\n"))
    }

    fn opening(&self) -> Completion {
        let (role, content) = (Some("assistant"), Some(String::new()));
        let delta = Some(Message { role, content });
        self.part(vec![Choice { delta, ..Choice::default() }], true)
    }

    fn text_choice(&self, text: String) -> Choice {
        match self.dialect {
            Dialect::Chat => {
                let delta = Some(Message { role: None, content: Some(text) });
                Choice { delta, ..Choice::default() }
            }
            Dialect::Completion => Choice { text: Some(text), ..Choice::default() },
        }
    }

    fn part(&self, choices: Vec<Choice>, streamed: bool) -> Completion {
        Completion {
            id: self.id.clone(),
            object: match (self.dialect, streamed) {
                (Dialect::Chat, true) => "chat.completion.chunk",
                (Dialect::Chat, false) => "chat.completion",
                (Dialect::Completion, _) => "text_completion",
            },
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: None,
            timings: None,
            plan: None,
        }
    }

    /// Log-probabilities in the form of the route; `None` if they were not asked for.
    fn logprobs_of(&self, tokens: &[EmittedToken]) -> Option<Value> {
        self.logprobs?;
        let text = |id: u32| self.engine.tokenizer().decode(&[id]);
        Some(match self.dialect {
            Dialect::Chat => {
                let entry = |id: u32, logprob: f32| {
                    let token = text(id);
                    json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()})
                };
                let content: Vec<_> = tokens
                    .iter()
                    .map(|token| {
                        let mut object = entry(token.pick.token, token.pick.probability.ln());
                        let top: Vec<_> =
                            token.pick.top.iter().map(|&(id, lp)| entry(id, lp)).collect();
                        object["top_logprobs"] = Value::from(top);
                        object
                    })
                    .collect();
                json!({"content": content})
            }
            Dialect::Completion => {
                let top = |token: &EmittedToken| {
                    let pairs = token.pick.top.iter().map(|&(id, lp)| (text(id), Value::from(lp)));
                    Value::Object(pairs.collect())
                };
                json!({
                    "tokens": tokens.iter().map(|t| text(t.pick.token)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|t| t.pick.probability.ln()).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                })
            }
        })
    }
}
