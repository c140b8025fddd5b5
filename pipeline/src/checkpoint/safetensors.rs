//! Safetensors files: one, or the shards that `model.safetensors.index.json` names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use outrider_devices::graph::WeightFormat;
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use super::CheckpointError;
use super::error::shortened;
use super::json_file;
use super::source::Source;
use super::tensors::{Described, Tensors};

/// The bound of the format's own library.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Names of an index; the rest of it is not needed.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads one file.
///
/// # Errors
/// A header that is not one, tensors that do not lie within the file, formats that are not supported.
pub(crate) fn read_file(source: Source) -> Result<Tensors, CheckpointError> {
    let mut tensors = Tensors::new(source.name.clone());
    add_file(&mut tensors, source, |_| true)?;
    Ok(tensors)
}

/// Reads the shards that an index names, which lie beside it.
///
/// # Errors
/// Those of [`read_file`], an index that is not one, a tensor that is not in the shard where it should be.
pub(crate) fn read_sharded(index_path: &Path) -> Result<Tensors, CheckpointError> {
    let index_name = index_path.display().to_string();
    let index: Index = json_file::read(index_path)?;
    let directory = index_path.parent().unwrap_or(Path::new("."));
    let mut tensors = Tensors::new(directory.display().to_string());
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    for shard in shards {
        // A name with a path in it could reach any file of the machine.
        let mut components = Path::new(shard).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            let expected = "names of files beside the index";
            return Err(CheckpointError::bad_field(&index_name, "weight_map", expected, shard));
        }
        let path = directory.join(shard);
        if !path.exists() {
            return Err(CheckpointError::MissingFile {
                directory: directory.display().to_string(),
                file: shortened(shard),
            });
        }
        add_file(&mut tensors, Source::open(&path)?, |name| {
            index.weight_map.get(name) == Some(shard)
        })?;
    }
    for (name, shard) in &index.weight_map {
        if !tensors.entries.contains_key(name) {
            let file = directory.join(shard).display().to_string();
            return Err(CheckpointError::MissingTensor { file, tensor: shortened(name) });
        }
    }
    Ok(tensors)
}

/// Adds the tensors of one file whose names `wanted` takes.
fn add_file(
    tensors: &mut Tensors,
    source: Source,
    wanted: impl Fn(&str) -> bool,
) -> Result<(), CheckpointError> {
    let (metadata, data_offset) = header(&source)?;
    let name = source.name.clone();
    let file = tensors.files.len();
    tensors.files.push(source);
    // The furthest first, so that a truncated file is told the length that it should have.
    for tensor in metadata.offset_keys().iter().rev().filter(|tensor| wanted(tensor)) {
        let Some(info) = metadata.info(tensor) else { continue };
        let format = match info.dtype {
            Dtype::F32 => WeightFormat::F32,
            Dtype::F16 => WeightFormat::F16,
            Dtype::BF16 => WeightFormat::BF16,
            other => {
                return Err(CheckpointError::UnsupportedFormat {
                    file: name,
                    tensor: shortened(tensor),
                    format: other.to_string(),
                });
            }
        };
        let described = Described {
            name: tensor,
            dimensions: info.shape.clone(),
            format,
            start: data_offset.saturating_add(info.data_offsets.0 as u64),
        };
        tensors.add(file, described)?;
    }
    Ok(())
}

/// The header, and where the data after it begins. The format's own `deserialize` also compares the file's length with
/// the last tensor's end, with a sum that can overflow and an error without numbers: that check is [`Tensors::add`]'s.
fn header(source: &Source) -> Result<(Metadata, u64), CheckpointError> {
    let bytes = source.as_slice();
    let found = bytes.len() as u64;
    let truncated = |expected| CheckpointError::Truncated {
        file: source.name.clone(),
        part: "the safetensors header".to_owned(),
        expected,
        found,
    };
    let length = bytes.first_chunk::<8>().ok_or_else(|| truncated(8))?;
    let length = u64::from_le_bytes(*length);
    // The first byte of every header; without it the length before it is most likely not one.
    if bytes.get(8).is_some_and(|&b| b != b'{') || length > HEADER_BYTES_MAX {
        let (file, first) = (source.name.clone(), source.first_bytes());
        return Err(CheckpointError::NotAModel { file, first });
    }
    let data_offset = length + 8;
    if data_offset > found {
        return Err(truncated(data_offset));
    }
    let metadata = serde_json::from_slice(&bytes[8..data_offset as usize]).map_err(|e| {
        CheckpointError::malformed(&source.name, format!("the safetensors header: {e}"))
    })?;
    Ok((metadata, data_offset))
}
