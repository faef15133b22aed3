//! The only bridge from models to the kernels: one worker's kernels, scratch and KV cache.

use std::sync::Arc;

use conclave_kernels::{AttnPlan, Kernels, KvCache, PackedMatrix, RopeTable, Scratch, SeqSpan};

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
    shape: HeadShape,
}

impl Ops {
    /// Ops over a cache of their own.
    pub fn new(kernels: Arc<Kernels>, cache: KvCache, rope: RopeTable, shape: HeadShape) -> Ops {
        Ops {
            kernels,
            scratch: Scratch::new(),
            cache,
            rope,
            shape,
        }
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
    pub fn embed(&self, table: &PackedMatrix, tokens: &[u32], out: &mut [f32]) {
        for (token, row) in tokens.iter().zip(out.chunks_exact_mut(table.k())) {
            table.dequantize_row(*token as usize, row);
        }
    }

    /// `out = x w^T`: `x` is `m x w.k()`, `out` is `m x w.n()`.
    pub fn linear(&mut self, w: &PackedMatrix, x: &[f32], m: usize, out: &mut [f32]) {
        self.kernels.qmatmul(w, x, m, out, &mut self.scratch);
    }

    /// RMS norm of `rows` rows as wide as `weight`.
    pub fn norm(&self, x: &[f32], weight: &[f32], eps: f32, rows: usize, out: &mut [f32]) {
        self.kernels.rms_norm(x, weight, eps, rows, out);
    }

    /// Turns the queries (`rows x heads x dim`) by their positions.
    pub fn rope_queries(&self, q: &mut [f32], positions: &[u32]) {
        self.kernels
            .rope(q, positions, self.shape.heads, self.shape.dim, &self.rope);
    }

    /// Turns the keys (`rows x kv_heads x dim`) by their positions.
    pub fn rope_keys(&self, k: &mut [f32], positions: &[u32]) {
        self.kernels.rope(
            k,
            positions,
            self.shape.kv_heads,
            self.shape.dim,
            &self.rope,
        );
    }

    /// Stores keys and values of `slots.len()` tokens in `layer`'s cache.
    pub fn store_kv(&mut self, layer: usize, k: &[f32], v: &[f32], slots: &[u32]) {
        self.kernels
            .write_kv(self.cache.layer_mut(layer), k, v, slots);
    }

    /// Full causal attention of the queries of `seqs` over `layer`'s stored slots.
    pub fn attend(&mut self, layer: usize, q: &[f32], seqs: &[SeqSpan<'_>], out: &mut [f32]) {
        let HeadShape {
            heads,
            kv_heads,
            dim,
        } = self.shape;
        let scale = (1.0 / (dim as f64).sqrt()) as f32;
        let plan = AttnPlan {
            heads,
            kv_heads,
            dim,
            scale,
            window: None,
            softcap: None,
            seqs,
        };
        let layer = self.cache.layer(layer);
        self.kernels
            .paged_attention(q, layer, &plan, out, &mut self.scratch);
    }

    /// `out = silu(gate) * up`.
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        self.kernels.silu_mul(gate, up, out);
    }

    /// `x += y`.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        self.kernels.add(x, y);
    }
}
