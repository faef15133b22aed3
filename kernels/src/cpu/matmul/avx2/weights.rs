//! Packed weights as registers of bytes: unpacked where they are used, or beforehand for many rows.

use super::super::format::{Format, Tile};
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Blocks that are unpacked at a time: their bytes, numbers and a few rows stay in the first-level cache.
pub(super) const CHUNK: usize = 8;

/// Bytes of an unpacked block: `[8 groups][16 outputs][4 inputs]`.
const BLOCK_BYTES: usize = 512;

/// Unpacked blocks.
#[repr(align(64))]
pub(super) struct Chunk {
    unsigned: [MaybeUninit<u8>; CHUNK * BLOCK_BYTES],
    /// Of byte formats only.
    signed: [MaybeUninit<u8>; CHUNK * BLOCK_BYTES],
    /// 16 numbers for each scale of a block.
    scale: [MaybeUninit<f32>; CHUNK * 2 * 16],
    min: [MaybeUninit<f32>; CHUNK * 16],
}

impl Chunk {
    /// Without blocks.
    pub(super) fn new() -> Chunk {
        Chunk {
            unsigned: [MaybeUninit::uninit(); CHUNK * BLOCK_BYTES],
            signed: [MaybeUninit::uninit(); CHUNK * BLOCK_BYTES],
            scale: [MaybeUninit::uninit(); CHUNK * 2 * 16],
            min: [MaybeUninit::uninit(); CHUNK * 16],
        }
    }
}

/// Four inputs of 16 outputs.
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// As `maddubs` takes them: the weights plus their zero point, or the magnitudes of bytes.
    pub(super) unsigned: [__m256i; 2],
    /// Bytes with their signs; of other formats, what is in `unsigned`.
    pub(super) signed: [__m256i; 2],
}

/// A tile's weights: in the chunk that holds them if `UNPACKED`, else in the tile.
pub(super) struct Weights<'a, F, const UNPACKED: bool> {
    pub(super) tile: &'a Tile,
    chunk: *const Chunk,
    /// The block that the chunk begins with.
    first: usize,
    format: PhantomData<F>,
}

impl<'a, F: Format> Weights<'a, F, false> {
    /// As they lie in the tile.
    pub(super) fn packed(tile: &'a Tile) -> Self {
        let (chunk, first, format) = (std::ptr::null(), 0, PhantomData);
        Weights {
            tile,
            chunk,
            first,
            format,
        }
    }
}

impl<'a, F: Format> Weights<'a, F, true> {
    /// Of a chunk that begins with block `first`.
    pub(super) fn unpacked(tile: &'a Tile, chunk: &'a Chunk, first: usize) -> Self {
        let (chunk, format) = (std::ptr::from_ref(chunk), PhantomData);
        Weights {
            tile,
            chunk,
            first,
            format,
        }
    }
}

impl<F: Format, const UNPACKED: bool> Weights<'_, F, UNPACKED> {
    /// Inputs `4 * group..` of a block.
    ///
    /// # Safety
    /// The tile, or the chunk, has the block.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn group(&self, block: usize, group: usize) -> Group {
        // SAFETY: by the caller's word.
        unsafe {
            if !UNPACKED {
                return packed_group::<F>(self.tile, block, group);
            }
            let at = (block - self.first) * BLOCK_BYTES + group * 64;
            let unsigned = get((&raw const (*self.chunk).unsigned).cast::<u8>().add(at));
            let signed = match F::BYTE {
                true => get((&raw const (*self.chunk).signed).cast::<u8>().add(at)),
                false => unsigned,
            };
            Group { unsigned, signed }
        }
    }

    /// The scales of part `part` of a block.
    ///
    /// # Safety
    /// As for [`Weights::group`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn scale(&self, block: usize, part: usize) -> [__m256; 2] {
        // SAFETY: by the caller's word.
        unsafe {
            if !UNPACKED {
                return numbers::<F>(self.tile.scale, block * F::PARTS + part);
            }
            let index = (block - self.first) * F::PARTS + part;
            ready((&raw const (*self.chunk).scale).cast(), index)
        }
    }

    /// The minima of a block.
    ///
    /// # Safety
    /// As for [`Weights::group`]; the format has minima.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn min(&self, block: usize) -> [__m256; 2] {
        // SAFETY: by the caller's word.
        unsafe {
            if !UNPACKED {
                return numbers::<F>(self.tile.min, block);
            }
            ready((&raw const (*self.chunk).min).cast(), block - self.first)
        }
    }
}

