//! Files that are replaced whole or not at all.

use std::io;
use std::path::Path;

/// Writes `bytes` beside the file first and then over it, so that no reader sees half of them. Its folder is made if it is not there.
///
/// # Errors
/// What the system says.
pub fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let beside = file.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&beside, bytes)?;
    std::fs::rename(&beside, file)
}
