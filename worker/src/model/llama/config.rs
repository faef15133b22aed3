//! Settings of a llama-architecture model, from GGUF metadata or a Hugging Face `config.json`.

use conclave_kernels::RopeStyle;
use serde::Deserialize;

use crate::model::ModelError;
use crate::model::gguf::Gguf;
use crate::model::settings::{base_frequencies, divide, missing, setting, size};
use crate::model::source::TensorSource;

/// Everything that the forward pass needs besides weights.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Added to the mean square in RMS norms.
    pub eps: f32,
    /// The longest sequence it was trained for.
    pub context: usize,
    /// Rotation in radians a position, one for each pair of a head's elements.
    pub inv_freq: Vec<f64>,
    /// Which elements make a pair.
    pub rope_style: RopeStyle,
}

impl LlamaConfig {
    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`ModelError::MissingSetting`] and [`ModelError::Setting`].
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<LlamaConfig, ModelError> {
        let hidden = gguf_required(gguf, "llama.embedding_length")?;
        let heads = gguf_required(gguf, "llama.attention.head_count")?;
        let kv_heads = gguf
            .opt_u64("llama.attention.head_count_kv")?
            .unwrap_or(heads);
        let head_dim = match gguf.opt_u64("llama.attention.key_length")? {
            Some(dim) => dim,
            None => divide("llama.attention.head_count", hidden, heads)?,
        };
        if gguf
            .opt_u64("llama.attention.value_length")?
            .is_some_and(|dim| dim != head_dim)
        {
            return Err(setting(
                "llama.attention.value_length",
                "must equal key_length",
            ));
        }
        if gguf.opt_u64("llama.expert_count")?.unwrap_or(0) > 0 {
            return Err(setting(
                "llama.expert_count",
                "mixtures of experts are not supported",
            ));
        }
        let eps_key = "llama.attention.layer_norm_rms_epsilon";
        let eps = gguf.opt_f64(eps_key)?.ok_or_else(|| missing(eps_key))?;
        let rope_dim = gguf
            .opt_u64("llama.rope.dimension_count")?
            .unwrap_or(head_dim);
        let theta = gguf.opt_f64("llama.rope.freq_base")?.unwrap_or(10_000.0);
        let mut inv_freq = base_frequencies("llama.rope", rope_dim, head_dim, theta)?;
        scale_gguf(gguf, &mut inv_freq)?;
        let config = LlamaConfig {
            layers: size(
                "llama.block_count",
                gguf_required(gguf, "llama.block_count")?,
            )?,
            hidden: size("llama.embedding_length", hidden)?,
            ffn: size(
                "llama.feed_forward_length",
                gguf_required(gguf, "llama.feed_forward_length")?,
            )?,
            heads: size("llama.attention.head_count", heads)?,
            kv_heads: size("llama.attention.head_count_kv", kv_heads)?,
            head_dim: size("llama.attention.key_length", head_dim)?,
            eps: eps as f32,
            context: size(
                "llama.context_length",
                gguf_required(gguf, "llama.context_length")?,
            )?,
            inv_freq,
            rope_style: RopeStyle::Interleaved,
        };
        config.check()
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// As [`LlamaConfig::from_gguf`].
    pub(crate) fn from_hf(json: &str) -> Result<LlamaConfig, ModelError> {
        let hf: HfConfig =
            serde_json::from_str(json).map_err(|error| setting("config.json", error))?;
        if hf.attention_bias || hf.mlp_bias {
            return Err(setting(
                "attention_bias, mlp_bias",
                "biases are not supported",
            ));
        }
        if let Some(act) = hf.hidden_act.filter(|act| act != "silu") {
            return Err(setting(
                "hidden_act",
                format!("{act:?} is not supported (silu is)"),
            ));
        }
        let head_dim = match hf.head_dim {
            Some(dim) => dim,
            None => divide(
                "num_attention_heads",
                hf.hidden_size,
                hf.num_attention_heads,
            )?,
        };
        let rope = hf.rope_parameters.as_ref().or(hf.rope_scaling.as_ref());
        let theta = rope
            .and_then(|rope| rope.rope_theta)
            .or(hf.rope_theta)
            .unwrap_or(10_000.0);
        let mut inv_freq = base_frequencies("rope_theta", head_dim, head_dim, theta)?;
        if let Some(rope) = rope {
            rope.scale(&mut inv_freq)?;
        }
        let config = LlamaConfig {
            layers: size("num_hidden_layers", hf.num_hidden_layers)?,
            hidden: size("hidden_size", hf.hidden_size)?,
            ffn: size("intermediate_size", hf.intermediate_size)?,
            heads: size("num_attention_heads", hf.num_attention_heads)?,
            kv_heads: size(
                "num_key_value_heads",
                hf.num_key_value_heads.unwrap_or(hf.num_attention_heads),
            )?,
            head_dim: size("head_dim", head_dim)?,
            eps: hf.rms_norm_eps as f32,
            context: size("max_position_embeddings", hf.max_position_embeddings)?,
            inv_freq,
            rope_style: RopeStyle::Neox,
        };
        config.check()
    }

    fn check(self) -> Result<LlamaConfig, ModelError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            let problem = format!("{} heads cannot share {}", self.heads, self.kv_heads);
            return Err(setting("head_count_kv", problem));
        }
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(setting(
                "rms_epsilon",
                format!("{} is no epsilon", self.eps),
            ));
        }
        Ok(self)
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

