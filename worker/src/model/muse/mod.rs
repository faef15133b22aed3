//! The text part of the Muse architectures (transformers, `modeling_muse_glimmer.py` and `modeling_muse_spark.py`):
//! settings, weights, what their layers compute.
//!
//! Most layers see the last slots only and turn queries and keys by their positions; every fourth sees all slots
//! and turns nothing. Queries and keys are normed a head, what heads give is gated, and what a part of a layer
//! gives is normed before it is added to the stream. `muse_spark` norms what heads give, too, weighs the stream
//! against what is added, and has mixtures of experts. The cache keeps the slots that a window has left behind:
//! a sequence takes the same blocks in every layer.

mod config;
mod experts;
mod weights;

use conclave_kernels::{KvCache, KvDtype, Norm, RopeTable, SeqSpan, Tokens};

pub use config::{LayerKind, Member, MuseConfig, SparkConfig};
pub(crate) use experts::Mixture;
pub use experts::{Expert, Experts};
pub use weights::{Dense, FeedForward, Layer, MuseWeights, Residual};

use super::ops::{HeadShape, Ops};
use super::pass::{Activations, Architecture, keep_rows, product, sized};
use super::step::Step;

/// The text part of a Muse model, without tokenizer.
pub struct Muse {
    /// Its settings.
    pub config: MuseConfig,
    /// Its weights.
    pub weights: MuseWeights,
    /// Weights of the norms that have none: of rows, and of heads of queries and keys.
    plain: Vec<f32>,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
}

impl Muse {
    /// Of its parts.
    pub fn new(config: MuseConfig, weights: MuseWeights) -> Muse {
        let (hidden, dim) = (config.hidden, config.head_dim);
        Muse {
            plain: vec![1.0; hidden],
            q_norm: vec![config.q_scale; dim],
            k_norm: vec![1.0; dim],
            config,
            weights,
        }
    }

    /// Logits a row.
    pub fn vocab(&self) -> usize {
        self.weights.embedding.n()
    }

    /// The head layout of its attention.
    pub(crate) fn head_shape(&self) -> HeadShape {
        HeadShape {
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            dim: self.config.head_dim,
        }
    }

    /// A KV cache of `blocks` blocks.
    pub(crate) fn cache(&self, blocks: usize, dtype: KvDtype) -> KvCache {
        let MuseConfig {
            kv_heads, head_dim, ..
        } = self.config;
        KvCache::new(self.config.layers.len(), blocks, kv_heads, head_dim, dtype)
    }

    /// Rotations for positions below `positions`.
    pub(crate) fn rope(&self, positions: usize) -> RopeTable {
        RopeTable::from_inv_freq(&self.config.inv_freq, positions, self.config.rope_style)
    }
}

impl Architecture for Muse {
    fn layers(&self) -> usize {
        self.weights.layers.len()
    }

    fn embed(&self, ops: &mut Ops, acts: &mut Activations, step: &Step) {
        let (rows, hidden) = (step.tokens.len(), self.config.hidden);
        let numbers = rows * hidden;
        let plain = sized(&mut acts.normed, numbers);
        ops.embed(&self.weights.embedding, &step.tokens, plain);
        for (row, token) in plain.chunks_exact_mut(hidden).zip(&step.tokens) {
            if self.config.placeholders.contains(token) {
                ops.embed(&self.weights.embedding, &[0], row);
            }
        }
        let stream = sized(&mut acts.hidden, numbers);
        ops.norm(plain, &self.plain, self.config.eps, rows, stream);
    }

