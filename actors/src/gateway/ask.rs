//! From a wire request to an admission: checks every field, applies the chat template, counts tokens.

use std::time::Duration;

use outrider_devices::Sampling;
use outrider_pipeline::scheduler::GenerationParams;
use outrider_pipeline::{Message, Speculation};

use super::error::ServeError;
use super::letterhead::Dialect;
use super::openai::{ChatMessage, ChatRequest, Common, CompletionRequest, Content, Prompt, Stop};
use crate::engine::Engine;

/// Most stop strings of one request, and most bytes of one of them.
const STOP_MAX: (usize, usize) = (8, 256);
/// Most answers to one request.
const CHOICES_MAX: u32 = 8;

/// A request that passed all checks.
pub(super) struct Ask {
    pub(super) dialect: Dialect,
    pub(super) prompt: Vec<u32>,
    pub(super) params: GenerationParams,
    /// Longest time that the answer may take.
    pub(super) deadline: Duration,
    /// How many answers are wanted, each with a seed of its own.
    pub(super) choices: u32,
    pub(super) streamed: bool,
    pub(super) include_usage: bool,
    /// Log-probabilities to report, and for how many tokens of each position.
    pub(super) logprobs: Option<u32>,
    /// Say of each token whether it was drafted.
    pub(super) mark_tokens: bool,
    /// Text that goes before the answer.
    pub(super) echo: Option<String>,
}

