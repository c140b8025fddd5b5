//! Attention of up to four queries over one head of one sequence's cache.
//!
//! Keys lie in groups of 16 positions, so that one vector holds one element of 16 keys and a score needs no sum across
//! lanes; values lie position by position. *Invariant:* a query's result depends on its own length and the cache below
//! it: scores, their exponentials' sum and the weighted sum of values each run in the order of positions.

use super::float::{exp, sum_lanes};
use super::lanes::{LANES, Lanes};

/// Most queries of one call.
pub(crate) const QUERIES: usize = 4;

/// One key/value head of a layer's cache of one sequence.
#[derive(Clone, Copy)]
pub(crate) struct CachedHead<'a> {
    /// Keys as `positions / 16 x head_dim x 16` halves.
    pub(crate) keys: &'a [u16],
    /// Values as `positions x head_dim` halves.
    pub(crate) values: &'a [u16],
    /// Elements of a head, a multiple of 16.
    pub(crate) head_dim: usize,
}

/// Queries that share a head of the cache.
pub(crate) struct Queries<'a> {
    /// Each `head_dim` long; at most [`QUERIES`] of them count.
    pub(crate) vectors: [&'a [f32]; QUERIES],
    /// Positions that each attends to, at least 1.
    pub(crate) lengths: [usize; QUERIES],
    /// How many there are.
    pub(crate) count: usize,
    /// Multiplies the scores.
    pub(crate) scale: f32,
}

/// Writes the attended values, `head_dim` for each query. `scores` has room for [`QUERIES`] times the greatest length
/// rounded up to 16.
#[inline(always)]
pub(crate) fn attend<L: Lanes>(
    l: L,
    head: &CachedHead<'_>,
    queries: &Queries<'_>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    match queries.count {
        1 => attend_n::<L, 1>(l, head, queries, scores, out),
        2 => attend_n::<L, 2>(l, head, queries, scores, out),
        3 => attend_n::<L, 3>(l, head, queries, scores, out),
        4 => attend_n::<L, 4>(l, head, queries, scores, out),
        n => panic!("{n} queries in one call"),
    }
}

#[inline(always)]
fn attend_n<L: Lanes, const Q: usize>(
    l: L,
    head: &CachedHead<'_>,
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
    score::<L, Q>(l, head, queries, &mut rows);
    let mut inverse = [0.0; Q];
    for q in 0..Q {
        inverse[q] = 1.0 / softmax(l, rows[q], lengths[q]);
    }
    weigh::<L, Q>(l, head, (&rows, &lengths, &inverse), out);
}

/// Scaled products of the queries with all keys, in groups of 16 positions.
#[inline(always)]
fn score<L: Lanes, const Q: usize>(
    l: L,
    head: &CachedHead<'_>,
    queries: &Queries<'_>,
    rows: &mut [&mut [f32]; Q],
) {
    let mut vectors: [&[f32]; Q] = [&[]; Q];
    for (q, vector) in vectors.iter_mut().enumerate() {
        *vector = &queries.vectors[q][..head.head_dim];
    }
    let scale = l.splat(queries.scale);
    let groups = rows[0].len() / LANES;
    let keys = head.keys.as_chunks::<LANES>().0;
    for (group, keys) in keys.chunks_exact(head.head_dim).take(groups).enumerate() {
        let mut sums = [l.splat(0.0); Q];
        for (d, key) in keys.iter().enumerate() {
            let key = l.load_f16(key);
            for q in 0..Q {
                sums[q] = l.fma(key, l.splat(vectors[q][d]), sums[q]);
            }
        }
        for q in 0..Q {
            l.store(l.mul(sums[q], scale), &mut rows[q].as_chunks_mut::<LANES>().0[group]);
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

/// Sums the values by their weights, position by position; the positions that only the longer queries reach follow one
/// query at a time.
#[inline(always)]
fn weigh<L: Lanes, const Q: usize>(
    l: L,
    head: &CachedHead<'_>,
    (rows, lengths, inverse): (&[&mut [f32]; Q], &[usize; Q], &[f32; Q]),
    out: &mut [f32],
) {
    let shortest = lengths.iter().fold(usize::MAX, |a, &b| a.min(b));
    for d in (0..head.head_dim).step_by(LANES) {
        let mut sums = [l.splat(0.0); Q];
        let value = |position: usize| -> &[u16; LANES] {
            head.values[position * head.head_dim + d..].first_chunk().expect("a cached position")
        };
        for position in 0..shortest {
            let v = l.load_f16(value(position));
            for q in 0..Q {
                sums[q] = l.fma(v, l.splat(rows[q][position]), sums[q]);
            }
        }
        for q in 0..Q {
            let mut sum = sums[q];
            for position in shortest..lengths[q] {
                sum = l.fma(l.load_f16(value(position)), l.splat(rows[q][position]), sum);
            }
            let out = out[q * head.head_dim + d..].first_chunk_mut().expect("room for the result");
            l.store(l.mul(sum, l.splat(inverse[q])), out);
        }
    }
}