    fn project(&self, ops: &mut Ops, acts: &mut Activations, layer: usize, step: &Step) {
        let (rows, hidden, eps) = (step.tokens.len(), self.config.hidden, self.config.eps);
        let (index, layer) = (layer, &self.weights.layers[layer]);
        let norm = Norm {
            x: &acts.hidden[..rows * hidden],
            weight: &layer.attn_norm,
            eps,
            out: sized(&mut acts.normed, rows * hidden),
        };
        let (q, kv) = (rows * self.config.q_width(), rows * self.config.kv_width());
        let (raw_q, raw_k) = sized(&mut acts.raw, q + kv).split_at_mut(q);
        let v = sized(&mut acts.v, kv);
        let products = [
            product(&layer.q, raw_q),
            product(&layer.k, raw_k),
            product(&layer.v, v),
            product(&layer.head_gate, sized(&mut acts.head_gate, q)),
        ];
        ops.normed_products(products, norm, rows);
        let (q, k) = (sized(&mut acts.q, q), sized(&mut acts.k, kv));
        ops.norm(raw_q, &self.q_norm, eps, rows * self.config.heads, q);
        ops.norm(raw_k, &self.k_norm, eps, rows * self.config.kv_heads, k);
        let tokens = Tokens {
            q,
            k,
            v,
            positions: &step.positions,
            slots: &step.slots,
        };
        ops.store(index, tokens, self.config.layers[index].turned);
    }

    fn keep(&self, acts: &mut Activations, rows: &[usize]) {
        keep_rows(&mut acts.hidden, self.config.hidden, rows);
        keep_rows(&mut acts.q, self.config.q_width(), rows);
        keep_rows(&mut acts.head_gate, self.config.q_width(), rows);
    }

    fn attend(
        &self,
        ops: &mut Ops,
        acts: &mut Activations,
        layer: usize,
        rows: usize,
        spans: &[SeqSpan<'_>],
    ) {
        let (numbers, window) = (
            rows * self.config.q_width(),
            self.config.layers[layer].window,
        );
        let mut attended = sized(&mut acts.attended, numbers);
        ops.attend(layer, window, &acts.q[..numbers], spans, attended, None);
        if self.config.spark.is_some() {
            let normed = sized(&mut acts.raw, numbers);
            let heads = rows * self.config.heads;
            ops.norm(attended, &self.k_norm, self.config.eps, heads, normed);
            attended = normed;
        }
        ops.sigmoid_mul(attended, &acts.head_gate[..numbers]);
        let (hidden, layer) = (rows * self.config.hidden, &self.weights.layers[layer]);
        let given = sized(&mut acts.given, hidden);
        ops.linear(&layer.o, attended, rows, given);
        let norm = layer.after_attn.norm(self.config.post_eps);
        ops.add_normed(&mut acts.hidden[..hidden], given, &norm, rows);
    }

    fn feed_forward(&self, ops: &mut Ops, acts: &mut Activations, layer: usize, rows: usize) {
        let (hidden, ffn) = (rows * self.config.hidden, rows * self.config.ffn);
        let layer = &self.weights.layers[layer];
        let norm = Norm {
            x: &acts.hidden[..hidden],
            weight: &layer.ffn_norm,
            eps: self.config.eps,
            out: sized(&mut acts.normed, hidden),
        };
        let given = sized(&mut acts.given, hidden);
        match &layer.ffn {
            FeedForward::Dense(dense) => {
                let (gate, up) = (sized(&mut acts.gate, ffn), sized(&mut acts.up, ffn));
                let products = [product(&dense.gate, gate), product(&dense.up, up)];
                let inner = sized(&mut acts.inner, ffn);
                let inner = ops.gated(products, norm, rows, inner, &dense.down);
                ops.linear(&dense.down, inner.numbers(), rows, given);
            }
            FeedForward::Experts(experts) => experts.run(ops, &mut acts.mixture, norm, given),
        }
        let norm = layer.after_ffn.norm(self.config.post_eps);
        ops.add_normed(&mut acts.hidden[..hidden], given, &norm, rows);
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
        let logits = sized(&mut acts.logits, rows * head.n());
        ops.head(product(head, logits), norm, rows);
        ops.cap_logits(logits, self.config.logit_scale, self.config.logit_cap);
        logits.len()
    }
}
