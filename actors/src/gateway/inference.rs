//! The two routes that write text.

use std::time::Duration;

use actix_web::{HttpResponse, web};

use super::answer::answer;
use super::ask::{self, Ask};
use super::completion::Completion;
use super::document::Refusals;
use super::error::ServeError;
use super::open_requests::OpenRequests;
use super::openai::{ChatRequest, CompletionRequest};
use super::request_id::RequestId;
use crate::engine::Engine;

/// One event of a streamed answer, as the description of the API sees it; [`super::answer`] writes it.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "a shape for the description only")]
struct ServerSentEvent {
    /// A completion chunk as JSON, or `[DONE]`.
    data: String,
    /// Always `message`, which a stream need not say.
    event: Option<String>,
}

/// Continues a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "inference", request_body = ChatRequest,
    responses(
        (
            status = 200,
            description = "The answer: one object or, with `stream`, server-sent events that end with `[DONE]`.",
            content((Completion = "application/json"), (ServerSentEvent = "text/event-stream"))
        ),
        Refusals
    )
)]
pub(super) async fn chat_completions(
    engine: web::Data<Engine>,
    open: web::Data<OpenRequests>,
    deadline: web::Data<Duration>,
    id: web::ReqData<RequestId>,
    request: web::Json<ChatRequest>,
) -> Result<HttpResponse, ServeError> {
    let ask = ask::chat(request.into_inner(), &engine);
    taken(ask, &engine, &open, (id.into_inner(), **deadline)).await
}

/// Continues a text.
#[utoipa::path(
    post, path = "/v1/completions", tag = "inference", request_body = CompletionRequest,
    responses(
        (
            status = 200,
            description = "The text: one object or, with `stream`, server-sent events that end with `[DONE]`.",
            content((Completion = "application/json"), (ServerSentEvent = "text/event-stream"))
        ),
        Refusals
    )
)]
pub(super) async fn completions(
    engine: web::Data<Engine>,
    open: web::Data<OpenRequests>,
    deadline: web::Data<Duration>,
    id: web::ReqData<RequestId>,
    request: web::Json<CompletionRequest>,
) -> Result<HttpResponse, ServeError> {
    let ask = ask::completion(request.into_inner(), &engine);
    taken(ask, &engine, &open, (id.into_inner(), **deadline)).await
}

/// Serves a request if it is right and there is room, and counts it if not.
async fn taken(
    ask: Result<Ask, ServeError>,
    engine: &Engine,
    open: &OpenRequests,
    (id, deadline): (RequestId, Duration),
) -> Result<HttpResponse, ServeError> {
    let served = match ask {
        Ok(ask) => answer(engine, open, id, Ask { deadline, ..ask }).await,
        Err(error) => Err(error),
    };
    if let Some(reason) = served.as_ref().err().and_then(ServeError::rejection) {
        engine.count_rejection(reason);
    }
    served
}
