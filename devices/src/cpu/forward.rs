//! One forward: what each member of the team does, step by step.
//!
//! *Invariant*, and the proof of every unsafe block here: between two barriers, an element of a shared buffer is written by
//! at most one member and read by no other. Steps share out tiles, rows or heads, each of which owns its own elements; a barrier
//! follows every step, and every operand that a step's members made together. A member's scratch is its own.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::cache::CacheShape;
use super::compile::{NormWeight, Place, Program, Step};
use super::kernels::lanes::{LANES, Line};
use super::kernels::tile::{BLOCK, RUN, TILE};
use super::kernels::{ByteHead, HalfHead, Kernels, Operand, QUERIES, Queries, ROWS};
use super::memory::Shared;
use super::pack::Projection;
use super::rope::rotate;
use super::scratch::OperandView;
use super::stored::decode_row;
use super::team::Member;
use crate::batch::Pick;
use crate::device::CacheFormat;
use crate::sampling::{self, Sampling};

/// Up to this many rows, each member makes its own operand: cheaper than a barrier. (Where each of sixteen Xeon cores made all of eight
/// rows' operands, a pass took 727 us; where they share them out, it takes 437.)
pub(crate) const PRIVATE_ROWS: usize = 2;

/// Tiles of a call for so many rows. A single row waits for memory, which comes in best without pauses: what is done with its
/// results must not pile up. With many rows a tile stays in the nearest cache while all of them pass.
fn together(rows: usize, tile_bytes: usize) -> usize {
    const PAUSE: usize = 16 << 10;
    match rows {
        0 | 1 => (PAUSE / tile_bytes).clamp(1, RUN),
        2..=ROWS => RUN,
        _ => 1,
    }
}

/// One row of the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Index of its segment.
    pub(crate) segment: usize,
    pub(crate) position: usize,
    pub(crate) token: u32,
}

/// Consecutive rows of one segment that attend together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

/// A member's scratch, shared only in form.
#[derive(Clone, Copy)]
pub(crate) struct ScratchView<'a> {
    pub(crate) operand: OperandView<'a>,
    pub(crate) row: Shared<'a, f32>,
    pub(crate) scores: Shared<'a, f32>,
    pub(crate) attended: Shared<'a, f32>,
}

/// A segment's share of the forward.
pub(crate) struct Lane<'a> {
    pub(crate) cache: Shared<'a, u16>,
    /// All tokens of the sequence, the batch's included.
    pub(crate) history: &'a [u32],
    pub(crate) sampling: &'a Sampling,
}

/// Everything that the members of one forward share.
pub(crate) struct Forward<'a> {
    pub(crate) program: &'a Program,
    pub(crate) kernels: &'a Kernels,
    pub(crate) shape: CacheShape,
    pub(crate) rows: &'a [Row],
    pub(crate) chunks: &'a [Chunk],
    /// Rows that run through the head.
    pub(crate) wanted: &'a [usize],
    pub(crate) lanes: &'a [Lane<'a>],
    pub(crate) arena: Shared<'a, f32>,
    pub(crate) operand: OperandView<'a>,
    pub(crate) scratch: &'a [ScratchView<'a>],
    /// `wanted x logits_stride`.
    pub(crate) logits: Shared<'a, f32>,
    pub(crate) logits_stride: usize,
    /// One for each member.
    pub(crate) samplers: &'a [Mutex<sampling::Scratch>],
    /// One for each wanted row.
    pub(crate) picks: &'a [OnceLock<Pick>],
}

