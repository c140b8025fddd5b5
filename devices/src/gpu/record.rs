//! Records passes of a stage into a command buffer.

use super::stage::{Stage, Step};

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

impl Stage {
    /// Records one pass over `rows` rows, of which `head_rows` run through the head.
    pub(super) fn record(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        kind: Pass,
        (rows, head_rows): (usize, usize),
    ) {
        assert!(rows.max(head_rows) <= self.bounds.capacity, "a pass of {rows} rows");
        let region = match kind {
            Pass::Whole | Pass::DraftFirst => &self.buffers.first,
            Pass::DraftNext => &self.buffers.second,
        };
        pass.set_bind_group(1, region, &[]);
        for step in &self.steps.body {
            dispatch(pass, step, rows);
        }
        if head_rows == 0 {
            return;
        }
        for step in &self.steps.head {
            dispatch(pass, step, head_rows);
        }
        let merge = match kind {
            Pass::Whole => 0,
            Pass::DraftFirst => 1,
            Pass::DraftNext => 2,
        };
        if let Some(step) = self.steps.merge.get(merge) {
            pass.set_bind_group(1, &self.buffers.both, &[]);
            let (pipeline, _) = &step.variants[0];
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &step.bindings, &[]);
            pass.dispatch_workgroups(head_rows as u32, 1, 1);
        }
    }
}

/// Runs the narrowest variant that takes `rows` in one go, or the widest as often as needed.
pub(super) fn dispatch(pass: &mut wgpu::ComputePass<'_>, step: &Step, rows: usize) {
    let fitting = rows.next_power_of_two().trailing_zeros() as usize;
    let power = fitting.min(step.variants.len() - 1);
    let (pipeline, groups) = &step.variants[power];
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, &step.bindings, &[]);
    pass.dispatch_workgroups(*groups, (rows as u32).div_ceil(1 << power), 1);
}
