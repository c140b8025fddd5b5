//! Passes over a row of logits, written over arrays of [`LANES`] numbers so that a compiler turns them into vector
//! instructions of whatever width the caller was compiled for.
//!
//! *Invariant:* the order of the additions is that of the lanes, not of the machine, so results have the same bits
//! everywhere.

/// Numbers that are worked on side by side.
pub(super) const LANES: usize = 16;

/// Sums are carried in `f32` for this many numbers, then added up in `f64`.
const BLOCK: usize = 64 * LANES;

/// Token of the largest logit, the lowest id among equals; 0 if there is none above minus infinity.
#[inline(always)]
pub(super) fn argmax(row: &[f32]) -> usize {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut at = [0u32; LANES];
    for (i, chunk) in chunks.iter().enumerate() {
        for lane in 0..LANES {
            let better = chunk[lane] > best[lane];
            best[lane] = if better { chunk[lane] } else { best[lane] };
            at[lane] = if better { i as u32 } else { at[lane] };
        }
    }
    let mut winner = (f32::NEG_INFINITY, 0);
    for lane in 0..LANES {
        let token = at[lane] as usize * LANES + lane;
        if best[lane] > winner.0 || (best[lane] == winner.0 && token < winner.1) {
            winner = (best[lane], token);
        }
    }
    for (i, &logit) in rest.iter().enumerate() {
        if logit > winner.0 {
            winner = (logit, chunks.len() * LANES + i);
        }
    }
    if winner.0 == f32::NEG_INFINITY { 0 } else { winner.1 }
}

/// A logit that can be computed with: NaN is minus infinity, plus infinity is the largest number.
#[inline(always)]
pub(super) fn clean(logit: f32) -> f32 {
    if logit > f32::NEG_INFINITY { logit.min(f32::MAX) } else { f32::NEG_INFINITY }
}

/// `sum(exp(clean(row[i]) - max))`; `max` must be finite and no smaller than any cleaned logit.
#[inline(always)]
pub(super) fn sum_exp(row: &[f32], max: f32) -> f64 {
    let mut total = 0.0;
    for block in row.chunks(BLOCK) {
        let (chunks, rest) = block.as_chunks::<LANES>();
        let mut sums = [0.0f32; LANES];
        for chunk in chunks {
            for lane in 0..LANES {
                sums[lane] += exp(clean(chunk[lane]) - max);
            }
        }
        for (sum, &logit) in sums.iter_mut().zip(rest) {
            *sum += exp(clean(logit) - max);
        }
        total += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
    }
    total
}

/// `e^x` for x in -infinity to 88, relative error below 3e-7; 0 below -87.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = (clamped - power * LN2_HIGH) - power * LN2_LOW;
    let mut series = 1.0 / 5040.0;
    series = series * r + 1.0 / 720.0;
    series = series * r + 1.0 / 120.0;
    series = series * r + 1.0 / 24.0;
    series = series * r + 1.0 / 6.0;
    series = series * r + 0.5;
    series = series * r + 1.0;
    series = series * r + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { series * scale }
}

#[cfg(test)]
mod tests {
    use super::{argmax, exp, sum_exp};

    #[test]
    fn exp_agrees_with_the_library() {
        for i in 0..400_000 {
            let x = -87.0 + i as f32 * 4.3e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp {x}: relative error {error}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-87.5)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn argmax_takes_the_lowest_id_among_equals_at_every_place() {
        for len in 1..70 {
            for first in 0..len {
                let mut row = vec![-1.0; len];
                row[first..].fill(2.0);
                assert_eq!(argmax(&row), first, "{len} logits");
                row.fill(f32::NAN);
                row[first] = f32::NEG_INFINITY;
                assert_eq!(argmax(&row), 0);
            }
        }
    }

    #[test]
    fn sums_are_right_for_every_length() {
        for len in [1, 15, 16, 17, 1023, 1024, 1025, 8192, 8200] {
            let row: Vec<f32> = (0..len).map(|i| -((i * 37 % 101) as f32) / 9.0).collect();
            let expected: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            assert!((sum_exp(&row, 0.0) / expected - 1.0).abs() < 1e-6, "{len} logits");
        }
    }
}
