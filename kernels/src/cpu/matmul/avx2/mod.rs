//! 4- to 8-bit weights by 8-bit inputs with AVX2: a tile's 16 outputs are two registers.
//!
//! `maddubs` adds two products into 16 bits. Nibbles leave room for all 8 products of a block's lane before
//! widening (8 x 2 x 15 x 127 < 2^15), 5-bit weights for 4, 6-bit weights for 2; bytes are widened at once.
//! Four rows by 16 outputs are eight sums: with two registers of weights, an input and a product they fit the
//! 16 registers, and each input that is spread over a register serves both halves of the tile.

mod weights;

use super::ROW_BLOCK;
use super::format::{Format, Out, Tile};
use super::quantize::Rows;
use crate::weights::TILE;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use weights::{CHUNK, Chunk, Weights, unpack};

/// Rows from which on weights are unpacked to memory for all of them, a [`CHUNK`] at a time; for fewer it costs
/// less to unpack them in registers, once for four.
const UNPACKED_ROWS: usize = 9;

/// What a tile's rows have summed up so far.
#[repr(align(64))]
struct Sums([MaybeUninit<[f32; TILE]>; ROW_BLOCK]);

/// One tile times `m` rows, at most [`ROW_BLOCK`].
///
/// # Safety
/// The processor has the features; `tile` is of format `F`; `rows` and `out` have `m` rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile<F: Format>(tile: &Tile, rows: Rows, first: usize, m: usize, out: Out) {
    if m >= UNPACKED_ROWS {
        // SAFETY: by the caller's word.
        return unsafe { many::<F>(tile, rows, first, m, out) };
    }
    let weights = Weights::<F, false>::packed(tile);
    let mut row = 0;
    while row < m {
        // SAFETY: rows `row..row + M` are within the `m` that the caller vouches for.
        unsafe {
            // What comes next is asked for once: the first rows do it for all.
            let (at, to, ask) = (first + row, out.row(row), row == 0);
            row += match m - row {
                4.. => few::<F, 4>(&weights, rows, at, to, ask),
                2.. => few::<F, 2>(&weights, rows, at, to, ask),
                _ => few::<F, 1>(&weights, rows, at, to, ask),
            };
        }
    }
}

/// A whole tile times `M` rows, unpacked in registers.
///
/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few<F: Format, const M: usize>(
    weights: &Weights<'_, F, false>,
    rows: Rows,
    row: usize,
    out: Out,
    ask: bool,
) -> usize {
    let mut acc = [[_mm256_setzero_ps(); 2]; M];
    let blocks = 0..weights.tile.blocks();
    // SAFETY: by the caller's word.
    unsafe {
        add_blocks(weights, rows, row, blocks, &mut acc, ask);
        for (r, acc) in acc.into_iter().enumerate() {
            store(out.row(r), acc);
        }
    }
    M
}

/// One tile times `m` rows: a chunk of it is unpacked for all rows, then the next.
///
/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn many<F: Format>(tile: &Tile, rows: Rows, first: usize, m: usize, out: Out) {
    debug_assert!(m <= ROW_BLOCK);
    let mut sums = Sums([const { MaybeUninit::uninit() }; ROW_BLOCK]);
    for sums in &mut sums.0[..m] {
        sums.write([0.0; TILE]);
    }
    let sums = sums.0.as_mut_ptr().cast::<f32>();
    let mut chunk = Chunk::new();
    for start in (0..tile.blocks()).step_by(CHUNK) {
        let blocks = start..tile.blocks().min(start + CHUNK);
        // SAFETY: the tile has the blocks; rows `row..row + M` are within the `m` that the caller vouches for.
        unsafe {
            unpack::<F>(tile, blocks.clone(), &mut chunk);
            let weights = Weights::<F, true>::unpacked(tile, &chunk, start);
            let mut row = 0;
            while row < m {
                let (at, to) = (first + row, sums.add(row * TILE));
                row += match m - row {
                    4.. => continued::<F, 4>(&weights, rows, at, blocks.clone(), to),
                    2.. => continued::<F, 2>(&weights, rows, at, blocks.clone(), to),
                    _ => continued::<F, 1>(&weights, rows, at, blocks.clone(), to),
                };
            }
        }
    }
    for row in 0..m {
        // SAFETY: both have `m` rows.
        unsafe {
            let sums = sums.add(row * TILE);
            let sums = [_mm256_load_ps(sums), _mm256_load_ps(sums.add(8))];
            store(out.row(row), sums);
        }
    }
}

