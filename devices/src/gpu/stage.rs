//! A stage on the device: its weights, buffers and compiled kernels in the order that a pass runs them.
//!
//! *Invariant:* what it takes on the device is counted against the budget as long as it lives.

use std::sync::Arc;

use super::between::{Scratch, Sizes};
use super::builder::Builder;
use super::context::Context;
use super::lower::Stack;
use super::pack::Layout;
use super::pipelines::{Pipeline, Pipelines};
use super::state::StateBounds;
use super::tuning::Backing;
use super::weights;
use crate::DeviceError;
use crate::device::{CacheFormat, MemoryUse, SlotLimits};
use crate::graph::Subgraph;

/// The passes that a kernel belongs to, by the most positions of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Any,
    /// Attention within one span.
    Near,
    /// Attention by spans, each a workgroup along z.
    Spans,
    /// What joins them.
    Far,
}

/// A kernel with its bindings, for each row count that it is compiled for.
pub(super) struct Step {
    pub(super) label: &'static str,
    pub(super) reach: Reach,
    /// By the logarithm of the rows of a workgroup: one entry, or four for 1, 2, 4 and 8 rows.
    pub(super) variants: Vec<(Pipeline, u32)>,
    pub(super) bindings: wgpu::BindGroup,
}

/// The kernels of a pass.
#[derive(Default)]
pub(super) struct Steps {
    /// Over all rows of a pass.
    pub(super) body: Vec<Step>,
    /// Over the rows that want a result: logits, then the best of each span.
    pub(super) head: Vec<Step>,
    /// Joins the spans: for an answer, a draft's first step, a draft's later steps.
    pub(super) merge: Vec<Step>,
}

/// The buffers that the host reads, writes or copies.
pub(super) struct Buffers {
    pub(super) state: wgpu::Buffer,
    pub(super) stream: wgpu::Buffer,
    pub(super) logits: Option<wgpu::Buffer>,
    pub(super) picks: Option<wgpu::Buffer>,
    /// State regions as the kernels see them: the host's, the draft's, and both to write.
    pub(super) first: wgpu::BindGroup,
    pub(super) second: wgpu::BindGroup,
    pub(super) both: wgpu::BindGroup,
}

/// A stage ready to be recorded.
pub(super) struct Stage {
    pub(super) context: Arc<Context>,
    pub(super) bounds: StateBounds,
    pub(super) width: usize,
    /// Floats in a row of the stream.
    pub(super) stream_stride: usize,
    /// Floats in a row of the logits, and tokens; where the stage has the head.
    pub(super) logits_stride: usize,
    pub(super) vocabulary: Option<usize>,
    /// Positions that attention takes at once, where sequences may be longer.
    pub(super) span: Option<u32>,
    pub(super) steps: Steps,
    pub(super) buffers: Buffers,
    pub(super) memory: MemoryUse,
    reserved: u64,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.context.give_back(self.reserved);
    }
}

impl Stage {
    /// Builds `subgraph` for this device.
    pub(super) fn build(
        context: &Arc<Context>,
        subgraph: &Subgraph,
        limits: SlotLimits,
    ) -> Result<Self, DeviceError> {
        let unsupported = |detail| context.unsupported(format!("{}: {detail}", subgraph.name));
        if limits.cache != CacheFormat::F16 {
            return Err(unsupported(format!(
                "a cache of {}: this unit keeps f16, so ask for that, or run the stage on a cpu unit",
                limits.cache
            )));
        }
        let stack = Stack::read(subgraph).map_err(unsupported)?;
        let sizes = Sizes::of(context, &stack, limits);
        let most = context.limits.max_storage_buffer_binding_size;
        if sizes.cache.backing == Backing::Buffer && sizes.cache.bytes() > most {
            return Err(context.out_of_memory(format!(
                "{}: a layer's caches take {} bytes, a binding holds {most}: ask for fewer slots or positions",
                subgraph.name,
                sizes.cache.bytes()
            )));
        }
        let logits_stride = stack.vocabulary().unwrap_or(0).next_multiple_of(4);
        let memory = MemoryUse {
            weights: weight_bytes(context, &stack),
            caches: sizes.cache.bytes() * stack.blocks.len() as u64,
            scratch: sizes.scratch_bytes()
                + sizes.bounds.bytes()
                + (sizes.bounds.capacity * logits_stride * 4) as u64,
        };
        let total = memory.total();
        let reservation = context.reserve(total, &subgraph.name)?;
        let mut builder = Builder {
            context,
            stack: &stack,
            pipelines: Pipelines::new(context, &subgraph.name),
            sizes,
            scratch: Scratch::new(context, &stack, sizes)?,
            steps: Steps::default(),
        };
        let (logits, picks) = builder.steps(logits_stride)?;
        let buffers = builder.buffers(logits, picks)?;
        Ok(Self {
            context: Arc::clone(context),
            bounds: sizes.bounds,
            width: stack.width,
            stream_stride: sizes.stream as usize * 4,
            logits_stride,
            vocabulary: stack.vocabulary(),
            span: sizes.spans.map(|spans| spans.span),
            steps: builder.steps,
            buffers,
            memory,
            reserved: reservation.keep(),
        })
    }
}

impl Stage {
    /// Whether the stage begins with the embedding.
    pub(super) fn reads_tokens(&self) -> bool {
        self.bounds.tokens.is_some()
    }

    /// Whether it is tokens in, picks out.
    pub(super) fn is_whole_model(&self) -> bool {
        self.reads_tokens() && self.vocabulary.is_some()
    }
}

fn weight_bytes(context: &Context, stack: &Stack) -> u64 {
    let mut seen: Vec<*const u8> = Vec::new();
    let mut total = 0;
    for weight in &stack.graph.weights {
        let at = weight.bytes().as_ptr();
        if seen.contains(&at) {
            continue;
        }
        seen.push(at);
        let columns = weight.cols.next_multiple_of(32);
        let layout = Layout {
            format: super::StoredFormat::of(weight.format),
            tiles: weight.rows.div_ceil(4),
            columns,
            order: context.tuning.order_of(columns),
        };
        total += weights::bytes(&layout);
    }
    total
}
