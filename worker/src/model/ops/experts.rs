//! A mixture of experts.

use conclave_kernels::{PackedMatrix, PostNorm, Product, Routing};

use super::{Ops, Part};

impl Ops {
    /// The experts of each row, ascending, and their shares, from the router's logits, which become scores.
    pub fn route(
        &mut self,
        logits: &mut [f32],
        routing: &Routing<'_>,
        experts: &mut [u32],
        shares: &mut [f32],
    ) {
        self.metered(Part::Gated, |ops| {
            ops.kernels.route(logits, routing, experts, shares);
        });
    }

    /// `out = silu(gate) * up`, where gate and up are products of the same `m` inputs with these matrices.
    pub fn gated_plain(
        &mut self,
        weights: [&PackedMatrix; 2],
        x: &[f32],
        m: usize,
        [gate, up]: [&mut [f32]; 2],
        out: &mut [f32],
    ) {
        self.metered(Part::Gated, |ops| {
            let products = [(weights[0], &mut *gate), (weights[1], &mut *up)];
            let products = products.map(|(weights, out)| Product { weights, out });
            ops.kernels.qmatmuls(products, x, m, &mut ops.scratch);
            ops.kernels.silu_mul(gate, up, out);
        });
    }

    /// Adds to each row of `sum` what its experts gave, each normed and times its share.
    pub fn add_experts(
        &mut self,
        sum: &mut [f32],
        y: &[f32],
        norm: &PostNorm<'_>,
        places: &[u32],
        shares: &[f32],
        chosen: usize,
    ) {
        self.metered(Part::Sums, |ops| {
            ops.kernels
                .add_experts(sum, y, norm, places, shares, chosen);
        });
    }
}
