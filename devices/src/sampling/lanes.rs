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
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            maxima[lane] = larger(chunk[lane], maxima[lane]);
        }
    }
    let max = rest.iter().chain(&maxima).fold(f32::NEG_INFINITY, |max, &x| larger(x, max));
    if max == f32::NEG_INFINITY {
        return 0;
    }
    let holds_max = |chunk: &[f32; LANES]| chunk.iter().fold(false, |any, &x| any | (x == max));
    let before = chunks.iter().position(holds_max).unwrap_or(chunks.len()) * LANES;
    row[before..].iter().position(|&x| x == max).map_or(0, |i| before + i)
}

/// A logit that can be computed with: NaN is minus infinity, plus infinity is the largest number.
#[inline(always)]
pub(super) fn clean(logit: f32) -> f32 {
    smaller(larger(logit, f32::NEG_INFINITY), f32::MAX)
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
                sums[lane] += exp(chunk[lane] - max);
            }
        }
        for (sum, &logit) in sums.iter_mut().zip(rest) {
            *sum += exp(logit - max);
        }
        total += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
    }
    total
}

/// `e^x` for x up to 0, relative error below 3e-7. Whatever is below -87, and NaN, counts as -87 (`e^-87` is 2e-38),
/// whatever is above 0 as 0.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first is short enough for its product to be exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // (e^r - 1 - r) / r^2 for |r| up to ln(2)/2: a least-squares fit of the relative error.
    const SERIES: [f32; 4] = [0.499_991_4, 0.166_668_87, 0.041_899_04, 0.008_333_835];
    let x = smaller(larger(x, -87.0), 0.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let r = (x - power * LN2_HIGH) - power * LN2_LOW;
    let square = ((SERIES[3] * r + SERIES[2]) * r + SERIES[1]) * r + SERIES[0];
    let mantissa = (square * r + 1.0) * r + 1.0;
    mantissa * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// `a` if it is larger than `b`, else (also if `a` is NaN) `b`.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// `a` if it is smaller than `b`, else `b`.
#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::{argmax, exp, sum_exp};

    #[test]
    fn exp_agrees_with_the_library() {
        for i in 0..200_000 {
            let x = i as f32 * -4.35e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp {x}: relative error {error}");
        }
        assert_eq!((exp(0.0), exp(9.0), exp(-99.0)), (1.0, 1.0, exp(-87.0)));
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::NAN) < 2e-38);
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
