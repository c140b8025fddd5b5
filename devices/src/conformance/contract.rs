//! What every executable must keep, to the bit, whatever its numbers are.

use std::sync::Arc;

use super::Trouble;
use super::models::Model;
use super::runs::{
    activations, logits_in_chunks, picked, prepare, same, same_bits, segment, wanted,
};
use crate::Sampling;
use crate::batch::{Batch, DraftBatch, DraftSegment, Drafted, Pick, SequenceId, Want};
use crate::device::{Device, DeviceError, Executable, Purpose, draft_step_by_step};
use crate::sampling::{Scratch, pick};

/// Whether a claim holds for a device on a model.
type Claim = fn(&mut dyn Device, &Model) -> Result<(), Trouble>;

/// All claims, each in words.
pub(super) const CLAIMS: &[(&str, Claim)] = &[
    ("sequences of one batch do not see each other", ragged),
    ("a long text is the same however it is chunked", long),
    ("only wanted rows are answered", wants),
    ("a cut sequence is as if the rest had never been", cut),
    ("stages of a split model are the whole model", split),
    ("slots run out without harm and can be used again", slots),
    ("picks follow the logits and the sampling", sampled),
    ("a draft is what its steps are one by one", drafted),
    ("a draft ends at a stop token or at a doubtful one", stopped),
    ("who got ready answers as before", rehearsed),
];

fn ragged(device: &mut dyn Device, model: &Model) -> Result<(), Trouble> {
    let text = |sequence: usize| {
        let tokens: Vec<u32> = model.tokens(40);
        tokens[sequence * 5..][..14].to_vec()
    };
    let mut together = prepare(device, &model.whole(), 3)?;
    let mut alone = prepare(device, &model.whole(), 3)?;
    let mut done = [0usize; 3];
    for batch in [vec![(0, 5), (1, 1), (2, 9)], vec![(2, 1), (0, 4)], vec![(1, 8), (0, 1), (2, 3)]]
    {
        let segments: Vec<_> = batch
            .iter()
            .map(|&(s, rows)| wanted(s as u64, done[s], &text(s)[done[s]..done[s] + rows]))
            .collect();
        let mut expected = Vec::new();
        for segment in segments.clone() {
            expected.extend(picked(&mut *alone, vec![segment], None)?.logits);
        }
        let found = picked(&mut *together, segments, None)?.logits;
        same_bits("three sequences at once", &found, &expected)?;
        for (sequence, rows) in batch {
            done[sequence] += rows;
            let cached = together.cached(SequenceId(sequence as u64)) as usize;
            same("cached positions", cached, done[sequence])?;
        }
    }
    Ok(())
}

fn long(device: &mut dyn Device, model: &Model) -> Result<(), Trouble> {
    let tokens = model.tokens(300);
    let mut whole = prepare(device, &model.whole(), 2)?;
    let by_forty = logits_in_chunks(&mut *whole, 0, &tokens, 40)?;
    let by_seven = logits_in_chunks(&mut *whole, 1, &tokens, 7)?;
    same_bits("300 positions by 7 beside by 40", &by_seven, &by_forty)
}

fn wants(device: &mut dyn Device, model: &Model) -> Result<(), Trouble> {
    let tokens = model.tokens(9);
    let mut whole = prepare(device, &model.whole(), 3)?;
    let all = picked(&mut *whole, vec![wanted(0, 0, &tokens)], None)?;
    let mixed = [Want::Nothing, Want::Logits(2), Want::Picks(3)];
    let rows = (0..).zip(mixed).map(|(sequence, want)| segment(sequence, 0, &tokens, want));
    let found = picked(&mut *whole, rows.collect(), None)?;
    same_bits("the last two rows", &found.logits, &all.logits[7 * model.vocabulary..])?;
    let expected = [7, 8, 6, 7, 8].map(|row: usize| all.picks[row].clone()).to_vec();
    same("picks of the last rows", found.picks, expected)
}

