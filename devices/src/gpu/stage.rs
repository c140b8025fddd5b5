//! A stage on the device: its weights, buffers and compiled kernels in the order that a pass runs them.
//!
//! *Invariant:* every buffer is sized here, from the same constants that the kernels are generated with.

use std::sync::Arc;

use super::context::{Context, Doing};
use super::kernels::{
    Attend, Bind, CacheShape, Embed, EmbedSource, Epilogue, Feed, Gather, JoinSpans, Lanes, MatMul,
    Norm as NormParts, PickBest, PickMerge, Shader, Spans,
};
use super::lower::{Block, Stack};
use super::pack::{Layout, Matrix};
use super::pipelines::{Pipeline, Pipelines};
use super::state::StateBounds;
use super::tuning::Backing;
use super::weights::{self, Part};
use crate::DeviceError;
use crate::device::{CacheFormat, MemoryUse, SlotLimits};
use crate::graph::{Norm, RopeStyle, Subgraph, Weight, WeightError, WeightId};

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

/// What is gathered while a stage is built.
struct Builder<'a> {
    context: &'a Context,
    stack: &'a Stack,
    pipelines: Pipelines<'a>,
    sizes: Sizes,
    scratch: Scratch,
    steps: Steps,
}

/// Sizes that several kernels share.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    bounds: StateBounds,
    cache: CacheShape,
    width: u32,
    /// 4-vectors in a row of the stream.
    stream: u32,
    /// 4-vectors of sums of squares in a row.
    squares: u32,
    query_width: u32,
    /// 4-vectors in a row of attention's output, and of the widest feed-forward layer.
    attended: u32,
    hidden: u32,
    heads: u32,
    /// The shares of attention, where sequences may be longer than one.
    spans: Option<Spans>,
}

/// What a matrix kernel does besides its product.
struct Projection {
    /// 4-vectors in a row of the input.
    input_stride: u32,
    gather: Gather,
    norm: Option<Norm>,
    epilogue: Epilogue,
}

/// What a kernel is bound to.
#[derive(Clone)]
enum Resource {
    Buffer(wgpu::Buffer),
    Texture(wgpu::TextureView),
}

impl Resource {
    fn binding(&self) -> wgpu::BindingResource<'_> {
        match self {
            Resource::Buffer(buffer) => buffer.as_entire_binding(),
            Resource::Texture(view) => wgpu::BindingResource::TextureView(view),
        }
    }
}

impl From<wgpu::Buffer> for Resource {
    fn from(buffer: wgpu::Buffer) -> Self {
        Resource::Buffer(buffer)
    }
}

/// What lies between kernels.
#[derive(Clone)]
struct Scratch {
    stream: wgpu::Buffer,
    scaled: Resource,
    squares: Resource,
    queries: wgpu::Buffer,
    attended: Resource,
    /// Where sequences may be longer than a span.
    shares: Option<wgpu::Buffer>,
    hidden: Resource,
    turns: wgpu::Buffer,
}

impl Sizes {
    fn of(context: &Context, stack: &Stack, limits: SlotLimits) -> Self {
        let capacity = context.tuning.pass_rows.min(limits.rows_max).next_multiple_of(16);
        let vectors = |columns: usize| (columns.next_multiple_of(32) / 4) as u32;
        let cache = stack.cache(limits);
        let span = context.tuning.attention_span;
        let query_width = stack.blocks[0].heads as u32 * cache.head_dim;
        let ffn = stack.blocks.iter().map(|b| stack.weight(b.down).cols).max();
        let tokens = stack.table.map(|t| stack.weight(t).rows);
        Self {
            bounds: StateBounds {
                capacity,
                slots: limits.sequences_max,
                positions: limits.positions_max,
                tokens,
            },
            cache,
            width: stack.width as u32,
            stream: vectors(stack.width),
            squares: (stack.width / 4).div_ceil(4) as u32,
            query_width,
            attended: vectors(query_width as usize),
            hidden: vectors(ffn.unwrap_or(0)),
            heads: stack.blocks[0].heads as u32,
            spans: (cache.positions > span)
                .then(|| Spans { span, count: cache.positions.div_ceil(span) }),
        }
    }

