//! Log-probabilities in the two forms that OpenAI's routes give them.
//!
//! *Invariant:* the texts of the tokens, one after the other, are the answer's: a token's leading space is kept, and
//! bytes that are not a whole character by themselves are shown as `U+FFFD`, with the bytes beside them.

use outrider_pipeline::Tokenizer;
use outrider_pipeline::scheduler::EmittedToken;
use serde_json::{Value, json};

use super::letterhead::Dialect;

/// The log-probabilities of some tokens.
pub(super) fn logprobs(dialect: Dialect, tokenizer: &Tokenizer, tokens: &[EmittedToken]) -> Value {
    match dialect {
        Dialect::Chat => chat(tokenizer, tokens),
        Dialect::Completion => completion(tokenizer, tokens),
    }
}

fn chat(tokenizer: &Tokenizer, tokens: &[EmittedToken]) -> Value {
    let entry = |id: u32, logprob: f32| {
        let bytes = bytes_of(tokenizer, id);
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes})
    };
    let content: Vec<_> = tokens
        .iter()
        .map(|token| {
            let mut object = entry(token.pick.token, token.pick.probability.ln());
            let top: Vec<_> = token.pick.top.iter().map(|&(id, lp)| entry(id, lp)).collect();
            object["top_logprobs"] = Value::from(top);
            object
        })
        .collect();
    json!({"content": content})
}

fn completion(tokenizer: &Tokenizer, tokens: &[EmittedToken]) -> Value {
    let text = |id: u32| String::from_utf8_lossy(&bytes_of(tokenizer, id)).into_owned();
    let top = |token: &EmittedToken| {
        let pairs = token.pick.top.iter().map(|&(id, lp)| (text(id), Value::from(lp)));
        Value::Object(pairs.collect())
    };
    json!({
        "tokens": tokens.iter().map(|t| text(t.pick.token)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|t| t.pick.probability.ln()).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
    })
}

/// The bytes that a token stands for; none for a control token.
pub(super) fn bytes_of(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokenizer.vocabulary().append_bytes(id, &mut bytes);
    bytes
}