fn cut(device: &mut dyn Device, model: &Model) -> Result<(), Trouble> {
    let tokens = model.tokens(30);
    let mut whole = prepare(device, &model.whole(), 2)?;
    picked(&mut *whole, vec![wanted(0, 0, &tokens[..12])], None)?;
    for (base, other) in [(7, 12..17), (12, 20..21), (3, 21..28), (0, 15..16)] {
        let other = &tokens[other];
        let found = picked(&mut *whole, vec![wanted(0, base, other)], None)?.logits;
        same("cached positions", whole.cached(SequenceId(0)) as usize, base + other.len())?;
        let kept: Vec<u32> = match base {
            7 => tokens[..7].to_vec(),
            12 => [&tokens[..7], &tokens[12..17]].concat(),
            base => tokens[..base].to_vec(),
        };
        let fresh = [&kept, other].concat();
        whole.release(SequenceId(1));
        let expected = logits_in_chunks(&mut *whole, 1, &fresh, fresh.len())?;
        same_bits("rows after a cut", &found, &expected[base * model.vocabulary..])?;
    }
    Ok(())
}

fn split(device: &mut dyn Device, model: &Model) -> Result<(), Trouble> {
    let tokens = model.tokens(14);
    let mut whole = prepare(device, &model.whole(), 1)?;
    let mut stages = (0..model.layers)
        .map(|layer| prepare(device, &model.stage(layer, layer + 1), 1))
        .collect::<Result<Vec<_>, _>>()?;
    let Some((head, before)) = stages.split_last_mut() else { return Ok(()) };
    for rows in [0..9, 9..10, 10..14, 6..8] {
        let segments = || vec![wanted(0, rows.start, &tokens[rows.clone()])];
        let expected = picked(&mut *whole, segments(), None)?;
        let mut between = None;
        for stage in &mut *before {
            between = Some(activations(&mut **stage, segments(), between)?);
        }
        let found = picked(&mut **head, segments(), between)?;
        same_bits("a model in stages", &found.logits, &expected.logits)?;
    }
    Ok(())
}

fn slots(device: &mut dyn Device, model: &Model) -> Result<(), Trouble> {
    let tokens = model.tokens(6);
    let mut whole = prepare(device, &model.whole(), 2)?;
    let expected = picked(&mut *whole, vec![wanted(1, 0, &tokens)], None)?.logits;
    picked(&mut *whole, vec![wanted(2, 0, &tokens[..3])], None)?;
    let too_many = Batch { segments: vec![wanted(2, 3, &tokens[3..]), wanted(3, 0, &tokens)] };
    match whole.run(&too_many, None) {
        Err(DeviceError::OutOfMemory { .. }) => {}
        other => same("a third of two slots", format!("{other:?}"), "OutOfMemory".to_owned())?,
    }
    let cached = [1, 2, 3].map(|s| whole.cached(SequenceId(s)));
    same("cached positions after there was no slot", cached, [6, 3, 0])?;
    for sequence in [1, 9] {
        whole.release(SequenceId(sequence));
    }
    let found = picked(&mut *whole, vec![wanted(3, 0, &tokens)], None)?.logits;
    same_bits("a slot's second use", &found, &expected)?;
    let continued = picked(&mut *whole, vec![wanted(2, 3, &tokens[3..])], None)?.logits;
    let at = 3 * model.vocabulary;
    same_bits("the sequence that stayed", &continued, &expected[at..])?;
    same("cached positions", [1, 2, 3].map(|s| whole.cached(SequenceId(s))), [0, 6, 6])
}

