//! What a pass of a stage consists of, as a list that can be encoded piece by piece, and again for the next time.
//!
//! *Invariant:* the pieces of a script run in order, and each sees what those before it wrote. A script holds nothing of a
//! batch but its extent: what differs from time to time is in the state that the kernels read.

use super::context::Context;
use super::pipelines::Pipeline;
use super::stage::{Reach, Stage, Step};
use super::tuning::Tuning;
use crate::DeviceError;

/// Which pass of a submission is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// On the state that the host wrote; its picks are answers.
    Whole,
    /// The same, its picks being the tokens of the first drafted step.
    DraftFirst,
    /// On the state that the device wrote.
    DraftNext,
}

/// How much a pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) rows: usize,
    /// Rows that run through the head.
    pub(super) head_rows: usize,
    /// Spans of attention that the longest sequence reaches over.
    pub(super) spans: usize,
}

impl Extent {
    /// Of rows whose positions are below `positions`. Rows are rounded up, so that few extents are ever met: what is too
    /// many does nothing that lasts.
    pub(super) fn new(stage: &Stage, (rows, head_rows): (usize, usize), positions: usize) -> Self {
        let round = |rows: usize| match rows {
            0 => 0,
            1..=8 => rows.next_power_of_two(),
            _ => rows.next_multiple_of(8),
        };
        let fit = |rows| round(rows).min(stage.bounds.capacity);
        let spans = stage.span.map_or(1, |span| positions.div_ceil(span as usize).max(1));
        Self { rows: fit(rows), head_rows: fit(head_rows), spans }
    }
}

enum Command {
    Dispatch { pipeline: Pipeline, bindings: wgpu::BindGroup, grid: (u32, u32, u32) },
    State(wgpu::BindGroup),
    Copy(Copy),
}

/// Bytes that are copied once all kernels have run.
#[derive(Clone)]
pub(super) struct Copy {
    pub(super) from: wgpu::Buffer,
    pub(super) from_offset: u64,
    pub(super) to: wgpu::Buffer,
    pub(super) to_offset: u64,
    pub(super) bytes: u64,
}

/// A submission, in pieces that can be encoded one by one.
pub(super) struct Script {
    pieces: Vec<Vec<Command>>,
}

/// Writes a [`Script`].
pub(super) struct Scripter<'a> {
    tuning: &'a Tuning,
    pieces: Vec<Vec<Command>>,
    state: Option<wgpu::BindGroup>,
    /// Of the last piece.
    dispatches: usize,
}

impl<'a> Scripter<'a> {
    pub(super) fn new(tuning: &'a Tuning) -> Self {
        Self { tuning, pieces: vec![Vec::new()], state: None, dispatches: 0 }
    }

    fn push(&mut self, command: Command) {
        self.pieces.last_mut().expect("a script has a piece").push(command);
    }

    /// Adds one pass of `stage`.
    pub(super) fn pass(&mut self, stage: &Stage, kind: Pass, extent: Extent) {
        let Extent { rows, head_rows, spans } = extent;
        assert!(rows.max(head_rows) <= stage.bounds.capacity, "a pass of {rows} rows");
        let region = match kind {
            Pass::Whole | Pass::DraftFirst => &stage.buffers.first,
            Pass::DraftNext => &stage.buffers.second,
        };
        self.bind_state(region);
        for step in &stage.steps.body {
            let spans = match step.reach {
                Reach::Any => 1,
                Reach::Near if spans == 1 => 1,
                Reach::Far if spans > 1 => 1,
                Reach::Spans if spans > 1 => spans,
                Reach::Near | Reach::Far | Reach::Spans => continue,
            };
            self.dispatch(step, (rows, spans));
        }
        if head_rows == 0 {
            return;
        }
        for step in &stage.steps.head {
            self.dispatch(step, (head_rows, 1));
        }
        let merge = match kind {
            Pass::Whole => 0,
            Pass::DraftFirst => 1,
            Pass::DraftNext => 2,
        };
        if let Some(step) = stage.steps.merge.get(merge) {
            self.bind_state(&stage.buffers.both);
            let (pipeline, _) = &step.variants[0];
            self.add(pipeline, &step.bindings, (head_rows as u32, 1, 1));
        }
    }

    /// What the kernels that follow know of the pass.
    pub(super) fn bind_state(&mut self, state: &wgpu::BindGroup) {
        self.state = Some(state.clone());
        self.push(Command::State(state.clone()));
    }

    /// Runs the narrowest variant that takes `rows` in one go, or the widest as often as needed; each `spans` times.
    pub(super) fn dispatch(&mut self, step: &Step, (rows, spans): (usize, usize)) {
        let fitting = rows.next_power_of_two().trailing_zeros() as usize;
        let power = fitting.min(step.variants.len() - 1);
        let (pipeline, groups) = &step.variants[power];
        let turns = (rows as u32).div_ceil(1 << power);
        self.add(pipeline, &step.bindings, (*groups, turns, spans as u32));
    }

    fn add(&mut self, pipeline: &Pipeline, bindings: &wgpu::BindGroup, grid: (u32, u32, u32)) {
        if self.dispatches >= self.tuning.submit_dispatches {
            self.dispatches = 0;
            self.pieces.push(self.state.clone().map(Command::State).into_iter().collect());
        }
        self.dispatches += 1;
        self.push(Command::Dispatch {
            pipeline: Pipeline::clone(pipeline),
            bindings: bindings.clone(),
            grid,
        });
    }

    /// The script, with `copies` at its end.
    pub(super) fn finish(mut self, copies: impl IntoIterator<Item = Copy>) -> Script {
        copies.into_iter().for_each(|copy| self.push(Command::Copy(copy)));
        Script { pieces: self.pieces }
    }
}

impl Script {
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Encodes piece `index`, without submitting it.
    pub(super) fn encode(
        &self,
        context: &Context,
        index: usize,
    ) -> Result<wgpu::CommandBuffer, DeviceError> {
        let mut encoder = context.device.create_command_encoder(&Default::default());
        let commands = &self.pieces[index];
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for command in commands {
                match command {
                    Command::State(state) => pass.set_bind_group(1, state, &[]),
                    Command::Dispatch { pipeline, bindings, grid } => {
                        pass.set_pipeline(pipeline);
                        pass.set_bind_group(0, bindings, &[]);
                        pass.dispatch_workgroups(grid.0, grid.1, grid.2);
                    }
                    Command::Copy(_) => {}
                }
            }
        }
        for command in commands {
            if let Command::Copy(Copy { from, from_offset, to, to_offset, bytes }) = command {
                encoder.copy_buffer_to_buffer(from, *from_offset, to, *to_offset, *bytes);
            }
        }
        context.finish(encoder)
    }

    /// Submits what has been encoded `already`, then the other pieces as they are encoded.
    pub(super) fn submit(
        &self,
        context: &Context,
        already: Vec<wgpu::CommandBuffer>,
    ) -> Result<wgpu::SubmissionIndex, DeviceError> {
        let first = already.len();
        let mut last = match already.is_empty() {
            true => None,
            false => Some(context.submit(already)?),
        };
        for index in first..self.pieces.len() {
            last = Some(context.submit(vec![self.encode(context, index)?])?);
        }
        Ok(last.expect("a script has a piece"))
    }
}
