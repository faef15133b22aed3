//! Matrix products.

use super::launch::{Argument, Blocks};
use super::{Buf, CudaKernels, DeviceError, Driver, Kernel, Matrix, RowsAtOnce};
use crate::reference::QuantBlock;
use crate::weights::TILE;
use std::sync::Arc;

/// Rows of a thread block, `WALK_ROWS` of `matmul_f32.cu`.
const WALK_ROWS: usize = 8;
/// Threads of a block for one row with 8-bit inputs.
const ROW_THREADS: u32 = 256;
/// `ROW_PART` of `matmul_int8.cu`.
const ROW_PART: usize = 128;
/// 32 threads for each of `TENSOR_WARPS` of `matmul_tensor.cu`.
const TENSOR_THREADS: u32 = 128;
/// `DOTS` of `matmul_int8.cu`.
const DOTS: usize = 8192;
/// `WALK_PART` of `matmul_f32.cu`.
const WALK_PART: usize = 256;

/// Inputs rounded to 8 bit, with a scale each 32.
pub struct Rounded {
    q: Buf<i8>,
    scale: Buf<f32>,
    sum: Buf<i32>,
    /// Rows and their length, as last written.
    rows: usize,
    k: usize,
}

impl Rounded {
    /// Room for `len` inputs, a multiple of 32.
    ///
    /// # Errors
    /// As [`Buf::new`].
    pub fn new(driver: &Arc<dyn Driver>, len: usize) -> Result<Rounded, DeviceError> {
        Ok(Rounded {
            q: Buf::new(driver, len)?,
            scale: Buf::new(driver, len.div_ceil(32))?,
            sum: Buf::new(driver, len.div_ceil(32))?,
            rows: 0,
            k: 0,
        })
    }

    /// Makes room for at least `len` inputs; those there were are lost if there was less.
    ///
    /// # Errors
    /// As [`Buf::ensure`].
    pub fn ensure(&mut self, len: usize) -> Result<(), DeviceError> {
        if self.q.len() < len {
            (self.rows, self.k) = (0, 0);
        }
        self.q.ensure(len)?;
        self.scale.ensure(len.div_ceil(32))?;
        self.sum.ensure(len.div_ceil(32))
    }

    /// The blocks last written, row by row: to look at, not to compute with.
    ///
    /// # Errors
    /// As [`Buf::download`].
    pub fn download(&self) -> Result<Vec<QuantBlock>, DeviceError> {
        let len = self.rows * self.k;
        let (mut q, mut scale, mut sum) = (vec![0; len], vec![0.0; len / 32], vec![0; len / 32]);
        self.q.download(&mut q)?;
        self.scale.download(&mut scale)?;
        self.sum.download(&mut sum)?;
        let blocks = q.as_chunks::<32>().0.iter().zip(scale).zip(sum);
        let block = |((&q, scale), sum)| QuantBlock { q, scale, sum };
        Ok(blocks.map(block).collect())
    }
}