    /// Bytes of `vectors` 4-vectors for each row.
    fn rows(&self, vectors: u32) -> u64 {
        self.bounds.capacity as u64 * u64::from(vectors) * 16
    }

    fn turns(&self) -> u64 {
        u64::from(self.cache.positions) * u64::from(self.cache.head_dim) * 4
    }

    /// Bytes of the shares of attention.
    fn shares(&self) -> u64 {
        let words = self.spans.map_or(0, |spans| spans.words(self.cache.head_dim));
        self.bounds.capacity as u64 * u64::from(self.heads) * u64::from(words) * 8
    }

    fn scratch_bytes(&self) -> u64 {
        let all =
            2 * self.stream + self.squares + self.query_width / 4 + self.attended + self.hidden;
        self.rows(all) + self.turns() + self.shares()
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
        if sizes.cache.bytes() > most {
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
        let total = memory.weights + memory.caches + memory.scratch;
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
        let layout = Layout {
            format: super::StoredFormat::of(weight.format),
            tiles: weight.rows.div_ceil(4),
            columns: weight.cols.next_multiple_of(32),
            chunk: context.tuning.chunk_of(weight.cols.next_multiple_of(32)),
        };
        total += weights::bytes(&layout, context.tuning.backing);
    }
    total
}

impl Scratch {
    fn new(context: &Context, stack: &Stack, sizes: Sizes) -> Result<Self, DeviceError> {
        let make = |name: &str, vectors: u32| buffer(context, name, sizes.rows(vectors));
        let vectors = |name: &str, stride: u32| match context.tuning.backing {
            Backing::Buffer => make(name, stride).map(Resource::from),
            Backing::Texture => {
                rows(context, name, wgpu::TextureFormat::Rgba32Float, (stride, sizes))
            }
        };
        let squares = match context.tuning.backing {
            Backing::Buffer => make("squares", sizes.squares)?.into(),
            Backing::Texture => {
                rows(context, "squares", wgpu::TextureFormat::R32Float, (sizes.squares * 4, sizes))?
            }
        };
        Ok(Self {
            stream: make("stream", sizes.stream)?,
            scaled: vectors("scaled", sizes.stream)?,
            squares,
            queries: make("queries", sizes.query_width / 4)?,
            attended: vectors("attended", sizes.attended)?,
            shares: match sizes.spans {
                Some(_) => Some(buffer(context, "shares", sizes.shares())?),
                None => None,
            },
            hidden: vectors("hidden", sizes.hidden)?,
            turns: filled(context, "turns", &turns(stack, sizes))?,
        })
    }
}

/// A texture of a row for each row of a pass, each of `stride` texels.
fn rows(
    context: &Context,
    name: &str,
    format: wgpu::TextureFormat,
    (stride, sizes): (u32, Sizes),
) -> Result<Resource, DeviceError> {
    let texture = context.scoped(Doing::Allocating(name), || {
        context.device.create_texture(&wgpu::TextureDescriptor {
            label: Some(name),
            size: wgpu::Extent3d {
                width: stride,
                height: sizes.bounds.capacity as u32,
                depth_or_array_layers: 1,
            },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format,
            usage: wgpu::TextureUsages::STORAGE_BINDING,
            view_formats: &[],
        })
    })?;
    Ok(Resource::Texture(texture.create_view(&Default::default())))
}

/// Cosine and sine of each pair at each position.
fn turns(stack: &Stack, sizes: Sizes) -> Vec<f32> {
    let frequencies = &stack.blocks[0].rope.inverse_frequencies;
    (0..sizes.cache.positions)
        .flat_map(|position| {
            frequencies.iter().flat_map(move |frequency| {
                let (sine, cosine) = (position as f32 * frequency).sin_cos();
                [cosine, sine]
            })
        })
        .collect()
}

fn buffer(context: &Context, name: &str, size: u64) -> Result<wgpu::Buffer, DeviceError> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    context.scoped(Doing::Allocating(name), || {
        context.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(name),
            size: size.max(16),
            usage: usage | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        })
    })
}