impl<'a> Forward<'a> {
    /// Runs every step as one member.
    pub(crate) fn run(&self, member: &Member<'_>) {
        for step in &self.program.steps {
            match step {
                Step::Embed { table, out } => {
                    for row in member.share(self.rows.len()) {
                        // SAFETY: a row is in one member's share.
                        let out = unsafe { self.row_mut(*out, row) };
                        decode_row(table, self.rows[row].token as usize, out)
                            .expect("the table's shape was checked when it was loaded");
                    }
                }
                Step::Qkv { input, norm, qkv, out, layer } => {
                    let x = self.operand(member, *input, Some(norm), None, qkv);
                    self.qkv(member, qkv, &x, (*out, *layer));
                }
                Step::Attend { q, out, layer } => self.attend(member, (*q, *out), *layer),
                Step::MatMulAdd { input, weight, residual, out } => {
                    let x = self.operand(member, *input, None, None, std::slice::from_ref(weight));
                    self.matmul_add(member, weight, &x, (*residual, *out));
                }
                Step::GateUp { input, norm, gate, up, out } => {
                    let both = [gate.clone(), up.clone()];
                    let x = self.operand(member, *input, Some(norm), None, &both);
                    self.gate_up(member, [gate, up], &x, *out);
                }
                Step::Head { input, norm, weight } => {
                    if self.wanted.is_empty() {
                        continue;
                    }
                    let (weights, wanted) = (std::slice::from_ref(weight), Some(self.wanted));
                    let x = self.operand(member, *input, Some(norm), wanted, weights);
                    self.head(member, weight, &x);
                    member.barrier();
                    self.pick(member);
                }
            }
            member.barrier();
        }
    }

