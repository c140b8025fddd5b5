//! A walk over a GGUF header that believes nothing, before candle's reader sees it.
//!
//! candle's reader bounds most lengths by the file's size, but it divides by an alignment of zero, takes up to 32 bytes
//! of memory for each byte of an array, keeps the last of two tensors of one name, reports a truncated file as an
//! anonymous input error, and does not say which tensor has a format that it does not know. So the header is walked
//! here first, without allocating for what it announces; what passes is a header that candle reads in bounded memory.
//!
//! *Invariant:* no arithmetic on a number of the file is unchecked, and nothing is allocated in proportion to one.

use std::collections::HashSet;

use super::CheckpointError;
use super::error::shortened;

/// Elements in all arrays together: four times what a vocabulary of 262,144 tokens and its merges need.
const ELEMENTS_MAX: u64 = 1 << 22;
/// Depth of arrays in arrays; no known key nests at all.
const DEPTH_MAX: usize = 4;
/// Tensor dimensions in the format.
const DIMENSIONS_MAX: u32 = 4;
/// Where tensor data begins if the file does not say otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 20;

/// What the walk found.
#[derive(Debug, PartialEq)]
pub(crate) struct Walked {
    /// Bytes of the header: everything that candle has to see.
    pub(crate) header_len: usize,
    /// Where tensor data begins, which offsets count from.
    pub(crate) data_offset: u64,
    /// What offsets are multiples of.
    pub(crate) alignment: u64,
}

struct Walk<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Version 1 has lengths of 32 bits, later ones of 64.
    wide: bool,
    elements: u64,
}

/// Walks the header of a GGUF file whose name for messages is `file`.
///
/// # Errors
/// Truncation, contradictions, duplicates and formats of tensors that are not supported.
pub(crate) fn walk(file: &str, bytes: &[u8]) -> Result<Walked, CheckpointError> {
    let mut walk = Walk { file, bytes, at: 4, wide: true, elements: 0 };
    let version = walk.u32("the version")?;
    match version {
        1 => walk.wide = false,
        2 | 3 => {}
        _ if (1..=3).contains(&version.swap_bytes()) => {
            return Err(walk.malformed("it is a big-endian GGUF file, expected little-endian"));
        }
        _ => return Err(walk.malformed(format!("GGUF version {version}, expected 1 to 3"))),
    }
    let tensors = walk.length("the number of tensors")?;
    let entries = walk.length("the number of metadata entries")?;
    let mut alignment = DEFAULT_ALIGNMENT;
    let mut keys = HashSet::new();
    for _ in 0..entries {
        let key = walk.name("a metadata key")?;
        if !keys.insert(key) {
            return Err(walk.malformed(format!("metadata key {} occurs twice", shortened(key))));
        }
        if let Some(found) = walk.entry(key)? {
            alignment = found;
        }
    }
    let mut names = HashSet::new();
    for _ in 0..tensors {
        let name = walk.tensor(alignment)?;
        if !names.insert(name) {
            return Err(walk.malformed(format!("tensor {} occurs twice", shortened(name))));
        }
    }
    let header_len = walk.at;
    // At most the length of a slice and an alignment of a mebibyte: no overflow.
    let data_offset = (header_len as u64).next_multiple_of(alignment);
    Ok(Walked { header_len, data_offset, alignment })
}

impl<'a> Walk<'a> {
    fn malformed(&self, detail: impl Into<String>) -> CheckpointError {
        let detail: String = detail.into();
        CheckpointError::malformed(self.file, format!("{detail} (at byte {})", self.at))
    }

