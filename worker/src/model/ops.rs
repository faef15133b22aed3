//! The only bridge from models to the kernels: one worker's kernels, scratch and KV cache.

mod experts;
mod residual;

use std::sync::Arc;
use std::time::Instant;

use conclave_kernels::{
    AttnPlan, Inputs, Kernels, KvCache, Norm, PackedMatrix, Product, RopeTable, Scratch, SeqSpan,
    Tokens,
};

use super::meter::{Meter, Part};

/// The shape of attention, the same in every layer.
#[derive(Clone, Copy, Debug)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub dim: usize,
}

/// The ops of a model step on preallocated memory.
pub struct Ops {
    kernels: Arc<Kernels>,
    scratch: Scratch,
    cache: KvCache,
    rope: RopeTable,
    /// Turns nothing: for layers without positions.
    still: RopeTable,
    shape: HeadShape,
    meter: Option<Meter>,
}

impl Ops {
    /// Ops over a cache of their own.
    pub fn new(kernels: Arc<Kernels>, cache: KvCache, rope: RopeTable, shape: HeadShape) -> Ops {
        let still = RopeTable::from_inv_freq(&[], rope.positions(), rope.style());
        Ops {
            kernels,
            scratch: Scratch::new(),
            cache,
            rope,
            still,
            shape,
            meter: None,
        }
    }

    /// Starts to measure, or stops and gives what was measured.
    pub fn measure(&mut self, on: bool) -> Option<Meter> {
        std::mem::replace(&mut self.meter, on.then(Meter::default))
    }

    /// What is being measured, if anything is.
    pub fn meter(&mut self) -> Option<&mut Meter> {
        self.meter.as_mut()
    }

    /// Runs one op, with an eye on the clock if somebody asked for it.
    fn metered<T>(&mut self, part: Part, op: impl FnOnce(&mut Ops) -> T) -> T {
        if self.meter.is_none() {
            return op(self);
        }
        let since = Instant::now();
        let result = op(self);
        if let Some(meter) = &mut self.meter {
            meter.add(part, since);
        }
        result
    }

    /// Positions below this can be computed.
    pub fn positions(&self) -> usize {
        self.rope.positions()
    }

    /// Memory of the KV cache, in bytes.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Copies a KV block in every layer.
    pub fn copy_block(&mut self, src: u32, dst: u32) {
        self.cache.copy_block(src, dst);
    }

    /// Row `tokens[i]` of `table` to row `i` of `out` (`tokens.len() x table.k()`).
    pub fn embed(&mut self, table: &PackedMatrix, tokens: &[u32], out: &mut [f32]) {
        self.metered(Part::Embed, |_| {
            for (token, row) in tokens.iter().zip(out.chunks_exact_mut(table.k())) {
                table.dequantize_row(*token as usize, row);
            }
        });
    }

    /// Queries, keys and values of `m` inputs, normed before, with these matrices: the first two turned by their
    /// positions, the last two stored in `layer`'s cache.
    pub fn project(
        &mut self,
        layer: usize,
        weights: [&PackedMatrix; 3],
        norm: Norm<'_>,
        tokens: Tokens<'_>,
    ) {
        self.metered(Part::Project, |ops| {
            let (layer, scratch) = (ops.cache.layer_mut(layer), &mut ops.scratch);
            ops.kernels
                .project(weights, norm, tokens, layer, &ops.rope, scratch);
        });
    }

    /// `out += x w^T` where `x` is `m x w.k()` and `out` `m x w.n()`.
    pub fn add_linear(&mut self, w: &PackedMatrix, x: Inputs<'_>, m: usize, out: &mut [f32]) {
        self.metered(Part::Sums, |ops| {
            ops.kernels.qmatmul_add(w, x, m, out, &mut ops.scratch);
        });
    }

    /// `out = silu(gate) * up`, where gate and up are products of the same `m` inputs, normed before: the inputs
    /// of `then`.
    pub fn gated<'o>(
        &mut self,
        gate_up: [Product<'_>; 2],
        norm: Norm<'_>,
        m: usize,
        out: &'o mut [f32],
        then: &PackedMatrix,
    ) -> Inputs<'o> {
        self.metered(Part::Gated, |ops| {
            let (kernels, scratch) = (&ops.kernels, &mut ops.scratch);
            kernels.gated(gate_up, norm, m, out, Some(then), scratch)
        })
    }

    /// The product that gives the logits of `m` rows, normed before.
    pub fn head(&mut self, head: Product<'_>, norm: Norm<'_>, m: usize) {
        self.metered(Part::Head, |ops| {
            ops.kernels
                .qmatmuls_normed([head], norm, m, &mut ops.scratch);
        });
    }

    /// Causal attention of the queries of `seqs` over `layer`'s stored slots, all of them or the last `window`:
    /// the inputs of `then`.
    pub fn attend<'o>(
        &mut self,
        layer: usize,
        window: Option<usize>,
        q: &[f32],
        seqs: &[SeqSpan<'_>],
        out: &'o mut [f32],
        then: Option<&PackedMatrix>,
    ) -> Inputs<'o> {
        self.metered(Part::Attention, |ops| {
            let HeadShape {
                heads,
                kv_heads,
                dim,
            } = ops.shape;
            let plan = AttnPlan {
                heads,
                kv_heads,
                dim,
                scale: (1.0 / (dim as f64).sqrt()) as f32,
                window,
                softcap: None,
                seqs,
            };
            let layer = ops.cache.layer(layer);
            ops.kernels
                .paged_attention_for(q, layer, &plan, out, then, &mut ops.scratch)
        })
    }
}
