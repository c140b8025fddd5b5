//! What a client's request becomes inside: a stream of events, and why a request may be refused.

use outrider_pipeline::scheduler::{EmittedToken, FinishReason, RejectReason, Statistics};

/// What happens to a request, in order: any number of `Text`, then one `Finished`.
#[derive(Clone, Debug)]
pub enum RequestEvent {
    /// More text.
    Text {
        /// Complete characters only; may be empty while a stop string may be beginning.
        text: String,
        /// The tokens that were accepted.
        tokens: Vec<EmittedToken>,
    },
    /// The end.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Tokens counted.
        statistics: Statistics,
        /// Time spent.
        timings: Timings,
    },
}

/// Time that a request spent, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// From arrival until its first rows ran.
    pub queue_ms: f64,
    /// From then until the first token.
    pub prompt_ms: f64,
    /// From the first token to the last.
    pub predicted_ms: f64,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The scheduler turned it away: it is wrong, too long, or too many wait.
    #[error(transparent)]
    Rejected(#[from] RejectReason),
    /// The service is ending.
    #[error("the service is shutting down and takes no more requests")]
    Draining,
    /// No unit can run the target at present.
    #[error("no compute unit can run the target model at present: {reason}")]
    Unavailable {
        /// What was seen.
        reason: String,
    },
}
