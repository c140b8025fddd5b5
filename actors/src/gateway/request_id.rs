//! Names for requests, so that an answer, the log and a client's own log can be laid side by side.
//!
//! *Invariant:* every answer carries `x-request-id`: the client's own if it is short and printable, else a new one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::HttpMessage;
use actix_web::dev::ServiceRequest;
use actix_web::http::header::{HeaderName, HeaderValue};

/// The header.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest name that is taken from a client, bytes.
const LENGTH_MAX: usize = 128;

/// A request's name.
#[derive(Clone, Debug)]
pub(super) struct RequestId(pub(super) String);

/// Makes names that no other request of this process has, and hardly one of another process.
pub(super) struct RequestIds {
    started_us: u64,
    made: AtomicU64,
}

impl RequestIds {
    pub(super) fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started_us: since_epoch.as_micros() as u64, made: AtomicU64::new(0) }
    }

    /// Names a request, for its handler and for its answer's header.
    pub(super) fn name(&self, request: &ServiceRequest) -> (RequestId, HeaderValue) {
        let given = request.headers().get(X_REQUEST_ID).filter(|value| {
            let bytes = value.as_bytes();
            (1..=LENGTH_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
        });
        let value = given.cloned().unwrap_or_else(|| {
            let made = self.made.fetch_add(1, Ordering::Relaxed);
            let name = format!("req-{:x}-{made:x}", self.started_us);
            HeaderValue::from_str(&name).expect("digits and letters make a header")
        });
        let id = RequestId(value.to_str().unwrap_or_default().to_owned());
        request.extensions_mut().insert(id.clone());
        (id, value)
    }
}
