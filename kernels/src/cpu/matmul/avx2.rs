//! 4- to 8-bit weights by 8-bit inputs with AVX2: a tile's 16 outputs are two halves of 8.
//!
//! `maddubs` adds two products into 16 bits. Nibbles leave room for all 8 products of a block's lane
//! before widening (8 x 2 x 15 x 127 < 2^15), 5-bit weights for 4, 6-bit weights for 2; bytes are
//! widened at once.

use super::format::{Format, Out, Tile};
use super::quantize::Rows;
use std::arch::x86_64::*;
use std::hint::black_box;

/// Pairs of input groups in a block: group `j` and group `j + 4`.
const PAIRS: usize = 4;

/// One tile times `m` rows.
///
/// # Safety
/// The processor has the features; `tile` is of format `F`; `rows` and `out` have `m` rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile<F: Format>(tile: &Tile, rows: Rows, first: usize, m: usize, out: Out) {
    let mut row = 0;
    while row < m {
        // SAFETY: rows `row..row + M` are within the `m` that the caller vouches for.
        unsafe {
            let (at, to, ask) = (first + row, out.row(row), row == 0);
            row += match m - row {
                4.. if F::BYTE => few::<F, 4, 2>(tile, 0, rows, at, to, ask),
                4.. if F::PARTS == 1 => {
                    few::<F, 4, 1>(tile, 0, rows, at, to, ask);
                    few::<F, 4, 1>(tile, 1, rows, at, to, false)
                }
                2.. => {
                    few::<F, 2, 1>(tile, 0, rows, at, to, ask);
                    few::<F, 2, 1>(tile, 1, rows, at, to, false)
                }
                _ => few::<F, 1, 2>(tile, 0, rows, at, to, ask),
            };
        }
    }
}

/// `H` halves of a tile from `half` on times `M` rows: each weight register is unpacked once and used `M` times.
/// With `ask`, what comes next is asked for: the first rows do it for all.
///
/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few<F: Format, const M: usize, const H: usize>(
    tile: &Tile,
    half: usize,
    rows: Rows,
    row: usize,
    out: Out,
    ask: bool,
) -> usize {
    let mut acc = [[_mm256_setzero_ps(); H]; M];
    // Unrolled, bytes of two halves by four rows do not fit the registers, so the compiler is not to know how
    // many pairs of groups there are; nibbles of one half do fit.
    let pairs = if F::BYTE && M == 4 {
        black_box(PAIRS)
    } else {
        PAIRS
    };
    for block in 0..tile.blocks() {
        if ask {
            tile.prefetch::<F>(block);
        }
        // SAFETY: the block is within the tile and the rows.
        unsafe {
            let dots = dots::<F, M, H>(tile, half, rows, row, block, pairs);
            for h in 0..H {
                let at = |i| (block * F::PARTS + i) * 2 + half + h;
                let scale = [
                    number::<F>(tile.scale, at(0)),
                    number::<F>(tile.scale, at(F::PARTS - 1)),
                ];
                let min = if F::MIN {
                    number::<F>(tile.min, block * 2 + half + h)
                } else {
                    _mm256_setzero_ps()
                };
                for r in 0..M {
                    let meta = rows.meta(row + r, block);
                    let x_scale = _mm256_set1_ps(meta.scale);
                    let acc = &mut acc[r][h];
                    for part in 0..F::PARTS {
                        let factor = _mm256_mul_ps(scale[part], x_scale);
                        *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r][h][part]), factor, *acc);
                    }
                    if F::MIN {
                        *acc = _mm256_fmadd_ps(min, _mm256_set1_ps(meta.scaled_sum), *acc);
                    }
                }
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        for (h, acc) in acc.into_iter().enumerate() {
            // SAFETY: the row has `lanes` outputs from here on.
            unsafe { store(out.row(r), (half + h) * 8, acc) };
        }
    }
    M
}

