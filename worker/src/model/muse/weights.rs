//! The weights of a Muse model's text part, packed for the kernels.

use conclave_kernels::{Activation, Isa, PackedMatrix, PostNorm};

use super::config::{MuseConfig, SparkConfig};
use super::experts::{Expert, Experts};
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
    /// The feed-forward part.
    pub ffn: FeedForward,
    /// What it gives, on its way to the stream.
    pub after_ffn: Residual,
}

/// A feed-forward part.
pub enum FeedForward {
    /// One for all rows.
    Dense(Dense),
    /// Experts, of which each row has its own.
    Experts(Experts),
}

/// Weights of a dense feed-forward part.
pub struct Dense {
    /// `ffn x hidden`.
    pub gate: PackedMatrix,
    /// `ffn x hidden`.
    pub up: PackedMatrix,
    /// `hidden x ffn`.
    pub down: PackedMatrix,
}

/// Factors of a norm between a part of a layer and the stream, `hidden` each.
pub struct Residual {
    before: Vec<f32>,
    weight: Vec<f32>,
    keep: Vec<f32>,
}

impl Residual {
    /// The norm's result is added to the stream.
    fn plain(weight: Vec<f32>) -> Residual {
        let ones = vec![1.0; weight.len()];
        Residual {
            before: ones.clone(),
            weight,
            keep: ones,
        }
    }

    /// What gate lets in of the norm's result, the stream gives up, so that the sum of squares stays about the same:
    /// `weight = sigmoid(gate / temperature)`, `keep = sqrt(1 - weight^2)`, its square no less than 1e-3.
    fn gated(before: Vec<f32>, gate: &[f32], temperature: f64) -> Residual {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let gates = gate.iter().map(|gate| f64::from(*gate) / temperature);
        let (weight, keep) = gates
            .map(|gate| {
                let weight = sigmoid(gate);
                let keep = (sigmoid(-gate) * (1.0 + weight)).max(1e-3).sqrt();
                (weight as f32, keep as f32)
            })
            .unzip();
        Residual {
            before,
            weight,
            keep,
        }
    }

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
        let block = |layer| Block {
            packing: &packing,
            config,
            layer,
        };
        let layers = (0..config.layers.len()).map(|layer| block(layer).read());
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
    fn matrices(&self) -> Vec<&PackedMatrix> {
        let mut matrices = vec![&self.q, &self.k, &self.v, &self.head_gate, &self.o];
        match &self.ffn {
            FeedForward::Dense(dense) => matrices.extend([&dense.gate, &dense.up, &dense.down]),
            FeedForward::Experts(experts) => matrices.extend(experts.matrices()),
        }
        matrices
    }
}

/// A layer's tensors on their way to the kernels.
struct Block<'a> {
    packing: &'a Packing<'a>,
    config: &'a MuseConfig,
    layer: usize,
}

impl Block<'_> {
    fn name(&self, part: &str) -> String {
        format!("{TEXT}.layers.{}.{part}", self.layer)
    }

    fn matrix(&self, part: &str, n: usize, k: usize) -> Result<PackedMatrix, ModelError> {
        let name = self.name(&format!("{part}.weight"));
        self.packing.matrix(name, n as u64, k as u64)
    }

    fn vector(&self, part: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        self.packing.vector(self.name(part), len as u64)
    }

    /// The weight of a norm, which is stored as what differs from 1.
    fn centered(&self, part: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let mut weight = self.vector(&format!("{part}.weight"), len)?;
        weight.iter_mut().for_each(|w| *w += 1.0);
        Ok(weight)
    }

    fn read(&self) -> Result<Layer, ModelError> {
        let config = self.config;
        let (hidden, q, kv) = (config.hidden, config.q_width(), config.kv_width());
        let (after_attn, after_ffn) = match &config.spark {
            None => {
                let plain = |part| -> Result<Residual, ModelError> {
                    Ok(Residual::plain(self.centered(part, hidden)?))
                };
                (
                    plain("post_attention_layernorm")?,
                    plain("post_feedforward_layernorm")?,
                )
            }
            Some(spark) => {
                let gated = |part, before| -> Result<Residual, ModelError> {
                    let gate = self.vector(part, hidden)?;
                    Ok(Residual::gated(before, &gate, spark.temperature))
                };
                let before = self.centered("post_feedforward_layernorm", hidden)?;
                (
                    gated("post_attention_residual_gate.gate", vec![1.0; hidden])?,
                    gated("post_feedforward_residual_gate.gate", before)?,
                )
            }
        };
        let ffn = match (&config.spark, config.layers[self.layer].sparse) {
            (Some(spark), true) => FeedForward::Experts(self.experts(spark)?),
            _ => FeedForward::Dense(Dense {
                gate: self.matrix("mlp.gate_proj", config.ffn, hidden)?,
                up: self.matrix("mlp.up_proj", config.ffn, hidden)?,
                down: self.matrix("mlp.down_proj", hidden, config.ffn)?,
            }),
        };
        Ok(Layer {
            attn_norm: self.centered("input_layernorm", hidden)?,
            q: self.matrix("self_attn.q_proj", q, hidden)?,
            k: self.matrix("self_attn.k_proj", kv, hidden)?,
            v: self.matrix("self_attn.v_proj", kv, hidden)?,
            head_gate: self.matrix("self_attn.gate_proj", q, hidden)?,
            o: self.matrix("self_attn.o_proj", hidden, q)?,
            after_attn,
            ffn_norm: self.centered("pre_feedforward_layernorm", hidden)?,
            ffn,
            after_ffn,
        })
    }

    fn experts(&self, spark: &SparkConfig) -> Result<Experts, ModelError> {
        let (hidden, count, width) = (self.config.hidden, spark.experts, spark.width);
        let stacked = |part, parts, n, k| {
            let matrices = self
                .packing
                .stacked(self.name(part), [count, parts], n, k)?;
            Ok::<_, ModelError>(matrices.into_iter())
        };
        let mut gate_up = stacked("mlp.experts.gate_up_proj", 2, spark.inner, width)?;
        let mut down = stacked("mlp.experts.down_proj", 1, width, spark.inner)?;
        let next = || {
            Some(Expert {
                gate: gate_up.next()?,
                up: gate_up.next()?,
                down: down.next()?,
            })
        };
        Ok(Experts {
            router: self.matrix("mlp.gate", count, hidden)?,
            bias: self.vector("mlp.gate.e_score_correction_bias", count)?,
            narrow: self.matrix("mlp.pre_expert_proj", width, hidden)?,
            norm: self.centered("mlp.pre_expert_norm", width)?,
            experts: std::iter::from_fn(next).collect(),
            before: self.centered("mlp.experts.post_expert_norm", width)?,
            ones: vec![1.0; width],
            widen: self.matrix("mlp.post_expert_proj", hidden, width)?,
            chosen: spark.chosen,
            multiplier: self.config.logit_scale,
            scale: spark.scale,
            eps: self.config.eps,
            post_eps: self.config.post_eps,
        })
    }
}
