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
    for first in blocks.clone().step_by(WIDTH) {
        let end = blocks.end.min(first + WIDTH);
        // SAFETY: by the caller's word.
        unsafe { quantize_few::<L>(x, k, first..end, to) };
    }
}

/// As many blocks as there are lanes at most: divisions of all of them are one.
#[inline(always)]
unsafe fn quantize_few<L: Lanes>(x: *const f32, k: usize, blocks: Range<usize>, to: *mut u8) {
    let (mut scales, mut inverses) = ([0f32; WIDTH], [0f32; WIDTH]);
    // SAFETY: the blocks lie within the row; the meta data start after its `k` integers.
    unsafe {
        // Lane by lane, not by way of memory: a vector that was written number by number is read late.
        let mut highest = L::splat(0.0);
        for (i, block) in blocks.clone().enumerate() {
            let from = x.add(block * 32);
            let (a, b) = (L::load(from), L::load(from.add(WIDTH)));
            let amax = L::splat(a.abs().max(b.abs()).max_lane());
            highest = amax.keep(i, i + 1, highest);
        }
        let all = L::splat(127.0);
        highest.div(all).store(scales.as_mut_ptr());
        // A block of zeros is rounded with 0, not with infinity.
        let least = L::splat(f32::from_bits(1));
        let inverse = all.div(highest);
        let inverse = inverse.scale_or_zero(L::splat(0.0), highest, least);
        inverse.store(inverses.as_mut_ptr());
        for (i, block) in blocks.enumerate() {
            let (from, inverse) = (x.add(block * 32), L::splat(inverses[i]));
            let ints = to.add(block * 32).cast::<i8>();
            L::load(from).mul(inverse).store_i8(ints);
            L::load(from.add(WIDTH))
                .mul(inverse)
                .store_i8(ints.add(WIDTH));
            let (first, second) = (L::sum_i8(ints), L::sum_i8(ints.add(WIDTH)));
            let scale = scales[i];
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::quantize_block;

    #[test]
    fn blocks_are_rounded_as_the_reference_rounds_them_however_many_go_together() {
        // One of zeros, one of which the largest is near the smallest number that can be divided by, and more than
        // lanes.
        let mut x: Vec<f32> = (0..40 * 32)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 1.3f32.powi(i / 32 - 20))
            .collect();
        x[3 * 32..4 * 32].fill(0.0);
        x[20 * 32..21 * 32].fill(0.0);
        x[20 * 32 + 5] = 1e-36;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
            for blocks in [0..40, 3..4, 2..18, 5..22] {
                let mut buffer = AlignedBuf::default();
                let rounding = Rounding::new(&mut buffer, 1, x.len());
                // SAFETY: the processor has the instruction set, and both have the row.
                unsafe { rounding.round(isa, x.as_ptr(), 0, blocks.clone()) };
                let rows = Rows {
                    first: buffer.as_ptr(),
                    k: x.len(),
                };
                for block in blocks {
                    let expected = quantize_block(&x[block * 32..][..32]);
                    // SAFETY: the block was written above.
                    let (ints, meta) = unsafe {
                        let ints = rows.ints(0).add(block * 32).cast::<[i8; 32]>();
                        (ints.read(), rows.meta(0, block))
                    };
                    assert_eq!(ints, expected.q, "{isa}, block {block}");
                    assert_eq!(meta.scale, expected.scale, "{isa}, block {block}");
                    let first: i32 = expected.q[..16].iter().map(|q| i32::from(*q)).sum();
                    assert_eq!((meta.neg_sum, meta.neg_first), (-expected.sum, -first));
                    assert_eq!(meta.scaled_sum, expected.scale * expected.sum as f32);
                }
            }
        }
    }
}