/// The integer dot products of one block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<F: Format, const M: usize, const H: usize>(
    tile: &Tile,
    half: usize,
    rows: Rows,
    row: usize,
    block: usize,
    pairs: usize,
) -> [[[__m256i; 2]; H]; M] {
    let ones = _mm256_set1_epi16(1);
    let zero = _mm256_setzero_si256();
    // With one scale the sums of both groups of a pair go to the same place.
    let second = F::PARTS - 1;
    let mut wide = [[[zero; 2]; H]; M];
    let mut narrow = [[[zero; 2]; H]; M];
    for j in 0..pairs {
        let mut w = [(zero, zero); H];
        for (h, w) in w.iter_mut().enumerate() {
            // SAFETY: the caller's block.
            *w = unsafe { groups::<F>(tile, block, j, half + h) };
        }
        for r in 0..M {
            // SAFETY: the caller's block of the row has 32 integers.
            let (a, b) = unsafe {
                let x = rows.ints(row + r).add(block * 32 + j * 4).cast::<i32>();
                (
                    _mm256_set1_epi32(x.read_unaligned()),
                    _mm256_set1_epi32(x.add(4).read_unaligned()),
                )
            };
            for h in 0..H {
                let (low, high) = w[h];
                if F::BYTE {
                    let sum = &mut wide[r][h][0];
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(signed(low, a), ones));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(signed(high, b), ones));
                    continue;
                }
                let sums = &mut narrow[r][h];
                sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(low, a));
                sums[second] = _mm256_add_epi16(sums[second], _mm256_maddubs_epi16(high, b));
                if F::EXTRA > 0 && j % 2 == 1 {
                    for part in 0..F::PARTS {
                        let more = _mm256_madd_epi16(sums[part], ones);
                        wide[r][h][part] = _mm256_add_epi32(wide[r][h][part], more);
                        sums[part] = zero;
                    }
                }
            }
        }
    }
    if F::BYTE {
        return wide;
    }
    for r in 0..M {
        // SAFETY: the caller's block.
        let start = unsafe { start::<F>(rows, row + r, block) };
        for h in 0..H {
            for part in 0..F::PARTS {
                if F::EXTRA == 0 {
                    wide[r][h][part] = _mm256_madd_epi16(narrow[r][h][part], ones);
                }
                if F::ZERO.is_some() {
                    wide[r][h][part] = _mm256_add_epi32(wide[r][h][part], start[part]);
                }
            }
        }
    }
    wide
}

/// Products of bytes with zero point 128: the sign moves to the inputs, so that the weights are unsigned.
#[inline]
#[target_feature(enable = "avx2")]
fn signed(w: __m256i, x: __m256i) -> __m256i {
    let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
}

/// Minus the zero point times the sum of inputs, for each scale of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn start<F: Format>(rows: Rows, row: usize, block: usize) -> [__m256i; 2] {
    let zero = _mm256_setzero_si256();
    let Some(shift) = F::ZERO else {
        return [zero; 2];
    };
    let count = _mm_cvtsi32_si128(shift as i32);
    // SAFETY: the caller's block.
    let meta = unsafe { rows.meta(row, block) };
    let all = _mm256_set1_epi32(meta.neg_sum);
    if F::PARTS == 1 {
        return [_mm256_sll_epi32(all, count), zero];
    }
    let first = _mm256_set1_epi32(meta.neg_first);
    [
        _mm256_sll_epi32(first, count),
        _mm256_sll_epi32(_mm256_sub_epi32(all, first), count),
    ]
}

/// Input groups `j` and `j + 4` of one half of a block, as unsigned bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn groups<F: Format>(
    tile: &Tile,
    block: usize,
    j: usize,
    half: usize,
) -> (__m256i, __m256i) {
    // SAFETY: the caller's block is within the tile, whose parts have these sizes a block.
    unsafe {
        let half = half * 32;
        if F::BYTE {
            let at = tile.base.add(block * 512 + j * 64 + half);
            return (
                _mm256_load_si256(at.cast()),
                _mm256_load_si256(at.add(256).cast()),
            );
        }
        let nibbles = _mm256_load_si256(tile.base.add(block * 256 + j * 64 + half).cast());
        let mask = _mm256_set1_epi8(15);
        let low = _mm256_and_si256(nibbles, mask);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(nibbles), mask);
        match F::EXTRA {
            0 => (low, high),
            1 => {
                let plane = _mm256_load_si256(tile.plane.add(block * 64 + half).cast());
                let bit = _mm256_set1_epi8(16);
                let a = _mm256_sll_epi16(plane, _mm_cvtsi32_si128(4 - j as i32));
                let b = _mm256_srl_epi16(plane, _mm_cvtsi32_si128(j as i32));
                (or_and(low, a, bit), or_and(high, b, bit))
            }
            _ => {
                let planes = tile.plane.add(block * 128 + half);
                let bits = _mm256_set1_epi8(48);
                let a = two_bits(_mm256_load_si256(planes.cast()), j);
                let b = two_bits(_mm256_load_si256(planes.add(64).cast()), j);
                (or_and(low, a, bits), or_and(high, b, bits))
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

/// Eight scales or minima, number `index` of a tile's part.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn number<F: Format>(part: *const u8, index: usize) -> __m256 {
    // SAFETY: the caller's block is within the tile.
    unsafe {
        if F::WIDE {
            _mm256_load_ps(part.add(index * 32).cast())
        } else {
            _mm256_cvtph_ps(_mm_load_si128(part.add(index * 16).cast()))
        }
    }
}

/// Writes outputs `lane..lane + 8` of a tile's row, as far as there are any.
///
/// # Safety
/// The row has `out.lanes` outputs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store(out: Out, lane: usize, v: __m256) {
    // SAFETY: only outputs below `out.lanes` are written.
    unsafe {
        if out.lanes >= lane + 8 {
            _mm256_storeu_ps(out.first.add(lane), v);
        } else if out.lanes > lane {
            let mut lanes = [0f32; 8];
            _mm256_storeu_ps(lanes.as_mut_ptr(), v);
            out.first
                .add(lane)
                .copy_from_nonoverlapping(lanes.as_ptr(), out.lanes - lane);
        }
    }
}
