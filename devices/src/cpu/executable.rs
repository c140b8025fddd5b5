//! A compiled stage with its caches and buffers: batches in, activations or picks out.
//!
//! *Invariant:* nothing here allocates in proportion to the model; what a run allocates is its answer.

use std::rc::Rc;
use std::sync::{Mutex, OnceLock};

use super::cache::CacheShape;
use super::compile::Program;
use super::forward::{Chunk, Forward, Lane, PRIVATE_ROWS, Row, ScratchView};
use super::kernels::tile::TILE;
use super::kernels::{Kernels, QUERIES};
use super::memory::Pages;
use super::scratch::{OperandRows, Scratch};
use super::team::Team;
use crate::batch::{Activations, Batch, Output, Pick, Picked, SequenceId, Want};
use crate::device::{DeviceError, Executable, MemoryUse, SlotLimits};
use crate::sampling;
use crate::slots::{Slot, Slots};

/// A sequence's tokens, and its cache once it had one.
type CacheSlot = Slot<Option<Pages<u16>>>;

/// An executable of the CPU unit.
pub(crate) struct CpuExecutable {
    device: Rc<str>,
    team: Rc<Team>,
    kernels: &'static Kernels,
    program: Program,
    limits: SlotLimits,
    shape: CacheShape,
    slots: Slots<Option<Pages<u16>>>,
    /// Caches of slots that were released.
    spare: Vec<Pages<u16>>,
    arena: Pages<f32>,
    logits: Pages<f32>,
    logits_stride: usize,
    operand: OperandRows,
    scratch: Vec<Scratch>,
    samplers: Vec<Mutex<sampling::Scratch>>,
    rows: Vec<Row>,
    chunks: Vec<Chunk>,
    wanted: Vec<usize>,
}

impl CpuExecutable {
    /// Allocates slots and buffers for a program.
    pub(crate) fn new(
        device: Rc<str>,
        (team, members): (Rc<Team>, usize),
        kernels: &'static Kernels,
        program: Program,
        limits: SlotLimits,
    ) -> Result<Self, DeviceError> {
        let shape =
            CacheShape::new(program.layers, program.heads, (limits.positions_max, limits.cache));
        let logits_stride = program.vocabulary.next_multiple_of(TILE) + TILE;
        let (widest, floats) = (program.widest, program.reads_floats);
        let scratch =
            || Scratch::new((PRIVATE_ROWS, widest, floats), shape.positions, program.heads.padded);
        let buffers = || {
            Some((
                Pages::zeroed(program.arena)?,
                Pages::zeroed(limits.rows_max * logits_stride)?,
                OperandRows::new(limits.rows_max, widest, floats)?,
                (0..members).map(|_| scratch()).collect::<Option<Vec<_>>>()?,
            ))
        };
        let Some((arena, logits, operand, scratch)) = buffers() else {
            let detail = format!("buffers for {} rows", limits.rows_max);
            return Err(DeviceError::OutOfMemory { device: device.to_string(), detail });
        };
        Ok(Self {
            limits,
            shape,
            slots: Slots::new(limits),
            spare: Vec::new(),
            rows: Vec::with_capacity(limits.rows_max),
            chunks: Vec::with_capacity(limits.rows_max),
            wanted: Vec::with_capacity(limits.rows_max),
            device,
            team,
            kernels,
            program,
            arena,
            logits,
            logits_stride,
            operand,
            scratch,
            samplers: (0..members).map(|_| Mutex::default()).collect(),
        })
    }

    /// Takes a batch in: every sequence gets a slot that is cut to its base, and a cache. Returns the slots, taken out
    /// of the pool for the run; on an error no cache has changed.
    fn admit(&mut self, batch: &Batch) -> Result<Vec<CacheSlot>, DeviceError> {
        let missing = batch.segments.iter().filter(|s| !self.has_slot(s.sequence)).count();
        let room = missing + self.slots.iter().count() <= self.limits.sequences_max;
        while room && self.spare.len() < missing {
            let cache = Pages::zeroed(self.shape.len()).ok_or_else(|| {
                let detail = format!("a cache of {} bytes", self.shape.len() * 2);
                DeviceError::OutOfMemory { device: self.device.to_string(), detail }
            })?;
            self.spare.push(cache);
        }
        self.slots.admit(batch, &self.device)?;
        self.rows.clear();
        self.chunks.clear();
        self.wanted.clear();
        let mut slots = Vec::with_capacity(batch.segments.len());
        for (index, segment) in batch.segments.iter().enumerate() {
            let mut slot = std::mem::take(self.slots.of(segment.sequence));
            if slot.cache.is_none() {
                slot.cache = self.spare.pop();
            }
            slots.push(slot);
            self.note_rows(index, segment.base as usize, &segment.tokens, segment.want.rows());
        }
        Ok(slots)
    }

    fn has_slot(&self, sequence: SequenceId) -> bool {
        self.slots.iter().any(|(taken, _)| taken == sequence)
    }

