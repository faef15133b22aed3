//! `exp` and `ln` as fixed sequences of IEEE additions and multiplications.
//!
//! The C library's functions differ in their last bit between platforms and releases; a draw that falls
//! next to a border would then pick another token. These give the same bits wherever Rust runs: no fused
//! multiply-add, no table, no call.

/// `e^x` for `x <= 0`, with a relative error below 2e-7; 0 below -87, NaN for NaN.
///
/// Range reduction and coefficients as in Cephes `expf` (S. L. Moshier). Written without branches so that
/// a loop over it becomes SIMD code.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to an integer without a call to the C library.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // A comparison that is false for NaN, so that NaN stays NaN.
    let clamped = if x < -87.0 { -87.0 } else { x };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.000_000_3e-1;
    let y = p * (r * r) + r + 1.0;
    // The low bits of `rounded` are n; the shift leaves nothing of its others.
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { y * power }
}

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
    fn exp_is_close_to_the_library_everywhere() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "{x}: {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

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