/// Adds unpacked blocks to the sums of `M` rows.
///
/// # Safety
/// As for [`tile`]; `sums` has `M` rows on a 64-byte boundary.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn continued<F: Format, const M: usize>(
    weights: &Weights<'_, F, true>,
    rows: Rows,
    row: usize,
    blocks: Range<usize>,
    sums: *mut f32,
) -> usize {
    let mut acc = [[_mm256_setzero_ps(); 2]; M];
    // SAFETY: by the caller's word.
    unsafe {
        for (r, acc) in acc.iter_mut().enumerate() {
            let sums = sums.add(r * TILE);
            *acc = [_mm256_load_ps(sums), _mm256_load_ps(sums.add(8))];
        }
        add_blocks(weights, rows, row, blocks, &mut acc, false);
        for (r, acc) in acc.into_iter().enumerate() {
            _mm256_store_ps(sums.add(r * TILE), acc[0]);
            _mm256_store_ps(sums.add(r * TILE + 8), acc[1]);
        }
    }
    M
}

/// Writes the outputs of a row's tile.
///
/// # Safety
/// The row has `out.lanes` of them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store(out: Out, v: [__m256; 2]) {
    // SAFETY: only outputs below `out.lanes` are written.
    unsafe {
        if out.lanes == TILE {
            let (low, high) = (out.first, out.first.add(8));
            let mut sums = v;
            if out.add {
                sums[0] = _mm256_add_ps(_mm256_loadu_ps(low), v[0]);
                sums[1] = _mm256_add_ps(_mm256_loadu_ps(high), v[1]);
            }
            _mm256_storeu_ps(low, sums[0]);
            _mm256_storeu_ps(high, sums[1]);
        } else {
            let mut lanes = [0f32; TILE];
            _mm256_storeu_ps(lanes.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), v[1]);
            out.put(lanes.as_ptr());
        }
    }
}

/// Adds blocks of a tile times `M` rows to `acc`: each weight register is used `M` times. With `ask`, what comes
/// next in memory is asked for.
///
/// # Safety
/// As for [`tile`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_blocks<F: Format, const M: usize, const UNPACKED: bool>(
    weights: &Weights<'_, F, UNPACKED>,
    rows: Rows,
    row: usize,
    blocks: Range<usize>,
    acc: &mut [[__m256; 2]; M],
    ask: bool,
) {
    for block in blocks {
        if ask {
            weights.tile.prefetch::<F>(block);
        }
        // SAFETY: the block and the rows are the caller's.
        unsafe {
            for part in 0..F::PARTS {
                let dots = dots::<F, M, UNPACKED>(weights, rows, row, block, part);
                let scale = weights.scale(block, part);
                for r in 0..M {
                    let x_scale = _mm256_set1_ps(rows.meta(row + r, block).scale);
                    for h in 0..2 {
                        let factor = _mm256_mul_ps(scale[h], x_scale);
                        let dot = _mm256_cvtepi32_ps(dots[r][h]);
                        acc[r][h] = _mm256_fmadd_ps(dot, factor, acc[r][h]);
                    }
                }
            }
            if F::MIN {
                let min = weights.min(block);
                for (r, acc) in acc.iter_mut().enumerate() {
                    let sum = _mm256_set1_ps(rows.meta(row + r, block).scaled_sum);
                    for h in 0..2 {
                        acc[h] = _mm256_fmadd_ps(min[h], sum, acc[h]);
                    }
                }
            }
        }
    }
}

