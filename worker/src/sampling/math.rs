//! `ln` and uniform numbers as fixed sequences of IEEE operations.
//!
//! The C library's functions differ in their last bit between platforms and releases; a draw that falls
//! next to a border would then pick another token. These give the same bits wherever Rust runs: no fused
//! multiply-add, no table, no call. `exp` is `conclave_kernels::logits::exp`.

/// Natural logarithm of a positive normal number, with a relative error below 1e-15.
///
/// The series of `2 atanh((m - 1) / (m + 1))` for the mantissa, brought into `[sqrt(1/2), sqrt(2))`.
pub(crate) fn ln(x: f64) -> f64 {
    const FRACTION: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & FRACTION) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let z = s * s;
    let mut series = 0.0;
    for odd in (0..12).rev() {
        series = series * z + 1.0 / f64::from(2 * odd + 1);
    }
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

/// A uniform number in `[0, 1)` that depends on `seed` and `position` only.
///
/// Two rounds of the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a counter-based
/// generator, so that the draw at a position does not depend on the draws before it.
pub fn uniform(seed: u64, position: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = mix(seed.wrapping_add(GOLDEN));
    let word = mix(key.wrapping_add(position.wrapping_mul(GOLDEN)));
    (word >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_is_close_to_the_library_everywhere() {
        for i in 1..200_000 {
            let x = f64::from(i) * 0.37;
            let exact = x.ln();
            assert!((ln(x) - exact).abs() <= 2e-15 * exact.abs().max(1.0), "{x}");
        }
        assert_eq!(ln(1.0), 0.0);
    }

    /// Fixed for ever: a change here changes every sampled answer.
    #[test]
    fn uniform_has_known_bits() {
        let bits: Vec<u64> = [(0, 0), (0, 1), (42, 0), (42, 7), (u64::MAX, 3)]
            .map(|(seed, position)| uniform(seed, position).to_bits())
            .to_vec();
        let known = [
            4_598_747_380_219_629_364,
            4_604_051_953_065_501_487,
            4_604_459_869_801_483_755,
            4_596_206_301_982_887_772,
            4_602_773_954_020_865_792,
        ];
        assert_eq!(bits, known);
    }

    #[test]
    fn uniform_is_spread_evenly_over_seeds_and_positions() {
        let mut counts = [0u32; 16];
        for seed in 0..64 {
            for position in 0..1000 {
                let u = uniform(seed, position);
                assert!((0.0..1.0).contains(&u));
                counts[(u * 16.0) as usize] += 1;
            }
        }
        for count in counts {
            assert!((3700..4300).contains(&count), "{counts:?}");
        }
    }
}
