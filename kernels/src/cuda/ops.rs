//! Ops on rows.

use super::launch::{Argument, Blocks, GRID};
use super::{Buf, CudaKernels, DeviceError, Driver, Kernel, KvLayer, Matrix};
use crate::rope::{RopeStyle, RopeTable};
use std::sync::Arc;

/// `NORM_PART` of `rms_norm.cu`.
const NORM_PART: usize = 2048;

/// Threads of a block of the ops here.
const THREADS: usize = 256;

/// A [`RopeTable`] on the device.
pub struct Rope {
    style: RopeStyle,
    pairs: usize,
    cos: Buf<f32>,
    sin: Buf<f32>,
}

impl Rope {
    /// Copies a table to the device.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or what the driver says.
    pub fn upload(driver: &Arc<dyn Driver>, table: &RopeTable) -> Result<Rope, DeviceError> {
        let (cos, sin) = table.all();
        Ok(Rope {
            style: table.style(),
            pairs: table.pairs(),
            cos: Buf::of(driver, cos)?,
            sin: Buf::of(driver, sin)?,
        })
    }

    /// Device memory held, in bytes.
    pub fn bytes(&self) -> usize {
        (self.cos.len() + self.sin.len()) * size_of::<f32>()
    }
}

impl CudaKernels {
    /// Row `i` of `out` (`rows x k`) is row `tokens[i]` of `w` as f32: [`PackedMatrix::dequantize_row`].
    ///
    /// Panics on buffers that are too short. Tokens are below `n`: the caller sees to that.
    ///
    /// [`PackedMatrix::dequantize_row`]: crate::PackedMatrix::dequantize_row
    ///
    /// # Errors
    /// What the driver says.
    pub fn embed(
        &self,
        w: &Matrix,
        tokens: &Buf<u32>,
        rows: usize,
        out: &mut Buf<f32>,
    ) -> Result<(), DeviceError> {
        assert!(rows <= tokens.len() && rows * w.k() <= out.len());
        let tiles = w.argument();
        let blocks = row_blocks(rows, w.k(), 0);
        let kernel = Kernel::Embed(w.weight_type());
        // SAFETY: embed.cu's signature; the lengths are checked above.
        unsafe { self.launch(kernel, &blocks, &[&tiles, tokens, out]) }
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight` of `rows` rows as long as `weight`: [`crate::reference::rms_norm`].
    ///
    /// Panics on buffers that are too short.
    ///
    /// # Errors
    /// What the driver says.
    pub fn rms_norm(
        &self,
        x: &Buf<f32>,
        weight: &Buf<f32>,
        eps: f32,
        rows: usize,
        out: &mut Buf<f32>,
    ) -> Result<(), DeviceError> {
        let width = weight.len();
        assert!(rows * width <= x.len() && rows * width <= out.len());
        let blocks = row_blocks(rows, width, (NORM_PART + 1) * size_of::<f32>());
        let width = width as u32;
        // SAFETY: rms_norm.cu's signature; the lengths are checked above.
        unsafe { self.launch(Kernel::RmsNorm, &blocks, &[x, weight, &eps, &width, out]) }
    }

    /// Turns each of `heads` heads of `dim` elements of each row by the row's position: [`crate::reference::rope`].
    ///
    /// Panics on buffers that are too short or a table of more pairs than a head has. Positions are within the table:
    /// the caller sees to that.
    ///
    /// # Errors
    /// What the driver says.
    pub fn rope(
        &self,
        x: &mut Buf<f32>,
        positions: &Buf<u32>,
        rows: usize,
        heads: usize,
        dim: usize,
        table: &Rope,
    ) -> Result<(), DeviceError> {
        assert!(
            2 * table.pairs <= dim,
            "{} pairs in a head of {dim}",
            table.pairs
        );
        assert!(rows * heads * dim <= x.len() && rows <= positions.len());
        let blocks = row_blocks(rows, heads * table.pairs, 0);
        let (apart, step) = match table.style {
            RopeStyle::Neox => (table.pairs as u32, 1u32),
            RopeStyle::Interleaved => (1, 2),
        };
        let (heads, dim, pairs) = (heads as u32, dim as u32, table.pairs as u32);
        let arguments: &[&dyn Argument] = &[
            x, positions, &table.cos, &table.sin, &heads, &dim, &pairs, &apart, &step,
        ];
        // SAFETY: rope.cu's signature; the lengths are checked above.
        unsafe { self.launch(Kernel::Rope, &blocks, arguments) }
    }

    /// Stores the key and value rows (`kv_heads * dim` each) of `rows` tokens at their slot ids.
    ///
    /// Panics on buffers that are too short. Slot ids are within the layer, and no two alike: the caller sees to that.
    ///
    /// # Errors
    /// What the driver says.
    pub fn write_kv(
        &self,
        layer: &mut KvLayer,
        k: &Buf<f32>,
        v: &Buf<f32>,
        slots: &Buf<u32>,
        rows: usize,
    ) -> Result<(), DeviceError> {
        let width = layer.kv_heads() * layer.dim();
        assert!(rows <= slots.len() && rows * width <= k.len() && rows * width <= v.len());
        let blocks = row_blocks(rows, width, 0);
        let (heads, dim) = (layer.kv_heads() as u32, layer.dim() as u32);
        let kernel = Kernel::WriteKv(layer.dtype());
        let arguments: &[&dyn Argument] = &[&layer.keys, &layer.values, k, v, slots, &heads, &dim];
        // SAFETY: write_kv.cu's signature; the lengths are checked above.
        unsafe { self.launch(kernel, &blocks, arguments) }
    }

    /// `out = gate / (1 + e^-gate) * up`, `len` of each: [`crate::reference::silu_mul`].
    ///
    /// Panics on buffers that are too short.
    ///
    /// # Errors
    /// What the driver says.
    pub fn silu_mul(
        &self,
        gate: &Buf<f32>,
        up: &Buf<f32>,
        len: usize,
        out: &mut Buf<f32>,
    ) -> Result<(), DeviceError> {
        assert!(len <= gate.len() && len <= up.len() && len <= out.len());
        let blocks = Blocks {
            grid: [len.div_ceil(THREADS), 1, 1],
            threads: THREADS as u32,
            shared: 0,
        };
        let len = len as u64;
        // SAFETY: elementwise.cu's signature; the lengths are checked above.
        unsafe { self.launch(Kernel::SiluMul, &blocks, &[gate, up, out, &len]) }
    }

    /// Row `i` of `out` is row `rows[i]` of `x`, `n` rows of `width` numbers.
    ///
    /// Panics on buffers that are too short. Rows are within `x`: the caller sees to that.
    ///
    /// # Errors
    /// What the driver says.
    pub fn gather(
        &self,
        x: &Buf<f32>,
        rows: &Buf<u32>,
        n: usize,
        width: usize,
        out: &mut Buf<f32>,
    ) -> Result<(), DeviceError> {
        assert!(n <= rows.len() && n * width <= out.len());
        let across = width.div_ceil(THREADS);
        assert!(across <= GRID, "rows of {width} numbers");
        let blocks = Blocks {
            grid: [n, across, 1],
            threads: THREADS as u32,
            shared: 0,
        };
        let width = width as u32;
        // SAFETY: elementwise.cu's signature; the lengths are checked above.
        unsafe { self.launch(Kernel::Gather, &blocks, &[x, rows, out, &width]) }
    }
}

/// A block a row, with threads for `width` numbers.
fn row_blocks(rows: usize, width: usize, shared: usize) -> Blocks {
    Blocks {
        grid: [rows, 1, 1],
        threads: width.next_multiple_of(32).clamp(32, THREADS) as u32,
        shared,
    }
}
