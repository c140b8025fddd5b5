//! Short ways to run batches, and to compare what comes back.

use std::sync::Arc;

use super::Trouble;
use crate::Sampling;
use crate::batch::{Activations, Batch, Output, Picked, Segment, SequenceId, Want};
use crate::device::{CacheFormat, Device, Executable, SlotLimits};
use crate::graph::Subgraph;

/// Most rows of a batch here.
pub(super) const ROWS_MAX: usize = 40;

/// Prepares a stage with room for `sequences_max` sequences.
pub(super) fn prepare(
    device: &mut dyn Device,
    stage: &Subgraph,
    sequences_max: usize,
) -> Result<Box<dyn Executable>, Trouble> {
    let (rows_max, cache) = (ROWS_MAX, CacheFormat::F16);
    let limits = SlotLimits { sequences_max, positions_max: 320, rows_max, cache };
    Ok(device.prepare(stage, limits)?)
}

/// Greedy rows of a sequence.
pub(super) fn segment(sequence: u64, base: usize, tokens: &[u32], want: Want) -> Segment {
    let sampling = Arc::new(Sampling::default());
    let (sequence, base, tokens) = (SequenceId(sequence), base as u32, tokens.to_vec());
    Segment { sequence, base, tokens, want, sampling }
}

/// Logits of all these rows wanted.
pub(super) fn wanted(sequence: u64, base: usize, tokens: &[u32]) -> Segment {
    segment(sequence, base, tokens, Want::Logits(tokens.len() as u32))
}

/// Runs a batch on a stage that ends in the head.
pub(super) fn picked(
    stage: &mut dyn Executable,
    segments: Vec<Segment>,
    input: Option<Activations>,
) -> Result<Picked, Trouble> {
    let batch = Batch { segments };
    match stage.run(&batch, input)? {
        Output::Picked(picked) if picked.picks.len() == batch.head_rows() => Ok(picked),
        Output::Picked(picked) => {
            let (found, expected) = (picked.picks.len(), batch.head_rows());
            Err(Trouble::Answer(format!("{found} picks for {expected} wanted rows")))
        }
        Output::Activations(_) => Err(Trouble::Answer("activations instead of picks".to_owned())),
    }
}

/// Runs a batch on a stage that ends inside the model.
pub(super) fn activations(
    stage: &mut dyn Executable,
    segments: Vec<Segment>,
    input: Option<Activations>,
) -> Result<Activations, Trouble> {
    let batch = Batch { segments };
    match stage.run(&batch, input)? {
        Output::Activations(found) if found.data.len() == found.cols * batch.rows() => Ok(found),
        Output::Activations(found) => {
            let (values, rows) = (found.data.len(), batch.rows());
            Err(Trouble::Answer(format!("{values} activations for {rows} rows of {}", found.cols)))
        }
        Output::Picked(_) => Err(Trouble::Answer("picks instead of activations".to_owned())),
    }
}

/// Logits of a new sequence of these tokens, run `chunk` rows at a time.
pub(super) fn logits_in_chunks(
    whole: &mut dyn Executable,
    sequence: u64,
    tokens: &[u32],
    chunk: usize,
) -> Result<Vec<f32>, Trouble> {
    let mut logits = Vec::new();
    for (index, part) in tokens.chunks(chunk).enumerate() {
        let rows = vec![wanted(sequence, index * chunk, part)];
        logits.extend(picked(whole, rows, None)?.logits);
    }
    Ok(logits)
}

/// Fails unless both are equal to the bit.
pub(super) fn same_bits(what: &str, found: &[f32], expected: &[f32]) -> Result<(), Trouble> {
    let pairs = || found.iter().zip(expected);
    let differing = pairs().filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    if found.len() == expected.len() && differing == 0 {
        return Ok(());
    }
    let most = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    Err(Trouble::Answer(format!(
        "{what}: {differing} of {} values differ from the {} expected, by at most {most:e}",
        found.len(),
        expected.len()
    )))
}

/// Fails with `what` unless both are equal.
pub(super) fn same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: T,
    expected: T,
) -> Result<(), Trouble> {
    if found == expected {
        return Ok(());
    }
    Err(Trouble::Answer(format!("{what}: found {found:?}, expected {expected:?}")))
}
