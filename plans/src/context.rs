//! What a plan is checked against: the machine, the shapes of the models, and the caches to make room for.

use std::fmt;
use std::str::FromStr;

use crate::machine::Machine;
use crate::role::{ModelRole, StageId};

/// Sizes of a model, as far as placement needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Bytes of the weights of each block, first to last.
    pub layer_bytes: Vec<u64>,
    /// Bytes of the embedding table, which goes with the first block.
    pub embedding_bytes: u64,
    /// Bytes of the output head, which goes with the last block. With tied weights the same as the embedding; counted
    /// once on a unit that holds the whole model.
    pub head_bytes: u64,
    /// Whether head and embedding are one matrix.
    pub head: HeadWeights,
    /// Bytes of cached keys and values for one position of one block, as 16-bit floats.
    pub cache_bytes: u64,
    /// Values in one row of activations between two blocks.
    pub width: usize,
    /// Number of tokens.
    pub vocabulary: usize,
}

/// Where the output head's weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadWeights {
    /// A matrix of its own.
    Own,
    /// The embedding table.
    Tied,
}

impl ModelShape {
    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.layer_bytes.len()
    }

    /// Bytes of weights of the blocks `first..end` with the embedding and the head where they belong.
    ///
    /// Panics if the blocks are not a part of the model.
    pub fn weight_bytes(&self, first: usize, end: usize) -> u64 {
        assert!(first < end && end <= self.layers(), "layers {first}..{end} are not in the model");
        let blocks: u64 = self.layer_bytes[first..end].iter().sum();
        let (begins, ends) = (first == 0, end == self.layers());
        let embedding = if begins { self.embedding_bytes } else { 0 };
        let shared = begins && ends && self.head == HeadWeights::Tied;
        let head = if ends && !shared { self.head_bytes } else { 0 };
        blocks + embedding + head
    }
}

/// How units keep the keys and values of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheFormat {
    /// 16-bit floats.
    #[default]
    F16,
    /// Bytes with a 16-bit scale for each 16 of them: nine sixteenths of the room, and on CPU units only.
    Q8,
}

impl CacheFormat {
    /// Bytes that are needed where 16-bit floats need `f16_bytes`.
    pub fn bytes(self, f16_bytes: u64) -> u64 {
        match self {
            CacheFormat::F16 => f16_bytes,
            CacheFormat::Q8 => (f16_bytes * 9).div_ceil(16),
        }
    }

    /// The word in options and explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            CacheFormat::F16 => "f16",
            CacheFormat::Q8 => "q8",
        }
    }
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no cache format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a format of caches: choose f16 or q8")]
pub struct UnknownCacheFormat(pub String);

impl FromStr for CacheFormat {
    type Err = UnknownCacheFormat;

    /// Reads `f16`, and `q8` or, as other engines call it, `q8_0`.
    fn from_str(word: &str) -> Result<Self, UnknownCacheFormat> {
        match word {
            "f16" => Ok(CacheFormat::F16),
            "q8" | "q8_0" => Ok(CacheFormat::Q8),
            _ => Err(UnknownCacheFormat(word.to_owned())),
        }
    }
}

/// Caches to make room for, of each model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Sequences at one time.
    pub sequences_max: usize,
    /// Positions of one sequence.
    pub positions_max: usize,
    /// How they are kept.
    pub format: CacheFormat,
}

/// Bytes that a stage needs on its unit. Scratch buffers, which depend on the device, are not included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct StageMemory {
    /// Weights as they lie in the checkpoint.
    pub weight_bytes: u64,
    /// Keys and values of all sequences.
    pub cache_bytes: u64,
}

impl StageMemory {
    /// Weights and caches.
    pub fn total_bytes(self) -> u64 {
        self.weight_bytes + self.cache_bytes
    }
}

impl std::ops::Add for StageMemory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            cache_bytes: self.cache_bytes + other.cache_bytes,
        }
    }
}

/// Everything that a plan is checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanContext {
    /// Where it shall run.
    pub machine: Machine,
    /// The model whose text is served.
    pub target: ModelShape,
    /// The model that rides ahead, if one is loaded.
    pub draft: Option<ModelShape>,
    /// Caches to make room for.
    pub caches: CacheLimits,
}

impl PlanContext {
    /// The shape of a model; `None` for a draft that is not loaded.
    pub fn shape(&self, role: ModelRole) -> Option<&ModelShape> {
        match role {
            ModelRole::Target => Some(&self.target),
            ModelRole::Draft => self.draft.as_ref(),
        }
    }

    /// What `stage` needs on a unit that holds real weights.
    ///
    /// Panics if the stage's model is not loaded, or the stage is not a part of it.
    pub fn stage_memory(&self, stage: StageId) -> StageMemory {
        let shape = self.shape(stage.role).expect("the stage's model is loaded");
        let positions = self.caches.sequences_max as u64 * self.caches.positions_max as u64;
        StageMemory {
            weight_bytes: shape.weight_bytes(stage.layer_first, stage.layer_end),
            cache_bytes: self
                .caches
                .format
                .bytes(shape.cache_bytes * stage.layers() as u64 * positions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CacheFormat, HeadWeights, ModelShape};

    #[test]
    fn tied_head_is_counted_once_unless_the_model_is_split() {
        let mut shape = ModelShape {
            layer_bytes: vec![10, 20, 30],
            embedding_bytes: 1000,
            head_bytes: 1000,
            head: HeadWeights::Tied,
            cache_bytes: 4,
            width: 8,
            vocabulary: 100,
        };
        assert_eq!(shape.weight_bytes(0, 3), 1060);
        assert_eq!(shape.weight_bytes(0, 2) + shape.weight_bytes(2, 3), 2060);
        shape.head = HeadWeights::Own;
        assert_eq!(shape.weight_bytes(0, 3), 2060);
    }

    #[test]
    fn a_cache_format_is_read_by_its_names_and_counts_its_scales() {
        assert_eq!("q8_0".parse(), Ok(CacheFormat::Q8));
        assert_eq!("q8".parse(), Ok(CacheFormat::Q8));
        assert_eq!("f16".parse(), Ok(CacheFormat::F16));
        let error = "q4".parse::<CacheFormat>().expect_err("no format").to_string();
        assert_eq!(error, "`q4` is not a format of caches: choose f16 or q8");
        assert_eq!([CacheFormat::F16, CacheFormat::Q8].map(|f| f.bytes(3200)), [3200, 1800]);
    }
}
