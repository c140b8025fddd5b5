//! The tensors that a checkpoint holds, whatever its format: name, shape, storage format and place.
//!
//! *Invariant:* every entry's bytes lie within its file; that is checked when it is added, so later slices cannot fail.

use std::collections::BTreeMap;
use std::ops::Range;

use outrider_devices::graph::{Weight, WeightFormat};

use super::CheckpointError;
use super::error::shortened;
use super::source::Source;

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct TensorEntry {
    /// Which of the checkpoint's files.
    pub(crate) file: usize,
    /// Its bytes there.
    pub(crate) range: Range<usize>,
    /// Dimensions, rows first.
    pub(crate) dimensions: Vec<usize>,
    /// How it is stored.
    pub(crate) format: WeightFormat,
}

/// A tensor as a file describes it, not yet believed.
pub(crate) struct Described<'a> {
    pub(crate) name: &'a str,
    pub(crate) dimensions: Vec<usize>,
    pub(crate) format: WeightFormat,
    /// First byte in the file; saturated where the file's number was too large.
    pub(crate) start: u64,
}

/// All tensors by name, and the files that they lie in.
#[derive(Debug)]
pub(crate) struct Tensors {
    /// For messages: the file, or the directory of files.
    pub(crate) origin: String,
    pub(crate) files: Vec<Source>,
    pub(crate) entries: BTreeMap<String, TensorEntry>,
}

impl Tensors {
    /// No tensors yet, of a checkpoint of that name.
    pub(crate) fn new(origin: impl Into<String>) -> Self {
        Self { origin: origin.into(), files: Vec::new(), entries: BTreeMap::new() }
    }

    /// Adds a tensor of the file with index `file`.
    ///
    /// # Errors
    /// A shape that is empty, overflows or cuts a block, bytes beyond the file's end, a name that is taken.
    pub(crate) fn add(
        &mut self,
        file: usize,
        tensor: Described<'_>,
    ) -> Result<(), CheckpointError> {
        let source = &self.files[file];
        let name = shortened(tensor.name);
        let (cols, rows) = match tensor.dimensions.split_last() {
            Some((&cols, rows)) => (cols, rows),
            None => {
                return Err(CheckpointError::malformed(
                    &source.name,
                    format!("tensor {name} is a scalar"),
                ));
            }
        };
        let bytes = rows
            .iter()
            .try_fold(1usize, |all, &dimension| all.checked_mul(dimension))
            .and_then(|rows| tensor.format.row_bytes(cols)?.checked_mul(rows))
            .filter(|&bytes| bytes > 0)
            .ok_or_else(|| {
                CheckpointError::malformed(
                    &source.name,
                    format!(
                        "tensor {name} of {:?} in {}: expected dimensions above 0, whole blocks of {} and a size that can be addressed",
                        tensor.dimensions,
                        tensor.format,
                        tensor.format.block_len()
                    ),
                )
            })?;
        let found = source.as_slice().len() as u64;
        let end = tensor.start.saturating_add(bytes as u64);
        if end > found {
            return Err(CheckpointError::Truncated {
                file: source.name.clone(),
                part: format!("tensor {name}"),
                expected: end,
                found,
            });
        }
        // Both are at most the length of a slice.
        let range = tensor.start as usize..end as usize;
        let entry =
            TensorEntry { file, range, dimensions: tensor.dimensions, format: tensor.format };
        if self.entries.insert(tensor.name.to_owned(), entry).is_some() {
            let detail = format!("tensor {name} occurs twice");
            return Err(CheckpointError::malformed(&self.files[file].name, detail));
        }
        Ok(())
    }

    /// The weight of that name and shape; a vector is a matrix of one row.
    pub(crate) fn weight(
        &self,
        name: &str,
        expected: (usize, usize),
    ) -> Result<Weight, CheckpointError> {
        let entry = self.entries.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            file: self.origin.clone(),
            tensor: name.to_owned(),
        })?;
        let shape = match *entry.dimensions.as_slice() {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => (0, 0),
        };
        let file = &self.files[entry.file];
        if shape != expected {
            return Err(CheckpointError::WrongShape {
                file: file.name.clone(),
                tensor: name.to_owned(),
                expected,
                found: entry.dimensions.clone(),
            });
        }
        Weight::new(name, entry.format, expected, file.weight_bytes(entry.range.clone()))
            .map_err(|source| CheckpointError::Weight { file: file.name.clone(), source })
    }
}
