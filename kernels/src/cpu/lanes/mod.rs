//! Sixteen f32 lanes, so that each op is written once and compiled for every instruction set.
//!
//! All operations are elementwise and rounded once, hence the same bits everywhere. Code generic over
//! [`Lanes`] is `#[inline(always)]` and ends up in a `#[target_feature]` function, where it becomes
//! one, two or (portable) many instructions.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

use crate::reference::EXP_POLY;

/// Lanes of a vector.
pub(crate) const WIDTH: usize = 16;

/// Sixteen f32.
///
/// # Safety
/// Every method needs the instruction set of the implementing type: the caller is (inlined into) a
/// function that enables it, entered only after its detection. Pointers are valid for 16 elements of
/// their type and need no alignment.
pub(crate) unsafe trait Lanes: Copy {
    /// Sixteen 32-bit integers.
    type Ints: Copy;
    /// How many fit the registers.
    const REGISTERS: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Rounds to nearest even.
    unsafe fn store_f16(self, to: *mut u16);
    /// Rounds to the nearest even integer; lanes are within -127..=127.
    unsafe fn store_i8(self, to: *mut i8);
    /// The sum of sixteen bytes.
    unsafe fn sum_i8(from: *const i8) -> i32;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// `self > b ? self : b`: a NaN on the right stays.
    unsafe fn max(self, b: Self) -> Self;
    /// `self < b ? self : b`.
    unsafe fn min(self, b: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// To the nearest even integer.
    unsafe fn round(self) -> Self;
    /// `x < bound ? 0 : self * 2^n` for integers `n` within -126..=127.
    unsafe fn scale_or_zero(self, n: Self, x: Self, bound: Self) -> Self;
    /// Lanes `from..to` of `self`, `other` elsewhere.
    unsafe fn keep(self, from: usize, to: usize, other: Self) -> Self;
    /// Highest lane.
    unsafe fn max_lane(self) -> f32;
    /// [`crate::reference::sum_lanes`].
    unsafe fn sum(self) -> f32;

    unsafe fn load_ints(from: *const u8) -> Self::Ints;
    /// `(v >> shift) & mask`.
    unsafe fn bits(v: Self::Ints, shift: u32, mask: i32) -> Self::Ints;
    /// `a | b << shift`.
    unsafe fn or_shifted(a: Self::Ints, b: Self::Ints, shift: u32) -> Self::Ints;
    /// `v - c` as f32.
    unsafe fn ints_minus(v: Self::Ints, c: i32) -> Self;
}

/// Asks for a cache line ahead of its use; the address need not be valid.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that every x86-64 processor takes and that never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The sum of sixteen signed bytes: made unsigned, then summed by eights in one instruction.
///
/// # Safety
/// `from` is valid for 16 bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_i8_by_eights(from: *const i8) -> i32 {
    use std::arch::x86_64::*;
    // SAFETY: by the caller's word; every x86-64 processor has SSE2.
    unsafe {
        let unsigned = _mm_xor_si128(_mm_loadu_si128(from.cast()), _mm_set1_epi8(-128));
        let eights = _mm_sad_epu8(unsigned, _mm_setzero_si128());
        let all = _mm_add_epi32(eights, _mm_unpackhi_epi64(eights, eights));
        _mm_cvtsi128_si32(all) - 16 * 128
    }
}

/// The sum of eight lanes in halves.
///
/// # Safety
/// The caller has AVX.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_of_eight(eight: std::arch::x86_64::__m256) -> f32 {
    use std::arch::x86_64::*;
    // SAFETY: by the caller's word.
    unsafe {
        let four = _mm_add_ps(
            _mm256_castps256_ps128(eight),
            _mm256_extractf128_ps::<1>(eight),
        );
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// [`crate::reference::exp`] of every lane.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's instruction set is that of `L`.
    unsafe {
        let low = L::splat(-87.0);
        let clamped = low.max(L::splat(88.0).min(x));
        let n = clamped.mul(L::splat(std::f32::consts::LOG2_E)).round();
        let r = n.fma(L::splat(-0.693_359_4), clamped);
        let r = n.fma(L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(EXP_POLY[0]);
        for &c in &EXP_POLY[1..] {
            p = p.fma(r, L::splat(c));
        }
        let p = p.fma(r.mul(r), r.add(L::splat(1.0)));
        p.scale_or_zero(n, x, low)
    }
}

/// [`crate::reference::softcap`] of every lane.
///
/// # Safety
/// See [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn softcap<L: Lanes>(x: L, c: f32) -> L {
    // SAFETY: the caller's instruction set is that of `L`.
    unsafe {
        let (one, cap) = (L::splat(1.0), L::splat(c));
        let y = x.div(cap);
        cap.mul(one.sub(L::splat(2.0).div(exp(y.add(y)).add(one))))
    }
}
