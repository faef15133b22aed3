//! Weights repacked at load into the tiles that the matrix kernels read.
//!
//! A tile is [`TILE`] outputs (rows of the weight matrix), interleaved so that one vector load holds
//! the same four inputs of all of them:
//!
//! ```text
//! tile:   [bases][planes][scales][minima]        each part runs over the blocks of 32 inputs
//! base:   8-bit types: 8 groups x [output 0..16][4 inputs], a byte each                    512 bytes
//!         others:      4 groups x the same, low nibble = group g, high nibble = group g+4  256 bytes
//! plane:  5-bit types: [output][4 inputs], bit g of a byte = bit 4 of group g              64 bytes
//!         6-bit type:  2 x the same, bits 2g.. of plane p = bits 4,5 of group 4p+g         128 bytes
//! scale:  [16 outputs] f16, or f32 for the K types (6-bit type: two, one for 16 inputs each)
//! min:    [16 outputs] like the scales, for types that have minima
//! ```
//!
//! Group `g` of a block is its inputs `4g .. 4g+4`. Float types are `[input][16 outputs]` as stored.
//! The layout is the same for every instruction set. Outputs beyond `n` are zero.

mod types;

pub use types::WeightType;
pub(crate) use types::{Block32, block32, float_weight, zero_point};

use crate::isa::Isa;
use crate::scratch::AlignedBuf;
use half::f16;

/// Outputs in a tile.
pub(crate) const TILE: usize = 16;

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

/// How the integers of a tile are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// Nibbles, and this many further bits in planes (0, 1 or 2).
    Nibble { extra: u8 },
    /// Whole bytes.
    Byte,
    /// Floats of this type.
    Float,
}

/// Where the parts of a tile lie, in bytes from its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) base: Base,
    pub(crate) plane: usize,
    pub(crate) scale: usize,
    pub(crate) min: usize,
    /// Scales are f32 rather than f16.
    pub(crate) wide: bool,
    /// Scales a block of 32: 1, or 2 for the 6-bit type.
    pub(crate) scales: usize,
    pub(crate) has_min: bool,
    pub(crate) stride: usize,
}

impl Layout {
    fn new(ty: WeightType, k: usize) -> Layout {
        let base = match ty {
            WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q4K => Base::Nibble { extra: 0 },
            WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q5K => Base::Nibble { extra: 1 },
            WeightType::Q6K => Base::Nibble { extra: 2 },
            WeightType::Q8_0 => Base::Byte,
            WeightType::F16 | WeightType::Bf16 | WeightType::F32 => Base::Float,
        };
        let wide = matches!(ty, WeightType::Q4K | WeightType::Q5K | WeightType::Q6K);
        let scales = if ty == WeightType::Q6K { 2 } else { 1 };
        let has_min = matches!(
            ty,
            WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K
        );
        let number = if wide { 4 } else { 2 };
        let (base_bytes, plane_bytes) = match base {
            Base::Nibble { extra } => (256, 64 * usize::from(extra)),
            Base::Byte => (512, 0),
            Base::Float => {
                let stride = (k * TILE * ty.block_bytes()).next_multiple_of(64);
                return Layout {
                    base,
                    plane: 0,
                    scale: 0,
                    min: 0,
                    wide,
                    scales,
                    has_min,
                    stride,
                };
            }
        };
        let blocks = k / 32;
        let plane = blocks * base_bytes;
        let scale = plane + blocks * plane_bytes;
        let min = (scale + blocks * TILE * number * scales).next_multiple_of(64);
        let end = if has_min {
            min + blocks * TILE * number
        } else {
            min
        };
        Layout {
            base,
            plane,
            scale,
            min,
            wide,
            scales,
            has_min,
            stride: end.next_multiple_of(64),
        }
    }
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
        for (row, source) in bytes.chunks_exact(row_bytes).enumerate() {
            let tile = &mut data.bytes_mut()[row / TILE * layout.stride..][..layout.stride];
            match layout.base {
                Base::Float => pack_floats(ty, source, row % TILE, tile),
                _ => {
                    for block in 0..k / 32 {
                        let weights = block32(ty, source, block);
                        pack_block(&layout, &weights, block, row % TILE, tile);
                    }
                }
            }
        }
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

