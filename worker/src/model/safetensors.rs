//! Hugging Face folders: `config.json`, `tokenizer.json` and `*.safetensors`.

use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::safetensors::MmapedSafetensors;
use conclave_kernels::WeightType;
use serde_json::Value;

use super::map::MappedFile;
use super::source::{RawTensor, TensorSource};
use super::{ModelError, TokenizerError};

/// Settings are text of people: a file beyond this is not one.
const MAX_JSON: u64 = 64 << 20;

/// A folder of a model.
pub struct Folder {
    path: PathBuf,
    shards: Vec<PathBuf>,
    tensors: MmapedSafetensors,
}

impl Folder {
    /// Maps the weights of a folder.
    ///
    /// # Errors
    /// [`ModelError::Io`], or [`ModelError::Malformed`] if there are no weights or they are damaged.
    pub fn open(path: &Path) -> Result<Folder, ModelError> {
        let io = |source| ModelError::Io {
            path: path.to_owned(),
            source,
        };
        let mut shards = Vec::new();
        for entry in std::fs::read_dir(path).map_err(io)? {
            let file = entry.map_err(io)?.path();
            if file
                .extension()
                .is_some_and(|extension| extension == "safetensors")
            {
                shards.push(file);
            }
        }
        shards.sort();
        if shards.is_empty() {
            let what = format!("{} holds no *.safetensors", path.display());
            return Err(ModelError::Malformed { what });
        }
        // SAFETY: the maps are read-only; see `MappedFile::open` for what is asked of the files.
        let tensors = unsafe { MmapedSafetensors::multi(&shards) }.map_err(|error| {
            ModelError::Malformed {
                what: error.to_string(),
            }
        })?;
        Ok(Folder {
            path: path.to_owned(),
            shards,
            tensors,
        })
    }

    /// blake3 over the digests of all files that decide what the model says.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn digest(&self) -> Result<[u8; 32], ModelError> {
        let mut hasher = blake3::Hasher::new();
        for name in ["config.json", "tokenizer.json"] {
            hasher.update(MappedFile::open(&self.path.join(name))?.digest().as_bytes());
        }
        for shard in &self.shards {
            hasher.update(MappedFile::open(shard)?.digest().as_bytes());
        }
        Ok(hasher.finalize().into())
    }

    /// A text file of the folder.
    ///
    /// # Errors
    /// [`ModelError::Io`], also if it is too large to be settings.
    pub fn read(&self, name: &str) -> Result<String, ModelError> {
        let path = self.path.join(name);
        let io = |source| ModelError::Io {
            path: path.clone(),
            source,
        };
        if std::fs::metadata(&path).map_err(io)?.len() > MAX_JSON {
            return Err(io(std::io::Error::other(format!(
                "longer than {MAX_JSON} bytes"
            ))));
        }
        std::fs::read_to_string(&path).map_err(io)
    }

    /// A JSON file of the folder; `Null` if it is absent.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Malformed`].
    pub fn json(&self, name: &str) -> Result<Value, ModelError> {
        if !self.path.join(name).exists() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.read(name)?).map_err(|error| ModelError::Malformed {
            what: format!("{name}: {error}"),
        })
    }

    /// The chat template, wherever this release of transformers wrote it.
    ///
    /// # Errors
    /// As [`Folder::json`].
    pub fn chat_template(&self) -> Result<Option<String>, ModelError> {
        if self.path.join("chat_template.jinja").exists() {
            return self.read("chat_template.jinja").map(Some);
        }
        let config = self.json("tokenizer_config.json")?;
        let template = match &config["chat_template"] {
            Value::Array(named) => named
                .iter()
                .find(|template| template["name"] == "default")
                .map(|template| &template["template"]),
            other => Some(other),
        };
        Ok(template.and_then(Value::as_str).map(str::to_owned))
    }

    /// The text of a special token (`bos_token`, `eos_token`).
    ///
    /// # Errors
    /// As [`Folder::json`].
    pub fn special_token(&self, key: &str) -> Result<Option<String>, ModelError> {
        let config = self.json("tokenizer_config.json")?;
        let token = &config[key];
        Ok(token
            .as_str()
            .or_else(|| token["content"].as_str())
            .map(str::to_owned))
    }

    /// The tokens that end a text, as the settings of the model name them.
    ///
    /// # Errors
    /// As [`Folder::json`].
    pub fn end_tokens(&self) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let config = self.json(name)?;
            // Models of more than text have their settings of text apart.
            for settings in [&config, &config["text_config"]] {
                let end = &settings["eos_token_id"];
                let listed = end
                    .as_array()
                    .map_or(std::slice::from_ref(end), Vec::as_slice);
                ids.extend(listed.iter().filter_map(Value::as_u64).map(|id| id as u32));
            }
        }
        Ok(ids)
    }

    /// The bytes of `tokenizer.json`.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if it is absent.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>, ModelError> {
        let absent = |error| {
            TokenizerError::Unsupported(format!("tokenizer.json cannot be read: {error}")).into()
        };
        std::fs::read(self.path.join("tokenizer.json")).map_err(absent)
    }
}

impl TensorSource for Folder {
    fn has(&self, name: &str) -> bool {
        self.tensors.get(name).is_ok()
    }

    fn tensor(&self, name: &str) -> Result<RawTensor<'_>, ModelError> {
        let missing = |_| ModelError::MissingTensor {
            tensor: name.to_owned(),
        };
        let view = self.tensors.get(name).map_err(missing)?;
        let ty = match DType::try_from(view.dtype()) {
            Ok(DType::F32) => WeightType::F32,
            Ok(DType::F16) => WeightType::F16,
            Ok(DType::BF16) => WeightType::Bf16,
            _ => {
                let (tensor, found) = (name.to_owned(), format!("{:?}", view.dtype()));
                return Err(ModelError::TensorType { tensor, found });
            }
        };
        let shape = view.shape().iter().map(|dim| *dim as u64).collect();
        Ok(RawTensor {
            name: name.to_owned(),
            ty,
            shape,
            bytes: view.data(),
        })
    }

    fn release(&self, _tensor: &RawTensor<'_>) {}
}
