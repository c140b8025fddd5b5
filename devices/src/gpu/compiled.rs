//! What a driver has compiled, kept from one open device to the next and, in a file, from one process to the next.
//!
//! Compiling a model's kernels takes a driver seconds on all cores. Some keep nothing by themselves, and some find only what a
//! process before this one compiled.
//!
//! *Invariant:* a driver is given back only what it made itself, whole: wgpu refuses what is another adapter's or another version's,
//! a checksum what was cut off. Whatever else goes wrong costs time, and nothing more.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::whole_file;

/// What this process has kept, by the file that it is or would be in.
static KEPT: Mutex<BTreeMap<PathBuf, Arc<[u8]>>> = Mutex::new(BTreeMap::new());
/// Bytes beyond which nothing is kept: kernels of programs of long ago add up.
const BYTES_MAX: usize = 64 << 20;
/// Bytes of the checksum before the data.
const CHECKSUM: usize = 8;

/// A device's compiled kernels.
pub(super) struct Compiled {
    file: PathBuf,
    cache: wgpu::PipelineCache,
    /// Bytes that are kept already.
    kept: AtomicUsize,
}

impl Compiled {
    /// With all that is known of the file's adapter. The device was opened with its cache of pipelines enabled.
    pub(super) fn open(device: &wgpu::Device, file: &Path) -> Self {
        let in_process = kept().get(file).cloned();
        let data = in_process.or_else(|| read(file));
        let descriptor = wgpu::PipelineCacheDescriptor {
            label: Some("outrider"),
            data: data.as_deref(),
            fallback: true,
        };
        // SAFETY: the data came from `get_data` in `keep`: in this process, or in another one that wrote it with its checksum into
        // the user's own folder.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        let kept = AtomicUsize::new(data.map_or(0, |data| data.len()));
        Self { file: file.to_owned(), cache, kept }
    }

    pub(super) fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Keeps what was compiled since.
    pub(super) fn keep(&self) {
        let Some(data) = self.cache.get_data() else { return };
        let before = self.kept.fetch_max(data.len(), Ordering::Relaxed);
        if data.len() <= before || data.len() > BYTES_MAX {
            return;
        }
        // One device of the process writes at a time. A folder that cannot be written is told of where tunings are kept.
        let mut kept = kept();
        let _ = write(&self.file, &data);
        kept.insert(self.file.clone(), data.into());
    }
}

fn kept() -> MutexGuard<'static, BTreeMap<PathBuf, Arc<[u8]>>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn checksum(data: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish().to_le_bytes()
}

/// The data of a file, if it is whole.
fn read(file: &Path) -> Option<Arc<[u8]>> {
    let bytes = std::fs::read(file).ok()?;
    let (sum, data) = bytes.split_at_checked(CHECKSUM)?;
    let whole = data.len() <= BYTES_MAX && *sum == checksum(data);
    whole.then(|| data.into())
}

fn write(file: &Path, data: &[u8]) -> std::io::Result<()> {
    whole_file::replace(file, &[&checksum(data), data].concat())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test")]

    use super::{read, write};

    #[test]
    fn what_was_written_is_read_and_what_was_cut_off_is_not() {
        let folder = std::env::temp_dir().join(format!("outrider-kernels-{}", std::process::id()));
        let file = folder.join("kernels.bin");
        assert_eq!(read(&file), None);
        write(&file, b"what a driver made").unwrap();
        assert_eq!(read(&file).as_deref(), Some(b"what a driver made".as_slice()));
        let bytes = std::fs::read(&file).unwrap();
        for len in 0..bytes.len() {
            std::fs::write(&file, &bytes[..len]).unwrap();
            assert_eq!(read(&file), None, "{len} bytes");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
