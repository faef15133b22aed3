//! Weight types of GGUF files and how their blocks are written (ggml `ggml-common.h`).

use half::f16;

/// How weights are stored in the model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// 4 bit, one scale a block of 32.
    Q4_0,
    /// 4 bit, scale and minimum a block of 32.
    Q4_1,
    /// 5 bit, one scale a block of 32.
    Q5_0,
    /// 5 bit, scale and minimum a block of 32.
    Q5_1,
    /// 8 bit, one scale a block of 32.
    Q8_0,
    /// 4 bit, 6-bit scales and minima of 32 weights under f16 ones of 256.
    Q4K,
    /// 5 bit, 6-bit scales and minima of 32 weights under f16 ones of 256.
    Q5K,
    /// 6 bit, 8-bit scales of 16 weights under one f16 scale of 256.
    Q6K,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE single precision.
    F32,
}

impl WeightType {
    /// Every type.
    pub const ALL: [WeightType; 11] = [
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q8_0,
        WeightType::Q4K,
        WeightType::Q5K,
        WeightType::Q6K,
        WeightType::F16,
        WeightType::Bf16,
        WeightType::F32,
    ];

    /// Weights in a block; the row length is a multiple of it.
    pub fn block_len(self) -> usize {
        match self {
            WeightType::F16 | WeightType::Bf16 | WeightType::F32 => 1,
            WeightType::Q4K | WeightType::Q5K | WeightType::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block in the file.
    pub fn block_bytes(self) -> usize {
        match self {
            WeightType::Q4_0 => 18,
            WeightType::Q4_1 => 20,
            WeightType::Q5_0 => 22,
            WeightType::Q5_1 => 24,
            WeightType::Q8_0 => 34,
            WeightType::Q4K => 144,
            WeightType::Q5K => 176,
            WeightType::Q6K => 210,
            WeightType::F16 | WeightType::Bf16 => 2,
            WeightType::F32 => 4,
        }
    }

    /// The name that GGUF tools print.
    pub fn name(self) -> &'static str {
        match self {
            WeightType::Q4_0 => "Q4_0",
            WeightType::Q4_1 => "Q4_1",
            WeightType::Q5_0 => "Q5_0",
            WeightType::Q5_1 => "Q5_1",
            WeightType::Q8_0 => "Q8_0",
            WeightType::Q4K => "Q4_K",
            WeightType::Q5K => "Q5_K",
            WeightType::Q6K => "Q6_K",
            WeightType::F16 => "F16",
            WeightType::Bf16 => "BF16",
            WeightType::F32 => "F32",
        }
    }

    /// The type of a tensor's `ggml_type` number in a GGUF file; `None` if unsupported.
    pub fn from_ggml(id: u32) -> Option<WeightType> {
        Some(match id {
            0 => WeightType::F32,
            1 => WeightType::F16,
            2 => WeightType::Q4_0,
            3 => WeightType::Q4_1,
            6 => WeightType::Q5_0,
            7 => WeightType::Q5_1,
            8 => WeightType::Q8_0,
            12 => WeightType::Q4K,
            13 => WeightType::Q5K,
            14 => WeightType::Q6K,
            30 => WeightType::Bf16,
            _ => return None,
        })
    }

    /// Whether the weights are floats rather than small integers with scales.
    pub fn is_float(self) -> bool {
        self.block_len() == 1
    }

    /// Bytes of a row of `k` weights in the file; `k` is a multiple of [`WeightType::block_len`].
    pub fn row_bytes(self, k: usize) -> usize {
        k / self.block_len() * self.block_bytes()
    }
}

/// 32 consecutive quantized weights in the one shape that all types fit:
/// weight `i` is `(q[i] - zero) * scale[i / 16] + min`, with `zero` as [`zero_point`] gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Block32 {
    pub(crate) q: [u8; 32],
    pub(crate) scale: [f32; 2],
    pub(crate) min: f32,
}

/// What is subtracted from the stored integers of a type: a power of two, or 0 where minima are stored.
pub(crate) fn zero_point(ty: WeightType) -> u8 {
    match ty {
        WeightType::Q4_0 => 8,
        WeightType::Q5_0 => 16,
        WeightType::Q8_0 => 128,
        WeightType::Q6K => 32,
        _ => 0,
    }
}

