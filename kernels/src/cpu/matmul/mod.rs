//! Matrix products: inputs are rounded once, tiles are shared out over the pool, and each tile is
//! streamed once for all rows.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod float;
mod format;
mod fused;
mod inputs;
mod portable;
mod quantize;
mod sweep;

pub use fused::Norm;
pub use inputs::Inputs;
pub use sweep::Sweep;

pub(super) use inputs::rounding;
pub(super) use quantize::Rounding;

use super::dispatch::per_isa;
use super::elementwise::rms_norm_row;
use super::{Kernels, SendPtr};
use crate::isa::Isa;
use crate::scratch::{AlignedBuf, Scratch};
use crate::weights::{Activation, PackedMatrix, TILE, WeightType};
use float::FloatRows;
use format::{Format, Out, Tile, with_format};
use quantize::Rows;
use std::ops::Range;

/// Rows that pass a run of tiles together: their rounded inputs stay in the second-level cache.
const ROW_BLOCK: usize = 128;

/// Multiply-adds below which an op stays on the calling thread: about what handing it out costs.
const INLINE_WORK: usize = 1 << 17;

/// Multiply-adds a task should have, so that cores that others use too are evened out.
const TASK_WORK: usize = 1 << 16;

/// Rows for which a weight's multiply-adds take about as long as its way from memory.
const STREAM_ROWS: usize = 16;

/// Multiply-adds a task of a product should have, [`STREAM_ROWS`] among them: claiming it costs as much as some
/// ten thousand.
const PRODUCT_WORK: usize = 1 << 21;

/// One of several products of the same inputs.
pub struct Product<'a> {
    /// The weights, `n x k`.
    pub weights: &'a PackedMatrix,
    /// Receives `m x n`.
    pub out: &'a mut [f32],
}

/// A product as tasks see it.
struct Job<'a> {
    w: &'a PackedMatrix,
    out: Out,
}

