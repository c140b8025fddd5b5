//! The calibration's own prompts, and what the draft says at each position of the target's answers.
//!
//! *Invariant:* these prompts are in no bench.

use std::sync::Arc;

use outrider_devices::{Batch, Output, Sampling, Segment, SequenceId, SlotLimits, Want};
use outrider_plans::cost::{Guess, SampleText};
use outrider_plans::{ModelRole, StageId, UnitSpec};

use super::CalibrateError;
use super::loops::LoopError;
use super::rounds::Answered;
use crate::pair::Pair;

/// Prompts of the shipped pair's kind, one a line.
pub const PROMPTS: &str = include_str!("prompts.tsv");

/// The answers with the draft's guesses: the draft reads each finished text and says, at every position, how it would go
/// on. `spec` is the unit that it runs on.
pub(crate) fn guessed(
    pair: &Pair,
    spec: &UnitSpec,
    limits: SlotLimits,
    answers: Vec<Answered>,
) -> Result<Vec<SampleText>, CalibrateError> {
    let mut texts: Vec<SampleText> = answers
        .into_iter()
        .map(|Answered { prompt, output, .. }| SampleText { prompt, output, guesses: Vec::new() })
        .collect();
    let Some(shape) = pair.shape(ModelRole::Draft) else { return Ok(texts) };
    let stage = StageId { role: ModelRole::Draft, layer_first: 0, layer_end: shape.layers() };
    let subgraph = pair.subgraph(stage);
    let factory = crate::fleet::factory(spec);
    let read = std::thread::spawn(move || -> Result<Vec<SampleText>, LoopError> {
        let mut device = factory()?;
        let mut executable = device.prepare(&subgraph, limits)?;
        for text in &mut texts {
            let whole: Vec<u32> = text.prompt.iter().chain(&text.output).copied().collect();
            let mut base = 0;
            // The last token is said by the row before it.
            let rows = whole.len() - 1;
            while base < rows {
                let end = rows.min(base + limits.rows_max);
                let wanted = (end + 1).saturating_sub(text.prompt.len().max(base + 1));
                let segment = Segment {
                    sequence: SequenceId(0),
                    base: base as u32,
                    tokens: whole[base..end].to_vec(),
                    want: if wanted == 0 { Want::Nothing } else { Want::Picks(wanted as u32) },
                    sampling: Arc::new(Sampling::default()),
                };
                let output = executable.run(&Batch { segments: vec![segment] }, None)?;
                if let Output::Picked(picked) = output {
                    text.guesses.extend(picked.picks.iter().map(|pick| Guess {
                        token: pick.token,
                        probability_permille: (pick.probability * 1000.0).clamp(0.0, 1000.0) as u16,
                    }));
                }
                base = end;
            }
        }
        Ok(texts)
    });
    Ok(read.join().map_err(|_| CalibrateError::Ended)??)
}
