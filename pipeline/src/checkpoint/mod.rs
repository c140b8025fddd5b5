//! Checkpoints: from a file, a directory or the binary's own bytes to hyper-parameters, tensors and tokenizer.
//!
//! *Invariant:* bytes are never believed. Whatever a file holds, opening it ends in a [`Checkpoint`] whose every tensor
//! lies within its file and fits the architecture, or in a [`CheckpointError`] that says what is wrong and where.

mod build;
mod config;
mod config_gguf;
mod config_json;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod fuzz;
mod gguf;
mod gguf_walk;
mod json_file;
mod rope;
mod safetensors;
mod source;
mod summary;
mod tensors;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use outrider_devices::Graph;
use serde_json::{Map, Value};

use crate::tokenizer::{Tokenizer, from_gguf, from_json};

pub use config::{ModelConfig, SpecialIds, Tied};
pub use error::CheckpointError;
pub use rope::RopeScaling;
pub use summary::{FormatUse, Summary};

pub(crate) use error::shortened;
pub(crate) use gguf::{Metadata, whole};

use json_file::Fields;
use source::Source;
use tensors::Tensors;

/// File format of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointKind {
    /// One file with everything in it.
    Gguf,
    /// Safetensors with config.json and tokenizer.json beside them.
    Safetensors,
}

/// An opened checkpoint. Its weights stay in their files; what is in memory is the description.
#[derive(Debug)]
pub struct Checkpoint {
    tensors: Tensors,
    config: ModelConfig,
    beside: Beside,
}

/// Where everything but the tensors is.
#[derive(Debug)]
enum Beside {
    Gguf(Metadata),
    Directory(PathBuf),
}

impl Checkpoint {
    /// Opens a GGUF file, a safetensors file or index, or a directory with one of these.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { file: path.to_owned(), source };
        if std::fs::metadata(path).map_err(io)?.is_dir() {
            return Self::open(&find_in(path)?);
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".safetensors.index.json") {
            return Self::from_directory(safetensors::read_sharded(path)?, path);
        }
        let source = Source::open(path)?;
        let gguf = source.as_slice().starts_with(b"GGUF");
        if !gguf && (name.ends_with(".safetensors") || source.as_slice().get(8) == Some(&b'{')) {
            return Self::from_directory(safetensors::read_file(source)?, path);
        }
        Self::from_one_file(source)
    }

    /// Reads a GGUF file that is a part of the binary; `name` is for messages.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self, CheckpointError> {
        Self::from_one_file(Source::embedded(name, bytes))
    }

    /// Reads a file that has everything in it.
    fn from_one_file(source: Source) -> Result<Self, CheckpointError> {
        if source.as_slice().starts_with(b"GGUF") {
            Self::from_gguf(source)
        } else {
            Err(not_a_model(&source))
        }
    }

    fn from_gguf(source: Source) -> Result<Self, CheckpointError> {
        let (metadata, tensors) = gguf::read(source)?;
        let config = config_gguf::read(&metadata, &tensors)?.check()?;
        let config = build::apply_rope_factors(config, &tensors)?;
        Ok(Self { tensors, config, beside: Beside::Gguf(metadata) })
    }

    fn from_directory(tensors: Tensors, path: &Path) -> Result<Self, CheckpointError> {
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        let file = needed(&directory, "config.json")?;
        let config: Map<String, Value> = json_file::read(&file)?;
        let generation_file = directory.join("generation_config.json");
        let generation: Option<Map<String, Value>> = json_file::read_if_there(&generation_file)?;
        let (file, generation_file) =
            (file.display().to_string(), generation_file.display().to_string());
        let generation =
            generation.as_ref().map(|map| Fields { file: &generation_file, prefix: "", map });
        let fields = Fields { file: &file, prefix: "", map: &config };
        let config = config_json::read(fields, generation)?.check()?;
        Ok(Self { tensors, config, beside: Beside::Directory(directory) })
    }

    /// What the checkpoint is called in messages: the file or the directory.
    pub fn name(&self) -> &str {
        &self.tensors.origin
    }

    /// File format.
    pub fn kind(&self) -> CheckpointKind {
        match self.beside {
            Beside::Gguf(_) => CheckpointKind::Gguf,
            Beside::Directory(_) => CheckpointKind::Safetensors,
        }
    }

    /// Hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The whole model as plain ops over weights that stay where they lie.
    ///
    /// # Errors
    /// Tensors that are missing, of another shape, or not a part of the architecture.
    pub fn graph(&self) -> Result<Graph, CheckpointError> {
        let naming: build::Naming = match self.kind() {
            CheckpointKind::Gguf => build::gguf_name,
            CheckpointKind::Safetensors => build::hugging_face_name,
        };
        build::graph(&self.tensors, naming, &self.config)
    }

    /// Builds the tokenizer.
    ///
    /// # Errors
    /// A tokenizer that is missing, not supported, contradicts itself or does not fit the vocabulary.
    pub fn tokenizer(&self) -> Result<Tokenizer, CheckpointError> {
        let special = &self.config.special;
        let (file, tokenizer) = match &self.beside {
            Beside::Gguf(metadata) => (metadata.file.clone(), from_gguf::build(metadata, special)?),
            Beside::Directory(directory) => {
                let path = needed(directory, "tokenizer.json")?;
                let file = path.display().to_string();
                let bytes = json_file::bytes(&path)?;
                let tokenizer = from_json::build(&bytes, special)
                    .map_err(|source| CheckpointError::Tokenizer { file: file.clone(), source })?;
                (file, tokenizer)
            }
        };
        let (tokens, rows) = (tokenizer.vocabulary().len(), self.config.shape.vocabulary);
        if tokens > rows {
            let expected = format!("at most the {rows} rows of the embedding");
            return Err(CheckpointError::bad_field(
                &file,
                "the number of tokens",
                expected,
                tokens,
            ));
        }
        Ok(tokenizer)
    }

    /// The source text of the chat template, if the checkpoint has one.
    ///
    /// # Errors
    /// A template that is there but cannot be read.
    pub fn template_source(&self) -> Result<Option<String>, CheckpointError> {
        match &self.beside {
            Beside::Gguf(metadata) => {
                Ok(metadata.text("tokenizer.chat_template")?.map(str::to_owned))
            }
            Beside::Directory(directory) => template_beside(directory),
        }
    }
}

