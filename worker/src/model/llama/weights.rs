//! The weights of a llama-architecture model, packed for the kernels.

use conclave_kernels::{Activation, Isa, PackedMatrix};

use super::config::LlamaConfig;
use crate::model::ModelError;
use crate::model::packing::Packing;
use crate::model::source::TensorSource;

/// Weights of all layers.
pub struct LlamaWeights {
    /// `vocab x hidden`; also the output matrix if `head` is `None`.
    pub embedding: PackedMatrix,
    /// The blocks, first to last.
    pub layers: Vec<Layer>,
    /// Weight of the last norm, `hidden`.
    pub norm: Vec<f32>,
    /// `vocab x hidden`, where it is not tied to the embedding.
    pub head: Option<PackedMatrix>,
}

/// Weights of one block.
pub struct Layer {
    /// Norm before attention, `hidden`.
    pub attn_norm: Vec<f32>,
    /// `heads * head_dim x hidden`.
    pub q: PackedMatrix,
    /// `kv_heads * head_dim x hidden`.
    pub k: PackedMatrix,
    /// `kv_heads * head_dim x hidden`.
    pub v: PackedMatrix,
    /// `hidden x heads * head_dim`.
    pub o: PackedMatrix,
    /// Norm before the feed-forward part, `hidden`.
    pub ffn_norm: Vec<f32>,
    /// `ffn x hidden`.
    pub gate: PackedMatrix,
    /// `ffn x hidden`.
    pub up: PackedMatrix,
    /// `hidden x ffn`.
    pub down: PackedMatrix,
}

/// What the tensors are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// As llama.cpp's converter writes them.
    Gguf,
    /// As transformers writes them.
    HuggingFace,
}

impl LlamaWeights {
    /// Reads and packs all weights.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::Shape`], [`ModelError::Pack`] and what
    /// [`TensorSource::tensor`] gives; [`ModelError::Setting`] if there are biases.
    pub(crate) fn load(
        source: &dyn TensorSource,
        names: Names,
        config: &LlamaConfig,
        activation: Activation,
        isa: Isa,
    ) -> Result<LlamaWeights, ModelError> {
        let packing = Packing::new(source, activation, isa);
        let hidden = config.hidden as u64;
        let embedding = packing.embedding(names.global("embedding"), hidden)?;
        let head = packing.head(names.global("head"), &embedding)?;
        let norm = packing.vector(names.global("norm"), hidden)?;
        let layers = (0..config.layers).map(|layer| names.block(&packing, layer, config));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(LlamaWeights {
            embedding,
            layers,
            norm,
            head,
        })
    }

    /// Memory of the packed matrices, in bytes.
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| {
            [
                &layer.q,
                &layer.k,
                &layer.v,
                &layer.o,
                &layer.gate,
                &layer.up,
                &layer.down,
            ]
        });
        layers
            .chain([&self.embedding])
            .chain(&self.head)
            .map(PackedMatrix::bytes)
            .sum()
    }
}

impl Names {
    fn block(
        self,
        packing: &Packing<'_>,
        layer: usize,
        config: &LlamaConfig,
    ) -> Result<Layer, ModelError> {
        let (hidden, ffn) = (config.hidden as u64, config.ffn as u64);
        let (q, kv) = (config.q_width() as u64, config.kv_width() as u64);
        let matrix = |part, n, k| packing.matrix(self.layer(layer, part), n, k);
        let vector = |part| packing.vector(self.layer(layer, part), hidden);
        Ok(Layer {
            attn_norm: vector("attn_norm")?,
            q: matrix("q", q, hidden)?,
            k: matrix("k", kv, hidden)?,
            v: matrix("v", kv, hidden)?,
            o: matrix("o", hidden, q)?,
            ffn_norm: vector("ffn_norm")?,
            gate: matrix("gate", ffn, hidden)?,
            up: matrix("up", ffn, hidden)?,
            down: matrix("down", hidden, ffn)?,
        })
    }

    fn global(self, part: &str) -> String {
        let name = match (self, part) {
            (Names::Gguf, "embedding") => "token_embd.weight",
            (Names::Gguf, "head") => "output.weight",
            (Names::Gguf, _) => "output_norm.weight",
            (Names::HuggingFace, "embedding") => "model.embed_tokens.weight",
            (Names::HuggingFace, "head") => "lm_head.weight",
            (Names::HuggingFace, _) => "model.norm.weight",
        };
        name.to_owned()
    }

    fn layer(self, layer: usize, part: &str) -> String {
        match self {
            Names::Gguf => {
                let part = match part {
                    "q" | "k" | "v" => format!("attn_{part}"),
                    "o" => "attn_output".to_owned(),
                    "gate" | "up" | "down" => format!("ffn_{part}"),
                    norm => norm.to_owned(),
                };
                format!("blk.{layer}.{part}.weight")
            }
            Names::HuggingFace => {
                let part = match part {
                    "q" | "k" | "v" | "o" => format!("self_attn.{part}_proj"),
                    "gate" | "up" | "down" => format!("mlp.{part}_proj"),
                    "attn_norm" => "input_layernorm".to_owned(),
                    _ => "post_attention_layernorm".to_owned(),
                };
                format!("model.layers.{layer}.{part}.weight")
            }
        }
    }
}
