//! The only mapping from errors inside to HTTP: OpenAI's error object, its status, and `Retry-After` where it helps.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use outrider_devices::sampling::SamplingError;
use outrider_observability::RejectionReason;
use outrider_pipeline::scheduler::RejectReason;
use outrider_plans::SwapError;
use serde::Serialize;
use utoipa::ToSchema;

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
    /// The service contradicts itself.
    #[error("{0}")]
    Failed(String),
    /// The body is in a format that is not read.
    #[error("{0}")]
    UnsupportedMedia(String),
    /// The head is larger than allowed.
    #[error("{0}")]
    HeadTooLarge(String),
    /// No key, or a wrong one.
    #[error("a key is needed: send `Authorization: Bearer KEY`")]
    Unauthorised,
    /// The key does not open the route.
    #[error("{0}")]
    Forbidden(String),
    /// The request took too long.
    #[error("the answer was not complete after {0} s, the longest time that a request may take")]
    DeadlinePassed(u64),
    /// An operator ended the request.
    #[error("the request was cancelled")]
    Cancelled,
    /// The request was taken, and nothing is left that could finish it.
    #[error("{0}")]
    Lost(String),
}

/// The body of every answer that is an error.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// What is wrong.
    error: ErrorObject,
}

/// OpenAI's error object.
#[derive(Serialize, ToSchema)]
struct ErrorObject {
    /// What is wrong, and what would be right.
    message: String,
    /// Whose fault it is: `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field that is wrong, if one is.
    param: Option<String>,
    /// A word for programs.
    code: Option<&'static str>,
}

impl ServeError {
    /// The engine went away while it wrote.
    pub(super) fn ended() -> Self {
        Self::Lost("the engine ended before the answer was complete".into())
    }

    /// A model that is not here.
    pub(super) fn no_model(asked: &str, served: &str) -> Self {
        Self::NotFound(format!("there is no model `{asked}` here: this service runs `{served}`"))
    }

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
            Self::HeadTooLarge(_) => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, invalid, Some("head_too_large"))
            }
            Self::Unauthorised => (StatusCode::UNAUTHORIZED, invalid, Some("invalid_api_key")),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, invalid, Some("forbidden")),
            Self::DeadlinePassed(_) => {
                (StatusCode::GATEWAY_TIMEOUT, "server_error", Some("deadline_passed"))
            }
            Self::UnsupportedMedia(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, invalid, None),
            Self::Cancelled => (client_closed_request(), invalid, Some("cancelled")),
            Self::Lost(_) => (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("unit_lost")),
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
    pub(super) fn body(&self) -> ErrorBody {
        let (_, kind, code) = self.parts();
        let param = match self {
            Self::BadRequest { param, .. } => param.clone(),
            Self::Refused(Refusal::Rejected(RejectReason::Sampling(
                SamplingError::OutOfRange { field, .. } | SamplingError::UnknownToken { field, .. },
            ))) => Some((*field).to_owned()),
            _ => None,
        };
        ErrorBody { error: ErrorObject { message: self.to_string(), kind, param, code } }
    }

    /// What the request counts as among those turned away; `None` if it was taken.
    pub(super) fn rejection(&self) -> Option<RejectionReason> {
        match self {
            Self::Refused(Refusal::Rejected(RejectReason::QueueFull { .. })) => {
                Some(RejectionReason::QueueFull)
            }
            Self::Refused(Refusal::Rejected(RejectReason::ContextExceeded { .. })) => {
                Some(RejectionReason::ContextTooLong)
            }
            Self::Refused(Refusal::Draining) => Some(RejectionReason::Draining),
            Self::Refused(Refusal::Unavailable { .. }) => Some(RejectionReason::NotReady),
            Self::Unauthorised | Self::Forbidden(_) => Some(RejectionReason::Unauthorised),
            Self::Lost(_) | Self::Cancelled | Self::DeadlinePassed(_) => None,
            Self::Failed(_) | Self::Swap(_) => None,
            _ => Some(RejectionReason::Invalid),
        }
    }

    /// Seconds after which the same request may be served.
    fn wait_s(&self) -> Option<u32> {
        match self {
            Self::Refused(Refusal::Rejected(RejectReason::QueueFull { .. }))
            | Self::Swap(SwapError::Busy | SwapError::Rebuilding { .. }) => Some(1),
            Self::Refused(Refusal::Draining | Refusal::Unavailable { .. }) | Self::Lost(_) => {
                Some(5)
            }
            _ => None,
        }
    }
}

/// 499, which proxies use for a request that was called off: unlike a 5xx it is not tried again.
fn client_closed_request() -> StatusCode {
    StatusCode::from_u16(499).expect("three digits")
}

impl ResponseError for ServeError {
    fn status_code(&self) -> StatusCode {
        self.parts().0
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if let Some(wait_s) = self.wait_s() {
            response.insert_header((RETRY_AFTER, wait_s.to_string()));
        }
        match self {
            Self::Unauthorised => {
                response.insert_header((WWW_AUTHENTICATE, "Bearer"));
            }
            // A second try would take as long again.
            Self::DeadlinePassed(_) => {
                response.insert_header(("x-should-retry", "false"));
            }
            _ => {}
        }
        response.json(self.body())
    }
}
