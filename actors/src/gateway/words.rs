//! Text to tokens and back: `/tokenize`, `/detokenize`, `/apply-template`.

use actix_web::web;
use outrider_pipeline::SpecialTokens;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ask::spoken;
use super::document::Refusals;
use super::error::ServeError;
use super::logprobs::bytes_of;
use super::openai::ChatMessage;
use crate::engine::Engine;

/// A text to cut into tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenizeRequest {
    /// The text.
    content: String,
    /// Put the token that begins a text first, if the model has one.
    #[serde(default)]
    add_special: bool,
    /// Read special tokens such as an end of text that are written out; else they are plain text. Default: true.
    parse_special: Option<bool>,
    /// List the text of each token too.
    #[serde(default)]
    with_pieces: bool,
}

/// The tokens of a text.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenizeAnswer {
    /// Token ids, or tokens with their texts.
    tokens: Vec<TokenOrPiece>,
}

/// A token id, or a token with its text.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum TokenOrPiece {
    Id(u32),
    Piece {
        /// The token.
        id: u32,
        /// Its text; its bytes, if they are no text by themselves.
        piece: Piece,
    },
}

/// Text, or bytes that are none.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

/// Tokens to join.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DetokenizeRequest {
    /// Token ids.
    tokens: Vec<u32>,
}

/// A text.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DetokenizeAnswer {
    /// The text of the tokens; control tokens have none.
    content: String,
}

/// A conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateRequest {
    /// The conversation; at least one message.
    #[schema(min_items = 1)]
    messages: Vec<ChatMessage>,
}

/// A prompt.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TemplateAnswer {
    /// The conversation as the model reads it.
    prompt: String,
}

/// Cuts a text into the target model's tokens.
#[utoipa::path(
    post, path = "/tokenize", tag = "text", request_body = TokenizeRequest,
    responses((status = 200, description = "The tokens.", body = TokenizeAnswer), Refusals)
)]
pub(super) async fn tokenize(
    engine: web::Data<Engine>,
    request: web::Json<TokenizeRequest>,
) -> Result<web::Json<TokenizeAnswer>, ServeError> {
    let TokenizeRequest { content, add_special, parse_special, with_pieces } = request.into_inner();
    let tokenizer = engine.tokenizer();
    let special = match parse_special {
        Some(false) => SpecialTokens::Plain,
        _ => SpecialTokens::Parse,
    };
    let encoded = tokenizer.encode(&content, special);
    let encoded = encoded.map_err(|error| ServeError::field("content", error))?;
    let first = tokenizer.bos().filter(|_| add_special);
    let word = |id: u32| match with_pieces {
        false => TokenOrPiece::Id(id),
        true => {
            let piece = match String::from_utf8(bytes_of(tokenizer, id)) {
                Ok(text) => Piece::Text(text),
                Err(error) => Piece::Bytes(error.into_bytes()),
            };
            TokenOrPiece::Piece { id, piece }
        }
    };
    Ok(web::Json(TokenizeAnswer { tokens: first.into_iter().chain(encoded).map(word).collect() }))
}

/// Joins tokens of the target model to a text.
#[utoipa::path(
    post, path = "/detokenize", tag = "text", request_body = DetokenizeRequest,
    responses((status = 200, description = "The text.", body = DetokenizeAnswer), Refusals)
)]
pub(super) async fn detokenize(
    engine: web::Data<Engine>,
    request: web::Json<DetokenizeRequest>,
) -> Result<web::Json<DetokenizeAnswer>, ServeError> {
    let unknown = request.tokens.iter().find(|&&token| token as usize >= engine.vocabulary());
    if let Some(token) = unknown {
        let last = engine.vocabulary() - 1;
        let message = format!("`tokens` names token {token}, but the vocabulary ends at {last}");
        return Err(ServeError::field("tokens", message));
    }
    Ok(web::Json(DetokenizeAnswer { content: engine.tokenizer().decode(&request.tokens) }))
}

/// Applies the target model's chat template, without generating anything.
#[utoipa::path(
    post, path = "/apply-template", tag = "text", request_body = TemplateRequest,
    responses((status = 200, description = "The prompt.", body = TemplateAnswer), Refusals)
)]
pub(super) async fn apply_template(
    engine: web::Data<Engine>,
    request: web::Json<TemplateRequest>,
) -> Result<web::Json<TemplateAnswer>, ServeError> {
    let messages = spoken(request.into_inner().messages)?;
    let prompt = engine.chat_text(&messages);
    Ok(web::Json(TemplateAnswer {
        prompt: prompt.map_err(|error| ServeError::field("messages", error))?,
    }))
}
