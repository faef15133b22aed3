//! Settings of a Muse model's text part, from a Hugging Face `config.json`.

use conclave_kernels::RopeStyle;
use serde::Deserialize;

use crate::model::ModelError;
use crate::model::llama::HfRope;
use crate::model::settings::{base_frequencies, missing, setting, size};

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
}

/// What one layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// How many slots a query sees, its own included; all, if this is `None`.
    pub window: Option<usize>,
    /// Whether queries and keys are turned by their positions.
    pub turned: bool,
}

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// `muse_glimmer`.
    Glimmer,
}

impl MuseConfig {
    /// Reads a `config.json` of `member`, its text part only: pictures and sounds cannot be given to it.
    ///
    /// # Errors
    /// [`ModelError::MissingSetting`] and [`ModelError::Setting`].
    pub(crate) fn from_hf(json: &str, member: Member) -> Result<MuseConfig, ModelError> {
        let whole: HfConfig =
            serde_json::from_str(json).map_err(|error| setting("config.json", error))?;
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
        let (head_dim, member) = (text.head_dim, member.defaults());
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
            layers: text.layers(theta)?,
            q_scale: number("qk_scale_factor", text.qk_scale_factor, member.q_scale)?,
            logit_scale: number(
                "output_multiplier",
                text.output_multiplier,
                member.logit_scale,
            )?,
            logit_cap: number(
                "final_logit_softcapping",
                text.final_logit_softcapping,
                20.0,
            )?,
            tied: whole.tie_word_embeddings || text.tie_word_embeddings,
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
        }
    }
}

/// The fields of `config.json` that count.
#[derive(Debug, Deserialize)]
struct HfConfig {
    text_config: HfText,
    #[serde(default)]
    tie_word_embeddings: bool,
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
}

impl HfText {
    /// What each layer is. By default every fourth, counted from the last, sees all slots and turns nothing.
    fn layers(&self, theta: f64) -> Result<Vec<LayerKind>, ModelError> {
        let count = size("num_hidden_layers", self.num_hidden_layers)?;
        let fourth = |layer: usize| (count - 1 - layer).is_multiple_of(4);
        let types = listed("layer_types", self.layer_types.as_deref(), count)?;
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
            Ok(LayerKind { window, turned })
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