/// Reads a chat request.
pub(super) fn chat(request: ChatRequest, engine: &Engine) -> Result<Ask, ServeError> {
    refuse_unknown(request.unknown.keys())?;
    let messages = spoken(request.messages)?;
    let prompt = engine.chat_prompt(&messages).map_err(|e| ServeError::field("messages", e))?;
    let logprobs = match (request.logprobs, request.top_logprobs) {
        (Some(true), n) => Some(n.unwrap_or(0)),
        (_, None) => None,
        (_, Some(_)) => {
            return Err(ServeError::field("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
        }
    };
    let mut common = request.common;
    common.max_tokens = request.max_completion_tokens.or(common.max_tokens);
    finish(common, Dialect::Chat, prompt, logprobs, engine)
}

/// A conversation as the template takes it.
pub(super) fn spoken(messages: Vec<ChatMessage>) -> Result<Vec<Message>, ServeError> {
    if messages.is_empty() {
        let message = "`messages` is empty: give at least one message";
        return Err(ServeError::field("messages", message));
    }
    let spoken = |message: ChatMessage| {
        Ok(Message { role: message.role.clone(), content: text_of(message)? })
    };
    messages.into_iter().map(spoken).collect()
}

/// Reads a completion request.
pub(super) fn completion(request: CompletionRequest, engine: &Engine) -> Result<Ask, ServeError> {
    refuse_unknown(request.unknown.keys())?;
    let tokenizer = engine.tokenizer();
    let (prompt, text) = match request.prompt {
        Prompt::Text(text) => (None, text),
        Prompt::Texts(mut texts) if texts.len() == 1 => (None, texts.remove(0)),
        Prompt::Texts(texts) => {
            let message = format!("{} prompts in one request: send one request each", texts.len());
            return Err(ServeError::field("prompt", message));
        }
        Prompt::Tokens(tokens) => {
            let known = |token: &&u32| (**token as usize) < engine.vocabulary();
            let text =
                tokenizer.decode(&tokens.iter().take_while(known).copied().collect::<Vec<_>>());
            (Some(tokens), text)
        }
    };
    let prompt = match prompt {
        Some(tokens) => tokens,
        None => engine.raw_prompt(&text).map_err(|error| ServeError::field("prompt", error))?,
    };
    let mut ask = finish(request.common, Dialect::Completion, prompt, request.logprobs, engine)?;
    ask.params.begins = tokenizer.begins_after(&ask.prompt);
    ask.echo = request.echo.unwrap_or(false).then_some(text);
    Ok(ask)
}

fn refuse_unknown<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<(), ServeError> {
    match names.next() {
        None => Ok(()),
        Some(name) => Err(ServeError::field(
            name,
            format!("`{name}` is not supported by this service; leave it out"),
        )),
    }
}

fn text_of(message: ChatMessage) -> Result<String, ServeError> {
    if message.name.as_deref().is_some_and(|name| !name.is_empty()) {
        let text = "`name` of a message is not supported; leave it out";
        return Err(ServeError::field("messages", text));
    }
    match message.content {
        Content::Text(text) => Ok(text),
        Content::Parts(parts) => parts
            .into_iter()
            .map(|part| match (part.kind.as_str(), part.text) {
                ("text", Some(text)) => Ok(text),
                (kind, _) => Err(ServeError::field(
                    "messages",
                    format!("a content part of type `{kind}` is not supported: only text is"),
                )),
            })
            .collect(),
    }
}

fn finish(
    common: Common,
    dialect: Dialect,
    prompt: Vec<u32>,
    logprobs: Option<u32>,
    engine: &Engine,
) -> Result<Ask, ServeError> {
    if let Some(model) = &common.model
        && model != engine.model_name()
    {
        return Err(ServeError::no_model(model, engine.model_name()));
    }
    let choices = common.n.unwrap_or(1);
    if !(1..=CHOICES_MAX).contains(&choices) {
        let message = format!("`n` is {choices}, but must lie in 1 to {CHOICES_MAX}");
        return Err(ServeError::field("n", message));
    }
    let streamed = common.stream.unwrap_or(false);
    if common.stream_options.is_some() && !streamed {
        return Err(ServeError::field("stream_options", "`stream_options` needs `stream: true`"));
    }
    let include_usage = common.stream_options.unwrap_or_default().include_usage;
    let mark_tokens = common.speculative.and_then(|options| options.mark_tokens).unwrap_or(false);
    let params = GenerationParams {
        sampling: sampling(&common, logprobs.unwrap_or(0), engine)?,
        max_tokens: common.max_tokens,
        stop: stop(common.stop)?,
        ignore_eos: common.ignore_eos.unwrap_or(false),
        speculation: speculation(common.speculative)?,
        ..GenerationParams::default()
    };
    Ok(Ask {
        dialect,
        prompt,
        params,
        deadline: Duration::MAX,
        choices,
        streamed,
        include_usage,
        logprobs,
        mark_tokens,
        echo: None,
    })
}

fn sampling(common: &Common, top_logprobs: u32, engine: &Engine) -> Result<Sampling, ServeError> {
    let default = Sampling::default();
    let mut logit_bias = Vec::new();
    for (token, &bias) in common.logit_bias.iter().flatten() {
        match token.parse::<u32>() {
            Ok(id) => logit_bias.push((id, bias)),
            Err(_) => {
                let message = format!("`logit_bias` takes token ids, and `{token}` is none");
                return Err(ServeError::field("logit_bias", message));
            }
        }
    }
    Ok(Sampling {
        temperature: common.temperature.unwrap_or(engine.temperature()),
        top_k: common.top_k.unwrap_or(default.top_k),
        top_p: common.top_p.unwrap_or(default.top_p),
        min_p: common.min_p.unwrap_or(default.min_p),
        repetition_penalty: common.repetition_penalty.unwrap_or(default.repetition_penalty),
        presence_penalty: common.presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: common.frequency_penalty.unwrap_or(default.frequency_penalty),
        seed: common.seed.map_or_else(|| engine.fresh_seed(), |seed| seed as u64),
        logit_bias,
        top_logprobs,
        ..default
    })
}

fn stop(stop: Option<Stop>) -> Result<Vec<String>, ServeError> {
    let stop = match stop {
        None => Vec::new(),
        Some(Stop::One(one)) => vec![one],
        Some(Stop::Many(many)) => many,
    };
    let (count_max, bytes_max) = STOP_MAX;
    if stop.len() > count_max || stop.iter().any(|s| s.is_empty() || s.len() > bytes_max) {
        let message =
            format!("`stop` takes at most {count_max} strings of 1 to {bytes_max} bytes each");
        return Err(ServeError::field("stop", message));
    }
    Ok(stop)
}

fn speculation(
    options: Option<super::openai::SpeculativeOptions>,
) -> Result<Speculation, ServeError> {
    let Some(options) = options else { return Ok(Speculation::Plan) };
    match (options.enabled, options.draft_tokens) {
        (Some(false), None | Some(0)) => Ok(Speculation::Off),
        (Some(false), Some(_)) => Err(ServeError::field(
            "speculative",
            "`speculative.draft_tokens` contradicts `speculative.enabled: false`",
        )),
        (_, None) => Ok(Speculation::Plan),
        (_, Some(0)) => Ok(Speculation::Off),
        (_, Some(n)) if n <= outrider_plans::mode::DRAFT_TOKENS_MAX => Ok(Speculation::Depth(n)),
        (_, Some(n)) => Err(ServeError::field(
            "speculative",
            format!(
                "`speculative.draft_tokens` is {n}: at most {}",
                outrider_plans::mode::DRAFT_TOKENS_MAX
            ),
        )),
    }
}
