//! What the matrix kernels know of a weight type at compile time, and where its parts lie in a tile.

use crate::cpu::lanes::prefetch;
use crate::weights::PackedMatrix;

/// A quantized weight type.
pub(super) trait Format {
    /// Whole bytes instead of nibbles.
    const BYTE: bool = false;
    /// Bits beyond the nibble.
    const EXTRA: u32 = 0;
    /// Scales and minima are f32 instead of f16.
    const WIDE: bool = false;
    /// Scales a block of 32 inputs.
    const PARTS: usize = 1;
    /// Minima are stored.
    const MIN: bool = false;
    /// The zero point is `1 << ZERO`; `None` for 0.
    const ZERO: Option<u32> = None;
    /// Cache lines a block takes, all parts together.
    const LINES: usize = {
        let base = if Self::BYTE {
            512
        } else {
            256 + 64 * Self::EXTRA as usize
        };
        let numbers = Self::PARTS + Self::MIN as usize;
        (base + 16 * numbers * if Self::WIDE { 4 } else { 2 }).div_ceil(64)
    };
}

/// Declares formats and the macro that turns a [`crate::WeightType`] into one of them.
macro_rules! formats {
    ($($ty:ident { $($name:ident: $t:ty = $value:expr),* })+) => {
        $(pub(super) struct $ty;
        impl Format for $ty { $(const $name: $t = $value;)* })+
    };
}

formats! {
    Q4_0 { ZERO: Option<u32> = Some(3) }
    Q4_1 { MIN: bool = true }
    Q5_0 { EXTRA: u32 = 1, ZERO: Option<u32> = Some(4) }
    Q5_1 { EXTRA: u32 = 1, MIN: bool = true }
    Q8_0 { BYTE: bool = true, ZERO: Option<u32> = Some(7) }
    Q4K { WIDE: bool = true, MIN: bool = true }
    Q5K { EXTRA: u32 = 1, WIDE: bool = true, MIN: bool = true }
    Q6K { EXTRA: u32 = 2, WIDE: bool = true, PARTS: usize = 2, ZERO: Option<u32> = Some(5) }
}

/// Evaluates `$body` with `$F` as the format of the quantized weight type `$ty`; `$other` for float types.
macro_rules! with_format {
    ($ty:expr, $F:ident => $body:expr, else $other:expr) => {
        match $ty {
            crate::WeightType::Q4_0 => {
                type $F = crate::cpu::matmul::format::Q4_0;
                $body
            }
            crate::WeightType::Q4_1 => {
                type $F = crate::cpu::matmul::format::Q4_1;
                $body
            }
            crate::WeightType::Q5_0 => {
                type $F = crate::cpu::matmul::format::Q5_0;
                $body
            }
            crate::WeightType::Q5_1 => {
                type $F = crate::cpu::matmul::format::Q5_1;
                $body
            }
            crate::WeightType::Q8_0 => {
                type $F = crate::cpu::matmul::format::Q8_0;
                $body
            }
            crate::WeightType::Q4K => {
                type $F = crate::cpu::matmul::format::Q4K;
                $body
            }
            crate::WeightType::Q5K => {
                type $F = crate::cpu::matmul::format::Q5K;
                $body
            }
            crate::WeightType::Q6K => {
                type $F = crate::cpu::matmul::format::Q6K;
                $body
            }
            crate::WeightType::F16 | crate::WeightType::Bf16 | crate::WeightType::F32 => $other,
        }
    };
}
pub(super) use with_format;

/// Pointers to the parts of one tile. They live as long as the matrix they were made from.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) base: *const u8,
    pub(super) plane: *const u8,
    pub(super) scale: *const u8,
    pub(super) min: *const u8,
    /// Inputs.
    pub(super) k: usize,
    /// Bytes a block takes, all parts together, rounded up.
    block_bytes: usize,
}

/// How far ahead of its use a tile is asked for: what memory delivers to a core in its latency, doubled.
pub(super) const AHEAD: usize = 4096;

impl Tile {
    pub(super) fn new(w: &PackedMatrix, index: usize) -> Tile {
        let (bytes, layout) = (w.tile(index), w.layout());
        Tile {
            base: bytes.as_ptr(),
            plane: bytes[layout.plane..].as_ptr(),
            scale: bytes[layout.scale..].as_ptr(),
            min: bytes[layout.min.min(bytes.len())..].as_ptr(),
            k: w.k(),
            block_bytes: layout.stride.div_ceil((w.k() / 32).max(1)),
        }
    }

    /// Asks for what block `block` of the tile [`AHEAD`] bytes on takes. Tiles follow each other, so that
    /// the whole matrix is asked for in order; between the many products of a block the processor's own
    /// prefetcher falls behind.
    #[inline(always)]
    pub(super) fn prefetch<F: Format>(&self, block: usize) {
        let from = self.base.wrapping_add(AHEAD + block * self.block_bytes);
        for line in 0..F::LINES {
            prefetch(from.wrapping_add(line * 64));
        }
    }

    /// Blocks of 32 inputs.
    pub(super) fn blocks(&self) -> usize {
        self.k / 32
    }
}

/// Where a kernel writes: rows of `n` outputs, of which it fills `lanes` from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub(super) first: *mut f32,
    pub(super) n: usize,
    pub(super) lanes: usize,
    /// Results are added to what is there.
    pub(super) add: bool,
}

// SAFETY: the pointer is into a slice that the caller of the op borrows uniquely for as long as the
// tasks run, and each task writes other outputs.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// Writes the outputs of one row from memory, as far as there are any.
    ///
    /// # Safety
    /// The row has `lanes` outputs, and so has `from`.
    #[inline(always)]
    pub(super) unsafe fn put(self, from: *const f32) {
        for lane in 0..self.lanes {
            // SAFETY: by the caller's word.
            unsafe {
                let (to, v) = (self.first.add(lane), *from.add(lane));
                *to = if self.add { *to + v } else { v };
            }
        }
    }

    /// The place from row `row` on.
    ///
    /// # Safety
    /// The slice has that row.
    #[inline(always)]
    pub(super) unsafe fn row(self, row: usize) -> Out {
        // SAFETY: within the slice by the caller's word.
        let first = unsafe { self.first.add(row * self.n) };
        Out { first, ..self }
    }
}
