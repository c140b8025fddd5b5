//! Uploads a stage's weights and compiles its kernels, block by block, in the order that a pass runs them.
//!
//! *Invariant:* a step's bindings follow the order that its kernel declares.

use super::between::{Resource, Scratch, Sizes, buffer, caches, filled};
use super::context::Context;
use super::kernels::{
    Attend, Bind, Embed, EmbedSource, Epilogue, Feed, Gather, JoinSpans, Lanes, MatMul,
    Norm as NormParts, PickBest, PickMerge, Shader, Squares,
};
use super::lower::{Block, Stack};
use super::pack::Matrix;
use super::pipelines::Pipelines;
use super::stage::{Buffers, Reach, Step, Steps};
use super::tuning::Backing;
use super::weights::{self, Part};
use crate::DeviceError;
use crate::graph::{Norm, RopeStyle, Weight, WeightError, WeightId};

/// What is gathered while a stage is built.
pub(super) struct Builder<'a> {
    pub(super) context: &'a Context,
    pub(super) stack: &'a Stack,
    pub(super) pipelines: Pipelines<'a>,
    pub(super) sizes: Sizes,
    pub(super) scratch: Scratch,
    pub(super) steps: Steps,
}

/// What a matrix kernel does besides its product.
struct Projection {
    /// 4-vectors in a row of the input.
    input_stride: u32,
    gather: Gather,
    norm: Option<Norm>,
    epilogue: Epilogue,
}

impl Builder<'_> {
    /// Uploads the weights and compiles the kernels in order; returns the buffers of logits and picks.
    pub(super) fn steps(
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
        let order = self.context.tuning.order_of(weights[0].cols.next_multiple_of(32));
        let matrix = Matrix::new(&weights, rows, order).map_err(unreadable)?;
        weights::upload(self.context, &weights[0].name, &matrix)
    }

    fn gains(&self, norm: Norm) -> Result<wgpu::Buffer, DeviceError> {
        let weight = self.stack.weight(norm.weight);
        let values = weight.to_f32().map_err(|e| self.context.unsupported(e.to_string()))?;
        filled(self.context, &weight.name, &values)
    }

    fn parts_of(&self, norm: Norm) -> NormParts {
        let Squares { stride, joined } = self.sizes.square_parts();
        NormParts { width: self.sizes.width, stride, joined, epsilon: norm.epsilon }
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
            squares: self.sizes.square_parts(),
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
        let caches = caches(self.context, cache)?;
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
        let tail = [squares, turns.into(), queries.clone(), caches.clone()];
        let steps = self.project(&projection, &parts, &scaled, &tail)?;
        self.steps.body.extend(steps);

        self.attend(heads as u32, &caches)?;
        self.residual(block.output, &attended, (self.sizes.attended, Some(block.ffn_norm)))
    }

    /// Attention within one span, and, where sequences can be longer, by spans.
    fn attend(&mut self, heads: u32, caches: &Resource) -> Result<(), DeviceError> {
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
        let halves = match self.sizes.cache.backing {
            Backing::Buffer => 2,
            Backing::Texture => 1,
        };
        let caches = std::iter::repeat_n(caches, halves);
        let inputs: Vec<_> =
            std::iter::once(&queries).chain(caches).map(Resource::binding).collect();
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
        // Tiles of gate and up alternate, or groups of tiles: what one workgroup reads.
        let together = match self.context.tuning.backing {
            Backing::Buffer => 4,
            Backing::Texture => 4 * self.context.tuning.lanes as usize,
        };
        let both =
            |first: usize| (0..2 * together).map(move |i| row(i / together, first + i % together));
        let rows = (0..ffn).step_by(together).flat_map(both).collect();
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
        let next_norm = next.map(|_| self.sizes.square_parts());
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
        let tiles = kernel.tiles.max(kernel.step());
        MatMul { tiles, ..kernel }
    }

    pub(super) fn buffers(
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
