//! Records passes of a stage into command buffers, and submits them piece by piece.
//!
//! *Invariant:* the pieces of one recording run in order, and each sees what those before it wrote.

use super::context::Context;
use super::stage::{Stage, Step};
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

/// What is being recorded. Long recordings are submitted in pieces, so that the device begins before the last is there.
pub(super) struct Recorder<'a> {
    context: &'a Context,
    /// `pass` records into it; none of both, where a piece has just been submitted.
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    state: Option<wgpu::BindGroup>,
    dispatches: usize,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        Self { context, encoder: None, pass: None, state: None, dispatches: 0 }
    }

    /// Records one pass of `stage` over `rows` rows, of which `head_rows` run through the head.
    pub(super) fn record(
        &mut self,
        stage: &Stage,
        kind: Pass,
        (rows, head_rows): (usize, usize),
    ) -> Result<(), DeviceError> {
        assert!(rows.max(head_rows) <= stage.bounds.capacity, "a pass of {rows} rows");
        let region = match kind {
            Pass::Whole | Pass::DraftFirst => &stage.buffers.first,
            Pass::DraftNext => &stage.buffers.second,
        };
        self.bind_state(region);
        for step in &stage.steps.body {
            self.dispatch(step, rows)?;
        }
        if head_rows == 0 {
            return Ok(());
        }
        for step in &stage.steps.head {
            self.dispatch(step, head_rows)?;
        }
        let merge = match kind {
            Pass::Whole => 0,
            Pass::DraftFirst => 1,
            Pass::DraftNext => 2,
        };
        if let Some(step) = stage.steps.merge.get(merge) {
            self.bind_state(&stage.buffers.both);
            let (pipeline, _) = &step.variants[0];
            let pass = self.pass();
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &step.bindings, &[]);
            pass.dispatch_workgroups(head_rows as u32, 1, 1);
        }
        Ok(())
    }

    /// What the kernels that follow know of the pass.
    pub(super) fn bind_state(&mut self, state: &wgpu::BindGroup) {
        self.state = Some(state.clone());
        if let Some(pass) = &mut self.pass {
            pass.set_bind_group(1, state, &[]);
        }
    }

    /// Runs the narrowest variant that takes `rows` in one go, or the widest as often as needed.
    pub(super) fn dispatch(&mut self, step: &Step, rows: usize) -> Result<(), DeviceError> {
        let fitting = rows.next_power_of_two().trailing_zeros() as usize;
        let power = fitting.min(step.variants.len() - 1);
        let (pipeline, groups) = &step.variants[power];
        let pass = self.pass();
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &step.bindings, &[]);
        pass.dispatch_workgroups(*groups, (rows as u32).div_ceil(1 << power), 1);
        self.dispatches += 1;
        if self.dispatches >= self.context.tuning.submit_dispatches {
            self.submit_piece()?;
        }
        Ok(())
    }

    fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        let device = &self.context.device;
        self.encoder.get_or_insert_with(|| device.create_command_encoder(&Default::default()))
    }

    fn pass(&mut self) -> &mut wgpu::ComputePass<'static> {
        if self.pass.is_none() {
            let state = self.state.clone();
            let mut pass = self.encoder().begin_compute_pass(&Default::default()).forget_lifetime();
            pass.set_bind_group(1, state.as_ref(), &[]);
            self.pass = Some(pass);
        }
        self.pass.as_mut().expect("it was begun above")
    }

    fn submit_piece(&mut self) -> Result<(), DeviceError> {
        self.dispatches = 0;
        self.pass = None;
        match self.encoder.take() {
            Some(encoder) => self.context.submit(encoder).map(drop),
            None => Ok(()),
        }
    }

    /// Submits the rest, after the copies that `copy` records.
    pub(super) fn submit(
        mut self,
        copy: impl FnOnce(&mut wgpu::CommandEncoder),
    ) -> Result<wgpu::SubmissionIndex, DeviceError> {
        self.pass = None;
        self.encoder();
        let mut encoder = self.encoder.take().expect("it was made above");
        copy(&mut encoder);
        self.context.submit(encoder)
    }
}
