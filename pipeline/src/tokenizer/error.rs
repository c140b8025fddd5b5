//! What can be wrong with a tokenizer.

/// Why a tokenizer cannot be built, or a text not be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A kind of model that is not read here.
    #[error("tokenizer model {found:?} is not supported; expected {expected}")]
    UnsupportedModel {
        /// What the file says.
        found: String,
        /// What is read.
        expected: &'static str,
    },
    /// A way of cutting text into words that is not known.
    #[error(
        "pre-tokenizer {found:?} is not supported; expected one of {expected}. Another one cuts text into other tokens, so none is assumed"
    )]
    UnsupportedPreTokenizer {
        /// What the file says.
        found: String,
        /// What is known.
        expected: String,
    },
    /// A merge of tokens that are not in the vocabulary.
    #[error(
        "merge {index}, {merge:?}, names a token that is not in the vocabulary; convert the model again"
    )]
    Merge {
        /// Which merge, from 0.
        index: usize,
        /// The merge.
        merge: String,
    },
    /// Two lists that should be of one length are not.
    #[error("{list} has {found} entries, expected {expected} as in the list of tokens")]
    Lengths {
        /// Which list.
        list: &'static str,
        /// Tokens.
        expected: usize,
        /// Entries in the list.
        found: usize,
    },
    /// An id or a length that no real vocabulary has.
    #[error("{what} is {found}, expected at most {max}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// How large.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// The file cannot be read as a tokenizer.
    #[error("the tokenizer cannot be read: {detail}")]
    Unreadable {
        /// What the reader said.
        detail: String,
    },
}