/// The inputs of a product.
#[derive(Clone, Copy)]
pub enum Inputs<'a> {
    /// `rows x k`, for matrices that do not take rounded ones.
    F32(&'a Buf<f32>),
    /// Rounded, for matrices with [`Matrix::takes_int8`].
    Int8(&'a Rounded),
}

impl CudaKernels {
    /// Rounds `rows` rows of `k` inputs to 8 bit, 32 at a time: [`crate::reference::quantize_block`].
    ///
    /// Panics if `k` is no multiple of 32, or on buffers that are too short.
    ///
    /// # Errors
    /// What the driver says.
    pub fn round(
        &self,
        x: &Buf<f32>,
        rows: usize,
        k: usize,
        out: &mut Rounded,
    ) -> Result<(), DeviceError> {
        assert!(k.is_multiple_of(32), "rows of {k} inputs");
        let len = rows * k;
        assert!(len <= x.len() && len <= out.q.len() && len <= out.scale.len() * 32);
        (out.rows, out.k) = (rows, k);
        let warps = 4;
        let blocks = Blocks {
            grid: [(len / 32).div_ceil(warps), 1, 1],
            threads: warps as u32 * 32,
            shared: 0,
        };
        let count = (len / 32) as u64;
        // SAFETY: round.cu's signature; the lengths are checked above.
        unsafe {
            self.launch(
                Kernel::Round,
                &blocks,
                &[x, &out.q, &out.scale, &out.sum, &count],
            )
        }
    }

    /// `out = x * w^T`, or `out += x * w^T` with `add`: [`crate::reference::matmul_int8`] or
    /// [`crate::reference::matmul_f32`]. `x` has `rows x k` inputs, `out` `rows x n` outputs.
    ///
    /// Panics on inputs of the other kind than the matrix takes, of another shape, or buffers that are too short.
    ///
    /// # Errors
    /// What the driver says.
    pub fn qmatmul(
        &self,
        w: &Matrix,
        x: Inputs<'_>,
        rows: usize,
        out: &mut Buf<f32>,
        add: bool,
    ) -> Result<(), DeviceError> {
        assert!(rows * w.n() <= out.len(), "{rows} rows of {}", w.n());
        let (tiles, count, add) = (w.argument(), rows as u32, u32::from(add));
        match x {
            Inputs::F32(x) => {
                assert!(
                    !w.takes_int8(),
                    "{} takes 8-bit inputs",
                    w.weight_type().name()
                );
                assert!(rows * w.k() <= x.len(), "{rows} rows of {}", w.k());
                let blocks = Blocks {
                    grid: [rows.div_ceil(WALK_ROWS), w.tiles(), 1],
                    threads: (WALK_ROWS * TILE) as u32,
                    shared: WALK_PART * TILE * size_of::<f32>(),
                };
                let kernel = Kernel::MatmulF32(w.weight_type());
                // SAFETY: matmul_f32.cu's signature; the lengths are checked above.
                unsafe { self.launch(kernel, &blocks, &[&tiles, x, &count, out, &add]) }
            }
            Inputs::Int8(x) => {
                assert!(
                    w.takes_int8(),
                    "{} takes f32 inputs",
                    w.weight_type().name()
                );
                assert!(
                    rows <= x.rows && w.k() == x.k,
                    "{} x {} inputs are no {rows} x {}",
                    x.rows,
                    x.k,
                    w.k()
                );
                let at_once = RowsAtOnce::of(rows);
                let kernel = Kernel::MatmulInt8(w.weight_type(), at_once);
                let blocks = int8_blocks(w, rows, at_once);
                let arguments: &[&dyn Argument] =
                    &[&tiles, &x.q, &x.scale, &x.sum, &count, out, &add];
                // SAFETY: matmul_int8.cu's signature; the lengths are checked above.
                unsafe { self.launch(kernel, &blocks, arguments) }
            }
        }
    }
}

/// The blocks of a product with 8-bit inputs.
fn int8_blocks(w: &Matrix, rows: usize, at_once: RowsAtOnce) -> Blocks {
    let grid = [rows.div_ceil(at_once.count()), w.tiles(), 1];
    match at_once {
        RowsAtOnce::One => Blocks {
            grid: [w.tiles() * rows, 1, 1],
            threads: ROW_THREADS,
            // Two factors a product, and a second product where a block has two scales or a minimum.
            shared: ROW_PART
                * TILE
                * size_of::<[f32; 2]>()
                * (1 + usize::from(w.has_two_products())),
        },
        RowsAtOnce::Eight | RowsAtOnce::ThirtyTwo => Blocks {
            grid,
            threads: (at_once.count() * TILE) as u32,
            shared: DOTS * size_of::<i32>(),
        },
        RowsAtOnce::Tensor => Blocks {
            grid,
            threads: TENSOR_THREADS,
            shared: 0,
        },
    }
}