impl<'a> Job<'a> {
    /// A product of `m` rows, or, with `add`, one that is added to what `out` holds. Panics if that has another
    /// length.
    fn new(product: Product<'a>, m: usize, add: bool) -> Job<'a> {
        let Product { weights, out } = product;
        Job::at(weights, (out.as_mut_ptr(), out.len()), m, add)
    }

    /// As [`Job::new`]; so many outputs begin at `out`.
    fn at(w: &'a PackedMatrix, out: (*mut f32, usize), m: usize, add: bool) -> Job<'a> {
        let ((first, len), n) = (out, w.n());
        assert_eq!(len, m * n, "outputs are {m} x {n}");
        let lanes = 0;
        Job {
            w,
            out: Out {
                first,
                n,
                lanes,
                add,
            },
        }
    }
}

/// The inputs of products, `k` each: as they are rounded, and as they are.
fn inputs(rounded: &AlignedBuf, x: &[f32], k: usize) -> (Rows, FloatRows) {
    let rows = Rows {
        first: rounded.as_ptr(),
        k,
    };
    let floats = FloatRows {
        first: x.as_ptr(),
        k,
    };
    (rows, floats)
}

impl Kernels {
    /// `out[i][j] = sum over k of x[i][k] * w[j][k]`: `x` is `m x k`, `out` is `m x n`.
    ///
    /// The bits of `out[i][j]` depend on row `i` of `x`, row `j` of `w` and the matrix's
    /// [`Activation`] only. Panics if the slices have other lengths.
    pub fn qmatmul(
        &self,
        w: &PackedMatrix,
        x: &[f32],
        m: usize,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        self.qmatmuls([Product { weights: w, out }], x, m, scratch);
    }

    /// Several products of the same inputs (q, k and v; gate and up), handed out at once.
    ///
    /// Each gives what [`Kernels::qmatmul`] gives. Panics if the matrices differ in `k` or a slice has
    /// another length.
    pub fn qmatmuls<const P: usize>(
        &self,
        products: [Product<'_>; P],
        x: &[f32],
        m: usize,
        scratch: &mut Scratch,
    ) {
        let Some(k) = products.first().map(|p| p.weights.k()) else {
            return;
        };
        assert_eq!(x.len(), m * k, "inputs are {m} x {k}");
        let jobs = products.map(|p| Job::new(p, m, false));
        self.round(&jobs, None, x, m, scratch);
        self.multiply(&jobs, x, m, &scratch.rows);
    }

    /// All tiles of all jobs times `m` rows, which lie rounded in `rounded` if a job takes them so.
    fn multiply(&self, jobs: &[Job<'_>], x: &[f32], m: usize, rounded: &AlignedBuf) {
        let k = jobs.first().map_or(0, |job| job.w.k());
        assert!(
            jobs.iter().all(|job| job.w.k() == k),
            "inputs are {m} x {k}"
        );
        let (rows, floats) = inputs(rounded, x, k);
        let tiles: usize = jobs.iter().map(|job| job.w.tiles()).sum();
        let tasks = self.split_product(tiles, tiles * TILE * k, m);
        self.pool.run(tasks, &|task| {
            let mut mine = tiles * task / tasks..tiles * (task + 1) / tasks;
            for job in jobs {
                let here = mine.start.min(job.w.tiles())..mine.end.min(job.w.tiles());
                // SAFETY: each tile of each job belongs to one task; rows and slices have the lengths
                // asserted above; `Kernels::new` has checked the instruction set.
                unsafe { run_tiles(self.isa, job, here, rows, floats, m) };
                let skipped = job.w.tiles();
                mine = mine.start.saturating_sub(skipped)..mine.end.saturating_sub(skipped);
            }
        });
    }

    /// Makes `m` rows ready for the jobs: normed, if there is a norm, to where `x` lies; rounded into the
    /// scratch, if a job takes 8-bit inputs.
    fn round(
        &self,
        jobs: &[Job<'_>],
        norm: Option<(&Norm<'_>, SendPtr<f32>)>,
        x: &[f32],
        m: usize,
        scratch: &mut Scratch,
    ) {
        let k = jobs.first().map_or(0, |job| job.w.k());
        let int8 = jobs.iter().any(|job| takes_int8(job.w));
        if !int8 && norm.is_none() {
            return;
        }
        let rounding = int8.then(|| Rounding::new(&mut scratch.rows, m, k));
        let from = FloatRows {
            first: x.as_ptr(),
            k,
        };
        // Rounding an input costs about as much as 8 multiply-adds, a norm as much again.
        let tasks = self.split(m, m * k * if norm.is_some() { 16 } else { 8 });
        self.pool.run(tasks, &|task| {
            for row in m * task / tasks..m * (task + 1) / tasks {
                // SAFETY: the row is within `x`, the normed rows and the buffer, and no other task writes it.
                unsafe {
                    let x = match &norm {
                        None => from.row(row),
                        Some((norm, out)) => {
                            let (from, to) = (&norm.x[row * k..][..k], out.get().add(row * k));
                            rms_norm_row(self.isa, from, norm.weight, norm.eps, to);
                            to.cast_const()
                        }
                    };
                    if let Some(rounding) = rounding {
                        rounding.round(self.isa, x, row, 0..k / 32);
                    }
                }
            }
        });
    }

    /// Tasks for a product of `weights` weights, in `tiles` tiles, by `m` rows.
    fn split_product(&self, tiles: usize, weights: usize, m: usize) -> usize {
        let threads = self.pool.threads();
        if threads == 1 || weights * m < INLINE_WORK {
            return 1;
        }
        let tasks = weights * (m + STREAM_ROWS) / PRODUCT_WORK;
        // Whole rounds: a last task alone would keep the others waiting.
        let rounds = tasks.div_ceil(threads).clamp(1, 16);
        (rounds * threads).min(tiles)
    }

    /// Tasks for `items` things that together are `work` multiply-adds.
    pub(super) fn split(&self, items: usize, work: usize) -> usize {
        let threads = self.pool.threads();
        if threads == 1 || work < INLINE_WORK {
            return 1;
        }
        (work / TASK_WORK).clamp(threads, threads * 16).min(items)
    }
}

fn takes_int8(w: &PackedMatrix) -> bool {
    w.activation() == Activation::Int8 && !w.weight_type().is_float()
}

/// All rows through a run of a matrix's tiles.
///
/// # Safety
/// The processor has `isa`; `rows` (for 8-bit inputs) or `floats` have `m` rows; `job.out` has room for
/// `m` rows and nobody else writes these tiles' outputs.
unsafe fn run_tiles(
    isa: Isa,
    job: &Job<'_>,
    tiles: Range<usize>,
    rows: Rows,
    floats: FloatRows,
    m: usize,
) {
    let ty = job.w.weight_type();
    for first in (0..m).step_by(ROW_BLOCK) {
        let count = ROW_BLOCK.min(m - first);
        for index in tiles.clone() {
            let (tile, n) = (Tile::new(job.w, index), job.w.n());
            let lanes = TILE.min(n - index * TILE);
            // SAFETY: the tile's first output of row `first` is within the slice; the rest by the
            // caller's word.
            unsafe {
                let out = Out {
                    first: job.out.first.add(first * n + index * TILE),
                    lanes,
                    ..job.out
                };
                if takes_int8(job.w) {
                    with_format!(ty, F => int8_tile::<F>(isa, &tile, rows, first, count, out), else ());
                } else {
                    float_tile(isa, ty, &tile, floats, first, count, out);
                }
            }
        }
    }
}

/// One tile by 8-bit inputs, on the code path of `isa`.
///
/// # Safety
/// As for [`run_tiles`].
unsafe fn int8_tile<F: Format>(
    isa: Isa,
    tile: &Tile,
    rows: Rows,
    first: usize,
    m: usize,
    out: Out,
) {
    // SAFETY: by the caller's word.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::tile::<F>(tile, rows, first, m, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::tile::<F>(tile, rows, first, m, out),
            _ => portable::tile::<F>(tile, rows, first, m, out),
        }
    }
}

per_isa! {
    /// One tile by f32 inputs.
    unsafe fn float_tile = float_tile_of(
        ty: WeightType, tile: &Tile, rows: FloatRows, first: usize, m: usize, out: Out,
    );
}

#[inline(always)]
unsafe fn float_tile_of<L: super::lanes::Lanes>(
    ty: WeightType,
    tile: &Tile,
    rows: FloatRows,
    first: usize,
    m: usize,
    out: Out,
) {
    // SAFETY: by the caller's word.
    unsafe {
        with_format!(ty, F => float::tile::<L, F>(tile, rows, first, m, out), else match ty {
            WeightType::F16 => float::tile::<L, float::Half>(tile, rows, first, m, out),
            WeightType::Bf16 => float::tile::<L, float::Brain>(tile, rows, first, m, out),
            _ => float::tile::<L, float::Single>(tile, rows, first, m, out),
        });
    }
}