/// The metadata of a GGUF file that need not hold a model, for tests of tokenizers.
#[cfg(test)]
pub(crate) fn metadata_of(bytes: &[u8]) -> Result<Metadata, CheckpointError> {
    gguf::read(Source::made(bytes)).map(|(metadata, _)| metadata)
}

fn not_a_model(source: &Source) -> CheckpointError {
    CheckpointError::NotAModel { file: source.name.clone(), first: source.first_bytes() }
}

/// The path of a file that has to be in `directory`.
fn needed(directory: &Path, file: &str) -> Result<PathBuf, CheckpointError> {
    let path = directory.join(file);
    if path.is_file() {
        return Ok(path);
    }
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    Err(CheckpointError::MissingFile {
        directory: directory.display().to_string(),
        file: file.to_owned(),
    })
}

/// The checkpoint in a directory: an index of shards, else one safetensors file, else the only GGUF file.
fn find_in(directory: &Path) -> Result<PathBuf, CheckpointError> {
    for name in ["model.safetensors.index.json", "model.safetensors"] {
        let path = directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let io = |source| CheckpointError::Io { file: directory.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") && path.is_file() {
            found.push(path);
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(CheckpointError::malformed(
            &directory.display().to_string(),
            "it holds several GGUF files; name one of them",
        )),
        (None, _) => Err(CheckpointError::MissingFile {
            directory: directory.display().to_string(),
            file: "model.safetensors, model.safetensors.index.json or a .gguf file".to_owned(),
        }),
    }
}

/// The template in `chat_template.jinja` or `tokenizer_config.json`, where it is text or a list of named ones.
fn template_beside(directory: &Path) -> Result<Option<String>, CheckpointError> {
    let path = directory.join("chat_template.jinja");
    if path.is_file() {
        let text = String::from_utf8(json_file::bytes(&path)?);
        return text.map(Some).map_err(|e| {
            CheckpointError::malformed(&path.display().to_string(), e.utf8_error().to_string())
        });
    }
    let path = directory.join("tokenizer_config.json");
    let Some(map) = json_file::read_if_there::<Map<String, Value>>(&path)? else {
        return Ok(None);
    };
    let named = |list: &[Value]| {
        list.iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str().map(str::to_owned))
    };
    match map.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(list)) if named(list).is_some() => Ok(named(list)),
        Some(_) => {
            let file = path.display().to_string();
            let expected = "text, or a list with a template of the name \"default\"";
            Err(Fields { file: &file, prefix: "", map: &map }.bad("chat_template", expected))
        }
    }
}