    fn take(&mut self, len: u64, part: &str) -> Result<&'a [u8], CheckpointError> {
        let expected = (self.at as u64).saturating_add(len);
        let found = self.bytes.len() as u64;
        if expected > found {
            let (file, part) = (self.file.to_owned(), part.to_owned());
            return Err(CheckpointError::Truncated { file, part, expected, found });
        }
        // `expected` is at most the length of a slice, so it fits `usize`.
        let slice = &self.bytes[self.at..expected as usize];
        self.at = expected as usize;
        Ok(slice)
    }

    fn u32(&mut self, part: &str) -> Result<u32, CheckpointError> {
        let bytes = self.take(4, part)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self, part: &str) -> Result<u64, CheckpointError> {
        let low = u64::from(self.u32(part)?);
        Ok(low | u64::from(self.u32(part)?) << 32)
    }

    fn length(&mut self, part: &str) -> Result<u64, CheckpointError> {
        if self.wide { self.u64(part) } else { self.u32(part).map(u64::from) }
    }

    fn name(&mut self, part: &str) -> Result<&'a str, CheckpointError> {
        let len = self.length(part)?;
        let bytes = self.take(len, part)?;
        std::str::from_utf8(bytes)
            // candle drops closing zeros, which would make two names one.
            .ok()
            .filter(|name| !name.contains('\0'))
            .ok_or_else(|| self.malformed(format!("{part} is not UTF-8 text")))
    }

    /// One metadata value; the alignment, if it is that.
    fn entry(&mut self, key: &str) -> Result<Option<u64>, CheckpointError> {
        let kind = self.u32("a value's type")?;
        if key != "general.alignment" {
            let part = format!("metadata {}", shortened(key));
            self.value(kind, &part, 0)?;
            return Ok(None);
        }
        let alignment = match kind {
            4 => u64::from(self.u32(key)?),
            _ => 0,
        };
        if !alignment.is_power_of_two() || !(8..=ALIGNMENT_MAX).contains(&alignment) {
            let expected = format!("a 32-bit power of two from 8 to {ALIGNMENT_MAX}");
            let found = if kind == 4 { alignment.to_string() } else { format!("of type {kind}") };
            return Err(CheckpointError::bad_field(self.file, key, expected, found));
        }
        Ok(Some(alignment))
    }

    fn value(&mut self, kind: u32, part: &str, depth: usize) -> Result<(), CheckpointError> {
        let size = match kind {
            0 | 1 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            7 => {
                let flag = self.take(1, part)?[0];
                return match flag {
                    0 | 1 => Ok(()),
                    _ => Err(self.malformed(format!("{part} is a truth value of {flag}"))),
                };
            }
            8 => self.length(part)?,
            9 => return self.array(part, depth),
            _ => return Err(self.malformed(format!("{part} has the unknown type {kind}"))),
        };
        self.take(size, part).map(drop)
    }

    fn array(&mut self, part: &str, depth: usize) -> Result<(), CheckpointError> {
        if depth == DEPTH_MAX {
            return Err(self.malformed(format!("{part} nests arrays deeper than {DEPTH_MAX}")));
        }
        let kind = self.u32(part)?;
        let len = self.length(part)?;
        self.elements = self.elements.saturating_add(len);
        if self.elements > ELEMENTS_MAX {
            return Err(self.malformed(format!(
                "{part} brings the metadata to {} array elements, expected at most {ELEMENTS_MAX}",
                self.elements
            )));
        }
        for _ in 0..len {
            self.value(kind, part, depth + 1)?;
        }
        Ok(())
    }

    /// One tensor description; its name.
    fn tensor(&mut self, alignment: u64) -> Result<&'a str, CheckpointError> {
        let name = self.name("a tensor name")?;
        let part = format!("the description of tensor {}", shortened(name));
        let dimensions = self.u32(&part)?;
        if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
            return Err(self.malformed(format!(
                "tensor {} has {dimensions} dimensions, expected 1 to {DIMENSIONS_MAX}",
                shortened(name)
            )));
        }
        for _ in 0..dimensions {
            self.length(&part)?;
        }
        let format = self.u32(&part)?;
        if let Some(format) = unsupported(format) {
            let (file, tensor) = (self.file.to_owned(), shortened(name));
            return Err(CheckpointError::UnsupportedFormat { file, tensor, format });
        }
        let offset = self.u64(&part)?;
        if !offset.is_multiple_of(alignment) {
            return Err(self.malformed(format!(
                "tensor {} is at offset {offset}, which is not a multiple of {alignment}",
                shortened(name)
            )));
        }
        Ok(name)
    }
}

/// The name of a tensor format that is not read here. Q8_1 and Q8_K are formats of activations in memory.
fn unsupported(format: u32) -> Option<String> {
    let name = match format {
        0..=3 | 6..=8 | 10..=14 | 30 => return None,
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return Some(format!("format number {other}")),
    };
    Some(name.to_owned())
}
