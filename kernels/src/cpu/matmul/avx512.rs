//! 4- to 8-bit weights by 8-bit inputs with AVX-512 VNNI: a tile's 16 outputs are one register.

use super::format::{Format, Out, Tile};
use super::quantize::Rows;
use std::arch::x86_64::*;

/// One tile times `m` rows.
///
/// # Safety
/// The processor has the features; `tile` is of format `F`; `rows` and `out` have `m` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn tile<F: Format>(tile: &Tile, rows: Rows, first: usize, m: usize, out: Out) {
    let mut row = 0;
    while row < m {
        // SAFETY: rows `row..row + M` are within the `m` that the caller vouches for.
        unsafe {
            let (at, to) = (first + row, out.row(row));
            row += match m - row {
                8.. => few::<F, 8>(tile, rows, at, to),
                4.. => few::<F, 4>(tile, rows, at, to),
                2.. => few::<F, 2>(tile, rows, at, to),
                _ => few::<F, 1>(tile, rows, at, to),
            };
        }
    }
}

/// One tile times `M` rows: each weight register is unpacked once and used `M` times.
///
/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn few<F: Format, const M: usize>(tile: &Tile, rows: Rows, row: usize, out: Out) -> usize {
    // Two integer sums a row: for two scales, or to shorten the chain when rows are few.
    let split = F::PARTS == 2 || M <= 2;
    let second = usize::from(split);
    let mut acc = [_mm512_setzero_ps(); M];
    for block in 0..tile.blocks() {
        tile.prefetch::<F>(block);
        // SAFETY: the block is within the tile and the rows.
        unsafe {
            let mut dots = [[_mm512_setzero_si512(); 2]; M];
            for (r, dots) in dots.iter_mut().enumerate() {
                *dots = start::<F>(rows, row + r, block);
            }
            for j in 0..4 {
                let (low, high) = groups::<F>(tile, block, j);
                for (r, dots) in dots.iter_mut().enumerate() {
                    let x = rows.ints(row + r).add(block * 32 + j * 4).cast::<i32>();
                    let (a, b) = (x.read_unaligned(), x.add(4).read_unaligned());
                    dots[0] = _mm512_dpbusd_epi32(dots[0], low, _mm512_set1_epi32(a));
                    dots[second] = _mm512_dpbusd_epi32(dots[second], high, _mm512_set1_epi32(b));
                }
            }
            let scale = [
                number::<F>(tile.scale, block * F::PARTS),
                number::<F>(tile.scale, block * F::PARTS + F::PARTS - 1),
            ];
            let min = if F::MIN {
                number::<F>(tile.min, block)
            } else {
                _mm512_setzero_ps()
            };
            for (r, acc) in acc.iter_mut().enumerate() {
                let meta = rows.meta(row + r, block);
                let x_scale = _mm512_set1_ps(meta.scale);
                let [mut dot, other] = dots[r];
                if split && F::PARTS == 1 {
                    dot = _mm512_add_epi32(dot, other);
                }
                let factor = _mm512_mul_ps(scale[0], x_scale);
                *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factor, *acc);
                if F::PARTS == 2 {
                    let factor = _mm512_mul_ps(scale[1], x_scale);
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(other), factor, *acc);
                }
                if F::MIN {
                    *acc = _mm512_fmadd_ps(min, _mm512_set1_ps(meta.scaled_sum), *acc);
                }
            }
        }
    }
    let lanes = (0xFFFFu32 >> (16 - out.lanes)) as u16;
    for (r, acc) in acc.into_iter().enumerate() {
        // SAFETY: the row has `lanes` outputs from here on.
        unsafe {
            let (to, mut sum) = (out.row(r).first, acc);
            if out.add {
                sum = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, to), acc);
            }
            _mm512_mask_storeu_ps(to, lanes, sum);
        }
    }
    M
}

/// What the integer sums of a block start from: minus the zero point times the sum of inputs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn start<F: Format>(rows: Rows, row: usize, block: usize) -> [__m512i; 2] {
    let zero = _mm512_setzero_si512();
    let Some(shift) = F::ZERO else {
        return [zero; 2];
    };
    let count = _mm_cvtsi32_si128(shift as i32);
    // SAFETY: the caller's block.
    let meta = unsafe { rows.meta(row, block) };
    let all = _mm512_set1_epi32(meta.neg_sum);
    if F::PARTS == 1 {
        return [_mm512_sll_epi32(all, count), zero];
    }
    let first = _mm512_set1_epi32(meta.neg_first);
    [
        _mm512_sll_epi32(first, count),
        _mm512_sll_epi32(_mm512_sub_epi32(all, first), count),
    ]
}

/// Input groups `j` and `j + 4` of a block, as unsigned bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn groups<F: Format>(tile: &Tile, block: usize, j: usize) -> (__m512i, __m512i) {
    // SAFETY: the caller's block is within the tile, whose parts have these sizes a block.
    unsafe {
        if F::BYTE {
            let at = tile.base.add(block * 512 + j * 64);
            return (
                _mm512_load_si512(at.cast()),
                _mm512_load_si512(at.add(256).cast()),
            );
        }
        let nibbles = _mm512_load_si512(tile.base.add(block * 256 + j * 64).cast());
        let mask = _mm512_set1_epi8(15);
        let low = _mm512_and_si512(nibbles, mask);
        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(nibbles), mask);
        match F::EXTRA {
            0 => (low, high),
            1 => {
                let plane = _mm512_load_si512(tile.plane.add(block * 64).cast());
                let bit = _mm512_set1_epi8(16);
                let a = _mm512_sll_epi16(plane, _mm_cvtsi32_si128(4 - j as i32));
                let b = _mm512_srl_epi16(plane, _mm_cvtsi32_si128(j as i32));
                (or_and(low, a, bit), or_and(high, b, bit))
            }
            _ => {
                let planes = tile.plane.add(block * 128);
                let bits = _mm512_set1_epi8(48);
                let a = two_bits(_mm512_load_si512(planes.cast()), j);
                let b = two_bits(_mm512_load_si512(planes.add(64).cast()), j);
                (or_and(low, a, bits), or_and(high, b, bits))
            }
        }
    }
}

/// `a | b & mask`.
#[inline]
#[target_feature(enable = "avx512f")]
fn or_and(a: __m512i, b: __m512i, mask: __m512i) -> __m512i {
    _mm512_or_si512(a, _mm512_and_si512(b, mask))
}

/// Moves bits `2j` and `2j + 1` of each byte to bits 4 and 5.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn two_bits(v: __m512i, j: usize) -> __m512i {
    match j {
        0 => _mm512_slli_epi16::<4>(v),
        1 => _mm512_slli_epi16::<2>(v),
        2 => v,
        _ => _mm512_srli_epi16::<2>(v),
    }
}

/// Scales or minima number `index` of a tile's part.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn number<F: Format>(part: *const u8, index: usize) -> __m512 {
    // SAFETY: the caller's block is within the tile.
    unsafe {
        if F::WIDE {
            _mm512_load_ps(part.add(index * 64).cast())
        } else {
            _mm512_cvtph_ps(_mm256_load_si256(part.add(index * 32).cast()))
        }
    }
}
