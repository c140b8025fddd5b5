//! Boards that are not here: hardware and models in numbers, each with its source, as a planner's stand-in for calibration.
//!
//! Times follow from a roofline: a pass of `n` rows takes as long as its weights take from memory, or its products take to
//! compute, whichever is longer, and something for each layer. A time that somebody measured overrules that.
//!
//! *Invariant:* every number of a board file says where it comes from; one without a source is refused.

mod file;
mod times;

use crate::context::{CacheFormat, CacheLimits, HeadWeights, ModelShape, PlanContext};
use crate::cost::{Acceptance, CostModel, Workload};
use crate::machine::{Adapter, Core, Machine};
use crate::role::ModelRole;

use file::ModelEntry;
pub use file::{BoardError, BoardFile, Sourced};

/// Sequences that a board is planned for.
const SEQUENCES: usize = 4;
/// Texts of the workload.
const TEXTS: usize = 48;

/// A board file that comes with the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShippedBoard {
    /// Its name, also the file's without `.toml`.
    pub name: &'static str,
    /// The file's text.
    pub text: &'static str,
}

macro_rules! boards {
    ($($name:literal),* $(,)?) => {
        &[$(ShippedBoard { name: $name, text: include_str!(concat!("../../boards/", $name, ".toml")) }),*]
    };
}

/// All shipped boards.
pub fn shipped_boards() -> &'static [ShippedBoard] {
    boards!["imx95", "rk3588", "raspberry-pi-5", "x86-integrated-gpu"]
}

/// A board with a pair of models.
#[derive(Clone, Debug)]
pub struct Board {
    file: BoardFile,
}

impl Board {
    /// Reads a board file.
    ///
    /// # Errors
    /// See [`BoardError`].
    pub fn parse(text: &str) -> Result<Self, BoardError> {
        Ok(Self { file: BoardFile::parse(text)? })
    }

    /// What the board is, in a line.
    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// Machine and models, as plans are checked against them.
    pub fn context(&self) -> PlanContext {
        let BoardFile { clusters, adapters, memory_bytes, text, .. } = &self.file;
        let mut cores = Vec::new();
        for (cluster, entry) in clusters.iter().enumerate() {
            for _ in 0..entry.cores.value {
                let id = cores.len();
                let capacity = entry.capacity.value as u32;
                cores.push(Core { id, capacity, cluster: cluster as u32, physical: id as u32 });
            }
        }
        let adapter = |entry: &file::AdapterEntry| Adapter {
            name: entry.name.clone(),
            kind: entry.kind.into(),
            memory_bytes: entry.memory_bytes.as_ref().map(|bytes| bytes.value),
        };
        let adapters = adapters.iter().map(adapter).collect();
        PlanContext {
            machine: Machine { cores, adapters, memory_bytes: memory_bytes.value },
            target: shape(&self.file.target),
            draft: Some(shape(&self.file.draft)),
            caches: CacheLimits {
                sequences_max: SEQUENCES,
                positions_max: 2 * (text.prompt_tokens.value + text.output_tokens.value) as usize,
                format: CacheFormat::F16,
            },
        }
    }

    /// Times on every class of units that the search looks at.
    pub fn model(&self) -> CostModel {
        times::model(&self.file)
    }

    /// Texts of the usual lengths, drafted as right as the board file says.
    pub fn workload(&self) -> Workload {
        let text = &self.file.text;
        let by_position = text.acceptance_permille.value.iter();
        let acceptance =
            Acceptance::by_position(by_position.map(|p| f64::from(*p) / 1000.0).collect());
        let lengths = (text.prompt_tokens.value as usize, text.output_tokens.value as usize);
        Workload::made_up(&acceptance, lengths, TEXTS)
    }

    /// Number of tokens of the models.
    pub fn vocabulary(&self) -> u32 {
        self.file.target.vocabulary.value as u32
    }

    /// Every number's source, each once, for whoever wants to check.
    pub fn sources(&self) -> Vec<String> {
        let mut sources = self.file.sources();
        sources.sort();
        sources.dedup();
        sources
    }
}

fn shape(entry: &ModelEntry) -> ModelShape {
    let bytes = |parameters: u64| parameters * entry.bits_per_parameter.value / 8;
    ModelShape {
        layer_bytes: vec![bytes(entry.layer_parameters.value); entry.layers.value as usize],
        embedding_bytes: bytes(entry.head_parameters.value),
        head_bytes: bytes(entry.head_parameters.value),
        head: HeadWeights::Tied,
        cache_bytes: entry.cache_bytes_per_position.value,
        width: entry.width.value as usize,
        vocabulary: entry.vocabulary.value as usize,
    }
}

impl BoardFile {
    fn entry(&self, role: ModelRole) -> &ModelEntry {
        match role {
            ModelRole::Target => &self.target,
            ModelRole::Draft => &self.draft,
        }
    }
}
