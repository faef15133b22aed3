//! Inputs rounded to 8 bit: per row the integers of all blocks, then a [`Meta`] a block.

use crate::cpu::SendPtr;
use crate::cpu::dispatch::per_isa;
use crate::cpu::lanes::{Lanes, WIDTH};
use crate::isa::Isa;
use crate::scratch::AlignedBuf;
use std::ops::Range;

/// What a kernel needs of a block of 32 rounded inputs besides the integers.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Meta {
    /// See [`crate::reference::QuantBlock::scale`].
    pub(super) scale: f32,
    /// Scale times the sum of the integers: the factor of minima.
    pub(super) scaled_sum: f32,
    /// Minus the sum of the integers: shifted, it corrects for the zero point.
    pub(super) neg_sum: i32,
    /// Minus the sum of the first 16.
    pub(super) neg_first: i32,
}

/// Bytes from one rounded row of `k` inputs to the next.
pub(super) fn row_stride(k: usize) -> usize {
    (k + k / 32 * size_of::<Meta>()).next_multiple_of(64)
}

/// Rounded rows. The buffer outlives the kernels that read it.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) first: *const u8,
    pub(super) k: usize,
}

// SAFETY: the buffer is only read while tasks run.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

impl Rows {
    /// The integers of a row.
    ///
    /// # Safety
    /// The row is within the buffer.
    #[inline(always)]
    pub(super) unsafe fn ints(self, row: usize) -> *const u8 {
        // SAFETY: by the caller's word.
        unsafe { self.first.add(row * row_stride(self.k)) }
    }

    /// What goes with block `block` of a row.
    ///
    /// # Safety
    /// The row and the block are within the buffer.
    #[inline(always)]
    pub(super) unsafe fn meta<'a>(self, row: usize, block: usize) -> &'a Meta {
        // SAFETY: rows start on 64 bytes and `k` is a multiple of 32, so the reference is aligned; the
        // rounding wrote it.
        unsafe { &*self.ints(row).add(self.k).cast::<Meta>().add(block) }
    }
}

/// Rows that are rounded as they are computed, a few blocks at a time.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Rounding {
    first: SendPtr<u8>,
    k: usize,
}

impl Rounding {
    /// Of `m` rows of `k` inputs, a multiple of 32, to `buffer`.
    pub(in crate::cpu) fn new(buffer: &mut AlignedBuf, m: usize, k: usize) -> Rounding {
        debug_assert!(k.is_multiple_of(32));
        buffer.grow(m * row_stride(k));
        let first = SendPtr(buffer.as_mut_ptr());
        Rounding { first, k }
    }

    /// Rounds `blocks` of row `row`, which begins at `x`.
    ///
    /// # Safety
    /// The processor has `isa`; the buffer has the row and the row has the blocks, which nobody else uses.
    #[inline]
    pub(in crate::cpu) unsafe fn round(
        self,
        isa: Isa,
        x: *const f32,
        row: usize,
        blocks: Range<usize>,
    ) {
        // SAFETY: by the caller's word.
        unsafe {
            let to = self.first.get().add(row * row_stride(self.k));
            quantize_blocks(isa, x, self.k, blocks, to);
        }
    }
}

per_isa! {
    /// Rounds some blocks of a row of `k` inputs as [`crate::reference::quantize_block`] says.
    unsafe fn quantize_blocks = quantize_blocks_of(x: *const f32, k: usize, blocks: Range<usize>, to: *mut u8);
}

/// # Safety
/// See [`Lanes`]; `x` has the blocks, `k` is a multiple of 32, and `to` has [`row_stride`] bytes on a 64-byte
/// boundary.
#[inline(always)]
unsafe fn quantize_blocks_of<L: Lanes>(x: *const f32, k: usize, blocks: Range<usize>, to: *mut u8) {
    for block in blocks {
        // SAFETY: the block lies within the row; the meta data start after its `k` integers.
        unsafe {
            let from = x.add(block * 32);
            let (a, b) = (L::load(from), L::load(from.add(WIDTH)));
            let amax = a.abs().max(b.abs()).max_lane();
            let inverse = L::splat(if amax > 0.0 { 127.0 / amax } else { 0.0 });
            let ints = to.add(block * 32).cast::<i8>();
            a.mul(inverse).store_i8(ints);
            b.mul(inverse).store_i8(ints.add(WIDTH));
            let (first, second) = (L::sum_i8(ints), L::sum_i8(ints.add(WIDTH)));
            let scale = amax / 127.0;
            to.add(k).cast::<Meta>().add(block).write(Meta {
                scale,
                // Exact: the sum is far below 2^24.
                scaled_sum: scale * (first + second) as f32,
                neg_sum: -(first + second),
                neg_first: -first,
            });
        }
    }
}
