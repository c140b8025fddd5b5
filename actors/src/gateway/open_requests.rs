//! The book of requests whose answers are being written: listed, and ended by an operator.
//!
//! *Invariant:* a request is in the book exactly as long as its [`OpenRequest`] lives, which goes where its answer goes:
//! when the client leaves, both are dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use outrider_devices::SequenceId;
use serde::Serialize;
use utoipa::ToSchema;

/// What the book says of one request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct RequestEntry {
    /// The answer's `id`.
    pub(super) id: String,
    /// The request's `x-request-id`.
    pub(super) request_id: String,
    /// `waiting` until its first token, then `writing`.
    pub(super) state: &'static str,
    /// Tokens of the prompt.
    pub(super) prompt_tokens: u64,
    /// Tokens written so far, of all its answers.
    pub(super) completion_tokens: u64,
    /// Milliseconds since it arrived.
    pub(super) age_ms: u64,
}

struct Page {
    request_id: String,
    sequences: Vec<SequenceId>,
    prompt_tokens: u64,
    completion_tokens: u64,
    arrived: Instant,
}

type Pages = BTreeMap<String, Page>;

/// The book.
#[derive(Clone, Default)]
pub(super) struct OpenRequests {
    pages: Arc<Mutex<Pages>>,
}

/// A request's page in the book, which it takes with it.
pub(super) struct OpenRequest {
    book: OpenRequests,
    id: String,
}

impl OpenRequests {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        // No code panics between two halves of a change, so a poisoned book is still right.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a page. `id` is one that no other request has.
    pub(super) fn open(
        &self,
        id: String,
        request_id: String,
        sequences: Vec<SequenceId>,
        prompt_tokens: usize,
    ) -> OpenRequest {
        let page = Page {
            request_id,
            sequences,
            prompt_tokens: prompt_tokens as u64,
            completion_tokens: 0,
            arrived: Instant::now(),
        };
        self.pages().insert(id.clone(), page);
        OpenRequest { book: self.clone(), id }
    }

    /// All open requests, by id.
    pub(super) fn list(&self) -> Vec<RequestEntry> {
        let entry = |(id, page): (&String, &Page)| RequestEntry {
            id: id.clone(),
            request_id: page.request_id.clone(),
            state: if page.completion_tokens == 0 { "waiting" } else { "writing" },
            prompt_tokens: page.prompt_tokens,
            completion_tokens: page.completion_tokens,
            age_ms: page.arrived.elapsed().as_millis() as u64,
        };
        self.pages().iter().map(entry).collect()
    }

    /// The sequences of the request with this id, or of those with this `x-request-id`.
    pub(super) fn sequences(&self, id: &str) -> Vec<SequenceId> {
        let pages = self.pages();
        let named = pages.iter().filter(|(own, page)| *own == id || page.request_id == id);
        named.flat_map(|(_, page)| page.sequences.clone()).collect()
    }
}

impl OpenRequest {
    /// Its sequences.
    pub(super) fn sequences(&self) -> Vec<SequenceId> {
        self.book.pages().get(&self.id).map(|page| page.sequences.clone()).unwrap_or_default()
    }

    /// So many more tokens were written.
    pub(super) fn wrote(&self, tokens: usize) {
        if let Some(page) = self.book.pages().get_mut(&self.id) {
            page.completion_tokens += tokens as u64;
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.book.pages().remove(&self.id);
    }
}
