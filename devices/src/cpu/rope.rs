//! The angles of rotary position embedding, tabled once for all positions.
//!
//! *Invariant:* sine and cosine are computed here from sums and products alone, so the table is the same on every
//! machine.

/// Cosine and sine of each (position, pair of a head).
pub(crate) struct RopeTable {
    pairs: usize,
    turns: Vec<[f32; 2]>,
}

impl RopeTable {
    /// The table of `positions`; pairs beyond the frequencies (up to `pairs`) do not turn.
    pub(crate) fn new(inverse_frequencies: &[f32], pairs: usize, positions: usize) -> Self {
        let turn = |position: usize, pair: usize| {
            let frequency = inverse_frequencies.get(pair).copied().unwrap_or(0.0);
            let (sin, cos) = sin_cos(position as f64 * f64::from(frequency));
            [cos as f32, sin as f32]
        };
        let turns = (0..positions)
            .flat_map(|position| (0..pairs).map(move |pair| turn(position, pair)))
            .collect();
        Self { pairs, turns }
    }

    /// The eight turns of pairs `first..first + 8` at a position.
    pub(crate) fn eight(&self, position: usize, first: usize) -> &[[f32; 2]; 8] {
        self.turns[position * self.pairs + first..].first_chunk().expect("a tabled position")
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        size_of_val(self.turns.as_slice()) as u64
    }
}

/// Turns eight adjacent pairs. Separate products and sums, as every machine has them.
pub(crate) fn rotate(x: &mut [f32; 16], turns: &[[f32; 2]; 8]) {
    for (pair, [cos, sin]) in x.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
        let [a, b] = *pair;
        *pair = [a * cos - b * sin, a * sin + b * cos];
    }
}

/// Sine and cosine for 0 <= x < 1e8 or so, to about 1e-9.
fn sin_cos(x: f64) -> (f64, f64) {
    const QUARTER: f64 = std::f64::consts::FRAC_PI_2;
    /// What `QUARTER` lacks to a quarter turn.
    const QUARTER_REST: f64 = 6.123_233_995_736_766e-17;
    let quarters = (x / QUARTER + 0.5).floor();
    let r = quarters.mul_add(-QUARTER, x) - quarters * QUARTER_REST;
    let r2 = r * r;
    let series = |terms: &[f64]| terms.iter().fold(0.0, |sum, term| sum * r2 + term);
    let sin = r * series(&[
        1.0 / 6_227_020_800.0,
        -1.0 / 39_916_800.0,
        1.0 / 362_880.0,
        -1.0 / 5_040.0,
        1.0 / 120.0,
        -1.0 / 6.0,
        1.0,
    ]);
    let cos = series(&[
        1.0 / 479_001_600.0,
        -1.0 / 3_628_800.0,
        1.0 / 40_320.0,
        -1.0 / 720.0,
        1.0 / 24.0,
        -0.5,
        1.0,
    ]);
    match quarters as u64 % 4 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sine_and_cosine_agree_with_the_system_library() {
        for i in 0..200_000 {
            let x = f64::from(i) * 0.37;
            let (sin, cos) = sin_cos(x);
            assert!((sin - x.sin()).abs() < 1e-9 && (cos - x.cos()).abs() < 1e-9, "at {x}");
        }
    }

    #[test]
    fn pairs_beyond_the_frequencies_stay() {
        let table = RopeTable::new(&[1.0; 5], 8, 3);
        let mut x = [1.0; 16];
        rotate(&mut x, table.eight(2, 0));
        assert_ne!(x[..10], [1.0; 10]);
        assert_eq!(x[10..], [1.0; 6]);
    }
}
