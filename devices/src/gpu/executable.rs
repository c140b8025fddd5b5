//! Runs batches and drafts on a stage: state in, kernels recorded, picks or activations read back.
//!
//! A pick that top-k, top-p, min-p, penalties, biases or log-probabilities take part in is made on the host from the
//! row's logits, which are then read back; all other picks are made on the device. *Invariant:* after a run, each
//! sequence's slot lists exactly the tokens whose keys and values the device holds.

use std::sync::Arc;

use super::context::{Context, Doing};
use super::record::{Copy, Extent, Pass, Script, Scripter};
use super::rehearsal::{Ahead, Key, Rehearsal};
use super::stage::Stage;
use super::state::{DRAFT_STEPS_MAX, HeadRow, Row, State};
use crate::batch::{
    Activations, Batch, DraftBatch, DraftSegment, Drafted, Output, Pick, Picked, Segment,
    SequenceId, Want,
};
use crate::device::{DeviceError, Executable, MemoryUse, Purpose, SlotLimits, draft_step_by_step};
use crate::graph::Subgraph;
use crate::sampling::{self, Sampling};
use crate::slots::Slots;

/// A stage on a GPU, with the KV caches of its sequences.
pub(super) struct GpuExecutable {
    stage: Stage,
    limits: SlotLimits,
    /// The index of each sequence's slot on the device.
    slots: Slots<Option<u32>>,
    readback: Readback,
    rehearsal: Rehearsal,
    scratch: sampling::Scratch,
}

/// A row of a batch that wants a result.
#[derive(Clone, Copy)]
struct Wanted {
    /// Row of the batch.
    row: usize,
    segment: usize,
    logits: bool,
}

/// What a submission answers for its rows, in bytes of the read-back buffer.
#[derive(Clone, Copy, Default)]
struct Answer {
    picks: u64,
    /// How many there are.
    picked: usize,
    /// Where each logits row, or the activations, begin.
    rows: u64,
}

/// Rows of passes that are rehearsed: verifications, and pieces of prompts.
const VERIFIED: [usize; 5] = [1, 2, 4, 8, 16];
const PROMPTS: [usize; 5] = [4, 8, 16, 24, 32];
/// Depths of drafts that are.
const REHEARSED_STEPS: usize = 5;

impl GpuExecutable {
    pub(super) fn prepare(
        context: &Arc<Context>,
        subgraph: &Subgraph,
        limits: SlotLimits,
    ) -> Result<Self, DeviceError> {
        let stage = Stage::build(context, subgraph, limits)?;
        let readback = Readback::new(context, 4096)?;
        let slots = Slots::new(limits);
        let (rehearsal, scratch) = (Rehearsal::default(), sampling::Scratch::default());
        let mut prepared = Self { stage, limits, slots, readback, rehearsal, scratch };
        prepared.warm_up()?;
        Ok(prepared)
    }

    /// Encodes the passes of few rows, all of them wanted, and of prompts, one of them wanted.
    fn rehearse_passes(&mut self) -> Result<(), DeviceError> {
        let context = Arc::clone(&self.stage.context);
        self.readback.reserve(&context, self.passes_copied())?;
        let head = usize::from(self.stage.vocabulary.is_some());
        let verified = VERIFIED.map(|rows| (rows, rows * head));
        for size in verified.into_iter().chain(PROMPTS.map(|rows| (rows, head))) {
            let extent = Extent::new(&self.stage, size, 1);
            let script = self.pass_script(extent);
            self.rehearsal.prepare(&context, Key::Pass(extent), script)?;
        }
        Ok(())
    }

    /// Encodes the drafts of few steps, which go on at once or read a prompt first.
    fn rehearse_drafts(&mut self) -> Result<(), DeviceError> {
        let context = Arc::clone(&self.stage.context);
        self.readback.reserve(&context, self.drafts_copied())?;
        for rows in VERIFIED[..2].iter().chain(&PROMPTS) {
            let first = Extent::new(&self.stage, (*rows, 1), 1);
            for later in (0..REHEARSED_STEPS).map(|further| vec![1; further]) {
                let script = self.draft_script(first, &later, 1);
                self.rehearsal.prepare(&context, Key::Draft(first, later), script)?;
            }
        }
        Ok(())
    }

    /// Most bytes that a pass copies, whatever its rows, and a draft.
    fn passes_copied(&self) -> u64 {
        (self.stage.bounds.capacity * 8.max(self.stage.stream_stride * 4)) as u64
    }

