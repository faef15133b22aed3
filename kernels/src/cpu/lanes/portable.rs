//! Sixteen lanes as an array: any processor.

use super::{Lanes, WIDTH};
use half::{bf16, f16};
use std::array::from_fn;

#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; WIDTH]);

// SAFETY: no instruction set is needed; pointers are read and written within the trait's bounds.
unsafe impl Lanes for Portable {
    type Ints = [i32; WIDTH];
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; WIDTH])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the trait asks for 16 elements.
        Portable(from_fn(|i| unsafe { from.add(i).read_unaligned() }))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the trait asks for 16 elements.
        let bits: [u16; WIDTH] = unsafe { from.cast::<[u16; WIDTH]>().read_unaligned() };
        Portable(bits.map(|bits| f16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the trait asks for 16 elements.
        let bits: [u16; WIDTH] = unsafe { from.cast::<[u16; WIDTH]>().read_unaligned() };
        Portable(bits.map(|bits| bf16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, v) in self.0.into_iter().enumerate() {
            // SAFETY: the trait asks for 16 elements.
            unsafe { to.add(i).write_unaligned(v) };
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        for (i, v) in self.0.into_iter().enumerate() {
            // SAFETY: the trait asks for 16 elements.
            unsafe { to.add(i).write_unaligned(f16::from_f32(v).to_bits()) };
        }
    }

    #[inline(always)]
    unsafe fn sum_i8(from: *const i8) -> i32 {
        // SAFETY: the trait asks for 16 elements.
        let byte = |i| unsafe { *from.add(i) };
        (0..WIDTH).map(|i| i32::from(byte(i))).sum()
    }

    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        for (i, v) in self.0.into_iter().enumerate() {
            // SAFETY: the trait asks for 16 elements.
            unsafe { to.add(i).write(v.round_ties_even() as i8) };
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Portable(from_fn(|i| self.0[i] + b.0[i]))
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Portable(from_fn(|i| self.0[i] - b.0[i]))
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Portable(from_fn(|i| self.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Portable(from_fn(|i| self.0[i] / b.0[i]))
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Portable(from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Portable(from_fn(|i| {
            if self.0[i] > b.0[i] {
                self.0[i]
            } else {
                b.0[i]
            }
        }))
    }

    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        Portable(from_fn(|i| {
            if self.0[i] < b.0[i] {
                self.0[i]
            } else {
                b.0[i]
            }
        }))
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Portable(self.0.map(f32::abs))
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        Portable(self.0.map(f32::round_ties_even))
    }

    #[inline(always)]
    unsafe fn scale_or_zero(self, n: Self, x: Self, bound: Self) -> Self {
        let power = |n: f32| f32::from_bits((n as i32).wrapping_add(127).wrapping_shl(23) as u32);
        Portable(from_fn(|i| match x.0[i] < bound.0[i] {
            true => 0.0,
            false => self.0[i] * power(n.0[i]),
        }))
    }

    #[inline(always)]
    unsafe fn keep(self, from: usize, to: usize, other: Self) -> Self {
        Portable(from_fn(|i| {
            if (from..to).contains(&i) {
                self.0[i]
            } else {
                other.0[i]
            }
        }))
    }

    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        self.0
            .into_iter()
            .fold(f32::NEG_INFINITY, |m, v| if v > m { v } else { m })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        crate::reference::sum_lanes(&self.0)
    }

    #[inline(always)]
    unsafe fn load_ints(from: *const u8) -> Self::Ints {
        // SAFETY: the trait asks for 16 elements of 4 bytes; on every target they are little endian.
        from_fn(|i| i32::from_le(unsafe { from.cast::<i32>().add(i).read_unaligned() }))
    }

    #[inline(always)]
    unsafe fn bits(v: Self::Ints, shift: u32, mask: i32) -> Self::Ints {
        v.map(|v| ((v as u32) >> shift) as i32 & mask)
    }

    #[inline(always)]
    unsafe fn or_shifted(a: Self::Ints, b: Self::Ints, shift: u32) -> Self::Ints {
        from_fn(|i| a[i] | b[i] << shift)
    }

    #[inline(always)]
    unsafe fn ints_minus(v: Self::Ints, c: i32) -> Self {
        Portable(v.map(|v| (v - c) as f32))
    }
}
