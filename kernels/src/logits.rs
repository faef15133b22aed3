//! Passes over a row of logits: maxima and sums of weights, for sampling.
//!
//! Each is written once, in additions, multiplications and divisions that are rounded one by one, and compiled
//! for every instruction set: how many logits go at a time differs, the bits do not. (The language never
//! contracts a product and a sum.)

use crate::isa::{Isa, detect};

/// Logits that [`maxima`] looks at together: [`LANES`] maxima come out of them.
pub const BLOCK: usize = 256;

/// Maxima of a block: number `i` is that of its logits `i`, `i + 16`, `i + 32` and so on.
pub const LANES: usize = 16;

/// `e^x` for `x <= 0`, with a relative error below 2e-7; 0 below -87, NaN for NaN.
///
/// A fixed sequence of IEEE operations, for the C library's function differs in its last bit between platforms
/// and a draw that falls next to a border would then pick another token. Range reduction and coefficients as in
/// Cephes `expf` (S. L. Moshier). Written without branches so that a loop over it becomes SIMD code.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
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

/// Turns logits into weights `e^((logit - max) / temperature)`; the largest weighs 1.
#[derive(Clone, Copy, Debug)]
pub struct Heat {
    /// The largest logit.
    pub max: f32,
    /// Above 0.
    pub temperature: f32,
}

impl Heat {
    /// The weight of one logit.
    #[inline(always)]
    pub fn weigh(self, logit: f32) -> f32 {
        exp((logit - self.max) / self.temperature)
    }
}

/// Compiles `$body` for every instruction set under a function that picks one at run time.
macro_rules! widened {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                plain($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                plain($($arg),*)
            }
            match detect() {
                // SAFETY: the processor has just been found to have it.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => plain($($arg),*),
            }
        }
    };
}

widened! {
    /// The highest of every [`LANES`]th logit of each [`BLOCK`] of a row, the last block perhaps shorter; minus
    /// infinity where there is none. A NaN is passed over.
    pub fn maxima(row: &[f32], out: &mut Vec<f32>) {
        out.clear();
        out.resize(row.len().div_ceil(BLOCK) * LANES, f32::NEG_INFINITY);
        for (block, out) in row.chunks(BLOCK).zip(out.as_chunks_mut::<LANES>().0) {
            let (lines, rest) = block.as_chunks::<LANES>();
            let mut highest = *out;
            for line in lines {
                for (max, &logit) in highest.iter_mut().zip(line) {
                    *max = if logit > *max { logit } else { *max };
                }
            }
            for (max, &logit) in highest.iter_mut().zip(rest) {
                *max = if logit > *max { logit } else { *max };
            }
            *out = highest;
        }
    }
}

widened! {
    /// The sum of `e^(logit - max)`: NaN if a logit is.
    pub fn sum_exp(row: &[f32], max: f32) -> f64 {
        sum_of(row, |logit| exp(logit - max))
    }
}

widened! {
    /// The sum of the weights: NaN if a logit is.
    pub fn sum_weights(row: &[f32], heat: Heat) -> f64 {
        sum_of(row, |logit| heat.weigh(logit))
    }
}

widened! {
    /// The sum of the weights of logits at or above `floor`.
    pub fn sum_weights_above(row: &[f32], heat: Heat, floor: f32) -> f64 {
        sum_of(row, |logit| {
            let weight = heat.weigh(logit);
            if logit >= floor { weight } else { 0.0 }
        })
    }
}

/// The sum of what `weight` makes of each logit: eight sums side by side, in one order on every machine.
/// The weights of 64 logits are computed before they are added: only then does the loop become SIMD code.
#[inline(always)]
fn sum_of(logits: &[f32], weight: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0.0f64; 8];
    let (rows, tail) = logits.as_chunks::<64>();
    for row in rows {
        let mut weights = [0.0f32; 64];
        for (place, &logit) in weights.iter_mut().zip(row) {
            *place = weight(logit);
        }
        for eight in weights.as_chunks::<8>().0 {
            for (sum, &weight) in sums.iter_mut().zip(eight) {
                *sum += f64::from(weight);
            }
        }
    }
    for (index, &logit) in tail.iter().enumerate() {
        sums[index % 8] += f64::from(weight(logit));
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    fn row() -> impl Strategy<Value = Vec<f32>> {
        let logit = prop_oneof![
            8 => -30f32..30.0,
            1 => Just(f32::NEG_INFINITY),
            1 => Just(f32::NAN),
        ];
        prop::collection::vec(logit, 1..1500)
    }

    proptest! {
        #[test]
        fn maxima_are_those_of_every_sixteenth(row in row()) {
            let mut out = vec![7.0; 3];
            maxima(&row, &mut out);
            prop_assert_eq!(out.len(), row.len().div_ceil(BLOCK) * LANES);
            for (index, max) in out.into_iter().enumerate() {
                let block = row.chunks(BLOCK).nth(index / LANES).unwrap();
                let every = block.iter().skip(index % LANES).step_by(LANES);
                let expected = every.fold(f32::NEG_INFINITY, |max, &logit| max.max(logit));
                prop_assert_eq!(max, expected);
            }
        }

        /// Whatever the instruction set: the loops as written, one logit after another.
        #[test]
        fn sums_have_the_bits_of_eight_sums_side_by_side(
            row in row(),
            temperature in 0.1f32..3.0,
            floor in -30f32..30.0,
        ) {
            let max = row.iter().fold(f32::NEG_INFINITY, |max, &logit| max.max(logit));
            let heat = Heat { max, temperature };
            let slow = |weight: &dyn Fn(f32) -> f32| {
                let mut sums = [0.0f64; 8];
                for (index, &logit) in row.iter().enumerate() {
                    sums[index % 8] += f64::from(weight(logit));
                }
                sums.iter().sum::<f64>()
            };
            let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            prop_assert!(same(sum_exp(&row, max), slow(&|logit| exp(logit - max))));
            prop_assert!(same(sum_weights(&row, heat), slow(&|logit| heat.weigh(logit))));
            let above = |logit| if logit >= floor { heat.weigh(logit) } else { 0.0 };
            prop_assert!(same(sum_weights_above(&row, heat, floor), slow(&above)));
        }
    }
}
