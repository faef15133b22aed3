//! What stands between a part of a layer and the residual stream, and norms of heads.

use conclave_kernels::{Norm, PackedMatrix, PostNorm, Product, Tokens};

use super::{Ops, Part};

impl Ops {
    /// Products of the same `m` inputs, normed before.
    pub fn normed_products<const P: usize>(
        &mut self,
        products: [Product<'_>; P],
        norm: Norm<'_>,
        m: usize,
    ) {
        self.metered(Part::Project, |ops| {
            ops.kernels
                .qmatmuls_normed(products, norm, m, &mut ops.scratch);
        });
    }

    /// `out = x w^T` where `x` is `m x w.k()` and `out` `m x w.n()`.
    pub fn linear(&mut self, w: &PackedMatrix, x: &[f32], m: usize, out: &mut [f32]) {
        self.metered(Part::Sums, |ops| {
            ops.kernels.qmatmul(w, x, m, out, &mut ops.scratch);
        });
    }

    /// Norms `rows` rows or heads, each by itself and as wide as `weight`.
    pub fn norm(&mut self, x: &[f32], weight: &[f32], eps: f32, rows: usize, out: &mut [f32]) {
        self.metered(Part::Project, |ops| {
            ops.kernels.rms_norm(x, weight, eps, rows, out);
        });
    }

    /// Stores keys and values in `layer`'s cache, queries and keys turned before by their positions if `turned`.
    pub fn store(&mut self, layer: usize, tokens: Tokens<'_>, turned: bool) {
        self.metered(Part::Project, |ops| {
            let table = if turned { &ops.rope } else { &ops.still };
            ops.kernels
                .rope_and_write(ops.cache.layer_mut(layer), tokens, table);
        });
    }

    /// `x = x / (1 + e^-gate)`, elementwise.
    pub fn sigmoid_mul(&mut self, x: &mut [f32], gate: &[f32]) {
        self.metered(Part::Attention, |ops| ops.kernels.sigmoid_mul(x, gate));
    }

    /// Adds `rows` rows to the stream, normed.
    pub fn add_normed(&mut self, stream: &mut [f32], y: &[f32], norm: &PostNorm<'_>, rows: usize) {
        self.metered(Part::Sums, |ops| {
            ops.kernels.add_normed(stream, y, norm, rows);
        });
    }

    /// Times `factor`, then within `cap`.
    pub fn cap_logits(&mut self, logits: &mut [f32], factor: f32, cap: f32) {
        self.metered(Part::Head, |ops| {
            ops.kernels.cap_logits(logits, factor, cap);
        });
    }
}