    fn drafts_copied(&self) -> u64 {
        (self.stage.bounds.picks() * 8) as u64
    }

    /// A pass whose picks, or activations where it has no head, are all that it answers.
    fn pass_script(&self, extent: Extent) -> Script {
        let answer = Answer { picks: 0, picked: extent.head_rows, rows: 0 };
        self.script(extent, (extent.rows, &[]), answer)
    }

    /// Runs every kernel once on rows that leave no trace, so that the driver compiles them now.
    fn warm_up(&mut self) -> Result<(), DeviceError> {
        let rows_max = self.stage.bounds.capacity.min(8);
        self.write_state(0, &State::new(self.stage.bounds));
        self.write_state(1, &State::new(self.stage.bounds));
        let head = self.stage.vocabulary.is_some();
        let mut rows = 1;
        while rows <= rows_max {
            let wanted = if head { rows } else { 0 };
            let context = &self.stage.context;
            let mut scripter = Scripter::new(&context.tuning);
            for positions in [1, self.limits.positions_max] {
                let extent = Extent::new(&self.stage, (rows, wanted), positions);
                scripter.pass(&self.stage, Pass::Whole, extent);
                if self.stage.is_whole_model() {
                    scripter.pass(&self.stage, Pass::DraftFirst, extent);
                    scripter.pass(&self.stage, Pass::DraftNext, extent);
                }
                if self.stage.span.is_none() {
                    break;
                }
            }
            let script = scripter.finish([]);
            context.wait_for_compiler(script.submit(context, Vec::new())?)?;
            rows *= 2;
        }
        Ok(())
    }

    fn write_state(&self, region: u64, state: &State) {
        let offset = region * self.stage.bounds.bytes() / 2;
        self.stage.context.queue.write_buffer(&self.stage.buffers.state, offset, state.bytes());
    }

    /// Takes the batch in and gives each of its sequences an index.
    fn admit(&mut self, batch: &Batch) -> Result<Vec<u32>, DeviceError> {
        self.slots.admit(batch, &self.stage.context.name)?;
        let mut free: Vec<bool> = vec![true; self.limits.sequences_max];
        for index in self.slots.iter().filter_map(|(_, slot)| slot.cache) {
            free[index as usize] = false;
        }
        let mut free = (0..).zip(free).filter(|(_, free)| *free).map(|(index, _)| index);
        let mut index_of = |sequence: SequenceId| {
            let slot = self.slots.of(sequence);
            *slot.cache.get_or_insert_with(|| free.next().expect("an admitted batch has slots"))
        };
        Ok(batch.segments.iter().map(|s| index_of(s.sequence)).collect())
    }

    /// Writes what the kernels know of one pass over `rows`, of which `wanted` run through the head.
    fn write_pass(
        &self,
        batch: &Batch,
        (rows, input): (&[Row], Option<&[f32]>),
        (first_row, wanted): (usize, &[Wanted]),
    ) -> Extent {
        let mut state = State::new(self.stage.bounds);
        for (index, row) in rows.iter().enumerate() {
            state.row(index, *row);
        }
        for (index, wanted) in wanted.iter().enumerate() {
            let sampling = &batch.segments[wanted.segment].sampling;
            let row = wanted.row - first_row;
            state.head_row(index, HeadRow { row, sampling, answer: (index, 0) });
        }
        self.write_state(0, &state);
        if let Some(input) = input {
            self.write_stream(input);
        }
        let positions = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(0);
        Extent::new(&self.stage, (rows.len(), wanted.len()), positions)
    }

    /// A pass whose answers go where `answer` says: of `rows` and `wanted`, rounded up as `extent` is or not.
    fn script(&self, extent: Extent, (rows, wanted): (usize, &[Wanted]), answer: Answer) -> Script {
        let Stage { context, buffers, stream_stride, .. } = &self.stage;
        let mut scripter = Scripter::new(&context.tuning);
        scripter.pass(&self.stage, Pass::Whole, extent);
        let to = &self.readback.buffer;
        let copy = |from: &wgpu::Buffer, from_offset, to_offset, bytes| Copy {
            from: from.clone(),
            from_offset,
            to: to.clone(),
            to_offset,
            bytes,
        };
        let (Some(picks), Some(logits)) = (&buffers.picks, &buffers.logits) else {
            let bytes = (rows * stream_stride * 4) as u64;
            return scripter.finish([copy(&buffers.stream, 0, answer.rows, bytes)]);
        };
        let row_bytes = self.vocabulary() as u64 * 4;
        let of_logits = |(nth, (index, _)): (usize, (usize, &Wanted))| {
            let from = (index * self.stage.logits_stride * 4) as u64;
            copy(logits, from, answer.rows + nth as u64 * row_bytes, row_bytes)
        };
        let with_logits = wanted.iter().enumerate().filter(|(_, w)| w.logits);
        let copies = with_logits.enumerate().map(of_logits);
        let picks = copy(picks, 0, answer.picks, answer.picked as u64 * 8);
        scripter.finish(std::iter::once(picks).filter(|c| c.bytes > 0).chain(copies))
    }