/// Reads weights `32 * index ..` of a quantized row as it stands in the file.
pub(crate) fn block32(ty: WeightType, row: &[u8], index: usize) -> Block32 {
    let per_block = ty.block_len() / 32;
    let bytes = &row[index / per_block * ty.block_bytes()..][..ty.block_bytes()];
    let sub = index % per_block;
    match ty {
        WeightType::Q4_0 => simple(&bytes[..2], None, &bytes[2..], None),
        WeightType::Q4_1 => simple(&bytes[..2], Some(&bytes[2..4]), &bytes[4..], None),
        WeightType::Q5_0 => simple(&bytes[..2], None, &bytes[6..], Some(&bytes[2..6])),
        WeightType::Q5_1 => simple(
            &bytes[..2],
            Some(&bytes[2..4]),
            &bytes[8..],
            Some(&bytes[4..8]),
        ),
        WeightType::Q8_0 => {
            let q = std::array::from_fn(|i| bytes[2 + i] ^ 0x80);
            Block32 {
                q,
                scale: [half(bytes); 2],
                min: 0.0,
            }
        }
        WeightType::Q4K => q4_5k(bytes, sub, &bytes[16..], None),
        WeightType::Q5K => q4_5k(bytes, sub, &bytes[48..], Some(&bytes[16..48])),
        WeightType::Q6K => q6k(bytes, sub),
        WeightType::F16 | WeightType::Bf16 | WeightType::F32 => {
            unreachable!("{} has no quantized blocks", ty.name())
        }
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Q4_0, Q4_1, Q5_0, Q5_1: low nibbles are the first 16 weights, high nibbles the other 16.
fn simple(scale: &[u8], min: Option<&[u8]>, nibbles: &[u8], high: Option<&[u8]>) -> Block32 {
    let bits = high.map_or(0, |h| u32::from_le_bytes([h[0], h[1], h[2], h[3]]));
    let q = std::array::from_fn(|i| {
        let nibble = (nibbles[i % 16] >> (i / 16 * 4)) & 15;
        nibble | (((bits >> i) & 1) as u8) << 4
    });
    Block32 {
        q,
        scale: [half(scale); 2],
        min: min.map_or(0.0, half),
    }
}

/// Q4_K and Q5_K: sub-block `sub` of 8, its nibbles shared with its neighbour, its fifth bits in bit `sub`.
fn q4_5k(bytes: &[u8], sub: usize, nibbles: &[u8], high: Option<&[u8]>) -> Block32 {
    let (d, dmin, s) = (half(bytes), half(&bytes[2..]), &bytes[4..16]);
    let (scale, min) = if sub < 4 {
        (s[sub] & 63, s[sub + 4] & 63)
    } else {
        let low = s[sub + 4];
        (
            (low & 15) | (s[sub - 4] >> 6) << 4,
            (low >> 4) | (s[sub] >> 6) << 4,
        )
    };
    let q = std::array::from_fn(|i| {
        let nibble = (nibbles[sub / 2 * 32 + i] >> (sub % 2 * 4)) & 15;
        nibble | high.map_or(0, |h| ((h[i] >> sub) & 1) << 4)
    });
    Block32 {
        q,
        scale: [d * f32::from(scale); 2],
        min: -(dmin * f32::from(min)),
    }
}

/// Q6_K: sub-block `sub` of 8; four of them share 64 nibble bytes and 32 bytes of upper bits.
fn q6k(bytes: &[u8], sub: usize) -> Block32 {
    let (group, quarter) = (sub / 4, sub % 4);
    let low = &bytes[group * 64 + quarter % 2 * 32..][..32];
    let high = &bytes[128 + group * 32..][..32];
    let scales = &bytes[192 + group * 8 + quarter * 2..][..2];
    let d = half(&bytes[208..]);
    let q = std::array::from_fn(|i| {
        let nibble = (low[i] >> (quarter / 2 * 4)) & 15;
        nibble | ((high[i] >> (quarter * 2)) & 3) << 4
    });
    Block32 {
        q,
        scale: [
            d * f32::from(scales[0] as i8),
            d * f32::from(scales[1] as i8),
        ],
        min: 0.0,
    }
}

/// Reads float weight `index` of a row as it stands in the file.
pub(crate) fn float_weight(ty: WeightType, row: &[u8], index: usize) -> f32 {
    let b = &row[index * ty.block_bytes()..];
    match ty {
        WeightType::F16 => half(b),
        WeightType::Bf16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ggml_numbers_match_their_types() {
        let known: Vec<_> = (0..64).filter_map(WeightType::from_ggml).collect();
        assert_eq!(known.len(), WeightType::ALL.len());
        assert_eq!(WeightType::from_ggml(9), None, "Q8_1 is no weight type");
    }

    #[test]
    fn row_bytes_count_whole_blocks() {
        assert_eq!(WeightType::Q4_1.row_bytes(576), 18 * 20);
        assert_eq!(WeightType::Q6K.row_bytes(512), 420);
        assert_eq!(WeightType::Bf16.row_bytes(3), 6);
    }
}
