//! One worker's side of a model: scratch, KV cache, and the forward pass over a batch.

use std::sync::Arc;

use conclave_kernels::{BLOCK, Kernels, KvDtype};
use conclave_worker_core::Batch;

use super::device::Pass;
use super::family::Family;
use super::meter::Meter;
use super::ops::Ops;
use super::pass::Activations;
use super::step::{Bounds, Step};
use super::{Model, ModelError, Weights};

/// Scratch and KV cache of one worker.
pub struct Forward {
    model: Arc<Model>,
    class: String,
    memory: Memory,
    step: Step,
    bounds: Bounds,
    grouped: bool,
}

/// Where that is: beside the weights.
enum Memory {
    Host(Box<Host>),
    Device(Box<Pass>),
}

/// In the processor's memory.
struct Host {
    family: Arc<Family>,
    ops: Ops,
    acts: Activations,
}

impl Forward {
    /// Allocates a KV cache of `blocks` blocks of 16 slots, where the model's weights are. Scratch grows to the
    /// largest step. On a device `kernels` do nothing.
    ///
    /// # Errors
    /// [`ModelError::Batch`] if there are no blocks, or more than slot ids can name; [`ModelError::DeviceMemory`]
    /// and [`ModelError::Device`] if the device refuses.
    pub fn new(
        model: Arc<Model>,
        kernels: Arc<Kernels>,
        blocks: usize,
        kv: KvDtype,
    ) -> Result<Forward, ModelError> {
        if blocks == 0 || blocks > u32::MAX as usize / BLOCK {
            return Err(ModelError::Batch {
                problem: format!("a cache of {blocks} blocks"),
            });
        }
        let positions = model.info().context_tokens.min(blocks * BLOCK);
        let memory = match &model.weights {
            Weights::Host(family) => {
                let (cache, rope) = (family.cache(blocks, kv), family.rope(positions));
                let ops = Ops::new(kernels, cache, rope, family.head_shape());
                Memory::Host(Box::new(Host {
                    family: Arc::clone(family),
                    ops,
                    acts: Activations::default(),
                }))
            }
            Weights::Device(model) => Memory::Device(Box::new(Pass::new(model, blocks, kv)?)),
        };
        let bounds = Bounds {
            vocab: model.info().vocab_size,
            positions,
            blocks,
        };
        let class = format!("{}-kv{}", model.info().numeric_class, kv.name());
        Ok(Forward {
            model,
            class,
            memory,
            step: Step::default(),
            bounds,
            grouped: true,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// All that decides the bits of a logit.
    pub fn numeric_class(&self) -> &str {
        &self.class
    }

    /// Memory of the KV cache, in bytes.
    pub fn cache_bytes(&self) -> usize {
        match &self.memory {
            Memory::Host(host) => host.ops.cache_bytes(),
            Memory::Device(pass) => pass.cache_bytes(),
        }
    }

    /// Takes the memory of the largest step beforehand, so that no step finds a device full: `rows` tokens of
    /// which `sampled` are sampled. Does nothing on the processor.
    ///
    /// # Errors
    /// [`ModelError::DeviceMemory`] and [`ModelError::Device`].
    pub fn reserve(&mut self, rows: usize, sampled: usize) -> Result<(), ModelError> {
        match &mut self.memory {
            Memory::Host(_) => Ok(()),
            Memory::Device(pass) => pass.reserve(rows, sampled),
        }
    }

    /// Whether sequences that share blocks meet them together, as they do unless this says otherwise. It
    /// changes the time a step takes and no bit of what it gives.
    pub fn set_grouped(&mut self, grouped: bool) {
        self.grouped = grouped;
    }

    /// Starts to measure where the time of steps goes, or stops and gives what was measured.
    pub fn measure(&mut self, on: bool) -> Option<Meter> {
        match &mut self.memory {
            Memory::Host(host) => host.ops.measure(on),
            Memory::Device(pass) => pass.measure(on),
        }
    }

    /// What is being measured, if anything is.
    pub(crate) fn meter(&mut self) -> Option<&mut Meter> {
        match &mut self.memory {
            Memory::Host(host) => host.ops.meter(),
            Memory::Device(pass) => pass.meter(),
        }
    }

    /// Computes a batch: makes its copies, writes the KV of its tokens, and gives the logits after the last
    /// token of each entry that samples.
    ///
    /// # Errors
    /// [`ModelError::Batch`] if an entry names tokens, positions or blocks that do not exist; nothing was
    /// computed then. [`ModelError::Device`] if a device fails; part may have been computed.
    pub fn run(&mut self, batch: &Batch) -> Result<Logits<'_>, ModelError> {
        self.step.fill(batch, self.bounds, self.grouped)?;
        let (step, vocab) = (&self.step, self.bounds.vocab);
        let rows = match &mut self.memory {
            Memory::Host(host) => host.run(batch, step),
            Memory::Device(pass) => pass.run(batch, step)?,
        };
        Ok(Logits { rows, vocab })
    }
}

impl Host {
    fn run(&mut self, batch: &Batch, step: &Step) -> &[f32] {
        for copy in batch.copies() {
            self.ops.copy_block(copy.src.0, copy.dst.0);
        }
        match batch.is_empty() {
            true => &[],
            false => self.family.forward(&mut self.ops, &mut self.acts, step),
        }
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
