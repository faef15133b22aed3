//! Weights repacked at load into the tiles that the matrix kernels read.

mod tile;
mod types;

pub(crate) use tile::{Layout, TILE};
pub use types::WeightType;
pub(crate) use types::{block32, float_weight, zero_point};

use crate::isa::Isa;
use crate::pool::Pool;
use crate::scratch::AlignedBuf;
use std::sync::{Mutex, PoisonError};
use tile::{Base, pack_block, pack_floats, pack_row, unpack_block};

/// Parts that each thread packs of a matrix, so that cores that others use too are evened out.
const TASKS_A_THREAD: usize = 8;

/// What the inputs of a matrix product are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing: f32 inputs on weights dequantized in registers.
    F32,
    /// 8 bit with an f32 scale a block of 32 inputs. Float weights still take f32 inputs.
    Int8,
}

impl Activation {
    /// The name used in settings and audit records.
    pub fn name(self) -> &'static str {
        match self {
            Activation::F32 => "f32",
            Activation::Int8 => "int8",
        }
    }
}

/// Why weights cannot be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// A row is no whole number of blocks.
    #[error("rows of {k} weights are no multiple of {}'s block of {}", ty.name(), ty.block_len())]
    RowLength {
        /// The type given.
        ty: WeightType,
        /// The row length given.
        k: usize,
    },
    /// The bytes are not those of the shape.
    #[error("{n} x {k} weights of {} take {expected} bytes, not {actual}", ty.name())]
    ByteLength {
        /// The type given.
        ty: WeightType,
        /// Rows given.
        n: usize,
        /// Row length given.
        k: usize,
        /// Bytes that this shape takes.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// A dimension is zero, or the product overflows.
    #[error("a weight matrix of {n} x {k} cannot be packed")]
    Shape {
        /// Rows given.
        n: usize,
        /// Row length given.
        k: usize,
    },
}

/// A weight matrix of `n` outputs (rows) by `k` inputs (columns), repacked for [`Kernels::qmatmul`].
///
/// [`Kernels::qmatmul`]: crate::Kernels::qmatmul
pub struct PackedMatrix {
    ty: WeightType,
    act: Activation,
    n: usize,
    k: usize,
    layout: Layout,
    data: AlignedBuf,
}

impl PackedMatrix {
    /// Repacks `n` rows of `k` weights of type `ty`, as they lie in a GGUF file.
    ///
    /// All instruction sets share one layout today; `isa` is the one the matrix will be used with.
    pub fn pack(
        ty: WeightType,
        bytes: &[u8],
        n: usize,
        k: usize,
        act: Activation,
        isa: Isa,
    ) -> Result<PackedMatrix, PackError> {
        PackedMatrix::pack_on(&Pool::new(1), ty, bytes, n, k, act, isa)
    }

    /// As [`PackedMatrix::pack`], on the threads of a pool.
    pub fn pack_on(
        pool: &Pool,
        ty: WeightType,
        bytes: &[u8],
        n: usize,
        k: usize,
        act: Activation,
        isa: Isa,
    ) -> Result<PackedMatrix, PackError> {
        let _ = isa;
        if n == 0 || k == 0 || n.checked_mul(k).and_then(|w| w.checked_mul(8)).is_none() {
            return Err(PackError::Shape { n, k });
        }
        if !k.is_multiple_of(ty.block_len()) {
            return Err(PackError::RowLength { ty, k });
        }
        let row_bytes = ty.row_bytes(k);
        let (expected, actual) = (n * row_bytes, bytes.len());
        if expected != actual {
            return Err(PackError::ByteLength {
                ty,
                n,
                k,
                expected,
                actual,
            });
        }
        let layout = Layout::new(ty, k);
        let mut data = AlignedBuf::zeroed(n.div_ceil(TILE) * layout.stride);
        let tiles = data.bytes_mut().chunks_exact_mut(layout.stride);
        let tiles: Vec<_> = tiles.map(Mutex::new).collect();
        let tasks = tiles.len().min(pool.threads() * TASKS_A_THREAD);
        pool.run(tasks, &|task| {
            let mine = tiles.len() * task / tasks..tiles.len() * (task + 1) / tasks;
            for (index, tile) in mine.clone().zip(&tiles[mine]) {
                // Each is locked once: nobody waits.
                let tile = &mut *tile.lock().unwrap_or_else(PoisonError::into_inner);
                let rows = &bytes[index * TILE * row_bytes..];
                let rows = &rows[..rows.len().min(TILE * row_bytes)];
                pack_tile(&layout, ty, rows, row_bytes, tile);
            }
        });
        drop(tiles);
        Ok(PackedMatrix {
            ty,
            act,
            n,
            k,
            layout,
            data,
        })
    }

    /// Outputs: rows of the matrix.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs: columns of the matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The type the weights had in the file.
    pub fn weight_type(&self) -> WeightType {
        self.ty
    }

