//! The llama architecture (transformers, `modeling_llama.py`): settings, weights, forward pass.

mod config;
mod device;
mod weights;

use conclave_kernels::{KvCache, KvDtype, Norm, RopeTable, SeqSpan, Tokens};

pub(in crate::model) use config::HfRope;
pub use config::LlamaConfig;
pub(super) use device::DeviceLlama;
pub(crate) use weights::Names;
pub use weights::{Layer, LlamaWeights};

use super::ops::{HeadShape, Ops};
use super::pass::{Activations, Architecture, keep_rows, product, sized};
use super::step::Step;

/// A llama-architecture model without tokenizer.
pub struct Llama {
    /// Its settings.
    pub config: LlamaConfig,
    /// Its weights.
    pub weights: LlamaWeights,
}

impl Llama {
    /// Logits a row.
    pub fn vocab(&self) -> usize {
        self.weights.embedding.n()
    }

    /// The head layout of its attention.
    pub(crate) fn head_shape(&self) -> HeadShape {
        let LlamaConfig {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.config;
        HeadShape {
            heads,
            kv_heads,
            dim: head_dim,
        }
    }

    /// A KV cache of `blocks` blocks.
    pub(crate) fn cache(&self, blocks: usize, dtype: KvDtype) -> KvCache {
        let LlamaConfig {
            layers,
            kv_heads,
            head_dim,
            ..
        } = self.config;
        KvCache::new(layers, blocks, kv_heads, head_dim, dtype)
    }

    /// Rotations for positions below `positions`.
    pub(crate) fn rope(&self, positions: usize) -> RopeTable {
        RopeTable::from_inv_freq(&self.config.inv_freq, positions, self.config.rope_style)
    }
}

impl Architecture for Llama {
    fn layers(&self) -> usize {
        self.weights.layers.len()
    }

    fn keep(&self, acts: &mut Activations, rows: &[usize]) {
        keep_rows(&mut acts.hidden, self.config.hidden, rows);
        keep_rows(&mut acts.q, self.config.q_width(), rows);
    }

    fn embed(&self, ops: &mut Ops, acts: &mut Activations, step: &Step) {
        let stream = sized(&mut acts.hidden, step.tokens.len() * self.config.hidden);
        ops.embed(&self.weights.embedding, &step.tokens, stream);
    }

    fn project(&self, ops: &mut Ops, acts: &mut Activations, layer: usize, step: &Step) {
        let (rows, hidden) = (step.tokens.len(), self.config.hidden);
        let (index, layer) = (layer, &self.weights.layers[layer]);
        let norm = Norm {
            x: &acts.hidden[..rows * hidden],
            weight: &layer.attn_norm,
            eps: self.config.eps,
            out: sized(&mut acts.normed, rows * hidden),
        };
        let q = sized(&mut acts.q, rows * layer.q.n());
        let k = sized(&mut acts.k, rows * layer.k.n());
        let v = sized(&mut acts.v, rows * layer.v.n());
        let tokens = Tokens {
            q,
            k,
            v,
            positions: &step.positions,
            slots: &step.slots,
        };
        ops.project(index, [&layer.q, &layer.k, &layer.v], norm, tokens);
    }

    fn attend(
        &self,
        ops: &mut Ops,
        acts: &mut Activations,
        layer: usize,
        rows: usize,
        spans: &[SeqSpan<'_>],
    ) {
        let (numbers, o) = (rows * self.config.q_width(), &self.weights.layers[layer].o);
        let attended = sized(&mut acts.attended, numbers);
        let attended = ops.attend(layer, None, &acts.q[..numbers], spans, attended, Some(o));
        let stream = &mut acts.hidden[..rows * self.config.hidden];
        ops.add_linear(o, attended, rows, stream);
    }

    fn feed_forward(&self, ops: &mut Ops, acts: &mut Activations, layer: usize, rows: usize) {
        let (hidden, ffn) = (rows * self.config.hidden, rows * self.config.ffn);
        let layer = &self.weights.layers[layer];
        let stream = &mut acts.hidden[..hidden];
        let norm = Norm {
            x: stream,
            weight: &layer.ffn_norm,
            eps: self.config.eps,
            out: sized(&mut acts.normed, hidden),
        };
        let (gate, up) = (sized(&mut acts.gate, ffn), sized(&mut acts.up, ffn));
        let products = [product(&layer.gate, gate), product(&layer.up, up)];
        let inner = sized(&mut acts.inner, ffn);
        let inner = ops.gated(products, norm, rows, inner, &layer.down);
        ops.add_linear(&layer.down, inner, rows, stream);
    }

    fn logits(&self, ops: &mut Ops, acts: &mut Activations, rows: usize) -> usize {
        let hidden = rows * self.config.hidden;
        let norm = Norm {
            x: &acts.hidden[..hidden],
            weight: &self.weights.norm,
            eps: self.config.eps,
            out: sized(&mut acts.normed, hidden),
        };
        let head = self.weights.head.as_ref();
        let head = head.unwrap_or(&self.weights.embedding);
        let numbers = rows * head.n();
        ops.head(product(head, sized(&mut acts.logits, numbers)), norm, rows);
        numbers
    }
}
