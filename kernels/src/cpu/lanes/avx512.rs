//! Sixteen lanes in one register: AVX-512.

use super::Lanes;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

// SAFETY (all methods): the trait's contract is that the caller runs with AVX-512 F, BW and VL, and
// that pointers are valid for 16 elements; unaligned loads and stores are used.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Lanes for Avx512 {
    type Ints = __m512i;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Avx512(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Avx512(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        Avx512(unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0);
            _mm256_storeu_si256(to.cast(), half);
        }
    }

    #[inline(always)]
    unsafe fn sum_i8(from: *const i8) -> i32 {
        unsafe { super::sum_i8_by_eights(from) }
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        unsafe {
            let ints = _mm512_cvtps_epi32(self.0);
            _mm_storeu_si128(to.cast(), _mm512_cvtsepi32_epi8(ints));
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_add_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_sub_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_mul_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_div_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Avx512(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_max_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        Avx512(unsafe { _mm512_min_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Avx512(unsafe { _mm512_abs_ps(self.0) })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        Avx512(unsafe {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        })
    }

    #[inline(always)]
    unsafe fn scale_or_zero(self, n: Self, x: Self, bound: Self) -> Self {
        Avx512(unsafe {
            let stays = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, bound.0);
            _mm512_maskz_scalef_ps(stays, self.0, n.0)
        })
    }

    #[inline(always)]
    unsafe fn keep(self, from: usize, to: usize, other: Self) -> Self {
        let mask = ((1u32 << to) - (1u32 << from)) as u16;
        Avx512(unsafe { _mm512_mask_mov_ps(other.0, mask, self.0) })
    }

    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
            let low = _mm512_castps512_ps256(self.0);
            super::sum_of_eight(_mm256_add_ps(low, _mm256_castpd_ps(high)))
        }
    }

    #[inline(always)]
    unsafe fn load_ints(from: *const u8) -> Self::Ints {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn bits(v: Self::Ints, shift: u32, mask: i32) -> Self::Ints {
        unsafe {
            let shifted = _mm512_srlv_epi32(v, _mm512_set1_epi32(shift as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi32(mask))
        }
    }

    #[inline(always)]
    unsafe fn or_shifted(a: Self::Ints, b: Self::Ints, shift: u32) -> Self::Ints {
        unsafe { _mm512_or_si512(a, _mm512_sllv_epi32(b, _mm512_set1_epi32(shift as i32))) }
    }

    #[inline(always)]
    unsafe fn ints_minus(v: Self::Ints, c: i32) -> Self {
        Avx512(unsafe { _mm512_cvtepi32_ps(_mm512_sub_epi32(v, _mm512_set1_epi32(c))) })
    }
}
