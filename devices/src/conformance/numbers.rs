//! How near a device's numbers are to the reference's, and that they do not depend on how rows are batched.

use super::models::Model;
use super::runs::{activations, logits_in_chunks, prepare, same_bits, segment};
use super::{Measured, Trouble};
use crate::batch::{SequenceId, Want};
use crate::device::Device;

/// Rows of a text: more than a kernel takes at once, and no multiple of anything.
const ROWS: usize = 33;

/// Numbers of rows that run at once.
const CHUNKS: [usize; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 16, 27];

/// Compares one model, the device running fused ops and the oracle the plain ones.
pub(super) fn compare(
    (device, oracle): (&mut dyn Device, &mut dyn Device),
    model: &Model,
    tolerance: f32,
) -> Result<Measured, Trouble> {
    let tokens = model.tokens(ROWS);
    let activations = first_block((device, oracle), model, &tokens)?;
    let mut whole = prepare(device, &model.whole(), 1)?;
    let found = logits_in_chunks(&mut *whole, 0, &tokens, ROWS)?;
    for chunk in CHUNKS {
        whole.release(SequenceId(0));
        let again = logits_in_chunks(&mut *whole, 0, &tokens, chunk)?;
        same_bits(&format!("logits of {chunk} rows at once beside {ROWS}"), &again, &found)?;
    }
    let mut oracle = prepare(oracle, &model.plain_stage(model.layers), 1)?;
    let expected = logits_in_chunks(&mut *oracle, 0, &tokens, ROWS)?;
    let logits = difference(&found, &expected, model.vocabulary)?;
    let worst = activations.max(logits);
    if worst > tolerance {
        return Err(Trouble::Answer(format!(
            "activations {activations:.2e} and logits {logits:.2e} of a row's root mean square from the \
             reference, {tolerance:.2e} allowed"
        )));
    }
    Ok(Measured { model: model.name.clone(), activations, logits, tolerance })
}

/// Difference of what the first block puts out.
fn first_block(
    (device, oracle): (&mut dyn Device, &mut dyn Device),
    model: &Model,
    tokens: &[u32],
) -> Result<f32, Trouble> {
    let rows = || vec![segment(0, 0, tokens, Want::Nothing)];
    let found = activations(&mut *prepare(device, &model.stage(0, 1), 1)?, rows(), None)?;
    let mut oracle = prepare(oracle, &model.plain_stage(1), 1)?;
    let expected = activations(&mut *oracle, rows(), None)?;
    difference(&found.data, &expected.data, expected.cols)
}

/// The largest difference in a row beside the root mean square of the expected row; an error if a value is no number.
pub(super) fn difference(found: &[f32], expected: &[f32], cols: usize) -> Result<f32, Trouble> {
    if found.len() != expected.len() || found.iter().any(|v| !v.is_finite()) {
        let (found, expected) = (found.len(), expected.len());
        let detail = format!("{found} values, some not finite or missing, expected {expected}");
        return Err(Trouble::Answer(detail));
    }
    let rows = found.chunks_exact(cols).zip(expected.chunks_exact(cols));
    let relative = rows.map(|(found, expected)| {
        let squares: f64 = expected.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let scale = (squares / cols as f64).sqrt();
        let most = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        (f64::from(most) / scale) as f32
    });
    Ok(relative.fold(0.0, f32::max))
}
