//! The weights of a Muse model's text part, packed for the kernels.

use conclave_kernels::{Activation, Isa, PackedMatrix, PostNorm};

use super::config::MuseConfig;
use crate::model::ModelError;
use crate::model::packing::Packing;
use crate::model::source::TensorSource;

/// Weights of all layers.
pub struct MuseWeights {
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
    /// Gates of what heads give, `heads * head_dim x hidden`.
    pub head_gate: PackedMatrix,
    /// `hidden x heads * head_dim`.
    pub o: PackedMatrix,
    /// What attention gives, on its way to the stream.
    pub after_attn: Residual,
    /// Norm before the feed-forward part, `hidden`.
    pub ffn_norm: Vec<f32>,
    /// `ffn x hidden`.
    pub gate: PackedMatrix,
    /// `ffn x hidden`.
    pub up: PackedMatrix,
    /// `hidden x ffn`.
    pub down: PackedMatrix,
    /// What the feed-forward part gives, on its way to the stream.
    pub after_ffn: Residual,
}

/// Factors of a norm between a part of a layer and the stream, `hidden` each.
pub struct Residual {
    before: Vec<f32>,
    weight: Vec<f32>,
    keep: Vec<f32>,
}

impl Residual {
    /// The norm.
    pub fn norm(&self, eps: f32) -> PostNorm<'_> {
        PostNorm {
            before: &self.before,
            eps,
            weight: &self.weight,
            keep: &self.keep,
        }
    }
}

const TEXT: &str = "model.language_model";

impl MuseWeights {
    /// Reads and packs all weights of the text part; others, as those of the vision tower, are not touched.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::Shape`], [`ModelError::Pack`] and what
    /// [`TensorSource::tensor`] gives; [`ModelError::Setting`] if there are biases.
    pub(crate) fn load(
        source: &dyn TensorSource,
        config: &MuseConfig,
        activation: Activation,
        isa: Isa,
    ) -> Result<MuseWeights, ModelError> {
        let packing = Packing::new(source, activation, isa);
        let hidden = config.hidden as u64;
        let embedding = packing.embedding(format!("{TEXT}.embed_tokens.weight"), hidden)?;
        let head = match config.tied {
            true => None,
            false => {
                let (n, k) = (embedding.n() as u64, hidden);
                Some(packing.matrix("lm_head.weight".into(), n, k)?)
            }
        };
        let norm = packing.vector(format!("{TEXT}.norm.weight"), hidden)?;
        let layers = (0..config.layers.len()).map(|layer| block(&packing, layer, config));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(MuseWeights {
            embedding,
            layers,
            norm,
            head,
        })
    }

    /// Memory of the packed matrices, in bytes.
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(Layer::matrices);
        layers
            .chain([&self.embedding])
            .chain(&self.head)
            .map(PackedMatrix::bytes)
            .sum()
    }
}

impl Layer {
    fn matrices(&self) -> impl Iterator<Item = &PackedMatrix> {
        let Layer {
            q,
            k,
            v,
            head_gate,
            o,
            gate,
            up,
            down,
            ..
        } = self;
        [q, k, v, head_gate, o, gate, up, down].into_iter()
    }
}

fn block(packing: &Packing<'_>, layer: usize, config: &MuseConfig) -> Result<Layer, ModelError> {
    let (hidden, ffn) = (config.hidden as u64, config.ffn as u64);
    let (q, kv) = (config.q_width() as u64, config.kv_width() as u64);
    let name = |part: &str| format!("{TEXT}.layers.{layer}.{part}.weight");
    let matrix = |part, n, k| packing.matrix(name(part), n, k);
    // The norms are stored as what differs from 1.
    let centered = |part| -> Result<Vec<f32>, ModelError> {
        let mut weight = packing.vector(name(part), hidden)?;
        weight.iter_mut().for_each(|w| *w += 1.0);
        Ok(weight)
    };
    let residual = |part| -> Result<Residual, ModelError> {
        let ones = || vec![1.0; config.hidden];
        Ok(Residual {
            before: ones(),
            weight: centered(part)?,
            keep: ones(),
        })
    };
    Ok(Layer {
        attn_norm: centered("input_layernorm")?,
        q: matrix("self_attn.q_proj", q, hidden)?,
        k: matrix("self_attn.k_proj", kv, hidden)?,
        v: matrix("self_attn.v_proj", kv, hidden)?,
        head_gate: matrix("self_attn.gate_proj", q, hidden)?,
        o: matrix("self_attn.o_proj", hidden, q)?,
        after_attn: residual("post_attention_layernorm")?,
        ffn_norm: centered("pre_feedforward_layernorm")?,
        gate: matrix("mlp.gate_proj", ffn, hidden)?,
        up: matrix("mlp.up_proj", ffn, hidden)?,
        down: matrix("mlp.down_proj", hidden, ffn)?,
        after_ffn: residual("post_feedforward_layernorm")?,
    })
}
