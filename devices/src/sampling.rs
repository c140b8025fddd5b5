//! From logits to a token: `argmax(logits / T + G)`, where the Gumbel noise G is a pure function of (seed, position,
//! token id). Draft and target use the same noise, so they agree as often as their distributions overlap
//! (drafter-invariant speculative decoding, Daliri et al. 2024), and a text depends only on the target's weights, the
//! prompt, these parameters and the seed.

/// How a token is picked from a row's logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; else logits are divided by it before the noise is added.
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
