//! The CPU backend: chooses the code path once and runs it on the pool.

mod dispatch;
mod lanes;
mod matmul;

pub use matmul::Product;

use crate::attention::{AttnPlan, KvLayer};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::reference;
use crate::rope::RopeTable;
use crate::scratch::Scratch;
use std::sync::Arc;

/// The ops of a model step, on one instruction set and one pool.
pub struct Kernels {
    isa: Isa,
    pool: Arc<Pool>,
}

impl Kernels {
    /// Kernels for `isa` whose larger ops run on `pool`. Panics if the processor lacks `isa`.
    pub fn new(isa: Isa, pool: Arc<Pool>) -> Kernels {
        assert!(isa.available(), "this processor has no {isa}");
        Kernels { isa, pool }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The pool in use.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight` for each of `rows` rows of `weight.len()`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, rows: usize, out: &mut [f32]) {
        assert_eq!(x.len(), rows * weight.len());
        reference::rms_norm(x, weight, eps, out);
    }

    /// Turns each of `heads` heads of `dim` elements by its row's position, in place.
    ///
    /// `x` is `positions.len() x heads x dim`. Panics on a position outside the table.
    pub fn rope(
        &self,
        x: &mut [f32],
        positions: &[u32],
        heads: usize,
        dim: usize,
        table: &RopeTable,
    ) {
        reference::rope(x, positions, heads, dim, table);
    }

    /// `out = silu(gate) * up`, elementwise.
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        reference::silu_mul(gate, up, out);
    }

    /// `x += y`, elementwise.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }

    /// Stores the key and value rows (`kv_heads * dim` each) of `slots.len()` tokens at their slot ids
    /// (`block * BLOCK + offset`), rounded to the layer's dtype. Panics on a slot outside the layer.
    pub fn write_kv(&self, layer: &mut KvLayer, k: &[f32], v: &[f32], slots: &[u32]) {
        let width = layer.kv_heads() * layer.dim();
        assert_eq!(
            (k.len(), v.len()),
            (slots.len() * width, slots.len() * width)
        );
        for (i, &slot) in slots.iter().enumerate() {
            layer.write_slot(slot, &k[i * width..][..width], &v[i * width..][..width]);
        }
    }

    /// Attention of each query over the stored slots of its sequence that it sees, its own included.
    ///
    /// `q` and `out` are `rows x heads x dim`. The bits of a query's result depend on the query, the
    /// stored keys and values of its sequence and its slot only. Panics on shapes that do not fit.
    pub fn paged_attention(
        &self,
        q: &[f32],
        kv: &KvLayer,
        plan: &AttnPlan<'_>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let _ = scratch;
        reference::paged_attention(q, kv, plan, out);
    }
}