/// Unpacks some blocks, at most [`CHUNK`], and asks for what comes next.
///
/// # Safety
/// The tile is of format `F` and has the blocks.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack<F: Format>(tile: &Tile, blocks: Range<usize>, to: &mut Chunk) {
    debug_assert!(blocks.len() <= CHUNK);
    for (index, block) in blocks.enumerate() {
        tile.prefetch::<F>(block);
        // SAFETY: the block is the caller's; the chunk has room for `CHUNK` of them.
        unsafe {
            for group in 0..8 {
                let weights = packed_group::<F>(tile, block, group);
                let at = index * BLOCK_BYTES + group * 64;
                put(to.unsigned.as_mut_ptr().add(at).cast(), weights.unsigned);
                if F::BYTE {
                    put(to.signed.as_mut_ptr().add(at).cast(), weights.signed);
                }
            }
            for part in 0..F::PARTS {
                let scale = numbers::<F>(tile.scale, block * F::PARTS + part);
                let at = (index * F::PARTS + part) * 16;
                put_numbers(to.scale.as_mut_ptr().add(at).cast(), scale);
            }
            if F::MIN {
                let min = numbers::<F>(tile.min, block);
                put_numbers(to.min.as_mut_ptr().add(index * 16).cast(), min);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn get(from: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller's bytes are a whole line.
    unsafe {
        let from = from.cast::<__m256i>();
        [_mm256_load_si256(from), _mm256_load_si256(from.add(1))]
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn put(to: *mut __m256i, v: [__m256i; 2]) {
    // SAFETY: the caller has room for both, on a 32-byte boundary.
    unsafe {
        _mm256_store_si256(to, v[0]);
        _mm256_store_si256(to.add(1), v[1]);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn put_numbers(to: *mut f32, v: [__m256; 2]) {
    // SAFETY: the caller has room for 16, on a 32-byte boundary.
    unsafe {
        _mm256_store_ps(to, v[0]);
        _mm256_store_ps(to.add(8), v[1]);
    }
}

/// Sixteen unpacked numbers.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn ready(from: *const f32, index: usize) -> [__m256; 2] {
    // SAFETY: the caller's chunk holds them, on a 64-byte boundary.
    unsafe {
        let from = from.add(index * 16);
        [_mm256_load_ps(from), _mm256_load_ps(from.add(8))]
    }
}

/// Sixteen scales or minima, number `index` of a tile's part.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn numbers<F: Format>(part: *const u8, index: usize) -> [__m256; 2] {
    // SAFETY: the caller's block is within the tile.
    unsafe {
        if F::WIDE {
            let from = part.add(index * 64).cast::<f32>();
            [_mm256_load_ps(from), _mm256_load_ps(from.add(8))]
        } else {
            let from = part.add(index * 32).cast::<__m128i>();
            [
                _mm256_cvtph_ps(_mm_load_si128(from)),
                _mm256_cvtph_ps(_mm_load_si128(from.add(1))),
            ]
        }
    }
}

/// Inputs `4 * group..` of a block, from the tile.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn packed_group<F: Format>(tile: &Tile, block: usize, group: usize) -> Group {
    // SAFETY: the caller's block is within the tile.
    unsafe {
        if F::BYTE {
            let from = tile.base.add(block * 512 + group * 64).cast::<__m256i>();
            let flip = _mm256_set1_epi8(-128);
            let signed = [
                _mm256_xor_si256(_mm256_load_si256(from), flip),
                _mm256_xor_si256(_mm256_load_si256(from.add(1)), flip),
            ];
            return Group {
                unsigned: [_mm256_abs_epi8(signed[0]), _mm256_abs_epi8(signed[1])],
                signed,
            };
        }
        let both = [
            unsigned::<F>(tile, block, group, 0),
            unsigned::<F>(tile, block, group, 32),
        ];
        Group {
            unsigned: both,
            signed: both,
        }
    }
}

/// Inputs `4 * group..` of 8 outputs of a block: those whose bytes are `lanes` bytes into a line.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unsigned<F: Format>(tile: &Tile, block: usize, group: usize, lanes: usize) -> __m256i {
    let (j, high) = (group % 4, group / 4);
    // SAFETY: the caller's block is within the tile, whose parts have these sizes a block.
    unsafe {
        let nibbles = _mm256_load_si256(tile.base.add(block * 256 + j * 64 + lanes).cast());
        let nibbles = match high {
            0 => nibbles,
            _ => _mm256_srli_epi16::<4>(nibbles),
        };
        let nibbles = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
        match F::EXTRA {
            0 => nibbles,
            1 => {
                let plane = _mm256_load_si256(tile.plane.add(block * 64 + lanes).cast());
                let bit = match high {
                    0 => _mm256_sll_epi16(plane, _mm_cvtsi32_si128(4 - j as i32)),
                    _ => _mm256_srl_epi16(plane, _mm_cvtsi32_si128(j as i32)),
                };
                or_and(nibbles, bit, _mm256_set1_epi8(16))
            }
            _ => {
                let plane = tile.plane.add(block * 128 + high * 64 + lanes);
                let bits = two_bits(_mm256_load_si256(plane.cast()), j);
                or_and(nibbles, bits, _mm256_set1_epi8(48))
            }
        }
    }
}

/// `a | b & mask`.
#[inline]
#[target_feature(enable = "avx2")]
fn or_and(a: __m256i, b: __m256i, mask: __m256i) -> __m256i {
    _mm256_or_si256(a, _mm256_and_si256(b, mask))
}

/// Moves bits `2j` and `2j + 1` of each byte to bits 4 and 5.
#[inline]
#[target_feature(enable = "avx2")]
fn two_bits(v: __m256i, j: usize) -> __m256i {
    match j {
        0 => _mm256_slli_epi16::<4>(v),
        1 => _mm256_slli_epi16::<2>(v),
        2 => v,
        _ => _mm256_srli_epi16::<2>(v),
    }
}
