//! Settings of a Muse model's text part, from a Hugging Face `config.json`.

use conclave_kernels::RopeStyle;
use serde::Deserialize;

use crate::model::ModelError;
use crate::model::llama::HfRope;
use crate::model::settings::{base_frequencies, count, missing, setting, size};

/// Everything that the forward pass needs besides weights.
#[derive(Clone, Debug, PartialEq)]
pub struct MuseConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside dense feed-forward parts.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Added to the mean square in norms before a part of a layer, and in norms of heads.
    pub eps: f32,
    /// Added to the mean square in norms of what a part of a layer gives.
    pub post_eps: f32,
    /// The longest sequence it was trained for.
    pub context: usize,
    /// Rotation in radians a position, one for each pair of a head's elements.
    pub inv_freq: Vec<f64>,
    /// Which elements make a pair.
    pub rope_style: RopeStyle,
    /// The layers, first to last.
    pub layers: Vec<LayerKind>,
    /// A factor of queries after their norm.
    pub q_scale: f32,
    /// A factor of logits before they are capped.
    pub logit_scale: f32,
    /// Logits stay within this.
    pub logit_cap: f32,
    /// Whether the embeddings give the logits, too.
    pub tied: bool,
    /// Tokens in whose place pictures, film and sound would stand. They are embedded as token 0.
    pub placeholders: Vec<u32>,
    /// What `muse_spark` has beyond the rest.
    pub spark: Option<SparkConfig>,
}

/// What `muse_spark` has: norms of what heads give, gated sums, mixtures of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct SparkConfig {
    /// A divisor of the gates of sums.
    pub temperature: f64,
    /// Experts of a mixture.
    pub experts: usize,
    /// How many of them a row goes to.
    pub chosen: usize,
    /// Width at which they work.
    pub width: usize,
    /// Width inside each.
    pub inner: usize,
    /// A factor of their shares.
    pub scale: f32,
}

/// What one layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// How many slots a query sees, its own included; all, if this is `None`.
    pub window: Option<usize>,
    /// Whether queries and keys are turned by their positions.
    pub turned: bool,
    /// Whether its feed-forward part is a mixture of experts.
    pub sparse: bool,
}

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// `muse_glimmer`.
    Glimmer,
    /// `muse_spark`.
    Spark,
}

impl MuseConfig {
    /// Reads a `config.json` of `member`, its text part only: pictures and sounds cannot be given to it.
    ///
    /// # Errors
    /// [`ModelError::MissingSetting`] and [`ModelError::Setting`].
    pub(crate) fn from_hf(json: &str, member: Member) -> Result<MuseConfig, ModelError> {
        let whole: HfConfig =
            serde_json::from_str(json).map_err(|error| setting("config.json", error))?;
        let placeholders = whole.placeholders(member);
        let text = whole.text_config;
        if text.attention_bias {
            return Err(setting("attention_bias", "biases are not supported"));
        }
        if let Some(act) = text
            .hidden_activation
            .as_deref()
            .filter(|act| *act != "silu")
        {
            let problem = format!("{act:?} is not supported (silu is)");
            return Err(setting("hidden_activation", problem));
        }
        let rope = text.rope_parameters.as_ref();
        let rope = rope.ok_or_else(|| missing("rope_parameters"))?;
        let theta = rope.rope_theta.ok_or_else(|| missing("rope_theta"))?;
        let (head_dim, defaults) = (text.head_dim, member.defaults());
        let mut inv_freq = base_frequencies("rope_theta", head_dim, head_dim, theta)?;
        rope.scale(&mut inv_freq)?;
        let config = MuseConfig {
            hidden: size("hidden_size", text.hidden_size)?,
            ffn: size("intermediate_size", text.intermediate_size)?,
            heads: size("num_attention_heads", text.num_attention_heads)?,
            kv_heads: size("num_key_value_heads", text.num_key_value_heads)?,
            head_dim: size("head_dim", head_dim)?,
            eps: number("rms_norm_eps", text.rms_norm_eps, 1e-5)?,
            post_eps: number("post_norm_eps", text.post_norm_eps, 1e-8)?,
            context: size("max_position_embeddings", text.max_position_embeddings)?,
            inv_freq,
            rope_style: RopeStyle::Neox,
            layers: text.layers(theta, member)?,
            q_scale: number("qk_scale_factor", text.qk_scale_factor, defaults.q_scale)?,
            logit_scale: number(
                "output_multiplier",
                text.output_multiplier,
                defaults.logit_scale,
            )?,
            logit_cap: number(
                "final_logit_softcapping",
                text.final_logit_softcapping,
                20.0,
            )?,
            tied: whole.tie_word_embeddings || text.tie_word_embeddings,
            placeholders,
            spark: match member {
                Member::Glimmer => None,
                Member::Spark => Some(text.spark()?),
            },
        };
        if !config.heads.is_multiple_of(config.kv_heads) {
            let problem = format!("{} heads cannot share {}", config.heads, config.kv_heads);
            return Err(setting("num_key_value_heads", problem));
        }
        Ok(config)
    }

