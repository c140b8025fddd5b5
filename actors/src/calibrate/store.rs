//! Where a calibration is kept, and whether a kept one still holds.
//!
//! *Invariant:* a file is replaced whole or not at all; one of another machine, driver, pair, program or format is refused, and
//! the refusal says what differs.

use std::path::{Path, PathBuf};

use outrider_devices::gpu::GpuAdapter;
use outrider_devices::whole_file;
use outrider_plans::{ModelRole, PlanContext};
use serde::{Deserialize, Serialize};

use super::{Calibration, VERSION};
use crate::cache_folder::cache_folder;
use crate::pair::Pair;

/// What a calibration was taken on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Processors, their clusters and instruction sets.
    pub hardware: String,
    /// Adapters as their drivers name them, with the versions of these.
    pub driver: String,
    /// Hash of the target's shape and weights.
    pub target: String,
    /// The same of the draft; empty without one.
    pub draft: String,
    /// Version, size and age of the program.
    pub binary: String,
    /// Positions of one sequence.
    pub positions: usize,
    /// How caches are kept.
    pub cache: String,
}

impl Fingerprint {
    /// Of this machine, this program and these models.
    pub fn here(pair: &Pair, context: &PlanContext) -> Self {
        let found = outrider_devices::discovery::Machine::here();
        let clusters: Vec<String> = found
            .clusters
            .iter()
            .map(|c| {
                let name = c.processor.as_deref().unwrap_or("unnamed");
                format!("{}x{name}@{}", c.cores.len(), c.capacity)
            })
            .collect();
        let hardware = format!("{} [{}]", clusters.join(" + "), found.instructions.join(" "));
        let adapters = outrider_devices::gpu::discover();
        let named = |adapter: &GpuAdapter| format!("{} ({})", adapter.name, adapter.driver);
        let adapters: Vec<_> = adapters.usable().map(named).collect();
        let hash = |role| pair.model(role).map_or(String::new(), |model| hash_of(model));
        Self {
            hardware,
            driver: adapters.join(", "),
            target: hash(ModelRole::Target),
            draft: hash(ModelRole::Draft),
            binary: binary(),
            positions: context.caches.positions_max,
            cache: context.caches.format.to_string(),
        }
    }

    /// What differs from another one, in words; `None` if nothing does.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let parts = [
            (self.hardware == other.hardware, "the hardware"),
            (self.driver == other.driver, "the GPU's driver"),
            (self.target == other.target, "the target model"),
            (self.draft == other.draft, "the draft model"),
            (self.binary == other.binary, "the program"),
            (self.positions == other.positions, "the context length"),
            (self.cache == other.cache, "the format of the caches"),
        ];
        parts.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
    }
}

/// Names a program by what changes when it is built anew.
fn binary() -> String {
    let metadata = std::env::current_exe().and_then(std::fs::metadata);
    let (bytes, built_s) = metadata.map_or((0, 0), |metadata| {
        let built = metadata.modified().ok();
        let since = built.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        (metadata.len(), since.map_or(0, |since| since.as_secs()))
    });
    format!("{} {bytes} {built_s}", env!("CARGO_PKG_VERSION"))
}

/// Sizes and the ends of all weights: tells models apart without reading all of them.
fn hash_of(model: &outrider_pipeline::Model) -> String {
    const SAMPLE: usize = 64;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for weight in &model.graph().weights {
        let bytes = weight.bytes();
        add(&(bytes.len() as u64).to_le_bytes());
        add(&bytes[..SAMPLE.min(bytes.len())]);
        let middle = bytes.len() / 2;
        add(&bytes[middle..bytes.len().min(middle + SAMPLE)]);
    }
    format!("{hash:016x}")
}

/// Why a kept calibration is not used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error("there is no calibration at {0}: run `outrider calibrate`")]
    Missing(PathBuf),
    /// It cannot be read or written.
    #[error("calibration {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not a calibration of this version.
    #[error("{path} is not a calibration of version {VERSION}: {detail}; run `outrider calibrate`")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// It was taken on something else.
    #[error("the calibration at {path} is stale: {what} has changed; run `outrider calibrate`")]
    Stale {
        /// The file.
        path: PathBuf,
        /// What has changed.
        what: &'static str,
    },
    /// There is no folder to keep it in.
    #[error(
        "neither XDG_CACHE_HOME nor HOME says where to keep a calibration: name a file with --calibration"
    )]
    NoFolder,
}

/// The file in the user's cache folder for this pair: `$XDG_CACHE_HOME/outrider/calibration-HASH.json`, below `~/.cache` by
/// default.
///
/// # Errors
/// [`StoreError::NoFolder`].
pub fn default_path(fingerprint: &Fingerprint) -> Result<PathBuf, StoreError> {
    let folder = cache_folder().ok_or(StoreError::NoFolder)?;
    let Fingerprint { target, draft, positions, .. } = fingerprint;
    Ok(folder.join(format!("calibration-{target}-{draft}-{positions}.json")))
}

/// A calibration that holds for what it is asked for.
#[derive(Clone, Debug)]
pub struct FreshCalibration {
    /// Where it was.
    pub path: PathBuf,
    /// What it says.
    pub calibration: Calibration,
}

/// Reads a calibration, and checks that it was taken on this.
///
/// # Errors
/// See [`StoreError`].
pub fn load(path: &Path, wanted: &Fingerprint) -> Result<FreshCalibration, StoreError> {
    let path = path.to_owned();
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(StoreError::Missing(path));
        }
        Err(source) => return Err(StoreError::Io { path, source }),
    };
    let calibration: Calibration = match serde_json::from_slice(&text) {
        Ok(calibration) => calibration,
        Err(error) => return Err(StoreError::Format { path, detail: error.to_string() }),
    };
    if calibration.version != VERSION {
        let detail = format!("it has version {}", calibration.version);
        return Err(StoreError::Format { path, detail });
    }
    match calibration.fingerprint.difference(wanted) {
        Some(what) => Err(StoreError::Stale { path, what }),
        None => Ok(FreshCalibration { path, calibration }),
    }
}

/// Writes a calibration over what was there.
///
/// # Errors
/// [`StoreError::Io`].
pub fn save(path: &Path, calibration: &Calibration) -> Result<(), StoreError> {
    let text = serde_json::to_vec(calibration).expect("a calibration is plain data");
    let io = |source| StoreError::Io { path: path.to_owned(), source };
    whole_file::replace(path, &text).map_err(io)
}