/// Samplings that reach every step of a pick.
fn samplings() -> Vec<Sampling> {
    let greedy = Sampling::default();
    let warm = Sampling { temperature: 0.9, seed: 7, ..Sampling::default() };
    vec![
        Sampling { top_logprobs: 4, ..greedy.clone() },
        Sampling { repetition_penalty: 1.3, prompt_len: 3, ..greedy.clone() },
        Sampling { presence_penalty: 0.5, frequency_penalty: 0.4, prompt_len: 2, ..greedy.clone() },
        Sampling { logit_bias: vec![(3, 5.0), (4, -5.0)], ..greedy },
        warm.clone(),
        Sampling { top_k: 5, ..warm.clone() },
        Sampling { top_p: 0.6, seed: 8, ..warm.clone() },
        Sampling { min_p: 0.2, temperature: 1.7, ..warm },
    ]
}

fn sampled(device: &mut dyn Device, model: &Model) -> Result<(), Trouble> {
    let tokens = model.tokens(9);
    let mut whole = prepare(device, &model.whole(), 1)?;
    for sampling in samplings() {
        let mut rows = wanted(0, 0, &tokens);
        rows.sampling = Arc::new(sampling.clone());
        let found = picked(&mut *whole, vec![rows], None)?;
        let logits = found.logits.chunks_exact(model.vocabulary);
        for ((row, logits), found) in logits.enumerate().zip(&found.picks) {
            let seen = &tokens[..=row];
            let scratch = &mut Scratch::default();
            let expected = pick(logits, seen.len() as u32, seen, &sampling, scratch);
            same_pick(&format!("row {row} under {sampling:?}"), found, &expected)?;
        }
    }
    Ok(())
}

/// Tokens must be equal; probabilities may be rounded differently.
fn same_pick(what: &str, found: &Pick, expected: &Pick) -> Result<(), Trouble> {
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * b.abs() + 1e-6;
    let tops = found.top.iter().zip(&expected.top);
    let alike = found.token == expected.token
        && near(found.probability, expected.probability)
        && found.top.len() == expected.top.len()
        && tops.clone().all(|(a, b)| a.0 == b.0 && near(a.1, b.1));
    if alike { Ok(()) } else { same(what, found, expected) }
}

/// Three sequences with something cached, to be extended by drafts of different lengths.
fn drafts(model: &Model, sampling: &Sampling) -> DraftBatch {
    let tokens = model.tokens(20);
    let ask = |sequence: u64, rows: usize, steps: u32| {
        let mut segment = segment(sequence, 0, &tokens[sequence as usize..][..rows], Want::Nothing);
        segment.sampling = Arc::new(sampling.clone());
        DraftSegment { segment, steps, probability_min: 0.0 }
    };
    let segments = vec![ask(0, 4, 6), ask(1, 1, 1), ask(2, 9, 3)];
    DraftBatch { segments, stop_tokens: Arc::new([]) }
}

fn drafted(device: &mut dyn Device, model: &Model) -> Result<(), Trouble> {
    let mut whole = prepare(device, &model.whole(), 3)?;
    let mut steps = prepare(device, &model.whole(), 3)?;
    for sampling in samplings() {
        let mut batch = drafts(model, &sampling);
        for _ in 0..2 {
            let found = whole.draft(&batch)?;
            let expected = draft_step_by_step(&mut *steps, &batch)?;
            same_drafts(&found, &expected)?;
            check_cached(&*whole, &batch, &found)?;
            go_on(&mut batch, &found);
        }
    }
    Ok(())
}

/// Next, the first drafted token was right and the others were not: go on after another token.
fn go_on(batch: &mut DraftBatch, found: &[Drafted]) {
    for (ask, found) in batch.segments.iter_mut().zip(found) {
        let base = ask.segment.base + ask.segment.tokens.len() as u32;
        ask.segment.tokens = vec![found.picks[0].token, 1];
        ask.segment.base = base;
    }
}

fn same_drafts(found: &[Drafted], expected: &[Drafted]) -> Result<(), Trouble> {
    let lengths = |drafts: &[Drafted]| drafts.iter().map(|d| d.picks.len()).collect::<Vec<_>>();
    same("lengths of the drafts", lengths(found), lengths(expected))?;
    let pairs = found.iter().zip(expected);
    let mut pairs = pairs.flat_map(|(found, expected)| found.picks.iter().zip(&expected.picks));
    pairs.try_for_each(|(found, expected)| same_pick("a drafted token", found, expected))
}

