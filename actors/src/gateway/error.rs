//! The only mapping from errors inside to HTTP: OpenAI's error object, its status, and `Retry-After` where it helps.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::RETRY_AFTER;
use actix_web::{HttpResponse, ResponseError};
use outrider_devices::sampling::SamplingError;
use outrider_pipeline::scheduler::RejectReason;
use outrider_plans::SwapError;
use serde_json::json;

use super::plan::status_of;
use crate::request::Refusal;

/// Why a request is not served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ServeError {
    /// The request itself is wrong.
    #[error("{message}")]
    BadRequest {
        /// What is wrong, and what would be right.
        message: String,
        /// The field.
        param: Option<String>,
    },
    /// There is no such model, route or request.
    #[error("{0}")]
    NotFound(String),
    /// The route exists, but not for this method.
    #[error("{0}")]
    MethodNotAllowed(String),
    /// The body is larger than allowed.
    #[error("{0}")]
    TooLarge(String),
    /// The engine did not take the request.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Another plan does not run.
    #[error("{0}")]
    Swap(#[from] SwapError),
    /// The request was taken and could not be finished.
    #[error("{0}")]
    Failed(String),
}

impl ServeError {
    /// A wrong field.
    pub(super) fn field(param: &str, message: impl fmt::Display) -> Self {
        Self::BadRequest { message: message.to_string(), param: Some(param.to_owned()) }
    }

    /// Status, OpenAI's error type and code.
    fn parts(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        let invalid = "invalid_request_error";
        match self {
            Self::BadRequest { .. } => (StatusCode::BAD_REQUEST, invalid, None),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, invalid, Some("not_found")),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, invalid, None),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, invalid, None),
            Self::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", None),
            Self::Swap(error) => {
                let (status, code) = status_of(error);
                let kind = if status.is_client_error() { invalid } else { "server_error" };
                (status, kind, Some(code))
            }
            Self::Refused(Refusal::Rejected(reason)) => match reason {
                RejectReason::QueueFull { .. } => {
                    (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"))
                }
                RejectReason::ContextExceeded { .. } => {
                    (StatusCode::BAD_REQUEST, invalid, Some("context_length_exceeded"))
                }
                _ => (StatusCode::BAD_REQUEST, invalid, None),
            },
            Self::Refused(Refusal::Draining) => {
                (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("shutting_down"))
            }
            Self::Refused(Refusal::Unavailable { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("no_unit"))
            }
        }
    }

    /// The error object, as a response's body or as an event of a stream.
    pub(super) fn body(&self) -> serde_json::Value {
        let (_, kind, code) = self.parts();
        let param = match self {
            Self::BadRequest { param, .. } => param.clone(),
            Self::Refused(Refusal::Rejected(RejectReason::Sampling(
                SamplingError::OutOfRange { field, .. } | SamplingError::UnknownToken { field, .. },
            ))) => Some((*field).to_owned()),
            _ => None,
        };
        json!({"error": {"message": self.to_string(), "type": kind, "param": param, "code": code}})
    }
}

impl ResponseError for ServeError {
    fn status_code(&self) -> StatusCode {
        self.parts().0
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        let wait_s = match self {
            Self::Refused(Refusal::Rejected(RejectReason::QueueFull { .. })) => Some(1),
            Self::Swap(SwapError::Busy | SwapError::Rebuilding { .. }) => Some(1),
            Self::Refused(Refusal::Draining | Refusal::Unavailable { .. }) => Some(5),
            _ => None,
        };
        if let Some(wait_s) = wait_s {
            response.insert_header((RETRY_AFTER, wait_s.to_string()));
        }
        response.json(self.body())
    }
}
