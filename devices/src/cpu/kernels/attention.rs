//! Attention of up to four queries over one head of one sequence's cache, whatever the cache's format.
//!
//! Keys lie in groups of 16 positions, so that one vector holds one element of 16 keys and a score needs no sum across
//! lanes; values lie position by position. *Invariant:* a query's result depends on its own length and the cache below
//! it: scores, their exponentials' sum and the weighted sum of values each run in the order of positions.

use super::float::{exp, sum_lanes};
use super::lanes::{LANES, Lanes};

/// Most queries of one call.
pub(crate) const QUERIES: usize = 4;

/// One key/value head of a layer's cache of one sequence.
pub(crate) trait CachedHead: Copy {
    /// Elements of a head, a multiple of 16.
    fn dim(&self) -> usize;

    /// The products of the queries with the 16 keys of a group.
    fn products<L: Lanes, const Q: usize>(
        &self,
        l: L,
        group: usize,
        queries: &[&[f32]; Q],
    ) -> [L::F; Q];

    /// Elements `first..first + 16` of the sum of the values, weighted for each query by its row up to its length.
    fn weighted<L: Lanes, const Q: usize>(
        &self,
        l: L,
        first: usize,
        weights: (&[&mut [f32]; Q], &[usize; Q]),
    ) -> [L::F; Q];
}

/// Queries that share a head of the cache.
pub(crate) struct Queries<'a> {
    /// Each `dim` long; at most [`QUERIES`] of them count.
    pub(crate) vectors: [&'a [f32]; QUERIES],
    /// Positions that each attends to, at least 1.
    pub(crate) lengths: [usize; QUERIES],
    /// How many there are.
    pub(crate) count: usize,
    /// Multiplies the scores.
    pub(crate) scale: f32,
}

/// Writes the attended values, `dim` for each query. `scores` has room for [`QUERIES`] times the greatest length
/// rounded up to 16.
#[inline(always)]
pub(crate) fn attend<L: Lanes, H: CachedHead>(
    l: L,
    head: &H,
    queries: &Queries<'_>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    match queries.count {
        1 => attend_n::<L, H, 1>(l, head, queries, scores, out),
        2 => attend_n::<L, H, 2>(l, head, queries, scores, out),
        3 => attend_n::<L, H, 3>(l, head, queries, scores, out),
        4 => attend_n::<L, H, 4>(l, head, queries, scores, out),
        n => panic!("{n} queries in one call"),
    }
}

#[inline(always)]
fn attend_n<L: Lanes, H: CachedHead, const Q: usize>(
    l: L,
    head: &H,
    queries: &Queries<'_>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let mut lengths = [0; Q];
    lengths.copy_from_slice(&queries.lengths[..Q]);
    let longest = lengths.into_iter().fold(0, usize::max).next_multiple_of(LANES);
    let mut rest = &mut scores[..Q * longest];
    let mut rows: [&mut [f32]; Q] = std::array::from_fn(|_| [].as_mut_slice());
    for row in &mut rows {
        let (mine, others) = rest.split_at_mut(longest);
        (*row, rest) = (mine, others);
    }
    score::<L, H, Q>(l, head, queries, &mut rows);
    let mut inverse = [0.0; Q];
    for q in 0..Q {
        inverse[q] = 1.0 / softmax(l, rows[q], lengths[q]);
    }
    for first in (0..head.dim()).step_by(LANES) {
        let sums = head.weighted::<L, Q>(l, first, (&rows, &lengths));
        for q in 0..Q {
            let out = &mut out[q * head.dim() + first..];
            let out = out.first_chunk_mut().expect("room for the result");
            l.store(l.mul(sums[q], l.splat(inverse[q])), out);
        }
    }
}

/// Scaled products of the queries with all keys, in groups of 16 positions.
#[inline(always)]
fn score<L: Lanes, H: CachedHead, const Q: usize>(
    l: L,
    head: &H,
    queries: &Queries<'_>,
    rows: &mut [&mut [f32]; Q],
) {
    let mut vectors: [&[f32]; Q] = [&[]; Q];
    for (q, vector) in vectors.iter_mut().enumerate() {
        *vector = &queries.vectors[q][..head.dim()];
    }
    let scale = l.splat(queries.scale);
    for group in 0..rows[0].len() / LANES {
        let products = head.products::<L, Q>(l, group, &vectors);
        for q in 0..Q {
            l.store(l.mul(products[q], scale), &mut rows[q].as_chunks_mut::<LANES>().0[group]);
        }
    }
}

/// Replaces the first `length` scores by the exponentials of their distance from the greatest, the rest by zero, and
/// returns the sum.
#[inline(always)]
fn softmax<L: Lanes>(l: L, row: &mut [f32], length: usize) -> f32 {
    let row = &mut row[..length.next_multiple_of(LANES)];
    row[length..].fill(f32::NEG_INFINITY);
    let (groups, _) = row.as_chunks_mut::<LANES>();
    let mut greatest = l.load(&groups[0]);
    for group in groups.iter() {
        greatest = l.max(greatest, l.load(group));
    }
    let greatest = l.splat(l.greatest(greatest));
    let (last, full) = groups.split_last_mut().expect("a query attends to something");
    let mut sum = l.splat(0.0);
    for group in full {
        let e = exp(l, l.sub(l.load(group), greatest));
        l.store(e, group);
        sum = l.add(sum, e);
    }
    l.store(exp(l, l.sub(l.load(last), greatest)), last);
    for (i, e) in last.iter_mut().enumerate() {
        if i > (length - 1) % LANES {
            *e = 0.0;
        }
    }
    sum_lanes(l, l.add(sum, l.load(last)))
}
