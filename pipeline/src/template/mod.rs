//! Chat templates: a conversation to the prompt that a model was trained on.
//!
//! Templates are Jinja, written for Hugging Face's environment: blocks trimmed, Python's string methods, and the
//! functions `raise_exception` and `strftime_now`. They come with checkpoints, so they are not trusted: a template runs on
//! bounded fuel and reaches nothing but what it is given. *Invariant:* no clock; the time is an argument.

mod date;
mod json;

use std::collections::BTreeMap;

use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;

pub use date::UnixSeconds;

/// Instructions that a template may run; real ones need some thousands a message.
const FUEL: u64 = 20_000_000;
const NAME: &str = "chat template";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// Whether the prompt ends in the opening of the assistant's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model goes on as the assistant.
    Add,
    /// It does not.
    Omit,
}

/// What a template is given.
#[derive(Clone, Debug)]
pub struct Conversation<'a> {
    /// Turns, the oldest first.
    pub messages: &'a [Message],
    /// How the prompt ends.
    pub generation_prompt: GenerationPrompt,
    /// The time for `strftime_now`; without one the function does not exist, and templates use a default of theirs.
    pub now: Option<UnixSeconds>,
    /// Further variables, such as `enable_thinking`.
    pub variables: &'a BTreeMap<String, serde_json::Value>,
}

/// Why a template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is not Jinja as it is understood here.
    #[error("the chat template cannot be read: {detail}; send a raw prompt instead")]
    Syntax {
        /// What the reader said.
        detail: String,
    },
    /// The template itself refuses the conversation, such as roles that do not alternate.
    #[error("the chat template refuses the conversation: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// It failed on this conversation.
    #[error("the chat template failed: {detail}")]
    Failed {
        /// What the engine said.
        detail: String,
    },
    /// The model has no template.
    #[error(
        "{model} has no chat template; send a raw prompt instead, or add tokenizer.chat_template to the file"
    )]
    Missing {
        /// The model.
        model: String,
    },
}

/// A checkpoint's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the spellings of the tokens that begin and end a text.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", json::to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|e| TemplateError::Syntax { detail: described(&e) })?;
        let (source, bos, eos) = (source.to_owned(), bos.to_owned(), eos.to_owned());
        Ok(Self { environment, source, bos, eos })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] or [`TemplateError::Failed`].
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
        let now = conversation.now.map(|now| {
            Value::from_function(move |format: &str| -> Result<String, Error> {
                date::format(now, format)
                    .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
            })
        });
        let own = context! {
            messages => conversation.messages,
            add_generation_prompt => conversation.generation_prompt == GenerationPrompt::Add,
            bos_token => self.bos,
            eos_token => self.eos,
        };
        let clock: BTreeMap<&str, Value> =
            now.map(|now| ("strftime_now", now)).into_iter().collect();
        let variables = Value::from_serialize(conversation.variables);
        // The conversation's own names come first: a request's variables do not replace its messages.
        let all = context! { ..own, ..Value::from_iter(clock), ..variables };
        let template = self.environment.get_template(NAME).map_err(|e| failure(&e))?;
        template.render(all).map_err(|e| failure(&e))
    }
}

/// Marks an error as the template's own, whose words are then shown alone.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Raised(message)))
}

fn failure(error: &Error) -> TemplateError {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TemplateError::Refused { message: message.clone() };
        }
        source = cause.source();
    }
    TemplateError::Failed { detail: described(error) }
}

/// The message with the line; without the template's text, which `Display` of the debug form would show.
fn described(error: &Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
