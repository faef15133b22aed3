//! Numbers of the cache as lanes, whatever their type.

use super::lanes::{Lanes, WIDTH, prefetch};

/// How 16 stored numbers become lanes.
pub(super) trait Stored {
    type Element;
    /// # Safety
    /// See [`Lanes`].
    unsafe fn load<L: Lanes>(from: *const Self::Element) -> L;
    /// One number as f32.
    ///
    /// # Safety
    /// The pointer is valid.
    unsafe fn one(from: *const Self::Element) -> f32;
    /// `count` numbers as f32: where they are, or in `to`. Asks for as many at `next`.
    ///
    /// # Safety
    /// See [`Lanes`]; both have as many, a multiple of [`WIDTH`].
    unsafe fn widen<L: Lanes>(
        from: *const Self::Element,
        count: usize,
        to: *mut f32,
        next: *const u8,
    ) -> *const f32;
}

/// f32 in the cache.
pub(super) struct StoredF32;
/// f16 in the cache.
pub(super) struct StoredF16;

impl Stored for StoredF32 {
    type Element = f32;

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f32) -> L {
        // SAFETY: by the caller's word.
        unsafe { L::load(from) }
    }

    #[inline(always)]
    unsafe fn one(from: *const f32) -> f32 {
        // SAFETY: by the caller's word.
        unsafe { *from }
    }

    #[inline(always)]
    unsafe fn widen<L: Lanes>(
        from: *const f32,
        count: usize,
        _: *mut f32,
        next: *const u8,
    ) -> *const f32 {
        ask::<StoredF32>(next, 0, count);
        from
    }
}

impl Stored for StoredF16 {
    type Element = u16;

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u16) -> L {
        // SAFETY: by the caller's word.
        unsafe { L::load_f16(from) }
    }

    #[inline(always)]
    unsafe fn one(from: *const u16) -> f32 {
        // SAFETY: by the caller's word.
        half::f16::from_bits(unsafe { *from }).to_f32()
    }

    #[inline(always)]
    unsafe fn widen<L: Lanes>(
        from: *const u16,
        count: usize,
        to: *mut f32,
        next: *const u8,
    ) -> *const f32 {
        for at in (0..count).step_by(WIDTH) {
            // SAFETY: by the caller's word.
            unsafe {
                L::load_f16(from.add(at)).store(to.add(at));
                if at % (2 * WIDTH) == 0 {
                    ask::<StoredF16>(next, at, 2 * WIDTH);
                }
            }
        }
        to
    }
}

/// Asks for the lines of some numbers of a block, which need not be there: it is a hint.
#[inline(always)]
pub(super) fn ask<S: Stored>(block: *const u8, first: usize, count: usize) {
    for line in 0..(count * size_of::<S::Element>()).div_ceil(64) {
        prefetch(block.wrapping_add(first * size_of::<S::Element>() + line * 64));
    }
}