    fn write_stream(&self, input: &[f32]) {
        let Stage { context, width, stream_stride, buffers, .. } = &self.stage;
        if width == stream_stride {
            context.queue.write_buffer(&buffers.stream, 0, bytemuck::cast_slice(input));
            return;
        }
        let mut padded = Vec::with_capacity(input.len() / width * stream_stride);
        for row in input.chunks_exact(*width) {
            padded.extend_from_slice(row);
            padded.resize(padded.len() + stream_stride - width, 0.0);
        }
        context.queue.write_buffer(&buffers.stream, 0, bytemuck::cast_slice(&padded));
    }

    fn vocabulary(&self) -> usize {
        self.stage.vocabulary.unwrap_or(0)
    }

    /// The rows that want a result.
    fn wanted(&self, batch: &Batch) -> Vec<Wanted> {
        if self.stage.vocabulary.is_none() {
            return Vec::new();
        }
        let mut wanted = Vec::with_capacity(batch.head_rows());
        let mut end = 0;
        for (segment, s) in batch.segments.iter().enumerate() {
            end += s.tokens.len();
            let logits = matches!(s.want, Want::Logits(_)) || !picks_on_device(&s.sampling);
            wanted.extend((end - s.want.rows()..end).map(|row| Wanted { row, segment, logits }));
        }
        wanted
    }

    /// The answers of a stage with the head: `words` hold the picks, then the logits.
    fn picked(&mut self, batch: &Batch, wanted: &[Wanted], words: &[u32]) -> Picked {
        let vocabulary = self.vocabulary();
        let (picks, logits) = words.split_at(wanted.len() * 2);
        let picks: &[[u32; 2]] = bytemuck::cast_slice(picks);
        let mut rows = bytemuck::cast_slice::<u32, f32>(logits).chunks_exact(vocabulary);
        let mut picked = Picked::default();
        let mut begins = Vec::with_capacity(batch.segments.len());
        let mut begin = 0;
        for segment in &batch.segments {
            begins.push(begin);
            begin += segment.tokens.len();
        }
        for (wanted, pick) in wanted.iter().zip(picks) {
            let segment = &batch.segments[wanted.segment];
            let row = if wanted.logits { rows.next() } else { None };
            match row {
                Some(row) if !picks_on_device(&segment.sampling) => {
                    let position = segment.base as usize + wanted.row - begins[wanted.segment] + 1;
                    let history = &self.slots.of(segment.sequence).tokens[..position];
                    let (sampling, position) = (&segment.sampling, position as u32);
                    picked.picks.push(sampling::pick(
                        row,
                        position,
                        history,
                        sampling,
                        &mut self.scratch,
                    ));
                }
                _ => picked.picks.push(pick_of(*pick)),
            }
            if let (Some(row), Want::Logits(_)) = (row, segment.want) {
                picked.logits.extend_from_slice(row);
            }
        }
        picked
    }

    /// Rows of the batch with their slots' indices.
    fn rows(batch: &Batch, indices: &[u32]) -> Vec<Row> {
        let rows_of = |(segment, &slot): (&Segment, &u32)| {
            let base = segment.base;
            let tokens = segment.tokens.clone();
            tokens.into_iter().zip(base..).map(move |(token, position)| Row {
                slot,
                position,
                token,
                live: 1,
            })
        };
        batch.segments.iter().zip(indices).flat_map(rows_of).collect()
    }
}

/// Whether the device's own kernels make this pick.
fn picks_on_device(sampling: &Sampling) -> bool {
    sampling.top_k == 0
        && sampling.top_p >= 1.0
        && sampling.min_p <= 0.0
        && !sampling.uses_history()
        && sampling.logit_bias.is_empty()
        && sampling.top_logprobs == 0
}

fn pick_of([token, probability]: [u32; 2]) -> Pick {
    Pick { token, probability: f32::from_bits(probability), top: Vec::new() }
}

