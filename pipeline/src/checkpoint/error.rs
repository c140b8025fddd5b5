//! What can be wrong with a checkpoint. Each message names the file, the part of it and what was expected there.

use std::io;
use std::path::PathBuf;

use outrider_devices::graph::{SubgraphError, WeightError};
use outrider_plans::ModelRole;

use crate::template::TemplateError;
use crate::tokenizer::TokenizerError;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system refused to read a file.
    #[error("{}: {source}; check that the path exists and may be read", file.display())]
    Io {
        /// File or directory.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that the checkpoint needs is not there.
    #[error("{directory}: {file} is missing; put it beside the other files of the checkpoint")]
    MissingFile {
        /// Where it was looked for.
        directory: String,
        /// The file that is not there.
        file: String,
    },
    /// The bytes do not begin as a known format does.
    #[error(
        "{file}: not a model, it begins with {first:?}; expected a GGUF file, a .safetensors file or a directory that holds one"
    )]
    NotAModel {
        /// File.
        file: String,
        /// Its first bytes, those that are not printable as escapes.
        first: String,
    },
    /// The file ends before something that it announces.
    #[error(
        "{file}: truncated: {part} needs {expected} bytes, the file has {found}; download or convert it again"
    )]
    Truncated {
        /// File.
        file: String,
        /// What lies beyond the end.
        part: String,
        /// Bytes that the file must have at least.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// The file contradicts its own format.
    #[error("{file}: malformed: {detail}; download or convert it again")]
    Malformed {
        /// File.
        file: String,
        /// What is wrong, and where.
        detail: String,
    },
    /// A tensor of the architecture is not in the checkpoint.
    #[error(
        "{file}: tensor {tensor} is missing; a llama model needs it, so the checkpoint is incomplete"
    )]
    MissingTensor {
        /// File, or directory of files.
        file: String,
        /// Tensor.
        tensor: String,
    },
    /// A tensor that the architecture does not have: to ignore it would be to compute another model.
    #[error(
        "{file}: tensor {tensor} is not a part of a llama model; this variant of the architecture is not supported"
    )]
    UnknownTensor {
        /// File, or directory of files.
        file: String,
        /// Tensor.
        tensor: String,
    },
    /// A tensor has another shape than the hyper-parameters say.
    #[error(
        "{file}: tensor {tensor} is {found:?}, expected {} x {} from the model's hyper-parameters", expected.0, expected.1
    )]
    WrongShape {
        /// File, or directory of files.
        file: String,
        /// Tensor.
        tensor: String,
        /// Rows and columns.
        expected: (usize, usize),
        /// Dimensions found, rows first.
        found: Vec<usize>,
    },
    /// The model is of another family.
    #[error("{file}: architecture {architecture:?} is not supported; expected \"llama\"")]
    UnsupportedArchitecture {
        /// File.
        file: String,
        /// What the file says.
        architecture: String,
    },
    /// A tensor is stored in a format that no unit can read.
    #[error(
        "{file}: tensor {tensor} is stored as {format}, which is not supported; convert the model to Q8_0, Q4_0, a K-quant, F16, BF16 or F32"
    )]
    UnsupportedFormat {
        /// File.
        file: String,
        /// Tensor.
        tensor: String,
        /// Format.
        format: String,
    },
    /// A hyper-parameter is not there.
    #[error("{file}: {field} is missing; a llama model needs it")]
    MissingField {
        /// File.
        file: String,
        /// Metadata key or JSON field.
        field: String,
    },
    /// A hyper-parameter has a value that cannot be.
    #[error("{file}: {field} is {found}, expected {expected}")]
    BadField {
        /// File.
        file: String,
        /// Metadata key or JSON field.
        field: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The tokenizer cannot be built.
    #[error("{file}: {source}")]
    Tokenizer {
        /// File.
        file: String,
        /// Why.
        source: TokenizerError,
    },
    /// The chat template cannot be read.
    #[error("{file}: {source}")]
    Template {
        /// File.
        file: String,
        /// Why.
        source: TemplateError,
    },
    /// A tensor's bytes are not what its shape and format need.
    #[error("{file}: {source}")]
    Weight {
        /// File.
        file: String,
        /// Why.
        source: WeightError,
    },
    /// The shipped pair was left out of this binary.
    #[error(
        "the shipped {role} is not in this binary; name a model file, or build with the feature `embedded-models`"
    )]
    NotEmbedded {
        /// Which of the pair.
        role: ModelRole,
    },
    /// A stage was asked for that the model does not have.
    #[error("{file}: {source}")]
    Stage {
        /// File.
        file: String,
        /// Why.
        source: SubgraphError,
    },
}

impl CheckpointError {
    pub(crate) fn malformed(file: &str, detail: impl Into<String>) -> Self {
        CheckpointError::Malformed { file: file.to_owned(), detail: detail.into() }
    }

    pub(crate) fn bad_field(
        file: &str,
        field: &str,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Self {
        CheckpointError::BadField {
            file: file.to_owned(),
            field: field.to_owned(),
            expected: expected.into(),
            found: shortened(&found.to_string()),
        }
    }

    pub(crate) fn missing_field(file: &str, field: &str) -> Self {
        CheckpointError::MissingField { file: file.to_owned(), field: field.to_owned() }
    }
}

/// At most 80 characters: a hostile file must not choose the length of a message.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
