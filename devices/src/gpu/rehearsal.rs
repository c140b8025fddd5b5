//! Scripts that were run lately, kept to be run again, with pieces encoded ahead while the device is busy.
//!
//! Encoding a pass takes the host as long as running it takes a fast device, and decoding runs the same few passes again and
//! again. *Invariant:* bounded: at most [`KEPT_MAX`] scripts, each encoded ahead once.

use super::context::Context;
use super::record::{Extent, Script};
use crate::DeviceError;

/// Scripts kept: drafts of each depth that go on after one token or after two, verifications of each width, prompts of a few
/// lengths. (A depth that is decided anew each round would meet none of its scripts again if only the last few were kept.)
const KEPT_MAX: usize = 48;

/// What a script does: equal keys, equal scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// One pass, its picks or activations copied out.
    Pass(Extent),
    /// A draft: its first pass, and the rows of each later one.
    Draft(Extent, Vec<usize>),
}

struct Kept {
    key: Key,
    script: Script,
    ahead: Vec<wgpu::CommandBuffer>,
}

/// The scripts, the one that ran last at the end.
#[derive(Default)]
pub(super) struct Rehearsal {
    kept: Vec<Kept>,
}

impl Rehearsal {
    /// Submits the script of `key`, which `write` writes if it is not kept.
    pub(super) fn submit(
        &mut self,
        context: &Context,
        key: Key,
        write: impl FnOnce() -> Script,
    ) -> Result<wgpu::SubmissionIndex, DeviceError> {
        let mut kept = match self.kept.iter().position(|kept| kept.key == key) {
            Some(index) => self.kept.remove(index),
            None => Kept { key, script: write(), ahead: Vec::new() },
        };
        if self.kept.len() >= KEPT_MAX {
            self.kept.remove(0);
        }
        let submitted = kept.script.submit(context, std::mem::take(&mut kept.ahead));
        self.kept.push(kept);
        submitted
    }

    /// Keeps a script that is likely to be wanted, encoded. What does not fit beside the others is left out.
    pub(super) fn prepare(
        &mut self,
        context: &Context,
        key: Key,
        script: Script,
    ) -> Result<(), DeviceError> {
        if self.kept.len() < KEPT_MAX && self.kept.iter().all(|kept| kept.key != key) {
            let pieces = (0..script.pieces()).map(|piece| script.encode(context, piece));
            let ahead = pieces.collect::<Result<_, _>>()?;
            self.kept.push(Kept { key, script, ahead });
        }
        Ok(())
    }

    /// Encodes one more piece of what was submitted last, for its next time. Says whether there was one.
    pub(super) fn encode_ahead(&mut self, context: &Context) -> Result<Ahead, DeviceError> {
        let Some(Kept { script, ahead, .. }) = self.kept.last_mut() else { return Ok(Ahead::Done) };
        if ahead.len() == script.pieces() {
            return Ok(Ahead::Done);
        }
        ahead.push(script.encode(context, ahead.len())?);
        Ok(Ahead::More)
    }

    /// Forgets all, as a buffer that they copy to is gone.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }
}

/// Whether there may be more to encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    More,
    Done,
}
