//! The llama architecture (transformers, `modeling_llama.py`): settings, weights, forward pass.

mod config;
mod weights;

use conclave_kernels::{KvCache, KvDtype, RopeTable};

pub use config::LlamaConfig;
pub(crate) use weights::Names;
pub use weights::{Layer, LlamaWeights};

use super::ops::{HeadShape, Ops};
use super::step::Step;

/// A llama-architecture model without tokenizer.
pub struct Llama {
    /// Its settings.
    pub config: LlamaConfig,
    /// Its weights.
    pub weights: LlamaWeights,
}

/// Activations of one step. They grow to the largest step and are then reused.
#[derive(Default)]
pub(crate) struct Activations {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Vec<f32>,
    logits: Vec<f32>,
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

    /// Computes a step and gives the logits of its sampled rows, `sampled x vocab`.
    ///
    /// Every op works on rows by themselves, and attention on a sequence's own stored slots: what a row
    /// gives depends on nothing else in the step.
    pub(crate) fn forward<'a>(
        &self,
        ops: &mut Ops,
        acts: &'a mut Activations,
        step: &Step,
    ) -> &'a [f32] {
        let hidden = self.config.hidden;
        let mut rows = step.tokens.len();
        let seqs = step.spans();
        let last_seqs = step.sampled_spans();
        ops.embed(
            &self.weights.embedding,
            &step.tokens,
            sized(&mut acts.hidden, rows * hidden),
        );
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.project(ops, acts, layer, index, step);
            if index + 1 < self.weights.layers.len() {
                let width = rows * self.config.q_width();
                ops.attend(
                    index,
                    &acts.q[..width],
                    &seqs,
                    sized(&mut acts.attended, width),
                );
            } else {
                // Nobody reads the last layer's output but the rows that are sampled.
                keep_rows(&mut acts.hidden, hidden, &step.sampled);
                keep_rows(&mut acts.q, self.config.q_width(), &step.sampled);
                rows = step.sampled.len();
                if rows == 0 {
                    return &[];
                }
                let width = rows * self.config.q_width();
                ops.attend(
                    index,
                    &acts.q[..width],
                    &last_seqs,
                    sized(&mut acts.attended, width),
                );
            }
            self.mix(ops, acts, layer, rows);
        }
        let normed = sized(&mut acts.normed, rows * hidden);
        ops.norm(
            &acts.hidden[..rows * hidden],
            &self.weights.norm,
            self.config.eps,
            rows,
            normed,
        );
        let head = self
            .weights
            .head
            .as_ref()
            .unwrap_or(&self.weights.embedding);
        let logits = sized(&mut acts.logits, rows * head.n());
        ops.linear(head, normed, rows, logits);
        logits
    }

    /// Norm, query, key and value of every row; keys and values go to the cache.
    fn project(
        &self,
        ops: &mut Ops,
        acts: &mut Activations,
        layer: &Layer,
        index: usize,
        step: &Step,
    ) {
        let (rows, hidden) = (step.tokens.len(), self.config.hidden);
        let normed = sized(&mut acts.normed, rows * hidden);
        ops.norm(
            &acts.hidden[..rows * hidden],
            &layer.attn_norm,
            self.config.eps,
            rows,
            normed,
        );
        let q = sized(&mut acts.q, rows * layer.q.n());
        let k = sized(&mut acts.k, rows * layer.k.n());
        let v = sized(&mut acts.v, rows * layer.v.n());
        ops.linear(&layer.q, normed, rows, q);
        ops.linear(&layer.k, normed, rows, k);
        ops.linear(&layer.v, normed, rows, v);
        ops.rope_queries(q, &step.positions);
        ops.rope_keys(k, &step.positions);
        ops.store_kv(index, k, v, &step.slots);
    }

    /// What follows attention: output projection and the feed-forward part, each added to the stream.
    fn mix(&self, ops: &mut Ops, acts: &mut Activations, layer: &Layer, rows: usize) {
        let (hidden, ffn) = (rows * self.config.hidden, rows * self.config.ffn);
        let stream = &mut acts.hidden[..hidden];
        let normed = sized(&mut acts.normed, hidden);
        ops.linear(&layer.o, &acts.attended[..rows * layer.o.k()], rows, normed);
        ops.add(stream, normed);
        ops.norm(stream, &layer.ffn_norm, self.config.eps, rows, normed);
        let (gate, up) = (sized(&mut acts.gate, ffn), sized(&mut acts.up, ffn));
        ops.linear(&layer.gate, normed, rows, gate);
        ops.linear(&layer.up, normed, rows, up);
        let inner = sized(&mut acts.inner, ffn);
        ops.silu_mul(gate, up, inner);
        ops.linear(&layer.down, inner, rows, normed);
        ops.add(stream, normed);
    }
}

/// The first `len` numbers of a buffer that grows if it must.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Moves `rows` (ascending) to the front.
fn keep_rows(buffer: &mut [f32], width: usize, rows: &[usize]) {
    for (to, from) in rows.iter().enumerate() {
        buffer.copy_within(from * width..(from + 1) * width, to * width);
    }
}
