//! The coordinator's book of readers: who waits for which sequence's text, and when what happened to it.
//!
//! *Invariant:* a sequence is in the book from its admission until its `Finished` is sent; times are monotonic.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outrider_devices::SequenceId;
use outrider_observability::{FailureReason, FinishedReason, RequestMetrics};
use outrider_pipeline::scheduler::{EmittedToken, FinishReason, Statistics};
use tokio::sync::{mpsc, oneshot};

use crate::request::{RequestEvent, Timings};

struct Entry {
    events: mpsc::Sender<RequestEvent>,
    /// Dropped when the request ends: nobody needs to watch its reader any more.
    _open: oneshot::Sender<()>,
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// Its time was up: it is about to be cancelled.
    expired: bool,
}

/// Readers and times of the sequences that are being decoded.
pub(crate) struct Ledger {
    entries: BTreeMap<SequenceId, Entry>,
    metrics: RequestMetrics,
}

impl Ledger {
    pub(crate) fn new(metrics: RequestMetrics) -> Self {
        Self { entries: BTreeMap::new(), metrics }
    }

    /// A request has arrived.
    pub(crate) fn open(
        &mut self,
        sequence: SequenceId,
        events: mpsc::Sender<RequestEvent>,
        open: oneshot::Sender<()>,
        now: Instant,
    ) {
        let entry = Entry {
            events,
            _open: open,
            arrived: now,
            started: None,
            first_token: None,
            last_token: None,
            expired: false,
        };
        self.entries.insert(sequence, entry);
    }

    /// A request was refused after all.
    pub(crate) fn forget(&mut self, sequence: SequenceId) {
        self.entries.remove(&sequence);
    }

    /// A request's time is up: its end will count as that.
    pub(crate) fn expire(&mut self, sequence: SequenceId) {
        if let Some(entry) = self.entries.get_mut(&sequence) {
            entry.expired = true;
        }
    }

    /// Rows of these sequences go to a unit.
    pub(crate) fn started(&mut self, sequences: impl Iterator<Item = SequenceId>, now: Instant) {
        for sequence in sequences {
            if let Some(entry) = self.entries.get_mut(&sequence)
                && entry.started.is_none()
            {
                entry.started = Some(now);
                self.metrics.queue_time.record(now.duration_since(entry.arrived));
            }
        }
    }

    /// Hands text to the reader. False if nobody reads any more.
    pub(crate) fn text(
        &mut self,
        sequence: SequenceId,
        text: String,
        tokens: Vec<EmittedToken>,
        now: Instant,
    ) -> bool {
        // A sequence that was cancelled in this very step has no reader and needs none.
        let Some(entry) = self.entries.get_mut(&sequence) else { return true };
        let count = tokens.len() as u32;
        if count > 0 {
            match entry.last_token {
                None => {
                    entry.first_token = Some(now);
                    self.metrics.time_to_first_token.record(now.duration_since(entry.arrived));
                }
                // The tokens of one round come together: the first after a wait, the others at once.
                Some(before) => {
                    self.metrics.inter_token_latency.record(now.duration_since(before));
                    (1..count).for_each(|_| self.metrics.inter_token_latency.record(0.0));
                }
            }
            entry.last_token = Some(now);
            self.metrics.generation_tokens.increment(u64::from(count));
        }
        entry.events.try_send(RequestEvent::Text { text, tokens }).is_ok()
    }

    /// Ends a request: tells the reader, and records its times.
    pub(crate) fn close(
        &mut self,
        sequence: SequenceId,
        reason: FinishReason,
        statistics: Statistics,
        now: Instant,
    ) {
        let Some(entry) = self.entries.remove(&sequence) else { return };
        let timings = entry.timings(now);
        match reason {
            FinishReason::Cancelled if entry.expired => {
                self.metrics.failures.increment(FailureReason::Timeout);
            }
            _ => self.count(&reason),
        }
        self.measure(&statistics, &timings);
        self.metrics.e2e_latency.record(now.duration_since(entry.arrived));
        // A reader that has left is told nothing.
        let _ = entry.events.try_send(RequestEvent::Finished { reason, statistics, timings });
    }

    fn count(&self, reason: &FinishReason) {
        let metrics = &self.metrics;
        match reason {
            FinishReason::Stop | FinishReason::StopString => {
                metrics.success.increment(FinishedReason::Stop);
            }
            FinishReason::Length => metrics.success.increment(FinishedReason::Length),
            FinishReason::Cancelled => metrics.failures.increment(FailureReason::Cancelled),
            FinishReason::Failed { .. } => metrics.failures.increment(FailureReason::UnitLost),
        }
    }

    fn measure(&self, statistics: &Statistics, timings: &Timings) {
        let metrics = &self.metrics;
        if statistics.predicted_n > 0 {
            let cached = u64::from(statistics.cached_n);
            metrics.prompt_tokens.increment(u64::from(statistics.prompt_n) - cached);
            metrics.prefix_cache_hits.increment(cached);
            metrics.prefill_time.record(timings.prompt_ms / 1e3);
            metrics.decode_time.record(timings.predicted_ms / 1e3);
        }
        if statistics.predicted_n > 1 {
            let each = timings.predicted_ms / 1e3 / f64::from(statistics.predicted_n - 1);
            metrics.time_per_output_token.record(each);
        }
    }

    /// Whether a sequence is open.
    pub(crate) fn is_open(&self, sequence: SequenceId) -> bool {
        self.entries.contains_key(&sequence)
    }

    /// All open sequences.
    pub(crate) fn open_sequences(&self) -> Vec<SequenceId> {
        self.entries.keys().copied().collect()
    }

    /// Shows how many sequences have a place and how many wait for one.
    pub(crate) fn load(&self, running: usize, waiting: usize) {
        self.metrics.running.set(running as f64);
        self.metrics.waiting.set(waiting as f64);
    }

    /// Shows what share of the target's cache positions is in use.
    pub(crate) fn cache_usage(&self, ratio: f64) {
        self.metrics.kv_cache_usage.set(ratio);
    }
}

impl Entry {
    fn timings(&self, now: Instant) -> Timings {
        let started = self.started.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        let last = self.last_token.unwrap_or(first);
        Timings {
            queue_ms: millis(started.duration_since(self.arrived)),
            prompt_ms: millis(first.duration_since(started)),
            predicted_ms: millis(last.duration_since(first)),
        }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
