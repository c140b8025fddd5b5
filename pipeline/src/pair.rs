//! Whether two models can be a pair: a drafted token id must mean the same to the target.

use crate::model::Model;
use crate::tokenizer::{Tokenizer, Vocabulary};

/// Why two models are not a pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// A token id means different text.
    #[error(
        "{draft} cannot draft for {target}: token {id} is {} in the draft and {} in the target ({draft_tokens} and {target_tokens} tokens); \
         a pair needs one vocabulary, so take a draft that was made with the target's tokenizer",
        spelt(draft_token),
        spelt(target_token)
    )]
    Token {
        /// The target's name.
        target: String,
        /// The draft's name.
        draft: String,
        /// The first id that differs.
        id: u32,
        /// Its spelling in the target, if it is there.
        target_token: Option<String>,
        /// Its spelling in the draft, if it is there.
        draft_token: Option<String>,
        /// Tokens of the target.
        target_tokens: usize,
        /// Tokens of the draft.
        draft_tokens: usize,
    },
    /// The spellings agree, but a token has another purpose.
    #[error(
        "{draft} cannot draft for {target}: {what} is {draft_value} in the draft and {target_value} in the target; \
         correct the metadata of the file that is wrong"
    )]
    Special {
        /// The target's name.
        target: String,
        /// The draft's name.
        draft: String,
        /// What differs.
        what: String,
        /// In the target.
        target_value: String,
        /// In the draft.
        draft_value: String,
    },
}

fn spelt(token: &Option<String>) -> String {
    token.as_ref().map_or("absent".to_owned(), |token| format!("{token:?}"))
}

/// Checks that `draft` can draft for `target`: vocabularies equal token for token, the same purposes of tokens, and
/// the same number of logits, since a padded embedding could draft an id that the target cannot look up.
///
/// # Errors
/// The first difference.
pub fn check_pair(target: &Model, draft: &Model) -> Result<(), PairError> {
    let (target_name, draft_name) = (target.name().to_owned(), draft.name().to_owned());
    let (ours, theirs) = (target.tokenizer().vocabulary(), draft.tokenizer().vocabulary());
    let (target_tokens, draft_tokens) = (ours.len(), theirs.len());
    let spelling = |of: &Vocabulary, id: u32| of.tokens().get(id as usize).map(|t| t.text.clone());
    let mut all = (0u32..).take(target_tokens.max(draft_tokens));
    if let Some(id) = all.find(|&id| {
        ours.tokens().get(id as usize).map(|t| &t.text)
            != theirs.tokens().get(id as usize).map(|t| &t.text)
    }) {
        return Err(PairError::Token {
            target: target_name,
            draft: draft_name,
            id,
            target_token: spelling(ours, id),
            draft_token: spelling(theirs, id),
            target_tokens,
            draft_tokens,
        });
    }
    match purposes(target, draft).into_iter().find(|(_, a, b)| a != b) {
        None => Ok(()),
        Some((what, target_value, draft_value)) => Err(PairError::Special {
            target: target_name,
            draft: draft_name,
            what,
            target_value,
            draft_value,
        }),
    }
}

/// What has to be equal besides the spellings: its name, and its value in the target and in the draft.
fn purposes(target: &Model, draft: &Model) -> Vec<(String, String, String)> {
    let (ours, theirs) = (target.tokenizer(), draft.tokenizer());
    let tokens = ours.vocabulary().tokens().iter().zip(theirs.vocabulary().tokens());
    let kinds = (0u32..).zip(tokens).find(|(_, (a, b))| a.kind != b.kind).map(|(id, (a, b))| {
        let what = format!("the kind of token {id} ({:?})", a.text);
        (what, format!("{:?}", a.kind), format!("{:?}", b.kind))
    });
    let rows = |model: &Model| model.config().shape.vocabulary.to_string();
    let ends = |tokenizer: &Tokenizer| format!("{:?}", tokenizer.eos_ids());
    let rest = [
        ("the way of spelling text", ours.kind().to_string(), theirs.kind().to_string()),
        ("the token that begins a text", id(ours.bos()), id(theirs.bos())),
        ("the set of tokens that end a text", ends(ours), ends(theirs)),
        ("the number of logits", rows(target), rows(draft)),
    ];
    kinds.into_iter().chain(rest.map(|(what, a, b)| (what.to_owned(), a, b))).collect()
}

fn id(id: Option<u32>) -> String {
    id.map_or("absent".to_owned(), |id| id.to_string())
}
