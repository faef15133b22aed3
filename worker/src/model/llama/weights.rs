//! The weights of a llama-architecture model, packed for the kernels.

use conclave_kernels::{Activation, Isa, PackedMatrix};

use super::config::LlamaConfig;
use crate::model::ModelError;
use crate::model::packing::Packing;
use crate::model::source::TensorSource;

/// Weights of all layers: matrices `M` and vectors `V`, in the processor's memory or a device's.
pub struct LlamaWeights<M = PackedMatrix, V = Vec<f32>> {
    /// `vocab x hidden`; also the output matrix if `head` is `None`.
    pub embedding: M,
    /// The blocks, first to last.
    pub layers: Vec<Layer<M, V>>,
    /// Weight of the last norm, `hidden`.
    pub norm: V,
    /// `vocab x hidden`, where it is not tied to the embedding.
    pub head: Option<M>,
}

/// Weights of one block.
pub struct Layer<M = PackedMatrix, V = Vec<f32>> {
    /// Norm before attention, `hidden`.
    pub attn_norm: V,
    /// `heads * head_dim x hidden`.
    pub q: M,
    /// `kv_heads * head_dim x hidden`.
    pub k: M,
    /// `kv_heads * head_dim x hidden`.
    pub v: M,
    /// `hidden x heads * head_dim`.
    pub o: M,
    /// Norm before the feed-forward part, `hidden`.
    pub ffn_norm: V,
    /// `ffn x hidden`.
    pub gate: M,
    /// `ffn x hidden`.
    pub up: M,
    /// `hidden x ffn`.
    pub down: M,
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
        self.matrices().map(PackedMatrix::bytes).sum()
    }
}

impl<M, V> LlamaWeights<M, V> {
    /// Every matrix.
    fn matrices(&self) -> impl Iterator<Item = &M> {
        let layers = self.layers.iter().flat_map(|layer| {
            let Layer {
                q,
                k,
                v,
                o,
                gate,
                up,
                down,
                ..
            } = layer;
            [q, k, v, o, gate, up, down]
        });
        layers.chain([&self.embedding]).chain(&self.head)
    }

    /// The same weights in another memory. Each is let go as soon as it is there.
    ///
    /// # Errors
    /// The first that `matrix` or `vector` gives.
    pub(crate) fn moved<N, W, E>(
        self,
        matrix: impl Fn(M) -> Result<N, E>,
        vector: impl Fn(V) -> Result<W, E>,
    ) -> Result<LlamaWeights<N, W>, E> {
        let layers = self.layers.into_iter().map(|layer| {
            Ok(Layer {
                attn_norm: vector(layer.attn_norm)?,
                q: matrix(layer.q)?,
                k: matrix(layer.k)?,
                v: matrix(layer.v)?,
                o: matrix(layer.o)?,
                ffn_norm: vector(layer.ffn_norm)?,
                gate: matrix(layer.gate)?,
                up: matrix(layer.up)?,
                down: matrix(layer.down)?,
            })
        });
        Ok(LlamaWeights {
            layers: layers.collect::<Result<_, _>>()?,
            embedding: matrix(self.embedding)?,
            norm: vector(self.norm)?,
            head: self.head.map(matrix).transpose()?,
        })
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
