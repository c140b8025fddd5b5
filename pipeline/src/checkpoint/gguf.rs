//! GGUF files: the header through [`walk`] and then candle's reader, tensors as places in the file.

use std::collections::HashMap;
use std::io::Cursor;

use candle_core::quantized::gguf_file::{Content, Value};
use outrider_devices::graph::WeightFormat;

use super::CheckpointError;
use super::error::shortened;
use super::gguf_walk::walk;
use super::source::Source;
use super::tensors::{Described, Tensors};

/// Metadata of a GGUF file, with the name of the file for messages.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) file: String,
    values: HashMap<String, Value>,
}

/// Reads a GGUF file; its tensors stay where they are.
///
/// # Errors
/// What [`walk`] finds, and tensors that do not lie within the file.
pub(crate) fn read(source: Source) -> Result<(Metadata, Tensors), CheckpointError> {
    let file = source.name.clone();
    let walked = walk(&file, source.as_slice())?;
    let content = Content::read(&mut Cursor::new(&source.as_slice()[..walked.header_len]))
        .map_err(|e| CheckpointError::malformed(&file, e.to_string()))?;
    let mut infos: Vec<_> = content.tensor_infos.into_iter().collect();
    // The furthest first, so that a truncated file is told the length that it should have.
    infos.sort_by(|a, b| (b.1.offset, &b.0).cmp(&(a.1.offset, &a.0)));
    let mut tensors = Tensors::new(file.clone());
    tensors.files.push(source);
    for (name, info) in &infos {
        let described = Described {
            name,
            dimensions: info.shape.dims().to_vec(),
            format: WeightFormat::from(info.ggml_dtype),
            start: walked.data_offset.saturating_add(info.offset),
        };
        tensors.add(0, described)?;
    }
    Ok((Metadata { file, values: content.metadata }, tensors))
}

impl Metadata {
    fn bad(&self, key: &str, expected: &str, found: &Value) -> CheckpointError {
        let found = match found {
            Value::Array(values) => format!("an array of {}", values.len()),
            Value::String(text) => format!("{:?}", shortened(text)),
            other => format!("{other:?}"),
        };
        CheckpointError::bad_field(&self.file, key, expected, found)
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        as_type: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        as_type(value).map(Some).ok_or_else(|| self.bad(key, expected, value))
    }

    /// The error for a key that has to be there.
    pub(crate) fn missing(&self, key: &str) -> CheckpointError {
        CheckpointError::missing_field(&self.file, key)
    }

    /// Text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, CheckpointError> {
        self.read(key, "text", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number that is not negative.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        self.read(key, "a whole number", |value| whole(value)?.try_into().ok())
    }

    /// A token id.
    pub(crate) fn token(&self, key: &str) -> Result<Option<u32>, CheckpointError> {
        self.read(key, "a token id", |value| whole(value)?.try_into().ok())
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.read(key, "a number", |value| match value {
            Value::F32(x) => Some(f64::from(*x)),
            Value::F64(x) => Some(*x),
            other => whole(other).map(|x| x as f64),
        })
    }

    /// A truth value.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        self.read(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An array whose elements `element` can read.
    pub(crate) fn array<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        element: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, CheckpointError> {
        self.read(key, expected, |value| match value {
            Value::Array(values) => values.iter().map(element).collect(),
            _ => None,
        })
    }

    /// A whole number, or an array that holds the same one for each block.
    pub(crate) fn size_or_uniform(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        let expected = "a whole number, the same for every block";
        self.read(key, expected, |value| match value {
            Value::Array(values) => {
                let first = whole(values.first()?)?;
                values.iter().all(|v| whole(v) == Some(first)).then_some(first)?.try_into().ok()
            }
            other => whole(other)?.try_into().ok(),
        })
    }
}

/// A whole number that is not negative, whatever its width in the file.
pub(crate) fn whole(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(x) => Some(x.into()),
        Value::U16(x) => Some(x.into()),
        Value::U32(x) => Some(x.into()),
        Value::U64(x) => Some(x),
        Value::I8(x) => x.try_into().ok(),
        Value::I16(x) => x.try_into().ok(),
        Value::I32(x) => x.try_into().ok(),
        Value::I64(x) => x.try_into().ok(),
        _ => None,
    }
}
