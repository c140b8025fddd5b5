//! Files mapped into memory, so that weights are read from the page cache and never copied.
//!
//! *Invariant:* a mapping is read-only, and its bytes are only ever read as plain numbers.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

/// Maps a regular file, read-only and whole.
///
/// Whoever replaces a model file on disk must do so by renaming a new file over it: a file that is cut short while
/// it is mapped ends the process with a bus error at the next read, as with every program that maps files.
///
/// # Errors
/// What the system says when the file cannot be opened or mapped, and `InvalidInput` for what is not a regular file
/// (opening a pipe would wait for ever).
pub fn map_file(path: &Path) -> io::Result<Arc<Mmap>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    // SAFETY: the mapping is read-only, so nothing in this process can write through it, and it keeps the
    // pages alive for as long as the `Arc` lives. What `Mmap` hands out is `&[u8]`, for which every bit pattern is
    // valid, and nobody derives a reference with a stricter type that a change of the file could make invalid. That
    // the file is not changed in place by another process is the documented duty of the caller's operator.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Arc::new(map))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::map_file;
    use std::io::ErrorKind;

    #[test]
    fn a_mapping_holds_the_bytes_of_the_file() {
        let path = std::env::temp_dir().join(format!("outrider-mapped-{}", std::process::id()));
        std::fs::write(&path, b"sixteen and more bytes").unwrap();
        let map = map_file(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&map[..], b"sixteen and more bytes");
    }

    #[test]
    fn a_directory_and_a_missing_file_are_errors() {
        assert_eq!(map_file(&std::env::temp_dir()).unwrap_err().kind(), ErrorKind::InvalidInput);
        let missing = std::env::temp_dir().join("outrider-no-such-file");
        assert_eq!(map_file(&missing).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