impl Executable for GpuExecutable {
    fn run(&mut self, batch: &Batch, input: Option<Activations>) -> Result<Output, DeviceError> {
        self.stage.context.check()?;
        self.check_input(batch, input.as_ref());
        let indices = self.admit(batch)?;
        let rows = Self::rows(batch, &indices);
        let wanted = self.wanted(batch);
        let (width, stride) = (self.stage.width, self.stage.stream_stride);
        let row_bytes =
            if self.stage.vocabulary.is_some() { self.vocabulary() } else { stride } * 4;
        let answers = match self.stage.vocabulary {
            Some(_) => wanted.iter().filter(|w| w.logits).count(),
            None => rows.len(),
        };
        let mut answer = Answer { picks: 0, picked: 0, rows: wanted.len() as u64 * 8 };
        let total = answer.rows + (answers * row_bytes) as u64;
        let context = Arc::clone(&self.stage.context);
        let capacity = self.stage.bounds.capacity;
        if self.readback.reserve(&context, total.max(self.passes_copied()))? {
            self.rehearsal.clear();
        }
        if rows.len() <= capacity && wanted.iter().all(|w| !w.logits) {
            let input = input.as_ref().map(|i| i.data.as_slice());
            let extent = self.write_pass(batch, (&rows, input), (0, &wanted));
            let mut rehearsal = std::mem::take(&mut self.rehearsal);
            let write = || self.pass_script(extent);
            let submitted = rehearsal.submit(&context, Key::Pass(extent), write);
            self.rehearsal = rehearsal;
            let submission = submitted?;
            let words = self.answer(vec![submission], total)?;
            return Ok(self.output(batch, &wanted, &words));
        }
        let mut submissions = Vec::new();
        for (pass, rows) in rows.chunks(capacity).enumerate() {
            let first = pass * capacity;
            let begin = wanted.partition_point(|w| w.row < first);
            let end = wanted.partition_point(|w| w.row < first + rows.len());
            let wanted = &wanted[begin..end];
            let input = input.as_ref().map(|i| &i.data[first * width..][..rows.len() * width]);
            let extent = self.write_pass(batch, (rows, input), (first, wanted));
            answer.picked = wanted.len();
            let script = self.script(extent, (rows.len(), wanted), answer);
            submissions.push(script.submit(&context, Vec::new())?);
            let answers = match self.stage.vocabulary {
                Some(_) => wanted.iter().filter(|w| w.logits).count(),
                None => rows.len(),
            };
            answer.picks += wanted.len() as u64 * 8;
            answer.rows += (answers * row_bytes) as u64;
        }
        let words = self.readback.read(&context, submissions, total, || Ok(Ahead::Done))?;
        Ok(self.output(batch, &wanted, &words))
    }

    fn draft(&mut self, batch: &DraftBatch) -> Result<Vec<Drafted>, DeviceError> {
        self.stage.context.check()?;
        let fits = |d: &DraftSegment| {
            d.steps as usize <= DRAFT_STEPS_MAX && picks_on_device(&d.segment.sampling)
        };
        let capacity = self.stage.bounds.capacity;
        let one_submission = batch.segments.iter().all(fits)
            && batch.segments.len() <= capacity
            && batch.segments.iter().map(|d| d.segment.tokens.len()).sum::<usize>() <= capacity;
        if !self.stage.is_whole_model() || !one_submission {
            let drafted = draft_step_by_step(self, batch)?;
            // A token that was too unlikely to return has cost one more row.
            for (DraftSegment { segment, .. }, drafted) in batch.segments.iter().zip(&drafted) {
                let end = segment.base as usize + segment.tokens.len() + drafted.picks.len() - 1;
                self.slots.of(segment.sequence).tokens.truncate(end);
            }
            return Ok(drafted);
        }
        self.draft_at_once(batch)
    }

    fn rehearse(&mut self, purpose: Purpose) -> Result<(), DeviceError> {
        match purpose {
            Purpose::Drafts if self.stage.is_whole_model() => self.rehearse_drafts(),
            Purpose::Drafts | Purpose::Passes => self.rehearse_passes(),
        }
    }

    fn cached(&self, sequence: SequenceId) -> u32 {
        self.slots.cached(sequence)
    }

    fn release(&mut self, sequence: SequenceId) {
        self.slots.release(sequence);
    }

    fn memory(&self) -> MemoryUse {
        self.stage.memory
    }
}

