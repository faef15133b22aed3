//! The way of a step through a model, the same for every architecture: embed, layer by layer, logits of the
//! sampled rows.
//!
//! Every op works on rows by themselves, and attention on a sequence's own stored slots: what a row gives depends
//! on nothing else in the step.

use conclave_kernels::{PackedMatrix, Product, SeqSpan};

use super::muse::Mixture;
use super::ops::Ops;
use super::step::Step;

/// What an architecture computes of a step.
pub(crate) trait Architecture {
    /// How many layers there are.
    fn layers(&self) -> usize;

    /// Begins the stream of every row.
    fn embed(&self, ops: &mut Ops, acts: &mut Activations, step: &Step);

    /// Queries of every row, to `acts.q`; its key and value go to the cache.
    fn project(&self, ops: &mut Ops, acts: &mut Activations, layer: usize, step: &Step);

    /// Moves `rows` (ascending) to the front of all that [`Architecture::attend`] reads.
    fn keep(&self, acts: &mut Activations, rows: &[usize]);

    /// Attention of the first `rows` rows and what follows, added to the stream.
    fn attend(
        &self,
        ops: &mut Ops,
        acts: &mut Activations,
        layer: usize,
        rows: usize,
        spans: &[SeqSpan<'_>],
    );

    /// The feed-forward part of the first `rows` rows, added to the stream.
    fn feed_forward(&self, ops: &mut Ops, acts: &mut Activations, layer: usize, rows: usize);

    /// Logits of the first `rows` rows, to `acts.logits`; gives how many numbers they are.
    fn logits(&self, ops: &mut Ops, acts: &mut Activations, rows: usize) -> usize;
}

/// Activations of one step. They grow to the largest step and are then reused.
#[derive(Default)]
pub(crate) struct Activations {
    pub(super) hidden: Vec<f32>,
    pub(super) normed: Vec<f32>,
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    pub(super) inner: Vec<f32>,
    pub(super) logits: Vec<f32>,
    /// What queries and keys are before their norm.
    pub(super) raw: Vec<f32>,
    /// Gates of what heads give.
    pub(super) head_gate: Vec<f32>,
    /// What a part of a layer gives before it is normed and added to the stream.
    pub(super) given: Vec<f32>,
    /// Of experts.
    pub(super) mixture: Mixture,
    /// Always empty: the memory of a step's list of sequences.
    spans: Vec<SeqSpan<'static>>,
}

/// Computes a step and gives the logits of its sampled rows, `sampled x vocab`.
pub(crate) fn forward<'a>(
    model: &impl Architecture,
    ops: &mut Ops,
    acts: &'a mut Activations,
    step: &Step,
) -> &'a [f32] {
    let mut spans = recycled(std::mem::take(&mut acts.spans));
    let rows = layers(model, ops, acts, step, &mut spans);
    acts.spans = recycled(spans);
    if rows == 0 {
        return &[];
    }
    let numbers = model.logits(ops, acts, rows);
    &acts.logits[..numbers]
}

/// Takes a step through all layers; gives how many rows are left: those that are sampled.
fn layers<'a>(
    model: &impl Architecture,
    ops: &mut Ops,
    acts: &mut Activations,
    step: &'a Step,
    spans: &mut Vec<SeqSpan<'a>>,
) -> usize {
    let mut rows = step.tokens.len();
    model.embed(ops, acts, step);
    step.spans(spans);
    for layer in 0..model.layers() {
        model.project(ops, acts, layer, step);
        if layer + 1 == model.layers() {
            // Nobody reads the last layer's output but the rows that are sampled.
            model.keep(acts, &step.sampled);
            rows = step.sampled.len();
            if rows == 0 {
                break;
            }
            step.sampled_spans(spans);
        }
        model.attend(ops, acts, layer, rows, spans);
        model.feed_forward(ops, acts, layer, rows);
    }
    rows
}

/// A product of a matrix, to `out`.
pub(super) fn product<'a>(weights: &'a PackedMatrix, out: &'a mut [f32]) -> Product<'a> {
    Product { weights, out }
}

/// The first `len` numbers of a buffer that grows if it must.
pub(super) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// The memory of a list for a list of another lifetime.
fn recycled<'b>(mut list: Vec<SeqSpan<'_>>) -> Vec<SeqSpan<'b>> {
    list.clear();
    // Collecting a vector's own items into the same type takes over its memory.
    list.into_iter().map(|_| unreachable!()).collect()
}

/// Moves `rows` (ascending) to the front.
pub(super) fn keep_rows(buffer: &mut [f32], width: usize, rows: &[usize]) {
    for (to, from) in rows.iter().enumerate() {
        buffer.copy_within(from * width..(from + 1) * width, to * width);
    }
}
