//! The two routes that write text.

use actix_web::{HttpResponse, web};

use super::answer::answer;
use super::ask;
use super::completion::Completion;
use super::document::Refusals;
use super::error::ServeError;
use super::open_requests::OpenRequests;
use super::openai::{ChatRequest, CompletionRequest};
use super::request_id::RequestId;
use crate::engine::Engine;

/// Continues a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "inference", request_body = ChatRequest,
    responses(
        (
            status = 200,
            description = "The answer: one object or, with `stream`, server-sent events that end with `[DONE]`.",
            content((Completion = "application/json"), (String = "text/event-stream"))
        ),
        Refusals
    )
)]
pub(super) async fn chat_completions(
    engine: web::Data<Engine>,
    open: web::Data<OpenRequests>,
    id: web::ReqData<RequestId>,
    request: web::Json<ChatRequest>,
) -> Result<HttpResponse, ServeError> {
    let ask = ask::chat(request.into_inner(), &engine)?;
    answer(&engine, &open, id.into_inner(), ask).await
}

/// Continues a text.
#[utoipa::path(
    post, path = "/v1/completions", tag = "inference", request_body = CompletionRequest,
    responses(
        (
            status = 200,
            description = "The text: one object or, with `stream`, server-sent events that end with `[DONE]`.",
            content((Completion = "application/json"), (String = "text/event-stream"))
        ),
        Refusals
    )
)]
pub(super) async fn completions(
    engine: web::Data<Engine>,
    open: web::Data<OpenRequests>,
    id: web::ReqData<RequestId>,
    request: web::Json<CompletionRequest>,
) -> Result<HttpResponse, ServeError> {
    let ask = ask::completion(request.into_inner(), &engine)?;
    answer(&engine, &open, id.into_inner(), ask).await
}