impl GpuExecutable {
    /// Waits for what was submitted last, encoding its next time meanwhile, and reads the first `bytes` of its answer.
    fn answer(
        &mut self,
        submissions: Vec<wgpu::SubmissionIndex>,
        bytes: u64,
    ) -> Result<Vec<u32>, DeviceError> {
        let context = &self.stage.context;
        let rehearsal = &mut self.rehearsal;
        self.readback.read(context, submissions, bytes, || rehearsal.encode_ahead(context))
    }

    /// What `words` say: of a stage with the head, the picks, then the logits; else activations.
    fn output(&mut self, batch: &Batch, wanted: &[Wanted], words: &[u32]) -> Output {
        if self.stage.vocabulary.is_some() {
            return Output::Picked(self.picked(batch, wanted, words));
        }
        let (width, stride) = (self.stage.width, self.stage.stream_stride);
        let floats: &[f32] = bytemuck::cast_slice(words);
        let data = floats.chunks_exact(stride).flat_map(|row| &row[..width]).copied().collect();
        Output::Activations(Activations { cols: width, data })
    }

    fn check_input(&self, batch: &Batch, input: Option<&Activations>) {
        match input {
            Some(input) => {
                assert!(!self.stage.reads_tokens(), "a stage that embeds tokens got activations");
                assert_eq!(input.cols, self.stage.width, "input width");
                assert_eq!(input.data.len(), input.cols * batch.rows(), "input rows");
            }
            None => assert!(self.stage.reads_tokens(), "a stage got no activations"),
        }
    }

    /// Drafts in one submission: the longest drafts come first, so that the live ones of a step are a prefix.
    fn draft_at_once(&mut self, ask: &DraftBatch) -> Result<Vec<Drafted>, DeviceError> {
        let mut order: Vec<usize> = (0..ask.segments.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(ask.segments[i].steps));
        let steps_of = |i: usize| ask.segments[i].steps as usize;
        let segments = order.iter().map(|&i| ask.segments[i].segment.clone()).collect();
        let batch = Batch { segments };
        for (segment, &i) in batch.segments.iter().zip(&order) {
            assert!(steps_of(i) > 0, "a draft of no steps was asked for");
            let end = segment.base as usize + segment.tokens.len() + steps_of(i) - 1;
            let limit = self.limits.positions_max;
            assert!(end <= limit, "{}: a draft up to position {end} of {limit}", segment.sequence);
        }
        let Some(steps) = order.first().map(|&i| steps_of(i)) else { return Ok(Vec::new()) };
        let indices = self.admit(&batch)?;
        let rows = self.write_draft(&batch, &indices, |n| steps_of(order[n]));
        let count = order.len();
        let bytes = (steps * count * 8) as u64;
        let context = Arc::clone(&self.stage.context);
        if self.readback.reserve(&context, self.drafts_copied())? {
            self.rehearsal.clear();
        }
        let end = |(segment, &i): (&Segment, &usize)| {
            segment.base as usize + segment.tokens.len() + steps_of(i) - 1
        };
        let positions = batch.segments.iter().zip(&order).map(end).max().unwrap_or(0);
        let first = Extent::new(&self.stage, (rows, count), positions);
        let live = |step| order.iter().filter(|&&i| steps_of(i) > step).count();
        let later: Vec<_> = (1..steps).map(live).collect();
        let mut rehearsal = std::mem::take(&mut self.rehearsal);
        let key = Key::Draft(first, later.clone());
        let write = || self.draft_script(first, &later, positions);
        let submitted = rehearsal.submit(&context, key, write);
        self.rehearsal = rehearsal;
        let words = self.answer(vec![submitted?], bytes)?;
        let picks: &[[u32; 2]] = bytemuck::cast_slice(&words);
        let mut drafted = vec![Drafted::default(); count];
        for (n, &i) in order.iter().enumerate() {
            let column = (0..steps_of(i)).map(|step| pick_of(picks[step * count + n]));
            let kept = keep(column, ask.segments[i].probability_min, &ask.stop_tokens);
            let slot = self.slots.of(batch.segments[n].sequence);
            slot.tokens.extend(kept[..kept.len() - 1].iter().map(|p| p.token));
            drafted[i] = Drafted { picks: kept, steps: ask.segments[i].steps };
        }
        Ok(drafted)
    }

