//! From a request's events to a wire answer: one object, or server-sent events.
//!
//! *Invariant:* an answer ends as it was asked to or with an error, never in silence; with it go its readers, which is
//! what ends the work on it.

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix_web::HttpResponse;
use actix_web::web::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, LocalBoxStream};
use outrider_devices::SequenceId;
use outrider_pipeline::scheduler::EmittedToken;
use tokio::time::{Sleep, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::ask::Ask;
use super::completion::Completion;
use super::error::ServeError;
use super::letterhead::{Dialect, Letterhead, Totals, event, finish_word};
use super::open_requests::{OpenRequest, OpenRequests};
use super::request_id::RequestId;
use crate::engine::Engine;
use crate::request::RequestEvent;

/// Events of all answers of a request, each with its answer's index; `None` after an answer's last.
type Events = LocalBoxStream<'static, (u32, Option<RequestEvent>)>;

/// Serves a request that passed all checks.
pub(super) async fn answer(
    engine: &Engine,
    requests: &OpenRequests,
    request_id: RequestId,
    ask: Ask,
) -> Result<HttpResponse, ServeError> {
    let (mut sequences, mut readers) = (Vec::new(), Vec::new());
    for index in 0..ask.choices {
        let mut params = ask.params.clone();
        params.sampling.seed = params.sampling.seed.wrapping_add(u64::from(index));
        // If one is refused, the readers of those before it are dropped, which cancels them.
        let (sequence, events) = engine.generate(ask.prompt.clone(), params).await?;
        sequences.push(sequence);
        let told = ReceiverStream::new(events).map(Some).chain(stream::iter([None]));
        readers.push(told.map(move |event| (index, event)).boxed_local());
    }
    let prefix = match ask.dialect {
        Dialect::Chat => "chatcmpl",
        Dialect::Completion => "cmpl",
    };
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let letterhead = Letterhead {
        dialect: ask.dialect,
        id: format!("{prefix}-{:x}-{}", since_epoch.as_micros(), sequences[0].0),
        created: since_epoch.as_secs(),
        plan: engine.plan().fingerprint().to_string(),
        logprobs: ask.logprobs,
        mark_tokens: ask.mark_tokens,
        engine: engine.clone(),
    };
    let page = requests.open(letterhead.id.clone(), request_id.0, sequences, ask.prompt.len());
    let events = stream::select_all(readers).boxed_local();
    if ask.streamed {
        return Ok(streamed(Streaming::new(letterhead, page, &ask), events));
    }
    let sequences = page.sequences();
    let mut whole = Box::pin(whole(letterhead, page, &ask, events));
    // The readers go with `whole`: what was late has to be said before they do.
    match timeout(ask.deadline, &mut whole).await {
        Ok(whole) => Ok(HttpResponse::Ok().json(whole?)),
        Err(_) => Err(late(engine, &sequences, ask.deadline).await),
    }
}

/// Ends what was not done in time.
async fn late(engine: &Engine, sequences: &[SequenceId], deadline: Duration) -> ServeError {
    for sequence in sequences {
        engine.expire(*sequence).await;
    }
    ServeError::DeadlinePassed(deadline.as_secs())
}

/// What has come of one answer.
struct Written {
    text: String,
    tokens: Vec<EmittedToken>,
    finished: bool,
}

async fn whole(
    letterhead: Letterhead,
    page: OpenRequest,
    ask: &Ask,
    mut events: Events,
) -> Result<Completion, ServeError> {
    let echo = ask.echo.clone().unwrap_or_default();
    let fresh = |_| Written { text: echo.clone(), tokens: Vec::new(), finished: false };
    let mut written: Vec<Written> = (0..ask.choices).map(fresh).collect();
    let mut choices = Vec::new();
    let mut totals = Totals::default();
    while choices.len() < ask.choices as usize {
        let (index, event) = events.next().await.ok_or_else(ServeError::ended)?;
        let own = &mut written[index as usize];
        match event {
            Some(RequestEvent::Text { text, tokens }) => {
                page.wrote(tokens.len());
                own.text.push_str(&text);
                own.tokens.extend(tokens);
            }
            Some(RequestEvent::Finished { reason, statistics, timings }) => {
                own.finished = true;
                let text = std::mem::take(&mut own.text);
                choices.push(letterhead.choice(index, text, &own.tokens, &reason)?);
                totals.add(&statistics, &timings);
            }
            None if own.finished => {}
            None => return Err(ServeError::ended()),
        }
    }
    choices.sort_by_key(|choice| choice.index);
    Ok(letterhead.whole(choices, &totals))
}

fn streamed(streaming: Streaming, events: Events) -> HttpResponse {
    let opening = streaming.opening();
    let rest = stream::unfold((streaming, events), async |(mut streaming, mut events)| {
        let parts = streaming.next(&mut events).await?;
        Some((parts, (streaming, events)))
    });
    let rest = rest.flat_map(stream::iter);
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("cache-control", "no-cache"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(stream::iter(opening).chain(rest).map(Ok::<_, actix_web::Error>))
}

/// A streamed answer on its way.
struct Streaming {
    letterhead: Letterhead,
    /// Closed before the client can know that it was answered.
    page: Option<OpenRequest>,
    echo: Option<String>,
    include_usage: bool,
    /// Which answers are being written.
    open: Vec<bool>,
    totals: Totals,
    deadline: (Duration, Pin<Box<Sleep>>),
    /// Nothing may follow.
    over: bool,
}

impl Streaming {
    fn new(letterhead: Letterhead, page: OpenRequest, ask: &Ask) -> Self {
        Self {
            letterhead,
            page: Some(page),
            echo: ask.echo.clone(),
            include_usage: ask.include_usage,
            open: vec![true; ask.choices as usize],
            totals: Totals::default(),
            deadline: (ask.deadline, Box::pin(sleep(ask.deadline))),
            over: false,
        }
    }

    /// The next server-sent events; `None` after the last.
    async fn next(&mut self, events: &mut Events) -> Option<Vec<Bytes>> {
        if self.over {
            return None;
        }
        let (deadline, passed) = &mut self.deadline;
        let happened = tokio::select! {
            happened = events.next() => happened,
            () = passed => {
                let sequences = self.page.as_ref().map(OpenRequest::sequences).unwrap_or_default();
                let error = late(&self.letterhead.engine, &sequences, *deadline).await;
                return Some(self.fail(&error));
            }
        };
        let (index, event) = happened?;
        Some(self.parts_of(index, event))
    }

    fn opening(&self) -> Vec<Bytes> {
        let choice = |index| self.letterhead.opening(index, self.echo.as_deref());
        let choices = (0..self.open.len() as u32).filter_map(choice);
        choices.map(|choice| event(&self.letterhead.part(vec![choice]))).collect()
    }

    /// The server-sent events of one thing that happened.
    fn parts_of(&mut self, index: u32, happened: Option<RequestEvent>) -> Vec<Bytes> {
        let letterhead = &self.letterhead;
        match happened {
            Some(RequestEvent::Text { text, tokens }) => {
                if let Some(page) = &self.page {
                    page.wrote(tokens.len());
                }
                if text.is_empty() && !letterhead.shows_tokens() {
                    return Vec::new();
                }
                vec![event(&letterhead.part(vec![letterhead.delta(index, text, &tokens)]))]
            }
            Some(RequestEvent::Finished { reason, statistics, timings }) => {
                self.open[index as usize] = false;
                self.totals.add(&statistics, &timings);
                match finish_word(&reason) {
                    Ok(word) => self.close(index, word),
                    Err(error) => self.fail(&error),
                }
            }
            None if self.open[index as usize] => self.fail(&ServeError::ended()),
            None => Vec::new(),
        }
    }

    fn close(&mut self, index: u32, word: &'static str) -> Vec<Bytes> {
        let letterhead = &self.letterhead;
        let mut last = letterhead.part(vec![letterhead.closing(index, word)]);
        if self.open.contains(&true) {
            return vec![event(&last)];
        }
        last.timings = Some(self.totals.timings);
        last.plan = Some(letterhead.plan.clone());
        let mut events = vec![event(&last)];
        if self.include_usage {
            let mut part = letterhead.part(Vec::new());
            part.usage = Some(self.totals.usage);
            events.push(event(&part));
        }
        events.push(self.done());
        events
    }

    fn fail(&mut self, error: &ServeError) -> Vec<Bytes> {
        vec![event(&error.body()), self.done()]
    }

    fn done(&mut self) -> Bytes {
        (self.over, self.page) = (true, None);
        Bytes::from_static(b"data: [DONE]\n\n")
    }
}
