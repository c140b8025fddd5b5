//! What a request asks for, and why it may be turned away.
//!
//! *Invariant:* what passes here can be decoded to its end; nothing is clipped or ignored silently.

use outrider_devices::sampling::SamplingError;
use outrider_devices::{Sampling, SequenceId};

use super::SchedulerConfig;
use crate::draft_policy::Speculation;
use crate::text::TextStart;

/// How one text is to be generated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationParams {
    /// How tokens are picked. Its `prompt_len` is filled in.
    pub sampling: Sampling,
    /// Most tokens of output; `None` goes on to the end of the context.
    pub max_tokens: Option<u32>,
    /// The text ends before the first of these to appear.
    pub stop: Vec<String>,
    /// The text ends with the first of these tokens, besides the model's own end-of-text tokens.
    pub stop_tokens: Vec<u32>,
    /// Go on after the model's own end-of-text tokens.
    pub ignore_eos: bool,
    /// The request's say in speculation.
    pub speculation: Speculation,
    /// Where its text begins.
    pub begins: TextStart,
}

/// A request for one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// A name that no living sequence has.
    pub sequence: SequenceId,
    /// The tokens to continue.
    pub prompt: Vec<u32>,
    /// How to continue them.
    pub params: GenerationParams,
}

/// Why a request was turned away.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RejectReason {
    /// Too many requests wait already.
    #[error(
        "{waiting} requests with {tokens} prompt tokens are waiting, as many as are allowed; try again later"
    )]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
        /// Prompt tokens of them all.
        tokens: usize,
    },
    /// Prompt and output do not fit into the model's context.
    #[error(
        "a prompt of {prompt} tokens with {output} more does not fit into the context of {context}; \
         shorten the prompt or ask for fewer tokens"
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of output asked for (1 if nothing was said).
        output: u32,
        /// Most tokens of both together.
        context: u32,
    },
    /// There is nothing to continue.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// No output is asked for.
    #[error("max_tokens is 0, but must be at least 1")]
    NoOutput,
    /// An empty stop string would end every text at once.
    #[error("a stop string is empty")]
    EmptyStop,
    /// A token id that the model does not have.
    #[error("{field} names token {token}, but the vocabulary ends at {}", vocabulary.saturating_sub(1))]
    UnknownToken {
        /// `prompt` or `stop_tokens`.
        field: &'static str,
        /// The token id.
        token: u32,
        /// Number of tokens of the model.
        vocabulary: u32,
    },
    /// A sampling parameter out of its range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
}

impl Admission {
    /// Most tokens of prompt and output together, if the request can be served.
    pub(super) fn length_max(&self, config: &SchedulerConfig) -> Result<u32, RejectReason> {
        let Self { prompt, params, .. } = self;
        let vocabulary = config.vocabulary;
        if prompt.is_empty() {
            return Err(RejectReason::EmptyPrompt);
        }
        if params.max_tokens == Some(0) {
            return Err(RejectReason::NoOutput);
        }
        if params.stop.iter().any(String::is_empty) {
            return Err(RejectReason::EmptyStop);
        }
        for (field, tokens) in [("prompt", prompt), ("stop_tokens", &params.stop_tokens)] {
            if let Some(&token) = tokens.iter().find(|&&token| token >= vocabulary) {
                return Err(RejectReason::UnknownToken { field, token, vocabulary });
            }
        }
        params.sampling.validate(vocabulary)?;
        let context = config.target.positions_max;
        let output = params.max_tokens.unwrap_or(1);
        let length = prompt.len() as u64 + u64::from(output);
        if length > u64::from(context) {
            return Err(RejectReason::ContextExceeded { prompt: prompt.len(), output, context });
        }
        Ok(if params.max_tokens.is_some() { length as u32 } else { context })
    }
}
