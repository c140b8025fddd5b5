//! Whether two models can be a pair: a drafted token id must mean the same to the target.

use crate::model::Model;
use crate::tokenizer::Vocabulary;

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
    let (ours, theirs) = (target.tokenizer().vocabulary(), draft.tokenizer().vocabulary());
    let names = || (target.name().to_owned(), draft.name().to_owned());
    for id in (0u32..).take(ours.len().max(theirs.len())) {
        let of = |tokens: &'_ Vocabulary| tokens.tokens().get(id as usize).map(|t| t.text.clone());
        let (target_token, draft_token) = (of(ours), of(theirs));
        if target_token != draft_token {
            let (target, draft) = names();
            let (target_tokens, draft_tokens) = (ours.len(), theirs.len());
            return Err(PairError::Token {
                target,
                draft,
                id,
                target_token,
                draft_token,
                target_tokens,
                draft_tokens,
            });
        }
    }
    let differing =
        (0u32..).zip(ours.tokens()).zip(theirs.tokens()).find(|((_, a), b)| a.kind != b.kind);
    let purpose = differing.map(|((id, a), b)| {
        let what = format!("the kind of token {id} ({:?})", a.text);
        (what, format!("{:?}", a.kind), format!("{:?}", b.kind))
    });
    let (a, b) = (target.config(), draft.config());
    let special = [
        ("the way of spelling text", format!("{}", ours.kind()), format!("{}", theirs.kind())),
        ("the token that begins a text", id(target.tokenizer().bos()), id(draft.tokenizer().bos())),
        (
            "the set of tokens that end a text",
            format!("{:?}", target.tokenizer().eos_ids()),
            format!("{:?}", draft.tokenizer().eos_ids()),
        ),
        ("the number of logits", a.shape.vocabulary.to_string(), b.shape.vocabulary.to_string()),
    ];
    let special = special.into_iter().map(|(what, a, b)| (what.to_owned(), a, b));
    match purpose.into_iter().chain(special).find(|(_, a, b)| a != b) {
        None => Ok(()),
        Some((what, target_value, draft_value)) => {
            let (target, draft) = names();
            Err(PairError::Special { target, draft, what, target_value, draft_value })
        }
    }
}

fn id(id: Option<u32>) -> String {
    id.map_or("absent".to_owned(), |id| id.to_string())
}
