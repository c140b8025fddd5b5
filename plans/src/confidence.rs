//! The bins into which a draft's confidence in its tokens is sorted: one scale for what learns, forecasts and shows it.
//!
//! *Invariant:* the bins cover 0 to 1 without gaps; most lie near 1, where most tokens of a good draft are.

/// Where the bins end: each holds what is below its end and not below the one before. The last one holds 1 as well.
pub const CONFIDENCE_ENDS: [f32; 14] =
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.997, 1.0];

/// Number of bins.
pub const CONFIDENCE_BINS: usize = CONFIDENCE_ENDS.len();

/// The bin of a confidence. What is not a number is no confidence.
pub fn confidence_bin(confidence: f32) -> usize {
    let above = |end: &&f32| confidence >= **end;
    CONFIDENCE_ENDS[..CONFIDENCE_BINS - 1].iter().take_while(above).count()
}

#[cfg(test)]
mod tests {
    use super::{CONFIDENCE_BINS, CONFIDENCE_ENDS, confidence_bin};

    #[test]
    fn every_confidence_has_a_bin() {
        assert_eq!(confidence_bin(0.0), 0);
        assert_eq!(confidence_bin(0.1), 1);
        assert_eq!(confidence_bin(1.0), CONFIDENCE_BINS - 1);
        assert_eq!((confidence_bin(f32::NAN), confidence_bin(-3.0)), (0, 0));
        assert!(CONFIDENCE_ENDS.is_sorted());
    }
}
