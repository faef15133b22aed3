//! The llama architecture (transformers, `modeling_llama.py`): settings, weights, forward pass.

mod config;
mod weights;

use conclave_kernels::{KvCache, KvDtype, Norm, PackedMatrix, Product, RopeTable, SeqSpan, Tokens};

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
    /// Always empty: the memory of a step's list of sequences.
    spans: Vec<SeqSpan<'static>>,
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
        let mut spans = recycled(std::mem::take(&mut acts.spans));
        let rows = self.layers(ops, acts, step, &mut spans);
        acts.spans = recycled(spans);
        let hidden = self.config.hidden;
        if rows == 0 {
            return &[];
        }
        let stream = &acts.hidden[..rows * hidden];
        let norm = Norm {
            x: stream,
            weight: &self.weights.norm,
            eps: self.config.eps,
            out: sized(&mut acts.normed, rows * hidden),
        };
        let head = self.weights.head.as_ref();
        let head = head.unwrap_or(&self.weights.embedding);
        let logits = sized(&mut acts.logits, rows * head.n());
        ops.head(product(head, logits), norm, rows);
        logits
    }

    /// Takes a step through all layers; gives how many rows are left: those that are sampled.
    fn layers<'a>(
        &self,
        ops: &mut Ops,
        acts: &mut Activations,
        step: &'a Step,
        spans: &mut Vec<SeqSpan<'a>>,
    ) -> usize {
        let (hidden, q_width) = (self.config.hidden, self.config.q_width());
        let mut rows = step.tokens.len();
        let stream = sized(&mut acts.hidden, rows * hidden);
        ops.embed(&self.weights.embedding, &step.tokens, stream);
        step.spans(spans);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.project(ops, acts, layer, index, step);
            if index + 1 == self.weights.layers.len() {
                // Nobody reads the last layer's output but the rows that are sampled.
                keep_rows(&mut acts.hidden, hidden, &step.sampled);
                keep_rows(&mut acts.q, q_width, &step.sampled);
                rows = step.sampled.len();
                if rows == 0 {
                    break;
                }
                step.sampled_spans(spans);
            }
            let attended = sized(&mut acts.attended, rows * q_width);
            let q = &acts.q[..rows * q_width];
            let attended = ops.attend(index, q, spans, attended, &layer.o);
            let stream = &mut acts.hidden[..rows * hidden];
            ops.add_linear(&layer.o, attended, rows, stream);
            self.feed_forward(ops, acts, layer, rows);
        }
        rows
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

    /// The feed-forward part, added to the stream.
    fn feed_forward(&self, ops: &mut Ops, acts: &mut Activations, layer: &Layer, rows: usize) {
        let (hidden, ffn) = (rows * self.config.hidden, rows * self.config.ffn);
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
}

fn product<'a>(weights: &'a PackedMatrix, out: &'a mut [f32]) -> Product<'a> {
    Product { weights, out }
}

/// The memory of a list for a list of another lifetime.
fn recycled<'b>(mut list: Vec<SeqSpan<'_>>) -> Vec<SeqSpan<'b>> {
    list.clear();
    // Collecting a vector's own items into the same type takes over its memory.
    list.into_iter().map(|_| unreachable!()).collect()
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
