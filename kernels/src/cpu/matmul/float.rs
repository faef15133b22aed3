//! Any weights by f32 inputs: weights become f32 in registers, one `fma` an input in ascending order.

use super::format::{AHEAD, Format, Out, Tile};
use crate::cpu::lanes::{Lanes, WIDTH, prefetch};

/// f32 rows. The slice outlives the kernels that read it.
#[derive(Clone, Copy)]
pub(super) struct FloatRows {
    pub(super) first: *const f32,
    pub(super) k: usize,
}

// SAFETY: the slice is only read while tasks run.
unsafe impl Send for FloatRows {}
// SAFETY: as above.
unsafe impl Sync for FloatRows {}

impl FloatRows {
    /// The inputs of a row.
    ///
    /// # Safety
    /// The slice has that row.
    #[inline(always)]
    pub(super) unsafe fn row(self, row: usize) -> *const f32 {
        // SAFETY: by the caller's word.
        unsafe { self.first.add(row * self.k) }
    }
}

/// Where 16 outputs' weights of one input come from.
pub(super) trait Source {
    /// Inputs handled together; `k` is a multiple.
    const STEP: usize;

    /// Adds inputs `step * STEP ..` times their weights to `acc`, for `M` rows from `x` on.
    ///
    /// # Safety
    /// See [`Lanes`]; the tile has the step and each row has `k` inputs.
    unsafe fn add<L: Lanes, const M: usize>(
        tile: &Tile,
        step: usize,
        x: *const f32,
        acc: &mut [L; M],
    );
}

/// IEEE half precision.
pub(super) struct Half;
/// Upper halves of f32.
pub(super) struct Brain;
/// Single precision.
pub(super) struct Single;

/// Implements [`Source`] for a float type.
macro_rules! float_source {
    ($name:ident, $element:ty, $load:ident) => {
        impl Source for $name {
            const STEP: usize = 1;

            #[inline(always)]
            unsafe fn add<L: Lanes, const M: usize>(
                tile: &Tile,
                step: usize,
                x: *const f32,
                acc: &mut [L; M],
            ) {
                // SAFETY: a tile holds 16 weights for each of `k` inputs.
                unsafe {
                    let from = tile.base.cast::<$element>().add(step * WIDTH);
                    prefetch(from.cast::<u8>().wrapping_add(AHEAD));
                    let w = L::$load(from);
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = L::splat(*x.add(r * tile.k + step)).fma(w, *acc);
                    }
                }
            }
        }
    };
}

float_source!(Half, u16, load_f16);
float_source!(Brain, u16, load_bf16);
float_source!(Single, f32, load);

impl<F: Format> Source for F {
    const STEP: usize = 32;

    #[inline(always)]
    unsafe fn add<L: Lanes, const M: usize>(
        tile: &Tile,
        block: usize,
        x: *const f32,
        acc: &mut [L; M],
    ) {
        tile.prefetch::<F>(block);
        // SAFETY: the block is within the tile, whose parts have these sizes a block.
        unsafe {
            let min = if F::MIN {
                number::<L, F>(tile.min, block)
            } else {
                L::splat(0.0)
            };
            for group in 0..8 {
                let part = block * F::PARTS + group / 4 * (F::PARTS - 1);
                let scale = number::<L, F>(tile.scale, part);
                let quads = quads::<L, F>(tile, block, group);
                for i in 0..4 {
                    let q = L::bits(quads, i * 8, 255);
                    let zero = F::ZERO.map_or(0, |shift| 1 << shift);
                    let w = L::ints_minus(q, zero).fma(scale, min);
                    let input = block * 32 + group * 4 + i as usize;
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = L::splat(*x.add(r * tile.k + input)).fma(w, *acc);
                    }
                }
            }
        }
    }
}

/// Four inputs of 16 outputs, a byte each.
#[inline(always)]
unsafe fn quads<L: Lanes, F: Format>(tile: &Tile, block: usize, group: usize) -> L::Ints {
    // SAFETY: the caller's block is within the tile.
    unsafe {
        if F::BYTE {
            return L::load_ints(tile.base.add(block * 512 + group * 64));
        }
        let nibbles = L::load_ints(tile.base.add(block * 256 + group % 4 * 64));
        let low = L::bits(nibbles, group as u32 / 4 * 4, 0x0F0F_0F0F);
        let (at, shift, mask) = match F::EXTRA {
            0 => return low,
            1 => (block * 64, group as u32, 0x0101_0101),
            _ => (
                block * 128 + group / 4 * 64,
                group as u32 % 4 * 2,
                0x0303_0303,
            ),
        };
        L::or_shifted(
            low,
            L::bits(L::load_ints(tile.plane.add(at)), shift, mask),
            4,
        )
    }
}

#[inline(always)]
unsafe fn number<L: Lanes, F: Format>(part: *const u8, index: usize) -> L {
    // SAFETY: the caller's block is within the tile.
    unsafe {
        if F::WIDE {
            L::load(part.cast::<f32>().add(index * WIDTH))
        } else {
            L::load_f16(part.cast::<u16>().add(index * WIDTH))
        }
    }
}

/// One tile times `m` rows from `first` on.
///
/// # Safety
/// See [`Lanes`]; the tile is of type `S`; `rows` and `out` have the rows.
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, S: Source>(
    tile: &Tile,
    rows: FloatRows,
    first: usize,
    m: usize,
    out: Out,
) {
    let mut row = 0;
    while row < m {
        // SAFETY: rows `row..row + M` are within the `m` that the caller vouches for.
        unsafe {
            let (x, to) = (rows.row(first + row), out.row(row));
            row += match m - row {
                4.. => few::<L, S, 4>(tile, x, to),
                2.. => few::<L, S, 2>(tile, x, to),
                _ => few::<L, S, 1>(tile, x, to),
            };
        }
    }
}

#[inline(always)]
unsafe fn few<L: Lanes, S: Source, const M: usize>(tile: &Tile, x: *const f32, out: Out) -> usize {
    // SAFETY: the caller's tile and rows; only `lanes` outputs a row are written.
    unsafe {
        let mut acc = [L::splat(0.0); M];
        for step in 0..tile.k / S::STEP {
            S::add(tile, step, x, &mut acc);
        }
        for (r, acc) in acc.into_iter().enumerate() {
            let mut lanes = [0f32; WIDTH];
            acc.store(lanes.as_mut_ptr());
            out.row(r).put(lanes.as_ptr());
        }
    }
    M
}