    /// Width of all query heads.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// What transformers takes where `config.json` says nothing, and the two differ.
struct Defaults {
    q_scale: f64,
    logit_scale: f64,
}

impl Member {
    fn defaults(self) -> Defaults {
        match self {
            Member::Glimmer => Defaults {
                q_scale: 3.87,
                logit_scale: 0.196_116_135_138_184_04,
            },
            Member::Spark => Defaults {
                q_scale: 5.473_006_486_387_5,
                logit_scale: 0.176_776_695_296_636_9,
            },
        }
    }
}

/// The fields of `config.json` that count.
#[derive(Debug, Deserialize)]
struct HfConfig {
    text_config: HfText,
    #[serde(default)]
    tie_word_embeddings: bool,
    image_token_id: Option<u32>,
    video_token_id: Option<u32>,
    audio_token_id: Option<u32>,
}

impl HfConfig {
    fn placeholders(&self, member: Member) -> Vec<u32> {
        let mut tokens = vec![
            self.image_token_id.unwrap_or(200_092),
            self.video_token_id.unwrap_or(200_091),
        ];
        if member == Member::Spark {
            tokens.push(self.audio_token_id.unwrap_or(200_038));
        }
        tokens
    }
}

#[derive(Debug, Deserialize)]
struct HfText {
    num_hidden_layers: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_attention_heads: u64,
    num_key_value_heads: u64,
    head_dim: u64,
    max_position_embeddings: u64,
    rms_norm_eps: Option<f64>,
    post_norm_eps: Option<f64>,
    rope_parameters: Option<HfRope>,
    layer_rope_theta: Option<Vec<f64>>,
    layer_types: Option<Vec<String>>,
    sliding_window: Option<u64>,
    qk_scale_factor: Option<f64>,
    output_multiplier: Option<f64>,
    final_logit_softcapping: Option<f64>,
    #[serde(alias = "hidden_act")]
    hidden_activation: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    mlp_layer_types: Option<Vec<String>>,
    num_local_experts: Option<u64>,
    num_experts_per_tok: Option<u64>,
    moe_hidden_size: Option<u64>,
    moe_intermediate_size: Option<u64>,
    routed_scaling_factor: Option<f64>,
    residual_gate_temperature: Option<f64>,
}

impl HfText {
    fn spark(&self) -> Result<SparkConfig, ModelError> {
        let need = |key, value: Option<u64>| value.ok_or_else(|| missing(key));
        let dimension = |key, value| size(key, need(key, value)?);
        let number_of = |key, value| count(key, need(key, value)?);
        let experts = number_of("num_local_experts", self.num_local_experts)?;
        let chosen = number_of("num_experts_per_tok", self.num_experts_per_tok)?;
        if chosen > experts {
            let problem = format!("{chosen} of {experts} experts cannot be chosen");
            return Err(setting("num_experts_per_tok", problem));
        }
        let temperature = self.residual_gate_temperature;
        let temperature = number("residual_gate_temperature", temperature, 0.3)?;
        Ok(SparkConfig {
            temperature: f64::from(temperature),
            experts,
            chosen,
            width: dimension("moe_hidden_size", self.moe_hidden_size)?,
            inner: dimension("moe_intermediate_size", self.moe_intermediate_size)?,
            scale: number("routed_scaling_factor", self.routed_scaling_factor, 1.0)?,
        })
    }

    /// Whether a layer's feed-forward part is a mixture of experts: by default all of them are, where any can be.
    fn sparse(&self, layer: usize, member: Member) -> Result<bool, ModelError> {
        let kinds = self.mlp_layer_types.as_ref();
        match (member, kinds.map(|kinds| kinds[layer].as_str())) {
            (Member::Glimmer, _) | (Member::Spark, Some("dense")) => Ok(false),
            (Member::Spark, None | Some("sparse")) => Ok(true),
            (Member::Spark, Some(other)) => {
                let problem = format!("{other:?} is not supported (dense, sparse are)");
                Err(setting("mlp_layer_types", problem))
            }
        }
    }

    /// What each layer is. By default every fourth, counted from the last, sees all slots and turns nothing.
    fn layers(&self, theta: f64, member: Member) -> Result<Vec<LayerKind>, ModelError> {
        let count = count("num_hidden_layers", self.num_hidden_layers)?;
        let fourth = |layer: usize| (count - 1 - layer).is_multiple_of(4);
        let types = listed("layer_types", self.layer_types.as_deref(), count)?;
        listed("mlp_layer_types", self.mlp_layer_types.as_deref(), count)?;
        let thetas = listed("layer_rope_theta", self.layer_rope_theta.as_deref(), count)?;
        let kind = |layer: usize| {
            let full = match types.map(|types| types[layer].as_str()) {
                None => fourth(layer),
                Some("full_attention") => true,
                Some("sliding_attention") => false,
                Some(other) => {
                    let known = "full_attention, sliding_attention are";
                    let problem = format!("{other:?} is not supported ({known})");
                    return Err(setting("layer_types", problem));
                }
            };
            let window = match full {
                true => None,
                false => Some(size("sliding_window", self.sliding_window.unwrap_or(2048))?),
            };
            let turned = match thetas.map(|thetas| thetas[layer]) {
                None => !fourth(layer),
                Some(0.0) => false,
                Some(own) if own == theta => true,
                Some(own) => {
                    let problem = format!("{own} is neither 0 nor rope_theta, {theta}");
                    return Err(setting("layer_rope_theta", problem));
                }
            };
            let sparse = self.sparse(layer, member)?;
            Ok(LayerKind {
                window,
                turned,
                sparse,
            })
        };
        (0..count).map(kind).collect()
    }
}

/// A list that has an entry for each layer, if there is one.
fn listed<'a, T>(
    key: &str,
    list: Option<&'a [T]>,
    layers: usize,
) -> Result<Option<&'a [T]>, ModelError> {
    match list {
        Some(list) if list.len() != layers => {
            let problem = format!("{} entries for {layers} layers", list.len());
            Err(setting(key, problem))
        }
        list => Ok(list),
    }
}

/// A factor or an epsilon: finite and above zero.
fn number(key: &str, value: Option<f64>, default: f64) -> Result<f32, ModelError> {
    let value = value.unwrap_or(default);
    match (value as f32).is_finite() && value as f32 > 0.0 {
        true => Ok(value as f32),
        false => Err(setting(key, format!("{value} is not positive"))),
    }
}
