//! Angles of the rotary embedding, and the ways in which checkpoints stretch them over longer contexts.

use std::f64::consts::PI;

use serde::Serialize;

/// How positions are stretched.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every position is divided by `factor`.
    Linear {
        /// At least 1 in practice; above 0.
        factor: f64,
    },
    /// As Llama 3.1 was trained: long waves are stretched, short ones kept, those between blended.
    Llama3 {
        /// Stretch of the long waves.
        factor: f64,
        /// Waves longer than `original_context / low` count as long.
        low: f64,
        /// Waves shorter than `original_context / high` count as short; above `low`.
        high: f64,
        /// Positions before the stretch.
        original_context: f64,
    },
    /// Divisors, one for each angle, from the tensor `rope_freqs.weight`.
    Factors,
}

/// `head_dim / 2` angles per position: `theta ^ (-2i / head_dim)`, stretched. [`RopeScaling::Factors`] are applied by
/// [`divide`], once the tensor is at hand.
pub(crate) fn inverse_frequencies(head_dim: usize, theta: f64, scaling: RopeScaling) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64))
        .map(|frequency| stretch(frequency, scaling) as f32)
        .collect()
}

fn stretch(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None | RopeScaling::Factors => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low, high, original_context } => {
            let waves = original_context * frequency / (2.0 * PI);
            // 0 for long waves, 1 for short ones.
            let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
            frequency * (kept + (1.0 - kept) / factor)
        }
    }
}

/// Divides each angle by its factor.
pub(crate) fn divide(frequencies: &[f32], factors: &[f32]) -> Vec<f32> {
    frequencies.iter().zip(factors).map(|(frequency, factor)| frequency / factor).collect()
}

#[cfg(test)]
mod tests {
    use super::{RopeScaling, inverse_frequencies};

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= b.abs() * 1e-6, "{found:?} and {expected:?}");
        }
    }

    #[test]
    fn angles_fall_geometrically() {
        close(&inverse_frequencies(8, 10_000.0, RopeScaling::None), &[1.0, 0.1, 0.01, 0.001]);
    }

    #[test]
    fn linear_scaling_divides() {
        let scaling = RopeScaling::Linear { factor: 4.0 };
        close(&inverse_frequencies(4, 10_000.0, scaling), &[0.25, 0.0025]);
    }

    /// By hand: 8,192 positions make 8192 f / 2 pi waves; that is 1,304 (short, kept), 13 (short), 2.6 (between:
    /// (2.6076 - 1) / 3 = 0.53587 kept) and 0.13 (long, divided by 8).
    #[test]
    fn llama3_scaling_keeps_short_waves_and_divides_long_ones() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192.0 };
        let stretch = |f: f64| super::stretch(f, scaling) as f32;
        close(&[stretch(1.0), stretch(0.01)], &[1.0, 0.01]);
        close(&[stretch(0.0001)], &[0.0001 / 8.0]);
        let kept = (0.002 * 8192.0 / (2.0 * std::f64::consts::PI) - 1.0) / 3.0;
        close(&[stretch(0.002)], &[(0.002 * (kept + (1.0 - kept) / 8.0)) as f32]);
        assert!((kept - 0.53587).abs() < 1e-3);
    }
}
