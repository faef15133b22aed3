//! The architectures that are written here.

use conclave_kernels::{KvCache, KvDtype, RopeTable};

use super::llama::Llama;
use super::muse::Muse;
use super::ops::{HeadShape, Ops};
use super::pass::{self, Activations};
use super::step::Step;

/// A model of one of the architectures, without tokenizer.
pub enum Family {
    /// llama: GGUF files and safetensors folders.
    Llama(Llama),
    /// The text part of `muse_glimmer` and `muse_spark`: safetensors folders.
    Muse(Muse),
}

impl Family {
    /// Logits a row.
    pub fn vocab(&self) -> usize {
        match self {
            Family::Llama(model) => model.vocab(),
            Family::Muse(model) => model.vocab(),
        }
    }

    /// The longest sequence it was trained for, in tokens.
    pub fn context(&self) -> usize {
        match self {
            Family::Llama(model) => model.config.context,
            Family::Muse(model) => model.config.context,
        }
    }

    /// Memory of the packed weights, in bytes.
    pub fn weight_bytes(&self) -> usize {
        match self {
            Family::Llama(model) => model.weights.bytes(),
            Family::Muse(model) => model.weights.bytes(),
        }
    }

    /// The head layout of its attention.
    pub(crate) fn head_shape(&self) -> HeadShape {
        match self {
            Family::Llama(model) => model.head_shape(),
            Family::Muse(model) => model.head_shape(),
        }
    }

    /// A KV cache of `blocks` blocks.
    pub(crate) fn cache(&self, blocks: usize, dtype: KvDtype) -> KvCache {
        match self {
            Family::Llama(model) => model.cache(blocks, dtype),
            Family::Muse(model) => model.cache(blocks, dtype),
        }
    }

    /// Rotations for positions below `positions`.
    pub(crate) fn rope(&self, positions: usize) -> RopeTable {
        match self {
            Family::Llama(model) => model.rope(positions),
            Family::Muse(model) => model.rope(positions),
        }
    }

    /// Computes a step and gives the logits of its sampled rows, `sampled x vocab`.
    pub(crate) fn forward<'a>(
        &self,
        ops: &mut Ops,
        acts: &'a mut Activations,
        step: &Step,
    ) -> &'a [f32] {
        match self {
            Family::Llama(model) => pass::forward(model, ops, acts, step),
            Family::Muse(model) => pass::forward(model, ops, acts, step),
        }
    }
}