fn check_cached(
    whole: &dyn Executable,
    batch: &DraftBatch,
    found: &[Drafted],
) -> Result<(), Trouble> {
    for (ask, Drafted { picks: found, steps }) in batch.segments.iter().zip(found) {
        if !(found.len() as u32..=ask.steps).contains(steps) {
            let detail = format!("{steps} steps, {} asked, for {} tokens", ask.steps, found.len());
            return Err(Trouble::Answer(detail));
        }
        let segment = &ask.segment;
        let rows = segment.base as usize + segment.tokens.len();
        let cached = whole.cached(segment.sequence) as usize;
        if !(rows + found.len() - 1..=rows + found.len()).contains(&cached) {
            let detail = format!("{cached} positions after {rows} and a draft of {}", found.len());
            return Err(Trouble::Answer(detail));
        }
    }
    Ok(())
}

fn stopped(device: &mut dyn Device, model: &Model) -> Result<(), Trouble> {
    let mut whole = prepare(device, &model.whole(), 3)?;
    let warm = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
    let batch = drafts(model, &warm);
    let free = whole.draft(&batch)?;
    let stop = free[0].picks[2].token;
    let until_stop = |Drafted { picks, steps }: &Drafted| {
        let end = picks.iter().position(|p| p.token == stop).map_or(picks.len(), |at| at + 1);
        Drafted { picks: picks[..end].to_vec(), steps: *steps }
    };
    let stopping = DraftBatch { stop_tokens: Arc::new([stop]), ..batch.clone() };
    let found = whole.draft(&stopping)?;
    same_drafts(&found, &free.iter().map(until_stop).collect::<Vec<_>>())?;
    check_cached(&*whole, &stopping, &found)?;
    let mut doubting = batch;
    for (ask, free) in doubting.segments.iter_mut().zip(&free) {
        ask.probability_min = free.picks.iter().map(|p| p.probability).fold(0.0, f32::max) * 0.99;
    }
    let confident = |Drafted { picks, steps }: &Drafted, least: f32| {
        let doubt = picks.iter().skip(1).position(|p| p.probability < least);
        let picks = picks[..doubt.map_or(picks.len(), |at| at + 1)].to_vec();
        Drafted { picks, steps: *steps }
    };
    let expected: Vec<_> = free
        .iter()
        .zip(&doubting.segments)
        .map(|(draft, ask)| confident(draft, ask.probability_min))
        .collect();
    let found = whole.draft(&doubting)?;
    same_drafts(&found, &expected)?;
    check_cached(&*whole, &doubting, &found)
}

fn rehearsed(device: &mut dyn Device, model: &Model) -> Result<(), Trouble> {
    let mut ready = prepare(device, &model.whole(), 3)?;
    let mut fresh = prepare(device, &model.whole(), 3)?;
    let mut batch = drafts(model, &Sampling::default());
    for purpose in [Purpose::Passes, Purpose::Drafts] {
        // The second time in the middle of three texts.
        ready.rehearse(purpose)?;
        let found = ready.draft(&batch)?;
        same_drafts(&found, &fresh.draft(&batch)?)?;
        check_cached(&*ready, &batch, &found)?;
        go_on(&mut batch, &found);
    }
    let tokens = model.tokens(9);
    let mut ready = prepare(device, &model.stage(0, 1), 1)?;
    let mut fresh = prepare(device, &model.stage(0, 1), 1)?;
    for (rows, purpose) in [(0..6, Purpose::Drafts), (6..9, Purpose::Passes)] {
        ready.rehearse(purpose)?;
        let segments = || vec![wanted(0, rows.start, &tokens[rows.clone()])];
        let found = activations(&mut *ready, segments(), None)?;
        let expected = activations(&mut *fresh, segments(), None)?;
        same_bits("a first stage", &found.data, &expected.data)?;
    }
    Ok(())
}
