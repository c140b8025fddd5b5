//! Checkpoints of any bytes: opened from a file, as a user would, and read to the end.
//!
//! *Invariant:* bytes become a model, or an error that says what is wrong; never a panic, nor memory without bound.

use std::path::PathBuf;
use std::sync::OnceLock;

use outrider_pipeline::{Checkpoint, Model, SpecialTokens};

/// Bytes that follow half of the inputs: more than the tensors of the seeds have.
const TENSORS: usize = 256 << 10;

/// The file that the bytes are written to: in memory where the system has such a place.
fn file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
        folder.join(format!("outrider-fuzz-{}.gguf", std::process::id()))
    })
}

/// Holds one input against the invariant; panics where it does not hold.
pub fn check(bytes: &[u8]) {
    std::fs::write(file(), bytes).expect("a file for the bytes");
    // A header alone is worth fuzzing where its tensors are there: zeroes that take no place.
    if bytes.len().is_multiple_of(2) {
        let open = std::fs::OpenOptions::new().write(true).open(file());
        let longer = open.and_then(|file| file.set_len((bytes.len() + TENSORS) as u64));
        longer.expect("a longer file");
    }
    let opened = Checkpoint::open(file());
    let error = match opened {
        Ok(checkpoint) => {
            let summary = checkpoint.summary().err();
            match Model::new(&checkpoint) {
                Ok(model) => {
                    let ids = model.tokenizer().encode("the end of </s>", SpecialTokens::Parse);
                    let ids = ids.expect("text becomes tokens");
                    let _ = model.tokenizer().decode(&ids);
                    summary
                }
                Err(error) => Some(error),
            }
        }
        Err(error) => Some(error),
    };
    if let Some(error) = error {
        assert!(error.to_string().len() < 4000, "a message without end");
    }
}