/// The fields of `config.json` that count. What is absent has transformers' default.
#[derive(Debug, Deserialize)]
struct HfConfig {
    num_hidden_layers: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: u64,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<HfRope>,
    rope_parameters: Option<HfRope>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

/// How `config.json` describes rotations.
#[derive(Debug, Deserialize)]
pub(in crate::model) struct HfRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    pub(in crate::model) rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl HfRope {
    /// Changes the frequencies as it says.
    pub(in crate::model) fn scale(&self, inv_freq: &mut [f64]) -> Result<(), ModelError> {
        let need = |value: Option<f64>, key: &str| match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(setting(key, format!("{value} is not positive"))),
            None => Err(missing(key)),
        };
        match self.rope_type.as_deref() {
            None | Some("default") => Ok(()),
            Some("linear") => {
                let factor = need(self.factor, "rope_scaling.factor")?;
                inv_freq.iter_mut().for_each(|freq| *freq /= factor);
                Ok(())
            }
            Some("llama3") => {
                let scaling = Llama3 {
                    factor: need(self.factor, "rope_scaling.factor")?,
                    low: need(self.low_freq_factor, "rope_scaling.low_freq_factor")?,
                    high: need(self.high_freq_factor, "rope_scaling.high_freq_factor")?,
                    original: need(
                        self.original_max_position_embeddings,
                        "rope_scaling.original_max_position_embeddings",
                    )?,
                };
                inv_freq
                    .iter_mut()
                    .for_each(|freq| *freq = scaling.apply(*freq));
                Ok(())
            }
            Some(other) => {
                let problem = format!("{other:?} is not supported (default, linear, llama3 are)");
                Err(setting("rope_scaling.rope_type", problem))
            }
        }
    }
}

/// Frequency scaling of Llama 3.1: transformers, `modeling_rope_utils.py`, `_compute_llama3_parameters`.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3 {
    fn apply(&self, freq: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / freq;
        if wavelength > self.original / self.low {
            freq / self.factor
        } else if wavelength < self.original / self.high {
            freq
        } else {
            let smooth = (self.original / wavelength - self.low) / (self.high - self.low);
            (1.0 - smooth) * freq / self.factor + smooth * freq
        }
    }
}

/// Scaling that a GGUF file asks for: a linear factor in the metadata, or a divisor for each frequency in
/// the tensor `rope_freqs.weight` (how llama.cpp's converter writes Llama 3.1's scaling).
fn scale_gguf(gguf: &Gguf, inv_freq: &mut [f64]) -> Result<(), ModelError> {
    let key = "llama.rope.scaling.type";
    let factor = match gguf.opt_text(key)? {
        None => gguf.opt_f64("llama.rope.scale_linear")?.unwrap_or(1.0),
        Some("none") => 1.0,
        Some("linear") => {
            let key = "llama.rope.scaling.factor";
            gguf.opt_f64(key)?.ok_or_else(|| missing(key))?
        }
        Some(other) => {
            return Err(setting(
                key,
                format!("{other:?} is not supported (none, linear are)"),
            ));
        }
    };
    if !(factor.is_finite() && factor > 0.0) {
        return Err(setting(
            "llama.rope.scaling.factor",
            format!("{factor} is not positive"),
        ));
    }
    inv_freq.iter_mut().for_each(|freq| *freq /= factor);
    if gguf.has("rope_freqs.weight") {
        let divisors = gguf.tensor("rope_freqs.weight")?;
        divisors.expect(&[inv_freq.len() as u64])?;
        for (freq, divisor) in inv_freq.iter_mut().zip(divisors.floats()?) {
            *freq /= f64::from(divisor);
        }
    }
    Ok(())
}

fn gguf_required(gguf: &Gguf, key: &str) -> Result<u64, ModelError> {
    gguf.opt_u64(key)?.ok_or_else(|| missing(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"num_hidden_layers":2,"hidden_size":64,
        "intermediate_size":96,"num_attention_heads":4,"num_key_value_heads":2,
        "max_position_embeddings":128,"rms_norm_eps":1e-5,"rope_theta":10000.0ROPE}"#;

    fn parse(extra: &str) -> Result<LlamaConfig, ModelError> {
        LlamaConfig::from_hf(&JSON.replace("ROPE", extra))
    }

    #[test]
    fn head_size_follows_from_width_and_heads() {
        let config = parse("").unwrap();
        assert_eq!(
            (config.head_dim, config.q_width(), config.kv_width()),
            (16, 64, 32)
        );
        assert_eq!(config.inv_freq[0], 1.0);
    }

    #[test]
    fn linear_scaling_slows_every_frequency() {
        let (plain, scaled) = (
            parse("").unwrap(),
            parse(r#","rope_scaling":{"type":"linear","factor":4.0}"#).unwrap(),
        );
        for (a, b) in plain.inv_freq.iter().zip(&scaled.inv_freq) {
            assert_eq!(a / 4.0, *b);
        }
    }

    #[test]
    fn llama3_scaling_keeps_fast_and_slows_slow_frequencies() {
        let scaled = parse(
            r#","rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,
            "high_freq_factor":4.0,"original_max_position_embeddings":64}"#,
        )
        .unwrap();
        let plain = parse("").unwrap();
        assert_eq!(
            scaled.inv_freq[0], plain.inv_freq[0],
            "wavelength 6 is below 64 / 4"
        );
        assert_eq!(
            scaled.inv_freq[7],
            plain.inv_freq[7] / 8.0,
            "wavelength 20000 is above 64"
        );
        assert!(
            scaled.inv_freq[1] < plain.inv_freq[1],
            "wavelength 20 lies between"
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let yarn = parse(r#","rope_scaling":{"rope_type":"yarn","factor":4.0}"#).unwrap_err();
        assert!(yarn.to_string().contains("yarn"), "{yarn}");
        let bias = parse(r#","attention_bias":true"#).unwrap_err();
        assert!(bias.to_string().contains("bias"), "{bias}");
        let heads = parse(r#","head_dim":7"#).unwrap_err();
        assert!(heads.to_string().contains('7'), "{heads}");
    }
}
