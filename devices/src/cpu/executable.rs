//! A compiled stage with its caches and buffers: batches in, activations or picks out.
//!
//! *Invariant:* nothing here allocates in proportion to the model; what a run allocates is its answer.

use std::rc::Rc;
use std::sync::OnceLock;

use super::compile::Program;
use super::forward::{Chunk, Forward, Lane, PRIVATE_ROWS, Row, ScratchView};
use super::kernels::tile::TILE;
use super::kernels::{Kernels, QUERIES};
use super::memory::{Pages, Shared};
use super::scratch::{OperandRows, Scratch};
use super::slots::{CacheShape, Slots};
use super::team::Team;
use crate::batch::{Activations, Batch, Output, Pick, Picked, SequenceId, Want};
use crate::device::{DeviceError, Executable, MemoryUse, SlotLimits};

/// An executable of the CPU unit.
pub(crate) struct CpuExecutable {
    device: Rc<str>,
    team: Rc<Team>,
    kernels: &'static Kernels,
    program: Program,
    limits: SlotLimits,
    slots: Slots,
    arena: Pages<f32>,
    logits: Pages<f32>,
    logits_stride: usize,
    operand: OperandRows,
    scratch: Vec<Scratch>,
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
        let shape = CacheShape::new(program.layers, program.heads, limits.positions_max);
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
            slots: Slots::new(shape, limits.sequences_max),
            rows: Vec::with_capacity(limits.rows_max),
            chunks: Vec::with_capacity(limits.rows_max),
            wanted: Vec::with_capacity(limits.rows_max),
            device,
            team,
            kernels,
            program,
            limits,
            arena,
            logits,
            logits_stride,
            operand,
            scratch,
        })
    }

    /// Checks the batch, gives new sequences their slots, cuts the caches and notes the tokens. Returns the slot of each
    /// segment; on an error no cache has changed.
    fn admit(&mut self, batch: &Batch) -> Result<Vec<usize>, DeviceError> {
        assert!(batch.rows() <= self.limits.rows_max, "a batch of more rows than the limit");
        let mut slots = Vec::with_capacity(batch.segments.len());
        for (index, segment) in batch.segments.iter().enumerate() {
            let (base, count) = (segment.base as usize, segment.tokens.len());
            assert!(count > 0, "{} has a segment without rows", segment.sequence);
            assert!(segment.want.rows() <= count, "{} wants more than its rows", segment.sequence);
            assert!(
                base + count <= self.limits.positions_max,
                "{} grows beyond its positions",
                segment.sequence
            );
            assert!(
                base <= self.cached(segment.sequence) as usize,
                "{} begins beyond its cache",
                segment.sequence
            );
            let slot = match self.slots.find(segment.sequence) {
                Some(slot) => slot,
                None => match self.slots.take(segment.sequence) {
                    Some(Some(slot)) => slot,
                    none => {
                        for taken in &batch.segments[..index] {
                            if self.cached(taken.sequence) == 0 {
                                self.slots.release(taken.sequence);
                            }
                        }
                        return Err(self.no_slot(none.is_none()));
                    }
                },
            };
            assert!(!slots.contains(&slot), "{} appears twice in a batch", segment.sequence);
            slots.push(slot);
        }
        self.rows.clear();
        self.chunks.clear();
        self.wanted.clear();
        for (index, segment) in batch.segments.iter().enumerate() {
            let tokens = &mut self.slots.get_mut(slots[index]).tokens;
            tokens.truncate(segment.base as usize);
            tokens.extend_from_slice(&segment.tokens);
            self.note_rows(index, segment.base as usize, &segment.tokens, segment.want.rows());
        }
        Ok(slots)
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

    fn no_slot(&self, all_taken: bool) -> DeviceError {
        let detail = if all_taken {
            format!("all {} cache slots are taken; release a sequence", self.limits.sequences_max)
        } else {
            format!("a cache of {} bytes", self.slots.shape.len() * 2)
        };
        DeviceError::OutOfMemory { device: self.device.to_string(), detail }
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
    fn forward(&mut self, batch: &Batch, slots: &[usize]) -> Vec<OnceLock<Pick>> {
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
        let shape = self.slots.shape;
        let mut caches: Vec<_> = self
            .slots
            .all_mut()
            .iter_mut()
            .map(|s| (s.cache.as_mut().map(|c| Shared::of(c)), s.tokens.as_slice()))
            .collect();
        let lanes: Vec<_> = batch
            .segments
            .iter()
            .zip(slots)
            .map(|(segment, &slot)| {
                let (cache, history) = &mut caches[slot];
                let cache = cache.take().expect("a taken slot has a cache");
                Lane { cache, history, sampling: &segment.sampling }
            })
            .collect();
        let forward = Forward {
            program: &self.program,
            kernels: self.kernels,
            shape,
            rows: &self.rows,
            chunks: &self.chunks,
            wanted: &self.wanted,
            lanes: &lanes,
            arena: self.arena.share(),
            operand: self.operand.share(),
            scratch: &scratch,
            logits: self.logits.share(),
            logits_stride: self.logits_stride,
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
        let slots = self.admit(batch)?;
        self.read_input(input);
        if self.program.output.is_some() {
            self.wanted.clear();
        }
        let picks = self.forward(batch, &slots);
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
        self.slots.find(sequence).map_or(0, |slot| self.slots.get(slot).tokens.len() as u32)
    }

    fn release(&mut self, sequence: SequenceId) {
        self.slots.release(sequence);
    }

    fn memory(&self) -> MemoryUse {
        let scratch: u64 = self.scratch.iter().map(Scratch::bytes).sum();
        MemoryUse {
            weights: self.program.store.bytes(),
            caches: self.slots.bytes(),
            scratch: scratch
                + self.arena.bytes()
                + self.logits.bytes()
                + self.operand.bytes()
                + self.program.rope.bytes(),
        }
    }
}
