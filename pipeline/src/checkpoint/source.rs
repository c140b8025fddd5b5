//! Where a checkpoint's bytes lie: a mapped file or the binary itself.
//!
//! *Invariant:* bytes are shared, not copied, unless they lie so that a device could not read them as numbers.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use outrider_devices::graph::WeightBytes;
use outrider_devices::mapped::map_file;

use super::CheckpointError;

/// Widest number that the formats hold; weights are aligned to it.
const ALIGNMENT: usize = 4;

/// One file of a checkpoint.
#[derive(Clone)]
pub(crate) struct Source {
    /// Name for messages.
    pub(crate) name: String,
    bytes: Bytes,
}

#[derive(Clone)]
enum Bytes {
    Mapped(Arc<Mmap>),
    Embedded(&'static [u8]),
    /// Made by a test.
    #[cfg(test)]
    Made(Arc<[u8]>),
}

impl Source {
    /// Maps a file.
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let map = map_file(path)
            .map_err(|source| CheckpointError::Io { file: path.to_owned(), source })?;
        Ok(Self { name: path.display().to_string(), bytes: Bytes::Mapped(map) })
    }

    /// Wraps bytes of the binary.
    pub(crate) fn embedded(name: impl Into<String>, bytes: &'static [u8]) -> Self {
        Self { name: name.into(), bytes: Bytes::Embedded(bytes) }
    }

    /// Wraps bytes that a test made.
    #[cfg(test)]
    pub(crate) fn made(bytes: &[u8]) -> Self {
        Self { name: "made".to_owned(), bytes: Bytes::Made(bytes.into()) }
    }

    /// All bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Embedded(bytes) => bytes,
            #[cfg(test)]
            Bytes::Made(bytes) => bytes,
        }
    }

    /// The bytes of `range`, which lies within the file. A safetensors file may put a tensor anywhere, and numbers
    /// cannot be read where they are not aligned: such a tensor is copied.
    pub(crate) fn weight_bytes(&self, range: Range<usize>) -> WeightBytes {
        let slice = &self.as_slice()[range.clone()];
        if slice.as_ptr().align_offset(ALIGNMENT) != 0 {
            return WeightBytes::Owned(slice.into());
        }
        match &self.bytes {
            Bytes::Mapped(map) => WeightBytes::Mapped(Arc::clone(map), range),
            Bytes::Embedded(bytes) => WeightBytes::Embedded(&bytes[range]),
            #[cfg(test)]
            Bytes::Made(_) => WeightBytes::Owned(slice.into()),
        }
    }

    /// The first bytes, for a message.
    pub(crate) fn first_bytes(&self) -> String {
        let bytes = self.as_slice();
        bytes[..bytes.len().min(8)].escape_ascii().to_string()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.as_slice().len())
    }
}
