//! Sixteen lanes in two registers: AVX2 with FMA and F16C.

use super::Lanes;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// Applies one intrinsic to both halves.
macro_rules! both {
    ($op:ident, $($v:expr),+) => { Avx2(unsafe { $op($($v.0),+) }, unsafe { $op($($v.1),+) }) };
}

// SAFETY (all methods): the trait's contract is that the caller runs with AVX2, FMA and F16C, and
// that pointers are valid for 16 elements; unaligned loads and stores are used.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Lanes for Avx2 {
    type Ints = (__m256i, __m256i);
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        let v = unsafe { _mm256_set1_ps(x) };
        Avx2(v, v)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe {
            let (low, high) = (
                _mm_loadu_si128(from.cast()),
                _mm_loadu_si128(from.add(8).cast()),
            );
            Avx2(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            Avx2(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        unsafe {
            _mm_storeu_si128(
                to.cast(),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0),
            );
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1);
            _mm_storeu_si128(to.add(8).cast(), high);
        }
    }

    #[inline(always)]
    unsafe fn sum_i8(from: *const i8) -> i32 {
        unsafe { super::sum_i8_by_eights(from) }
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        unsafe {
            // Packs work within 128-bit halves: the permutation puts the 16-bit lanes in order again.
            let ints = (_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            let words =
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(ints.0, ints.1));
            let (low, high) = (
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(to.cast(), _mm_packs_epi16(low, high));
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        both!(_mm256_add_ps, self, b)
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        both!(_mm256_sub_ps, self, b)
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        both!(_mm256_mul_ps, self, b)
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        both!(_mm256_div_ps, self, b)
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        both!(_mm256_fmadd_ps, self, b, c)
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        both!(_mm256_max_ps, self, b)
    }

    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        both!(_mm256_min_ps, self, b)
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        let sign = unsafe { _mm256_set1_ps(-0.0) };
        let sign = Avx2(sign, sign);
        both!(_mm256_andnot_ps, sign, self)
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe {
            const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            Avx2(
                _mm256_round_ps::<MODE>(self.0),
                _mm256_round_ps::<MODE>(self.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn scale_or_zero(self, n: Self, x: Self, bound: Self) -> Self {
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), bias);
            let high = _mm256_add_epi32(_mm256_cvtps_epi32(n.1), bias);
            let power = Avx2(
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
            );
            let scaled = self.mul(power);
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(x.0, bound.0);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(x.1, bound.1);
            Avx2(
                _mm256_andnot_ps(low, scaled.0),
                _mm256_andnot_ps(high, scaled.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn keep(self, from: usize, to: usize, other: Self) -> Self {
        unsafe {
            let low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
            let before = _mm256_set1_epi32(from as i32 - 1);
            let end = _mm256_set1_epi32(to as i32);
            let low = _mm256_and_si256(
                _mm256_cmpgt_epi32(low, before),
                _mm256_cmpgt_epi32(end, low),
            );
            let high = _mm256_and_si256(
                _mm256_cmpgt_epi32(high, before),
                _mm256_cmpgt_epi32(end, high),
            );
            Avx2(
                _mm256_blendv_ps(other.0, self.0, _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(other.1, self.1, _mm256_castsi256_ps(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(self.0, self.1);
            let four = _mm_max_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { super::sum_of_eight(_mm256_add_ps(self.0, self.1)) }
    }

    #[inline(always)]
    unsafe fn load_ints(from: *const u8) -> Self::Ints {
        unsafe {
            (
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(32).cast()),
            )
        }
    }

    #[inline(always)]
    unsafe fn bits(v: Self::Ints, shift: u32, mask: i32) -> Self::Ints {
        unsafe {
            let (shift, mask) = (_mm256_set1_epi32(shift as i32), _mm256_set1_epi32(mask));
            (
                _mm256_and_si256(_mm256_srlv_epi32(v.0, shift), mask),
                _mm256_and_si256(_mm256_srlv_epi32(v.1, shift), mask),
            )
        }
    }

    #[inline(always)]
    unsafe fn or_shifted(a: Self::Ints, b: Self::Ints, shift: u32) -> Self::Ints {
        unsafe {
            let shift = _mm256_set1_epi32(shift as i32);
            (
                _mm256_or_si256(a.0, _mm256_sllv_epi32(b.0, shift)),
                _mm256_or_si256(a.1, _mm256_sllv_epi32(b.1, shift)),
            )
        }
    }

    #[inline(always)]
    unsafe fn ints_minus(v: Self::Ints, c: i32) -> Self {
        unsafe {
            let c = _mm256_set1_epi32(c);
            Avx2(
                _mm256_cvtepi32_ps(_mm256_sub_epi32(v.0, c)),
                _mm256_cvtepi32_ps(_mm256_sub_epi32(v.1, c)),
            )
        }
    }
}