    /// # Safety
    /// Nobody else uses this row of the place meanwhile.
    unsafe fn row_mut(&self, place: Place, row: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.arena.write(place.start + row * place.stride, place.stride) }
    }

    /// # Safety
    /// Nobody writes this row of the place meanwhile.
    unsafe fn row(&self, place: Place, row: usize) -> &'a [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.arena.read(place.start + row * place.stride, place.stride) }
    }

    /// The rows of `input` (all, or the wanted ones), normed where asked, in the forms that `weights` read.
    fn operand(
        &self,
        member: &Member<'_>,
        input: Place,
        norm: Option<&NormWeight>,
        wanted: Option<&[usize]>,
        weights: &[Projection],
    ) -> Operand<'a> {
        let bytes = weights.iter().any(|w| w.packing.is_quantised());
        let floats = weights.iter().any(|w| !w.packing.is_quantised());
        let (rows, cols) = (wanted.map_or(self.rows.len(), <[usize]>::len), input.stride);
        assert!(weights.iter().all(|w| w.cols == cols), "a projection of another width");
        let private = member.members > 1 && rows <= PRIVATE_ROWS;
        let scratch = &self.scratch[member.index];
        let (view, share) =
            if private { (&scratch.operand, 0..rows) } else { (&self.operand, member.share(rows)) };
        for row in share {
            // SAFETY: the input was written before the last barrier; the row of the view is this member's, as its own or
            // by its share; the scratch row is its own.
            unsafe {
                let mut x = self.row(input, wanted.map_or(row, |wanted| wanted[row]));
                if norm.is_some() || floats {
                    let out = match floats {
                        true => view.floats.write(row * cols, cols),
                        false => scratch.row.write(0, cols),
                    };
                    match norm {
                        Some(n) => self.kernels.norm(x, (&n.weight, n.epsilon), n.cols, out),
                        None => out.copy_from_slice(x),
                    }
                    x = out;
                }
                if bytes {
                    let blocks = cols / BLOCK;
                    let q = view.q.write(row * cols, cols);
                    let scales = view.scales.write(row * blocks, blocks);
                    let sums = view.sums.write(row * blocks, blocks);
                    self.kernels.quantise(x, q, scales, sums);
                }
            }
        }
        if !private {
            member.barrier();
        }
        // SAFETY: the next write of these rows is in a later step, after a barrier.
        unsafe { view.operand(rows, cols, (floats, bytes)) }
    }

    /// Multiplies all rows of `x` with some tiles of a projection, and hands out each tile with the first of up to [`ROWS`]
    /// rows and the 16 results of each.
    fn multiply(
        &self,
        (weight, tiles): (&Projection, Range<usize>),
        (x, rows): (&Operand<'_>, usize),
        mut each: impl FnMut(usize, usize, &mut [Line]),
    ) {
        let mut results = [[[0.0; LANES]; ROWS]; RUN];
        let together = together(rows, weight.packing.tile_bytes(weight.cols));
        for start in tiles.clone().step_by(together) {
            let end = tiles.end.min(start + together);
            let run = weight.run(&self.program.store, start..end);
            for first in (0..rows).step_by(ROWS) {
                let count = (rows - first).min(ROWS);
                let results = &mut results[..run.tiles];
                self.kernels.dot(weight.packing, run, x, (first, count), results);
                for (tile, lines) in (start..end).zip(results) {
                    each(tile, first, &mut lines[..count]);
                }
            }
        }
    }

    /// The same for two projections of as many tiles, whose results are handed out together.
    fn multiply_both(
        &self,
        (weights, tiles): ([&Projection; 2], Range<usize>),
        (x, rows): (&Operand<'_>, usize),
        mut each: impl FnMut(usize, usize, &[Line], &mut [Line]),
    ) {
        let mut results = [[[0.0; LANES]; ROWS]; RUN];
        let pair_bytes: usize = weights.iter().map(|w| w.packing.tile_bytes(w.cols)).sum();
        let pairs = together(rows, pair_bytes).min(RUN / 2);
        for start in tiles.clone().step_by(pairs) {
            let end = tiles.end.min(start + pairs);
            let run = Projection::run_in_turns(weights, &self.program.store, start..end);
            for first in (0..rows).step_by(ROWS) {
                let count = (rows - first).min(ROWS);
                let results = &mut results[..2 * (end - start)];
                match run {
                    Some(run) => {
                        self.kernels.dot(weights[0].packing, run, x, (first, count), results);
                    }
                    None => {
                        for (i, result) in results.chunks_exact_mut(1).enumerate() {
                            let (weight, tile) = (weights[i % 2], start + i / 2);
                            let run = weight.run(&self.program.store, tile..tile + 1);
                            self.kernels.dot(weight.packing, run, x, (first, count), result);
                        }
                    }
                }
                for (tile, pair) in (start..end).zip(results.as_chunks_mut::<2>().0) {
                    let [one, two] = pair;
                    each(tile, first, &one[..count], &mut two[..count]);
                }
            }
        }
    }

    fn qkv(
        &self,
        member: &Member<'_>,
        qkv: &[Projection; 3],
        x: &Operand<'_>,
        (out, layer): (Place, usize),
    ) {
        let (padded, rows) = (self.program.heads.padded, self.rows.len());
        let share = member.share(qkv.iter().map(|p| p.tiles).sum());
        let mut begin = 0;
        for (which, weight) in qkv.iter().enumerate() {
            let within = |unit: usize| unit.clamp(begin, begin + weight.tiles) - begin;
            let tiles = within(share.start)..within(share.end);
            begin += weight.tiles;
            self.multiply((weight, tiles), (x, rows), |tile, start, lines| {
                let (head, first) = (tile * TILE / padded, tile * TILE % padded);
                for (row, line) in (start..).zip(lines) {
                    let Row { segment, position, .. } = self.rows[row];
                    if which < 2 {
                        rotate(line, self.program.rope.eight(position, first / 2));
                    }
                    match which {
                        // SAFETY: these 16 elements of the row are this tile's.
                        0 => unsafe { self.line_mut(out, row, tile) }.copy_from_slice(line),
                        1 => self.store_key((layer, head), (segment, position), first, line),
                        _ => self.store_value((layer, head), (segment, position), first, line),
                    }
                }
            });
        }
    }

    /// The 16 elements of a row that a tile writes.
    ///
    /// # Safety
    /// Nobody else uses them meanwhile.
    unsafe fn line_mut(&self, place: Place, row: usize, tile: usize) -> &'a mut Line {
        let start = place.start + row * place.stride + tile * TILE;
        // SAFETY: the caller's promise.
        let line = unsafe { self.arena.write(start, LANES) };
        line.first_chunk_mut().expect("16 elements")
    }

    /// Stores elements `first..first + 16` of a key: one half in each of 16 lines.
    fn store_key(
        &self,
        (layer, head): (usize, usize),
        (segment, position): (usize, usize),
        first: usize,
        line: &Line,
    ) {
        let padded = self.program.heads.padded;
        let first_of_group = position / LANES * LANES * padded;
        let at = first_of_group + first * LANES + position % LANES;
        let start = self.shape.keys(layer, head);
        let cache = self.lanes[segment].cache;
        match self.shape.format {
            CacheFormat::F16 => {
                let mut halves = [0; LANES];
                self.kernels.narrow(line, &mut halves);
                for (i, half) in halves.into_iter().enumerate() {
                    // SAFETY: this element of the position's key is this tile's and this row's.
                    let element = unsafe { cache.write(start + at + i * LANES, 1) };
                    element[0] = half;
                }
            }
            CacheFormat::Q8 => {
                let mut bytes = [0; LANES];
                let scale = self.kernels.narrow_to_bytes(line, &mut bytes);
                for (i, byte) in bytes.into_iter().enumerate() {
                    // SAFETY: as above.
                    let element = unsafe { cache.bytes().write(2 * start + at + i * LANES, 1) };
                    element[0] = byte;
                }
                // SAFETY: the scale of this tile's share of the position's key is this tile's and this row's.
                let place = unsafe { cache.write(self.shape.scale(start, first, position), 1) };
                place[0] = scale;
            }
        }
    }

    /// Stores elements `first..first + 16` of a value.
    fn store_value(
        &self,
        (layer, head): (usize, usize),
        (segment, position): (usize, usize),
        first: usize,
        line: &Line,
    ) {
        let at = position * self.program.heads.padded + first;
        let start = self.shape.values(layer, head);
        let cache = self.lanes[segment].cache;
        match self.shape.format {
            CacheFormat::F16 => {
                // SAFETY: these elements of the position's value are this tile's and this row's.
                let out = unsafe { cache.write(start + at, LANES) };
                self.kernels.narrow(line, out.first_chunk_mut().expect("16 elements"));
            }
            CacheFormat::Q8 => {
                // SAFETY: as above.
                let out = unsafe { cache.bytes().write(2 * start + at, LANES) };
                let out = out.first_chunk_mut().expect("16 elements");
                let scale = self.kernels.narrow_to_bytes(line, out);
                // SAFETY: as above, for the scale of these elements.
                let place = unsafe { cache.write(self.shape.scale(start, first, position), 1) };
                place[0] = scale;
            }
        }
    }

    fn attend(&self, member: &Member<'_>, (q, out): (Place, Place), layer: usize) {
        let heads = self.program.heads;
        let tasks = self.chunks.len() * heads.kv;
        for task in (member.index..tasks).step_by(member.members) {
            let (chunk, head) = (self.chunks[task / heads.kv], task % heads.kv);
            self.attend_chunk(member, (q, out), chunk, (layer, head));
        }
    }

    /// Attention of the queries of one kv head's group in a chunk's rows, [`QUERIES`] at a time.
    fn attend_chunk(
        &self,
        member: &Member<'_>,
        (q, out): (Place, Place),
        chunk: Chunk,
        (layer, head): (usize, usize),
    ) {
        let heads = self.program.heads;
        let (dim, group) = (heads.padded, heads.queries / heads.kv);
        let cache = self.lanes[self.rows[chunk.first].segment].cache;
        let (keys, values) = (self.shape.keys(layer, head), self.shape.values(layer, head));
        let elements = self.shape.elements();
        let scratch = &self.scratch[member.index];
        // SAFETY: the scratch is this member's own.
        let (scores, attended) = unsafe {
            (
                scratch.scores.write(0, QUERIES * self.shape.positions),
                scratch.attended.write(0, QUERIES * dim),
            )
        };
        let total = chunk.rows * group;
        let place = |i: usize| (chunk.first + i / group, (head * group + i % group) * dim);
        for first in (0..total).step_by(QUERIES) {
            let count = (total - first).min(QUERIES);
            let scale = 1.0 / (heads.dim as f32).sqrt();
            let mut queries =
                Queries { vectors: [&[]; QUERIES], lengths: [0; QUERIES], count, scale };
            for i in 0..count {
                let (row, at) = place(first + i);
                // SAFETY: the queries were written before the last barrier.
                queries.vectors[i] = &unsafe { self.row(q, row) }[at..at + dim];
                queries.lengths[i] = self.rows[row].position + 1;
            }
            match self.shape.format {
                CacheFormat::F16 => {
                    // SAFETY: the cache was last written before the last barrier.
                    let halves = |start| unsafe { cache.read(start, elements) };
                    let head = HalfHead { keys: halves(keys), values: halves(values), dim };
                    self.kernels.attend_halves(&head, &queries, scores, attended);
                }
                CacheFormat::Q8 => {
                    let count = elements / LANES;
                    // SAFETY: as above.
                    let scales = |at| unsafe { cache.read(self.shape.scale(at, 0, 0), count) };
                    // SAFETY: as above.
                    let bytes = |at| unsafe { cache.bytes().read(2 * at, elements) };
                    let head = ByteHead {
                        keys: bytes(keys),
                        key_scales: scales(keys),
                        values: bytes(values),
                        value_scales: scales(values),
                        dim,
                    };
                    self.kernels.attend_bytes(&head, &queries, scores, attended);
                }
            }
            for (i, attended) in attended.chunks_exact(dim).take(count).enumerate() {
                let (row, at) = place(first + i);
                let start = out.start + row * out.stride + at;
                // SAFETY: this head of this row is this task's.
                unsafe { self.arena.write(start, dim) }.copy_from_slice(attended);
            }
        }
    }

    fn matmul_add(
        &self,
        member: &Member<'_>,
        weight: &Projection,
        x: &Operand<'_>,
        (residual, out): (Place, Place),
    ) {
        let rows = self.rows.len();
        self.multiply((weight, member.share(weight.tiles)), (x, rows), |tile, start, lines| {
            for (row, line) in (start..).zip(lines) {
                let at = residual.start + row * residual.stride + tile * TILE;
                // SAFETY: these 16 elements are this tile's, in the residual as in the result, which may lie in the
                // same place: the first borrow ends before the second begins.
                let before: Line =
                    *unsafe { self.arena.read(at, LANES) }.first_chunk().expect("16");
                let sum: Line = std::array::from_fn(|i| line[i] + before[i]);
                // SAFETY: as above.
                *unsafe { self.line_mut(out, row, tile) } = sum;
            }
        });
    }

    fn gate_up(&self, member: &Member<'_>, weights: [&Projection; 2], x: &Operand<'_>, out: Place) {
        let (tiles, rows) = (member.share(weights[0].tiles), self.rows.len());
        self.multiply_both((weights, tiles), (x, rows), |tile, start, gates, ups| {
            self.kernels.swiglu(gates, ups);
            for (row, line) in (start..).zip(ups) {
                // SAFETY: these 16 elements of the row are this tile's.
                *unsafe { self.line_mut(out, row, tile) } = *line;
            }
        });
    }

    fn head(&self, member: &Member<'_>, weight: &Projection, x: &Operand<'_>) {
        let rows = self.wanted.len();
        self.multiply((weight, member.share(weight.tiles)), (x, rows), |tile, start, lines| {
            for (row, line) in (start..).zip(lines) {
                let at = row * self.logits_stride + tile * TILE;
                // SAFETY: these 16 logits of the row are this tile's.
                unsafe { self.logits.write(at, LANES) }.copy_from_slice(line);
            }
        });
    }

    fn pick(&self, member: &Member<'_>) {
        let sampler = &self.samplers[member.index];
        let mut scratch = sampler.lock().unwrap_or_else(PoisonError::into_inner);
        for index in (member.index..self.wanted.len()).step_by(member.members) {
            // SAFETY: the logits were written before the last barrier.
            let logits =
                unsafe { self.logits.read(index * self.logits_stride, self.program.vocabulary) };
            let row = self.rows[self.wanted[index]];
            let lane = &self.lanes[row.segment];
            let next = row.position + 1;
            let history = &lane.history[..next];
            let pick = sampling::pick(logits, next as u32, history, lane.sampling, &mut scratch);
            self.picks[index].set(pick).expect("a row is picked once");
        }
    }
}