    /// What inputs are rounded to.
    pub fn activation(&self) -> Activation {
        self.act
    }

    /// Writes the `k` weights of `row` as f32, exactly as the file's format defines them: for embeddings.
    ///
    /// Panics if `row` is not below `n` or `out` is not `k` long.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n, "row {row} of {}", self.n);
        assert_eq!(out.len(), self.k);
        let (tile, lane) = (self.tile(row / TILE), row % TILE);
        if self.layout.base == Base::Float {
            for (i, out) in out.iter_mut().enumerate() {
                *out = float_weight(self.ty, tile, i * TILE + lane);
            }
            return;
        }
        let zero = i32::from(zero_point(self.ty));
        for (index, out) in out.chunks_exact_mut(32).enumerate() {
            let block = unpack_block(&self.layout, tile, index, lane);
            for (i, out) in out.iter_mut().enumerate() {
                *out = (i32::from(block.q[i]) - zero) as f32 * block.scale[i / 16] + block.min;
            }
        }
    }

    /// Tiles of the matrix.
    pub(crate) fn tiles(&self) -> usize {
        self.n.div_ceil(TILE)
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The bytes of all tiles, one after another.
    pub(crate) fn packed(&self) -> &[u8] {
        self.data.bytes()
    }

    /// The bytes of a tile, on a 64-byte boundary.
    pub(crate) fn tile(&self, index: usize) -> &[u8] {
        &self.data.bytes()[index * self.layout.stride..][..self.layout.stride]
    }
}

/// Packs the rows of one tile, at most [`TILE`].
fn pack_tile(layout: &Layout, ty: WeightType, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    for (lane, source) in rows.chunks_exact(row_bytes).enumerate() {
        if layout.base == Base::Float {
            pack_floats(ty, source, lane, tile);
            continue;
        }
        if pack_row(layout, ty, source, lane, tile) {
            continue;
        }
        let blocks = row_bytes / ty.block_bytes() * ty.block_len() / 32;
        for block in 0..blocks {
            let weights = block32(ty, source, block);
            pack_block(layout, &weights, block, lane, tile);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(ty: WeightType, bytes: usize, n: usize, k: usize) -> Result<PackedMatrix, PackError> {
        PackedMatrix::pack(ty, &vec![0; bytes], n, k, Activation::Int8, Isa::Portable)
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let ty = WeightType::Q4_1;
        assert_eq!(
            pack(ty, 20, 1, 33).err(),
            Some(PackError::RowLength { ty, k: 33 })
        );
        assert_eq!(
            pack(ty, 0, 0, 32).err(),
            Some(PackError::Shape { n: 0, k: 32 })
        );
        assert_eq!(
            pack(ty, 20, usize::MAX / 2, 32).err(),
            Some(PackError::Shape {
                n: usize::MAX / 2,
                k: 32
            })
        );
        let error = pack(ty, 39, 2, 32).err().expect("one byte is missing");
        assert_eq!(
            error.to_string(),
            "2 x 32 weights of Q4_1 take 40 bytes, not 39"
        );
    }

    #[test]
    fn rows_are_packed_alike_at_once_and_block_by_block() {
        let k = 96;
        for ty in [WeightType::Q4_0, WeightType::Q4_1, WeightType::Q8_0] {
            let layout = Layout::new(ty, k);
            let byte = |i: usize| (i * 89 % 251) as u8;
            let mut rows: Vec<u8> = (0..TILE * ty.row_bytes(k)).map(byte).collect();
            // No NaN: f32 between would quiet it.
            let blocks = rows.chunks_exact_mut(ty.block_bytes());
            blocks.for_each(|block| (block[1], block[3]) = (block[1] & 0x3F, block[3] & 0x3F));
            let mut tiles = [0, 1].map(|_| vec![0u8; layout.stride]);
            for (lane, row) in rows.chunks_exact(ty.row_bytes(k)).enumerate() {
                assert!(pack_row(&layout, ty, row, lane, &mut tiles[0]));
                for index in 0..k / 32 {
                    let block = block32(ty, row, index);
                    pack_block(&layout, &block, index, lane, &mut tiles[1]);
                }
            }
            assert_eq!(tiles[0], tiles[1], "{}", ty.name());
        }
    }

    #[test]
    fn packed_weights_take_the_file_s_size_and_the_padding_of_the_last_tile() {
        let bytes = |ty: WeightType, n| pack(ty, n * ty.row_bytes(512), n, 512).map(|w| w.bytes());
        for ty in [
            WeightType::Q4_0,
            WeightType::Q4_1,
            WeightType::Q8_0,
            WeightType::Bf16,
        ] {
            assert_eq!(bytes(ty, 32), Ok(32 * ty.row_bytes(512)));
            assert_eq!(bytes(ty, 17), bytes(ty, 32));
        }
    }
}