    fn note_rows(&mut self, segment: usize, base: usize, tokens: &[u32], wanted: usize) {
        let heads = self.program.heads;
        let together = (QUERIES * heads.kv.max(1) / heads.queries.max(1)).max(1);
        let start = self.rows.len();
        self.rows.extend(tokens.iter().enumerate().map(|(i, &token)| Row {
            segment,
            position: base + i,
            token,
        }));
        let end = self.rows.len();
        self.wanted.extend(end - wanted..end);
        self.chunks.extend(
            (start..end)
                .step_by(together)
                .map(|first| Chunk { first, rows: together.min(end - first) }),
        );
    }

    fn read_input(&mut self, input: Option<Activations>) {
        match (input, self.program.input) {
            (None, None) => {}
            (Some(input), Some((place, cols))) => {
                assert_eq!(input.cols, cols, "activations of another width");
                assert_eq!(input.data.len(), cols * self.rows.len(), "activations of other rows");
                for (row, x) in input.data.chunks_exact(cols).enumerate() {
                    let start = place.start + row * place.stride;
                    self.arena[start..start + cols].copy_from_slice(x);
                }
            }
            (None, Some(_)) => panic!("a later stage was run without activations"),
            (Some(_), None) => panic!("a first stage was given activations"),
        }
    }

    /// Runs the admitted rows; returns the picks.
    fn forward(&mut self, batch: &Batch, slots: &mut [CacheSlot]) -> Vec<OnceLock<Pick>> {
        let picks: Vec<_> = self.wanted.iter().map(|_| OnceLock::new()).collect();
        let scratch: Vec<_> = self
            .scratch
            .iter_mut()
            .map(|s| ScratchView {
                operand: s.operand.share(),
                row: s.row.share(),
                scores: s.scores.share(),
                attended: s.attended.share(),
            })
            .collect();
        let lanes: Vec<_> = batch
            .segments
            .iter()
            .zip(slots)
            .map(|(segment, slot)| Lane {
                cache: slot.cache.as_mut().expect("an admitted slot has a cache").share(),
                history: &slot.tokens,
                sampling: &segment.sampling,
            })
            .collect();
        let forward = Forward {
            program: &self.program,
            kernels: self.kernels,
            shape: self.shape,
            rows: &self.rows,
            chunks: &self.chunks,
            wanted: &self.wanted,
            lanes: &lanes,
            arena: self.arena.share(),
            operand: self.operand.share(),
            scratch: &scratch,
            logits: self.logits.share(),
            logits_stride: self.logits_stride,
            samplers: &self.samplers,
            picks: &picks,
        };
        self.team.run(&|member| forward.run(member));
        picks
    }

    fn picked(&self, batch: &Batch, picks: Vec<OnceLock<Pick>>) -> Picked {
        let picks = picks
            .into_iter()
            .map(|p| p.into_inner().expect("each wanted row was picked"))
            .collect();
        let mut logits = Vec::new();
        let mut row = 0;
        for segment in &batch.segments {
            let end = row + segment.want.rows();
            if matches!(segment.want, Want::Logits(_)) {
                for row in row..end {
                    let start = row * self.logits_stride;
                    logits.extend_from_slice(&self.logits[start..start + self.program.vocabulary]);
                }
            }
            row = end;
        }
        Picked { picks, logits }
    }
}

impl Executable for CpuExecutable {
    fn run(&mut self, batch: &Batch, input: Option<Activations>) -> Result<Output, DeviceError> {
        let mut slots = self.admit(batch)?;
        self.read_input(input);
        if self.program.output.is_some() {
            self.wanted.clear();
        }
        let picks = self.forward(batch, &mut slots);
        for (segment, slot) in batch.segments.iter().zip(slots) {
            *self.slots.of(segment.sequence) = slot;
        }
        let Some((place, cols)) = self.program.output else {
            return Ok(Output::Picked(self.picked(batch, picks)));
        };
        let mut data = Vec::with_capacity(self.rows.len() * cols);
        for row in 0..self.rows.len() {
            let start = place.start + row * place.stride;
            data.extend_from_slice(&self.arena[start..start + cols]);
        }
        Ok(Output::Activations(Activations { cols, data }))
    }

    fn cached(&self, sequence: SequenceId) -> u32 {
        self.slots.cached(sequence)
    }

    fn release(&mut self, sequence: SequenceId) {
        if self.has_slot(sequence) {
            self.spare.extend(self.slots.of(sequence).cache.take());
            self.slots.release(sequence);
        }
    }

    fn memory(&self) -> MemoryUse {
        let scratch: u64 = self.scratch.iter().map(Scratch::bytes).sum();
        let caches = self.slots.iter().filter_map(|(_, s)| s.cache.as_ref()).chain(&self.spare);
        MemoryUse {
            weights: self.program.store.bytes(),
            caches: caches.map(Pages::bytes).sum(),
            scratch: scratch
                + self.arena.bytes()
                + self.logits.bytes()
                + self.operand.bytes()
                + self.program.rope.bytes(),
        }
    }
}