/// The integer dot products of one block, or of the half of it that has a scale of its own.
///
/// # Safety
/// As for [`all_rows`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<F: Format, const M: usize, const UNPACKED: bool>(
    weights: &Weights<'_, F, UNPACKED>,
    rows: Rows,
    row: usize,
    block: usize,
    part: usize,
) -> [[__m256i; 2]; M] {
    let groups = 8 / F::PARTS;
    let ones = _mm256_set1_epi16(1);
    let zero = _mm256_setzero_si256();
    let mut wide = [[zero; 2]; M];
    let mut narrow = [[zero; 2]; M];
    for step in 0..groups {
        let group = part * groups + step;
        // SAFETY: the caller's block, of which each row has 32 integers.
        unsafe {
            let w = weights.group(block, group);
            for r in 0..M {
                let x = rows.ints(row + r).add(block * 32 + group * 4);
                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                for h in 0..2 {
                    if F::BYTE {
                        // The sign moves to the inputs, so that the weights are unsigned.
                        let x = _mm256_sign_epi8(x, w.signed[h]);
                        let pairs = _mm256_maddubs_epi16(w.unsigned[h], x);
                        let four = _mm256_madd_epi16(pairs, ones);
                        wide[r][h] = _mm256_add_epi32(wide[r][h], four);
                    } else {
                        let pairs = _mm256_maddubs_epi16(w.unsigned[h], x);
                        narrow[r][h] = _mm256_add_epi16(narrow[r][h], pairs);
                    }
                }
            }
        }
        match F::BYTE {
            true => stay(&mut wide),
            false => stay(&mut narrow),
        }
        if !F::BYTE && (step + 1) % (8 >> F::EXTRA) == 0 {
            for r in 0..M {
                for h in 0..2 {
                    let more = _mm256_madd_epi16(narrow[r][h], ones);
                    wide[r][h] = _mm256_add_epi32(wide[r][h], more);
                    narrow[r][h] = zero;
                }
            }
        }
    }
    if !F::BYTE && F::ZERO.is_some() {
        for (r, wide) in wide.iter_mut().enumerate() {
            // SAFETY: the caller's block.
            let start = unsafe { start::<F>(rows, row + r, block, part) };
            for wide in wide {
                *wide = _mm256_add_epi32(*wide, start);
            }
        }
    }
    wide
}

/// Keeps the sums of four rows in registers from one group of inputs to the next. Left to itself the compiler
/// gathers what all groups do for a row, and moves most registers to memory and back for it.
#[inline]
#[target_feature(enable = "avx2")]
fn stay<const M: usize>(sums: &mut [[__m256i; 2]; M]) {
    if let [[a, b], [c, d], [e, f], [g, h]] = &mut sums[..] {
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!(
                "/* {0} {1} {2} {3} {4} {5} {6} {7} */",
                inout(ymm_reg) * a,
                inout(ymm_reg) * b,
                inout(ymm_reg) * c,
                inout(ymm_reg) * d,
                inout(ymm_reg) * e,
                inout(ymm_reg) * f,
                inout(ymm_reg) * g,
                inout(ymm_reg) * h,
                options(nomem, nostack, preserves_flags)
            );
        }
    }
}

/// Minus the zero point times the sum of inputs that a scale is for.
///
/// # Safety
/// The row has the block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn start<F: Format>(rows: Rows, row: usize, block: usize, part: usize) -> __m256i {
    // SAFETY: by the caller's word.
    let meta = unsafe { rows.meta(row, block) };
    let sum = match (F::PARTS, part) {
        (1, _) => meta.neg_sum,
        (_, 0) => meta.neg_first,
        _ => meta.neg_sum - meta.neg_first,
    };
    _mm256_set1_epi32(sum << F::ZERO.unwrap_or(0))
}