fn filled(context: &Context, name: &str, values: &[f32]) -> Result<wgpu::Buffer, DeviceError> {
    let padded: Vec<f32> = {
        let mut values = values.to_vec();
        values.resize(values.len().next_multiple_of(4), 0.0);
        values
    };
    let buffer = buffer(context, name, padded.len() as u64 * 4)?;
    context.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&padded));
    Ok(buffer)
}

impl Builder<'_> {
    /// Uploads the weights and compiles the kernels in order; returns the buffers of logits and picks.
    fn steps(
        &mut self,
        logits_stride: usize,
    ) -> Result<(Option<wgpu::Buffer>, Option<wgpu::Buffer>), DeviceError> {
        let stack = self.stack;
        let table = match stack.table {
            Some(table) => Some(self.upload(&[table], rows_of(stack.weight(table)))?),
            None => None,
        };
        self.embed(table.as_deref())?;
        for (layer, block) in stack.blocks.iter().enumerate() {
            self.attention(block)?;
            self.feed_forward(layer, block)?;
        }
        let Some((norm, weight)) = &stack.head else { return Ok((None, None)) };
        let same = |t: &WeightId| {
            let (a, b) = (stack.weight(*t), stack.weight(*weight));
            a.bytes().as_ptr_range() == b.bytes().as_ptr_range() && a.format == b.format
        };
        let parts = match table {
            Some(parts) if stack.table.as_ref().is_some_and(same) => parts,
            _ => self.upload(&[*weight], rows_of(stack.weight(*weight)))?,
        };
        let (logits, picks) = self.head(*norm, &parts, logits_stride)?;
        Ok((Some(logits), Some(picks)))
    }

    fn upload(
        &self,
        weights: &[WeightId],
        rows: Vec<Option<(usize, usize)>>,
    ) -> Result<Vec<Part>, DeviceError> {
        let weights: Vec<&Weight> = weights.iter().map(|w| self.stack.weight(*w)).collect();
        let unreadable = |e: WeightError| self.context.unsupported(e.to_string());
        let chunk = self.context.tuning.chunk_of(weights[0].cols.next_multiple_of(32));
        let matrix = Matrix::new(&weights, rows, chunk).map_err(unreadable)?;
        weights::upload(self.context, &weights[0].name, &matrix)
    }

    fn gains(&self, norm: Norm) -> Result<wgpu::Buffer, DeviceError> {
        let weight = self.stack.weight(norm.weight);
        let values = weight.to_f32().map_err(|e| self.context.unsupported(e.to_string()))?;
        filled(self.context, &weight.name, &values)
    }

    fn parts_of(&self, norm: Norm) -> NormParts {
        NormParts { width: self.sizes.width, stride: self.sizes.squares * 4, epsilon: norm.epsilon }
    }

    fn embed(&mut self, table: Option<&[Part]>) -> Result<(), DeviceError> {
        let norm = self.stack.norm_before(0).expect("a stage has a block");
        let gains = self.gains(norm)?;
        let lanes = self.context.tuning.lanes.max(8);
        let kernel = |source| Embed {
            source,
            backing: self.context.tuning.backing,
            width: self.sizes.width,
            stride: self.sizes.stream,
            square_stride: self.sizes.squares * 4,
            lanes,
            chunk: self.chunk_of(self.sizes.stream),
        };
        let sources: Vec<_> = match table {
            None => vec![(kernel(EmbedSource::Stream), None)],
            Some(parts) => parts
                .iter()
                .map(|part| {
                    let first_tile = part.first_tile as u32;
                    let source = EmbedSource::Table { layout: part.layout, first_tile };
                    (kernel(source), Some(part))
                })
                .collect(),
        };
        for (kernel, part) in sources {
            let shader = kernel.shader();
            let mut resources: Vec<_> = part.into_iter().flat_map(Part::bindings).collect();
            let Scratch { stream, scaled, squares, .. } = &self.scratch;
            resources.extend([stream, &gains].map(wgpu::Buffer::as_entire_binding));
            resources.extend([scaled, squares].map(Resource::binding));
            let bindings = self.pipelines.bind(&shader.binds, resources)?;
            let variants = vec![(self.pipelines.compile(&shader)?, kernel.groups())];
            self.steps.body.push(Step {
                label: shader.label,
                reach: Reach::Any,
                variants,
                bindings,
            });
        }
        Ok(())
    }

    fn attention(&mut self, block: &Block) -> Result<(), DeviceError> {
        let cache = self.sizes.cache;
        let caches = buffer(self.context, "cache", cache.bytes())?;
        let (heads, kv_heads, head_dim) = (block.heads, block.kv_heads, block.rope.head_dim);
        let (q_rows, kv_rows) = (heads * head_dim, kv_heads * head_dim);
        let turned = |row: usize| match block.rope.style {
            RopeStyle::Adjacent => row,
            RopeStyle::Halves => {
                let (head, i) = (row / head_dim, row % head_dim);
                head * head_dim + i / 2 + i % 2 * (head_dim / 2)
            }
        };
        let rows = (0..q_rows)
            .map(|r| Some((0, turned(r))))
            .chain((0..kv_rows).map(|r| Some((1, turned(r)))))
            .chain((0..kv_rows).map(|r| Some((2, r))))
            .collect();
        let parts = self.upload(&block.projections, rows)?;
        let (q_tiles, kv_tiles) = (q_rows as u32 / 4, kv_rows as u32 / 4);
        let projection = Projection {
            input_stride: self.sizes.stream,
            gather: Gather::AllRows,
            norm: Some(block.attention_norm),
            epilogue: Epilogue::Qkv { q_tiles, kv_tiles, cache },
        };
        let Scratch { scaled, squares, queries, attended, turns, .. } = self.scratch.clone();
        let tail = [squares, turns.into(), queries.clone().into(), caches.clone().into()];
        let steps = self.project(&projection, &parts, &scaled, &tail)?;
        self.steps.body.extend(steps);

        self.attend(heads as u32, &caches)?;
        self.residual(block.output, &attended, (self.sizes.attended, Some(block.ffn_norm)))
    }

    /// Attention within one span, and, where sequences can be longer, by spans.
    fn attend(&mut self, heads: u32, caches: &wgpu::Buffer) -> Result<(), DeviceError> {
        let tuning = &self.context.tuning;
        let Scratch { queries, attended, shares, .. } = self.scratch.clone();
        let (stride, chunk) = (self.sizes.attended, self.chunk_of(self.sizes.attended));
        let backing = tuning.backing;
        let near = Attend {
            heads,
            cache: self.sizes.cache,
            stride,
            backing,
            lanes: Lanes::narrow(tuning),
            subgroups: tuning.attention_subgroups,
            chunk,
            spans: None,
        };
        let lanes = near.lanes.count;
        let inputs = [&queries, caches, caches].map(wgpu::Buffer::as_entire_binding);
        let of = |last| inputs.iter().cloned().chain([last]).collect::<Vec<_>>();
        let step = self.attention_step(&near.shader(), heads, of(attended.binding()))?;
        self.steps.body.push(Step { reach: Reach::Near, ..step });
        let (Some(shares), Some(spans)) = (shares, self.sizes.spans) else {
            self.steps.body.last_mut().expect("it was pushed above").reach = Reach::Any;
            return Ok(());
        };
        let parts = Attend { spans: Some(spans), ..near };
        let step = self.attention_step(&parts.shader(), heads, of(shares.as_entire_binding()))?;
        self.steps.body.push(Step { reach: Reach::Spans, ..step });
        let head_dim = self.sizes.cache.head_dim;
        let join = JoinSpans { heads, head_dim, spans, stride, chunk, backing, lanes };
        let resources = vec![shares.as_entire_binding(), attended.binding()];
        let step = self.attention_step(&join.shader(), heads, resources)?;
        self.steps.body.push(Step { reach: Reach::Far, ..step });
        Ok(())
    }

    fn attention_step(
        &mut self,
        shader: &Shader,
        heads: u32,
        resources: Vec<wgpu::BindingResource<'_>>,
    ) -> Result<Step, DeviceError> {
        let bindings = self.pipelines.bind(&shader.binds, resources)?;
        let variants = vec![(self.pipelines.compile(shader)?, heads)];
        Ok(Step { label: shader.label, reach: Reach::Any, variants, bindings })
    }

    fn feed_forward(&mut self, layer: usize, block: &Block) -> Result<(), DeviceError> {
        let ffn = self.stack.weight(block.gate_up[0]).rows;
        let row = |weight: usize, row: usize| (row < ffn).then_some((weight, row));
        let rows = (0..ffn.div_ceil(4))
            .flat_map(|tile| (0..8).map(move |i| row(i / 4, tile * 4 + i % 4)))
            .collect();
        let parts = self.upload(&block.gate_up, rows)?;
        let stride = (self.stack.weight(block.down).cols.next_multiple_of(32) / 4) as u32;
        let projection = Projection {
            input_stride: self.sizes.stream,
            gather: Gather::AllRows,
            norm: Some(block.ffn_norm),
            epilogue: Epilogue::GateUp { stride },
        };
        let Scratch { scaled, squares, hidden, .. } = self.scratch.clone();
        let steps = self.project(&projection, &parts, &scaled, &[squares, hidden.clone()])?;
        self.steps.body.extend(steps);
        self.residual(block.down, &hidden, (stride, self.stack.norm_before(layer + 1)))
    }

    /// `input`, of rows of `stride` 4-vectors, through `weight` and onto the stream, ready for `next`.
    fn residual(
        &mut self,
        weight: WeightId,
        input: &Resource,
        (stride, next): (u32, Option<Norm>),
    ) -> Result<(), DeviceError> {
        let parts = self.upload(&[weight], rows_of(self.stack.weight(weight)))?;
        let next_norm = next.map(|_| self.sizes.squares * 4);
        let projection = Projection {
            input_stride: stride,
            gather: Gather::AllRows,
            norm: None,
            epilogue: Epilogue::Residual { stride: self.sizes.stream, next_norm },
        };
        let Scratch { stream, scaled, squares, .. } = self.scratch.clone();
        let mut tail = vec![stream.into()];
        if let Some(norm) = next {
            tail.extend([self.gains(norm)?.into(), scaled, squares]);
        }
        let steps = self.project(&projection, &parts, input, &tail)?;
        self.steps.body.extend(steps);
        Ok(())
    }

    fn head(
        &mut self,
        norm: Norm,
        parts: &[Part],
        logits_stride: usize,
    ) -> Result<(wgpu::Buffer, wgpu::Buffer), DeviceError> {
        let Sizes { bounds, .. } = self.sizes;
        let (capacity, stride) = (bounds.capacity as u32, logits_stride as u32 / 4);
        let logits = buffer(self.context, "logits", self.sizes.rows(stride))?;
        let projection = Projection {
            input_stride: self.sizes.stream,
            gather: Gather::HeadRows { capacity },
            norm: Some(norm),
            epilogue: Epilogue::Logits { stride },
        };
        let Scratch { scaled, squares, .. } = self.scratch.clone();
        let steps = self.project(&projection, parts, &scaled, &[squares, logits.clone().into()])?;
        self.steps.head.extend(steps);
        let lanes = Lanes::narrow(&self.context.tuning);
        let vocabulary = self.stack.vocabulary().expect("a stage with a head") as u32;
        let span = self.context.tuning.pick_span;
        let best = PickBest { vocabulary, stride, span, capacity, lanes };
        let bests = buffer(self.context, "bests", self.sizes.rows(2 * best.spans()))?;
        let step = self.simple(&best.shader(), best.spans(), &[&logits, &bests])?;
        self.steps.head.push(step);
        let picks = buffer(self.context, "picks", (bounds.picks() as u64 + 1) * 8)?;
        let second = bounds.region() as u32;
        for feed in [Feed::Answer, Feed::FirstOf { second }, Feed::NextOf { second }] {
            let merge = PickMerge { spans: best.spans(), capacity, lanes, feed };
            let step = self.simple(&merge.shader(), 1, &[&bests, &picks])?;
            self.steps.merge.push(step);
        }
        Ok((logits, picks))
    }

    fn simple(
        &mut self,
        shader: &Shader,
        groups: u32,
        buffers: &[&wgpu::Buffer],
    ) -> Result<Step, DeviceError> {
        let resources = buffers.iter().map(|b| b.as_entire_binding()).collect();
        let bindings = self.pipelines.bind(&shader.binds, resources)?;
        let variants = vec![(self.pipelines.compile(shader)?, groups)];
        Ok(Step { label: shader.label, reach: Reach::Any, variants, bindings })
    }

    /// The steps of `projection`, one for each part of its matrix, each for every row count.
    fn project(
        &mut self,
        projection: &Projection,
        parts: &[Part],
        input: &Resource,
        tail: &[Resource],
    ) -> Result<Vec<Step>, DeviceError> {
        let mut steps = Vec::with_capacity(parts.len());
        for part in parts {
            let mut variants = Vec::with_capacity(4);
            let (mut binds, mut label) = (Vec::new(), "");
            for power in 0..4 {
                let kernel = self.kernel(projection, part, power);
                let shader = kernel.shader();
                variants.push((self.pipelines.compile(&shader)?, kernel.groups()));
                (binds, label) = (shader.binds, shader.label);
            }
            let resources = std::iter::once(input.binding())
                .chain(part.bindings())
                .chain(tail.iter().map(Resource::binding))
                .collect();
            let bindings = self.pipelines.bind(&binds, resources)?;
            steps.push(Step { label, reach: Reach::Any, variants, bindings });
        }
        Ok(steps)
    }

    /// Columns of a chunk of a matrix whose input has `vectors` 4-vectors in a row.
    fn chunk_of(&self, vectors: u32) -> usize {
        self.context.tuning.chunk_of(vectors as usize * 4)
    }

    /// The kernel for 2 to the `power` rows.
    fn kernel(&self, projection: &Projection, part: &Part, power: usize) -> MatMul {
        let Projection { input_stride, gather, norm, ref epilogue } = *projection;
        let tuning = &self.context.tuning;
        let kernel = MatMul {
            layout: part.layout,
            first_tile: part.first_tile as u32,
            backing: tuning.backing,
            lanes: tuning.lanes_of(part.layout.columns),
            rows: 1 << power,
            tiles: tuning.tiles[power],
            unroll: tuning.unroll[power],
            input_stride,
            gather,
            norm: norm.map(|norm| self.parts_of(norm)),
            epilogue: epilogue.clone(),
            next_chunk: match *epilogue {
                Epilogue::Residual { .. } => self.chunk_of(self.sizes.stream),
                Epilogue::GateUp { stride } => self.chunk_of(stride),
                Epilogue::Qkv { .. } | Epilogue::Logits { .. } => 4,
            },
        };
        let least = if kernel.is_paired() { 2 } else { 1 };
        MatMul { tiles: kernel.tiles.max(least), ..kernel }
    }

    fn buffers(
        &mut self,
        logits: Option<wgpu::Buffer>,
        picks: Option<wgpu::Buffer>,
    ) -> Result<Buffers, DeviceError> {
        let bounds = self.sizes.bounds;
        let state = buffer(self.context, "state", bounds.bytes())?;
        let half = bounds.bytes() / 2;
        let region = |offset| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &state,
                offset,
                size: std::num::NonZeroU64::new(half),
            })
        };
        let first = self.pipelines.bind(&[Bind::Read], vec![region(0)])?;
        let second = self.pipelines.bind(&[Bind::Read], vec![region(half)])?;
        let both = self.pipelines.bind(&[Bind::Write], vec![state.as_entire_binding()])?;
        let stream = self.scratch.stream.clone();
        Ok(Buffers { first, second, both, state, stream, logits, picks })
    }
}

fn rows_of(weight: &Weight) -> Vec<Option<(usize, usize)>> {
    (0..weight.rows).map(|row| Some((0, row))).collect()
}