    /// A draft: the pass `first`, then one for each of the rows of `later`.
    fn draft_script(&self, first: Extent, later: &[usize], positions: usize) -> Script {
        let Stage { context, buffers, bounds, .. } = &self.stage;
        let mut scripter = Scripter::new(&context.tuning);
        scripter.pass(&self.stage, Pass::DraftFirst, first);
        for &live in later {
            let extent = Extent::new(&self.stage, (live, live), positions);
            scripter.pass(&self.stage, Pass::DraftNext, extent);
        }
        let bytes = ((later.len() + 1) * first.head_rows).min(bounds.picks()) as u64 * 8;
        let from = buffers.picks.clone().expect("a whole model has picks");
        let to = self.readback.buffer.clone();
        scripter.finish([Copy { from, from_offset: 0, to, to_offset: 0, bytes }])
    }

    /// Writes both regions of the state; returns the rows of the first pass. `steps` is of a segment of `batch`.
    fn write_draft(&self, batch: &Batch, indices: &[u32], steps: impl Fn(usize) -> usize) -> usize {
        let bounds = self.stage.bounds;
        let (mut first, mut second) = (State::new(bounds), State::new(bounds));
        let rows = Self::rows(batch, indices);
        for (index, row) in rows.iter().enumerate() {
            first.row(index, *row);
        }
        let count = batch.segments.len();
        let mut end = 0;
        for (n, segment) in batch.segments.iter().enumerate() {
            end += segment.tokens.len();
            let sampling = &segment.sampling;
            first.head_row(n, HeadRow { row: end - 1, sampling, answer: (n, 0) });
            let live = steps(n) as u32 - 1;
            let next = segment.base + segment.tokens.len() as u32;
            let position = if live > 0 { next } else { 0 };
            second.row(n, Row { slot: indices[n], position, token: 0, live });
            second.head_row(n, HeadRow { row: n, sampling, answer: (count + n, count) });
        }
        self.write_state(0, &first);
        self.write_state(1, &second);
        rows.len()
    }
}

/// The picks of a draft up to the first that it should not have gone past; at least one.
fn keep(picks: impl Iterator<Item = Pick>, probability_min: f32, stop_tokens: &[u32]) -> Vec<Pick> {
    let mut kept: Vec<Pick> = Vec::new();
    for pick in picks {
        let stopped = kept.last().is_some_and(|last| stop_tokens.contains(&last.token));
        if stopped || (!kept.is_empty() && pick.probability < probability_min) {
            break;
        }
        kept.push(pick);
    }
    kept
}

/// The buffer through which answers come back.
struct Readback {
    buffer: wgpu::Buffer,
}

impl Readback {
    fn new(context: &Context, bytes: u64) -> Result<Self, DeviceError> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let buffer = context.scoped(Doing::Allocating("read-back"), || {
            context.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("read-back"),
                size: bytes,
                usage,
                mapped_at_creation: false,
            })
        })?;
        Ok(Self { buffer })
    }

    /// Grows to `bytes`; says whether the buffer is another one now.
    fn reserve(&mut self, context: &Context, bytes: u64) -> Result<bool, DeviceError> {
        let grows = bytes > self.buffer.size();
        if grows {
            *self = Self::new(context, bytes.next_power_of_two())?;
        }
        Ok(grows)
    }

    /// Waits for `submissions`, in order, and copies the first `bytes` out, a multiple of 4. While the device works, it
    /// does what there is to do in `meanwhile`, little by little.
    fn read(
        &self,
        context: &Context,
        submissions: Vec<wgpu::SubmissionIndex>,
        bytes: u64,
        mut meanwhile: impl FnMut() -> Result<Ahead, DeviceError>,
    ) -> Result<Vec<u32>, DeviceError> {
        let mut work = || -> Result<(), DeviceError> {
            while !context.is_idle()? && meanwhile()? == Ahead::More {}
            Ok(())
        };
        if bytes == 0 {
            work()?;
            return submissions.into_iter().try_for_each(|s| context.wait(s)).map(|()| Vec::new());
        }
        let slice = self.buffer.slice(..bytes);
        let (sender, receiver) = std::sync::mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |result| {
            // The receiver outlives the wait below; if the wait failed, nobody asks any more.
            let _ = sender.send(result);
        });
        work()?;
        for submission in submissions {
            context.wait(submission)?;
        }
        match receiver.try_recv() {
            Ok(Ok(())) => {}
            other => return Err(context.lost(format!("read-back: {other:?}"))),
        }
        let view = slice.get_mapped_range().map_err(|e| context.lost(e.to_string()))?;
        let copied = bytemuck::pod_collect_to_vec(&view);
        drop(view);
        self.buffer.unmap();
        Ok(copied)
    }
}
