//! JSON files beside a checkpoint, and typed access to their fields.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::CheckpointError;
use super::error::shortened;

/// Larger than any tokenizer.json in use; a bound, so that a wrong path does not fill memory.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// All bytes of a file of bounded size.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io { file: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > FILE_BYTES_MAX {
        let detail = format!("it has {length} bytes, expected at most {FILE_BYTES_MAX}");
        return Err(CheckpointError::malformed(&path.display().to_string(), detail));
    }
    std::fs::read(path).map_err(io)
}

/// Parses a JSON file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    serde_json::from_slice(&bytes(path)?)
        .map_err(|e| CheckpointError::malformed(&path.display().to_string(), e.to_string()))
}

/// Parses a JSON file if it is there.
pub(crate) fn read_if_there<T: DeserializeOwned>(
    path: &Path,
) -> Result<Option<T>, CheckpointError> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}

/// A JSON object with the name of its file for messages. A field that is null counts as absent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) file: &'a str,
    /// What the object is within the file, such as `rope_scaling.`; empty for the whole file.
    pub(crate) prefix: &'a str,
    pub(crate) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn read<T>(
        &self,
        field: &str,
        expected: &str,
        as_type: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => as_type(value).map(Some).ok_or_else(|| self.bad(field, expected)),
        }
    }

    /// The error for a field with a value that cannot be.
    pub(crate) fn bad(&self, field: &str, expected: &str) -> CheckpointError {
        let found = self.map.get(field).map_or("absent".to_owned(), |v| shortened(&v.to_string()));
        CheckpointError::bad_field(self.file, &format!("{}{field}", self.prefix), expected, found)
    }

    /// The error for a field that has to be there.
    pub(crate) fn missing(&self, field: &str) -> CheckpointError {
        CheckpointError::missing_field(self.file, &format!("{}{field}", self.prefix))
    }

    /// A whole number that is not negative.
    pub(crate) fn size(&self, field: &str) -> Result<Option<usize>, CheckpointError> {
        self.read(field, "a whole number", |v| v.as_u64()?.try_into().ok())
    }

    /// A number.
    pub(crate) fn number(&self, field: &str) -> Result<Option<f64>, CheckpointError> {
        self.read(field, "a number", Value::as_f64)
    }

    /// Text.
    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>, CheckpointError> {
        self.read(field, "text", Value::as_str)
    }

    /// A truth value.
    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, CheckpointError> {
        self.read(field, "true or false", Value::as_bool)
    }

    /// An object.
    pub(crate) fn object(
        &self,
        field: &str,
    ) -> Result<Option<&'a Map<String, Value>>, CheckpointError> {
        self.read(field, "an object", Value::as_object)
    }

    /// One token id or a list of them; none if absent.
    pub(crate) fn tokens(&self, field: &str) -> Result<Vec<u32>, CheckpointError> {
        let id = |v: &Value| v.as_u64()?.try_into().ok();
        let read = self.read(field, "a token id or a list of them", |v| match v {
            Value::Array(ids) => ids.iter().map(id).collect(),
            other => id(other).map(|id| vec![id]),
        });
        Ok(read?.unwrap_or_default())
    }
}