    /// The bytes of a tile, on a 64-byte boundary.
    pub(crate) fn tile(&self, index: usize) -> &[u8] {
        &self.data.bytes()[index * self.layout.stride..][..self.layout.stride]
    }
}

/// Byte of input `i` of a block within `[8 groups][16 outputs][4 inputs]`.
fn byte_index(i: usize, lane: usize) -> usize {
    i / 4 * 64 + lane * 4 + i % 4
}

fn pack_block(layout: &Layout, block: &Block32, index: usize, lane: usize, tile: &mut [u8]) {
    for (i, &q) in block.q.iter().enumerate() {
        match layout.base {
            Base::Byte => tile[index * 512 + byte_index(i, lane)] = q,
            Base::Nibble { extra } => {
                tile[index * 256 + byte_index(i % 16, lane)] |= (q & 15) << (i / 16 * 4);
                let (group, at) = (i / 4, layout.plane + index * 64 * usize::from(extra));
                match extra {
                    0 => {}
                    1 => tile[at + byte_index(i % 4, lane)] |= (q >> 4) << group,
                    _ => {
                        tile[at + group / 4 * 64 + byte_index(i % 4, lane)] |=
                            (q >> 4) << (group % 4 * 2);
                    }
                }
            }
            Base::Float => {}
        }
    }
    for half in 0..layout.scales {
        let at = (index * layout.scales + half) * TILE + lane;
        put_number(layout, tile, layout.scale, at, block.scale[half]);
    }
    if layout.has_min {
        put_number(layout, tile, layout.min, index * TILE + lane, block.min);
    }
}

/// The inverse of [`pack_block`].
pub(crate) fn unpack_block(layout: &Layout, tile: &[u8], index: usize, lane: usize) -> Block32 {
    let q = std::array::from_fn(|i| match layout.base {
        Base::Byte => tile[index * 512 + byte_index(i, lane)],
        Base::Nibble { extra } => {
            let low = (tile[index * 256 + byte_index(i % 16, lane)] >> (i / 16 * 4)) & 15;
            let (group, at) = (i / 4, layout.plane + index * 64 * usize::from(extra));
            let high = match extra {
                0 => 0,
                1 => (tile[at + byte_index(i % 4, lane)] >> group) & 1,
                _ => {
                    let plane = tile[at + group / 4 * 64 + byte_index(i % 4, lane)];
                    (plane >> (group % 4 * 2)) & 3
                }
            };
            low | high << 4
        }
        Base::Float => 0,
    });
    let scale = std::array::from_fn(|half| {
        let half = half.min(layout.scales - 1);
        number(
            layout,
            tile,
            layout.scale,
            (index * layout.scales + half) * TILE + lane,
        )
    });
    let min = match layout.has_min {
        true => number(layout, tile, layout.min, index * TILE + lane),
        false => 0.0,
    };
    Block32 { q, scale, min }
}

fn put_number(layout: &Layout, tile: &mut [u8], part: usize, at: usize, value: f32) {
    if layout.wide {
        tile[part + at * 4..][..4].copy_from_slice(&value.to_ne_bytes());
    } else {
        // Exact: these types store f16 in the file.
        tile[part + at * 2..][..2].copy_from_slice(&f16::from_f32(value).to_ne_bytes());
    }
}

fn number(layout: &Layout, tile: &[u8], part: usize, at: usize) -> f32 {
    if layout.wide {
        let b = &tile[part + at * 4..][..4];
        f32::from_ne_bytes([b[0], b[1], b[2], b[3]])
    } else {
        let b = &tile[part + at * 2..][..2];
        f16::from_ne_bytes([b[0], b[1]]).to_f32()
    }
}

fn pack_floats(ty: WeightType, source: &[u8], lane: usize, tile: &mut [u8]) {
    let size = ty.block_bytes();
    for (i, weight) in source.chunks_exact(size).enumerate() {
        tile[(i * TILE + lane) * size..][..size].copy_from_slice(weight);
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
