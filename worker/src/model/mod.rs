//! Models: weights, tokenizer and chat template from a file, and the forward pass over a [`Batch`].
//!
//! | module | what it holds |
//! |---|---|
//! | [`source`] | tensors as they lie in a file |
//! | [`gguf`] | GGUF files, mapped and checked |
//! | [`safetensors`] | Hugging Face folders |
//! | [`family`] | the architectures; each has settings, weights and what its layers compute |
//! | [`llama`] | that of llama |
//! | [`muse`] | the text part of those of Muse |
//! | [`device`] | the same on a GPU: weights, KV cache and steps there |
//! | [`ops`] | the only bridge to the kernels: scratch and KV cache of one worker |
//! | [`pull`] | the cache of models and what fills it |
//! | [`check`] | agreement with a reference implementation |
//! | [`tokenizer`], [`template`] | text to tokens and back; messages to text |
//!
//! [`Batch`]: conclave_worker_core::Batch

pub mod check;
pub mod device;
mod error;
pub mod family;
mod forward;
pub mod gguf;
pub mod llama;
mod load;
mod map;
mod meter;
pub mod muse;
pub mod ops;
mod packing;
mod pass;
pub mod pull;
pub mod safetensors;
mod settings;
pub mod source;
mod step;
pub mod template;
pub mod tokenizer;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use conclave_kernels::{Activation, Isa};

use device::DeviceModel;
pub use device::{Device, WeakDevice};
pub use error::{ModelError, TemplateError, TokenizerError};
use family::Family;
pub use forward::{Forward, Logits};
pub use meter::{Meter, Part};
pub use template::{ChatMessage, ChatTemplate};
pub use tokenizer::Tokenizer;

/// How a model is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// How activations meet quantized weights.
    pub activation: Activation,
    /// The instruction set that weights are packed for.
    pub isa: Isa,
    /// Where the weights are put and met; `None`: in the processor's memory, by the processor.
    pub device: Option<Device>,
    /// The name it goes by; by default the one in the file, or the file's.
    pub name: Option<String>,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            activation: Activation::Int8,
            isa: conclave_kernels::detect(),
            device: None,
            name: None,
        }
    }
}

/// What others need to know of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// The name it goes by.
    pub name: String,
    /// blake3 of the file, or of a folder's files.
    pub digest: [u8; 32],
    /// All that decides the bits of a logit but the KV dtype, which [`Forward::numeric_class`] adds.
    pub numeric_class: String,
    /// The longest sequence it was trained for, in tokens.
    pub context_tokens: usize,
    /// Logits a row.
    pub vocab_size: usize,
    /// Tokens that end a generation, ascending.
    pub end_of_generation: Vec<u32>,
}

/// A model's weights, tokenizer and template; shared by the workers of a process.
pub struct Model {
    info: ModelInfo,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    thought: Option<(Vec<u32>, Vec<u32>)>,
    weights: Weights,
}

/// Settings and weights of a model, where they lie.
enum Weights {
    Host(Arc<Family>),
    Device(Arc<DeviceModel>),
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a GGUF file or a Hugging Face folder.
    ///
    /// # Errors
    /// What [`ModelError`] names; a hostile file ends here too, never in a panic.
    pub fn load(path: &Path, opts: &LoadOptions) -> Result<Arc<Model>, ModelError> {
        load::load(path, opts).map(Arc::new)
    }

    /// As [`Model::load`], but a model that this process holds already is not loaded again.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn shared(path: &Path, opts: &LoadOptions) -> Result<Arc<Model>, ModelError> {
        load::shared(path, opts)
    }

    /// What others need to know.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Messages to text.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The tokens that begin and end a thought, if the vocabulary has them.
    pub fn thought_delimiters(&self) -> Option<(Vec<u32>, Vec<u32>)> {
        self.thought.clone()
    }

    /// Settings and weights; `None` if those are on a device.
    pub fn family(&self) -> Option<&Family> {
        match &self.weights {
            Weights::Host(family) => Some(family),
            Weights::Device(_) => None,
        }
    }

    /// The device that holds the weights; `None`: they are in the processor's memory.
    pub fn device(&self) -> Option<&Device> {
        match &self.weights {
            Weights::Host(_) => None,
            Weights::Device(model) => Some(model.device()),
        }
    }

    /// Memory of the packed weights, in bytes, wherever they are.
    pub fn weight_bytes(&self) -> usize {
        match &self.weights {
            Weights::Host(family) => family.weight_bytes(),
            Weights::Device(model) => model.weight_bytes(),
        }
    }
}
