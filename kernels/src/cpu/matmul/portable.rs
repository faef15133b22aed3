//! 4- to 8-bit weights by 8-bit inputs on any processor.

use super::format::{Format, Out, Tile};
use super::quantize::Rows;
use crate::weights::TILE;
use half::f16;

/// One tile times `m` rows.
///
/// # Safety
/// `tile` is of format `F`; `rows` and `out` have `m` rows.
pub(super) unsafe fn tile<F: Format>(tile: &Tile, rows: Rows, first: usize, m: usize, out: Out) {
    for row in 0..m {
        let mut acc = [0f32; TILE];
        for block in 0..tile.blocks() {
            // SAFETY: the block is within the tile and the row.
            unsafe { add_block::<F>(tile, rows, first + row, block, &mut acc) };
        }
        // SAFETY: the row has `lanes` outputs.
        unsafe { out.row(row).put(acc.as_ptr()) };
    }
}

unsafe fn add_block<F: Format>(
    tile: &Tile,
    rows: Rows,
    row: usize,
    block: usize,
    acc: &mut [f32; TILE],
) {
    tile.prefetch::<F>(block);
    let mut dots = [[0i32; TILE]; 2];
    for group in 0..8 {
        // SAFETY: the caller's block is within the tile, and its row has 32 integers there.
        let (w, x) = unsafe {
            let x = rows.ints(row).add(block * 32 + group * 4).cast::<[i8; 4]>();
            (weights::<F>(tile, block, group), x.read())
        };
        let dots = &mut dots[group / 4 * (F::PARTS - 1)];
        for (dot, w) in dots.iter_mut().zip(w.chunks_exact(4)) {
            for (w, x) in w.iter().zip(x) {
                *dot += i32::from(*w) * i32::from(x);
            }
        }
    }
    // SAFETY: the caller's block.
    let meta = unsafe { rows.meta(row, block) };
    for (part, dots) in dots.iter().enumerate().take(F::PARTS) {
        let start = match (F::PARTS, part) {
            (1, _) => meta.neg_sum,
            (_, 0) => meta.neg_first,
            _ => meta.neg_sum - meta.neg_first,
        };
        let start = F::ZERO.map_or(0, |shift| start << shift);
        for lane in 0..TILE {
            // SAFETY: the caller's block.
            let scale = unsafe { number::<F>(tile.scale, block * F::PARTS + part, lane) };
            acc[lane] = ((dots[lane] + start) as f32).mul_add(scale * meta.scale, acc[lane]);
        }
    }
    if F::MIN {
        for (lane, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller's block.
            let min = unsafe { number::<F>(tile.min, block, lane) };
            *acc = min.mul_add(meta.scaled_sum, *acc);
        }
    }
}

/// Input group `group` of a block, as unsigned bytes.
unsafe fn weights<F: Format>(tile: &Tile, block: usize, group: usize) -> [u8; 64] {
    // SAFETY: the caller's block is within the tile, whose parts have these sizes a block.
    unsafe {
        if F::BYTE {
            return tile
                .base
                .add(block * 512 + group * 64)
                .cast::<[u8; 64]>()
                .read();
        }
        let nibbles = tile
            .base
            .add(block * 256 + group % 4 * 64)
            .cast::<[u8; 64]>()
            .read();
        let low = nibbles.map(|v| (v >> (group / 4 * 4)) & 15);
        let (at, shift, mask) = match F::EXTRA {
            0 => return low,
            1 => (block * 64, group, 1),
            _ => (block * 128 + group / 4 * 64, group % 4 * 2, 3),
        };
        let plane = tile.plane.add(at).cast::<[u8; 64]>().read();
        std::array::from_fn(|i| low[i] | ((plane[i] >> shift) & mask) << 4)
    }
}

/// One of the 16 scales or minima number `index` of a tile's part.
unsafe fn number<F: Format>(part: *const u8, index: usize, lane: usize) -> f32 {
    let at = index * TILE + lane;
    // SAFETY: the caller's block is within the tile.
    unsafe {
        if F::WIDE {
            part.cast::<f32>().add(at).read()
        } else {
            f16::from_bits(part.cast::<u16>().add(at).read()).to_f32()
        }
    }
}
