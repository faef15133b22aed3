//! The bytes of a tile.
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

use super::types::{Block32, WeightType};
use half::f16;

/// Outputs in a tile.
pub(crate) const TILE: usize = 16;

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
    pub(super) fn new(ty: WeightType, k: usize) -> Layout {
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

/// Byte of input `i` of a block within `[8 groups][16 outputs][4 inputs]`.
fn byte_index(i: usize, lane: usize) -> usize {
    i / 4 * 64 + lane * 4 + i % 4
}

/// Writes one block of one output.
pub(super) fn pack_block(
    layout: &Layout,
    block: &Block32,
    index: usize,
    lane: usize,
    tile: &mut [u8],
) {
    let q = &block.q;
    match layout.base {
        Base::Byte => {
            let base = &mut tile[index * 512..][..512];
            (0..32).for_each(|i| base[byte_index(i, lane)] = q[i]);
        }
        Base::Nibble { extra } => {
            let base = &mut tile[index * 256..][..256];
            (0..16).for_each(|i| base[byte_index(i, lane)] = (q[i] & 15) | q[i + 16] << 4);
            let bits = usize::from(extra);
            let plane = &mut tile[layout.plane + index * 64 * bits..][..64 * bits];
            for (i, q) in q.iter().enumerate().filter(|_| extra > 0) {
                // A plane holds 8 bits of each byte position: 8 groups of one, or 4 of two.
                let (group, groups) = (i / 4, 8 / bits);
                let at = group / groups * 64 + byte_index(i % 4, lane);
                plane[at] |= (q >> 4) << (group % groups * bits);
            }
        }
        Base::Float => {}
    }
    for half in 0..layout.scales {
        let at = (index * layout.scales + half) * TILE + lane;
        put_number(layout, tile, layout.scale, at, block.scale[half]);
    }
    if layout.has_min {
        put_number(layout, tile, layout.min, index * TILE + lane, block.min);
    }
}

/// Packs a row of a type whose bytes lie in the file as they do in a tile, only not beside those of 15 other rows:
/// the same as [`pack_block`] of each block, four bytes at a time. Gives false for the other types.
pub(super) fn pack_row(
    layout: &Layout,
    ty: WeightType,
    row: &[u8],
    lane: usize,
    tile: &mut [u8],
) -> bool {
    // Bytes of scale and minimum, of weights, and which bits of these are turned.
    let (numbers, weights, flip) = match ty {
        WeightType::Q4_0 => (2, 16, 0),
        WeightType::Q4_1 => (4, 16, 0),
        WeightType::Q8_0 => (2, 32, 0x80),
        _ => return false,
    };
    for (index, block) in row.chunks_exact(numbers + weights).enumerate() {
        let (numbers, weights) = block.split_at(numbers);
        let lines = tile[index * weights.len() * TILE..].chunks_exact_mut(4 * TILE);
        for (line, four) in lines.zip(weights.as_chunks::<4>().0) {
            line[lane * 4..][..4].copy_from_slice(&four.map(|byte| byte ^ flip));
        }
        let at = (index * TILE + lane) * 2;
        for (part, number) in [layout.scale, layout.min]
            .into_iter()
            .zip(numbers.as_chunks().0)
        {
            let number = u16::from_le_bytes(*number).to_ne_bytes();
            tile[part + at..][..2].copy_from_slice(&number);
        }
    }
    true
}

/// The inverse of [`pack_block`].
pub(super) fn unpack_block(layout: &Layout, tile: &[u8], index: usize, lane: usize) -> Block32 {
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

/// Writes one output of a float type, as it lies in the file.
pub(super) fn pack_floats(ty: WeightType, source: &[u8], lane: usize, tile: &mut [u8]) {
    let size = ty.block_bytes();
    for (i, weight) in source.chunks_exact(size).enumerate() {
        tile[(i * TILE + lane) * size..][..size].copy_from_slice(weight);
    }
}
