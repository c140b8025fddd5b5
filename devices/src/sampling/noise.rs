//! The noise: Philox4x32-10 (Salmon et al. 2011) turned into Gumbel variates.
//!
//! The mapping, which any device can repeat with 32-bit integers:
//! - key = (low, high half of the seed); counter = (`token / 4`, `position`, 0, 0), where `position` is that of the
//!   token being picked; the token's random word is output `token % 4`. One call serves four neighbouring tokens.
//! - `u = (word + 1/2) / 2^32`, strictly between 0 and 1, and `G = -ln(-ln u)`.
//!
//! *Invariant:* here G is accurate to 1e-14. A device without 64-bit floats takes `E = -ln(u)` for words below 2^31 and
//! `E = -log1p(-v)`, `v = (!word + 1/2) / 2^32`, above (else the upper tail is lost to rounding), and `G = -ln(E)`. It
//! shares the words exactly, and G up to rounding: enough for a draft, whose tokens are checked anyway.

/// No noise is larger than this: `-ln(-ln(1 - 2^-33))` is 22.874.
pub const NOISE_MAX: f64 = 22.88;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32 on one counter.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_lanes(counter.map(|c| [c]), key).map(|[word]| word)
}

/// Philox on `N` counters at once; `counters[i][lane]` is part `i` of the lane's counter.
#[inline(always)]
pub(super) fn philox_lanes<const N: usize>(
    mut counters: [[u32; N]; 4],
    mut key: [u32; 2],
) -> [[u32; N]; 4] {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = counters;
        let mut next = [[0; N]; 4];
        for lane in 0..N {
            let first = u64::from(c0[lane]) * u64::from(MULTIPLIERS[0]);
            let second = u64::from(c2[lane]) * u64::from(MULTIPLIERS[1]);
            next[0][lane] = (second >> 32) as u32 ^ c1[lane] ^ key[0];
            next[1][lane] = second as u32;
            next[2][lane] = (first >> 32) as u32 ^ c3[lane] ^ key[1];
            next[3][lane] = first as u32;
        }
        counters = next;
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counters
}

/// The two key words of a seed.
pub(super) fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// The random word of one token at one position.
pub fn word(seed: u64, position: u32, token: u32) -> u32 {
    philox4x32([token / 4, position, 0, 0], key(seed))[(token % 4) as usize]
}

/// The Gumbel variate of a random word.
pub fn gumbel(word: u32) -> f64 {
    let uniform = (f64::from(word) + 0.5) / 4_294_967_296.0;
    -ln(-ln(uniform))
}

/// Natural logarithm of a positive normal number, the same bits everywhere; relative error below 1e-15.
pub(super) fn ln(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & MANTISSA) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // ln m = 2 artanh((m - 1) / (m + 1)) with an argument of at most 0.172: 1/23 is the last term that counts.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let series = (0..12).rev().fold(0.0, |sum, i| sum * square + 1.0 / f64::from(2 * i + 1));
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::{NOISE_MAX, gumbel, ln, philox4x32, word};

    /// Known answers of the generator's authors (Random123, `kat_vectors`).
    #[test]
    fn philox_gives_the_known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn a_word_depends_on_seed_position_and_token() {
        let here = word(7, 3, 5);
        assert_eq!(here, philox4x32([1, 3, 0, 0], [7, 0])[1]);
        assert!(here != word(8, 3, 5) && here != word(7 | 1 << 40, 3, 5));
        assert!(here != word(7, 4, 5) && here != word(7, 3, 6));
    }

    #[test]
    fn ln_agrees_with_the_library() {
        for i in 1..20_000 {
            let x = f64::from(i) * 3.7e-4;
            assert!((ln(x) - x.ln()).abs() <= 2e-15 * x.ln().abs().max(0.1), "ln {x}");
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn noise_is_finite_rises_with_the_word_and_stays_below_its_bound() {
        let words = [0, 1, 1000, 1 << 20, 1 << 31, !0 - 1000, !0 - 1, !0];
        let noise = words.map(gumbel);
        assert!(noise.iter().all(|g| g.is_finite()) && noise.is_sorted());
        assert!(gumbel(!0) < NOISE_MAX && gumbel(!0) > NOISE_MAX - 0.01);
        assert!(gumbel(!0) - gumbel(!0 - 1) > 1.0, "the tail keeps single words apart");
    }
}
