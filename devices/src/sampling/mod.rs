//! From logits to a token: `argmax(logits / T + G)`, where the Gumbel noise G is a pure function of (seed, position,
//! token id). Draft and target use the same noise, so they agree as often as their distributions overlap
//! (drafter-invariant speculative decoding, Daliri et al. 2024), and a text depends only on the target's weights, the
//! prompt, these parameters and the seed.
//!
//! A row's logits go through these steps, each one skipped when its parameters change nothing:
//!
//! | step | acts on |
//! |---|---|
//! | 1. `logit_bias` | raw logits |
//! | 2. repetition, then frequency and presence penalty | biased logits of tokens in the history |
//! | 3. temperature: times `1 / T` | penalised logits |
//! | 4. top-k | scaled logits |
//! | 5. top-p, probabilities renormalised over what top-k kept | scaled logits |
//! | 6. min-p, relative to the likeliest token | scaled logits |
//! | 7. `argmax(x + G)`; without noise if greedy | what is left |
//!
//! Steps 1 to 3 are in the order of vLLM and transformers; 4 to 6 in the order of llama.cpp and transformers. The
//! filters see the temperature, as in vLLM and transformers (llama.cpp scales last).
//!
//! *Invariants:* ties go to the lowest token id. Results are equal on every processor: only IEEE additions,
//! multiplications and divisions in a fixed order, no fused multiply-add and no library `exp` or `ln`. Nothing
//! panics on a logit that is not finite: NaN counts as minus infinity (never picked), plus infinity as the largest
//! finite number. If no logit is left, token 0 is picked with probability 0.

mod filter;
mod lanes;
mod noise;
mod pick;

pub use noise::{NOISE_MAX, gumbel, philox4x32, word};
pub use pick::{Scratch, pick, pick_token};

/// Temperatures below this are greedy: their noise could not move a logit by 0.003.
pub const TEMPERATURE_MIN: f32 = 1e-4;

/// Most likeliest tokens that a pick reports.
pub const TOP_LOGPROBS_MAX: u32 = 20;

/// How a token is picked from a row's logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 (or less than [`TEMPERATURE_MIN`]) is greedy; else logits are divided by it before the noise is added.
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of likeliest tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive (multiplies negative) logits of tokens in prompt or output; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the output.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the output, once per occurrence.
    pub frequency_penalty: f32,
    /// Seed of the noise.
    pub seed: u64,
    /// Positions before this are the prompt, those from it on the output (for the penalties).
    pub prompt_len: u32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many likeliest tokens a pick reports with their log-probabilities.
    pub top_logprobs: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            prompt_len: 0,
            logit_bias: Vec::new(),
            top_logprobs: 0,
        }
    }
}

/// Why a [`Sampling`] cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A number outside its range, or not a number.
    #[error("{field} is {value}, but must lie in {range}")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What is allowed, in words.
        range: &'static str,
    },
    /// A token id that the model does not have.
    #[error("{field} names token {token}, but the vocabulary ends at {}", vocabulary.saturating_sub(1))]
    UnknownToken {
        /// Name of the field.
        field: &'static str,
        /// The token id.
        token: u32,
        /// Number of tokens of the model.
        vocabulary: u32,
    },
}

impl Sampling {
    /// Checks every field against its range, and the tokens of `logit_bias` against the size of the vocabulary.
    pub fn validate(&self, vocabulary: u32) -> Result<(), SamplingError> {
        let within = |field, value: f32, low: f32, high: f32, range| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(SamplingError::OutOfRange { field, value: f64::from(value), range })
        };
        within("temperature", self.temperature, 0.0, 100.0, "0 to 100 (0 is greedy)")?;
        within("top_p", self.top_p, 0.0, 1.0, "0 to 1 (1 keeps all)")?;
        within("min_p", self.min_p, 0.0, 1.0, "0 to 1 (0 keeps all)")?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 10.0, "0.01 to 10 (1 is off)")?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0, "-2 to 2 (0 is off)")?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "-2 to 2 (0 is off)")?;
        if self.top_logprobs > TOP_LOGPROBS_MAX {
            let value = f64::from(self.top_logprobs);
            return Err(SamplingError::OutOfRange {
                field: "top_logprobs",
                value,
                range: "0 to 20",
            });
        }
        for &(token, bias) in &self.logit_bias {
            within("logit_bias", bias, -100.0, 100.0, "-100 to 100")?;
            if token >= vocabulary {
                return Err(SamplingError::UnknownToken { field: "logit_bias", token, vocabulary });
            }
        }
        Ok(())
    }

    /// Whether the likeliest token is picked without noise.
    pub fn is_greedy(&self) -> bool {
        self.temperature < TEMPERATURE_MIN
    }

    /// Whether a pick needs the tokens before it.
    pub fn uses_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// Whether a pick needs no more than `argmax(logits)`, so that a device may leave the softmax out.
    pub fn is_plain_argmax(&self) -> bool {
        self.is_greedy() && !self.uses_history() && self.logit_bias.is_empty()
    }

    fn filters(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}

#[cfg(test)]
mod tests;
