//! From a path to a model.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use conclave_kernels::KERNEL_VERSION;
use serde::Deserialize;

use super::device::{Device, DeviceModel};
use super::family::Family;
use super::gguf::Gguf;
use super::llama::{Llama, LlamaConfig, LlamaWeights, Names};
use super::muse::{Member, Muse, MuseConfig, MuseWeights};
use super::safetensors::Folder;
use super::settings::setting;
use super::source::TensorSource;
use super::{ChatTemplate, LoadOptions, Model, ModelError, ModelInfo, Tokenizer, Weights};

/// Marks that end a turn or a text in the vocabularies of chat models, beside the one that a file names.
const END_MARKS: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
];

/// Marks round a thought.
const THOUGHT: (&str, &str) = ("<think>", "</think>");

/// A model that this process holds, as long as somebody does.
struct Held {
    path: PathBuf,
    opts: LoadOptions,
    model: Weak<Model>,
}

static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

pub(super) fn load(path: &Path, opts: &LoadOptions) -> Result<Model, ModelError> {
    match path.is_dir() {
        true => load_folder(path, opts),
        false => load_gguf(path, opts),
    }
}

/// Loads under the lock: whoever asks for the same model meanwhile waits for this one.
pub(super) fn shared(path: &Path, opts: &LoadOptions) -> Result<Arc<Model>, ModelError> {
    let io = |source| ModelError::Io {
        path: path.to_owned(),
        source,
    };
    let path = path.canonicalize().map_err(io)?;
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.retain(|held| held.model.strong_count() > 0);
    let same = held
        .iter()
        .find(|held| held.path == path && held.opts == *opts);
    if let Some(model) = same.and_then(|held| held.model.upgrade()) {
        return Ok(model);
    }
    let model = Arc::new(load(&path, opts)?);
    held.push(Held {
        path,
        opts: opts.clone(),
        model: Arc::downgrade(&model),
    });
    Ok(model)
}

fn load_gguf(path: &Path, opts: &LoadOptions) -> Result<Model, ModelError> {
    let gguf = Gguf::open(path)?;
    let key = "general.architecture";
    let architecture = gguf.opt_text(key)?;
    match architecture {
        Some("llama") => {}
        Some(found) => {
            return Err(ModelError::Architecture {
                found: found.to_owned(),
            });
        }
        None => {
            return Err(ModelError::MissingSetting {
                key: key.to_owned(),
            });
        }
    }
    let config = LlamaConfig::from_gguf(&gguf)?;
    let embedding = gguf.tensor("token_embd.weight")?;
    let rows = embedding.shape[0];
    // Rows of no columns would cost the file nothing.
    embedding.expect(&[rows, config.hidden as u64])?;
    let rows = rows as usize;
    let tokenizer = Tokenizer::from_gguf(&gguf, rows)?;
    let template = template(gguf.opt_text("tokenizer.chat_template")?, &tokenizer)?;
    let weights = LlamaWeights::load(&gguf, Names::Gguf, &config, opts.activation, opts.isa)?;
    let mut ends = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ends.extend(gguf.opt_u64(key)?.map(|id| id as u32));
    }
    let parts = Parts {
        name: gguf.opt_text("general.name")?.map(str::to_owned),
        digest: gguf.digest(),
        ends,
        tokenizer,
        template,
        family: Family::Llama(Llama { config, weights }),
    };
    assemble(path, opts, parts)
}

fn load_folder(path: &Path, opts: &LoadOptions) -> Result<Model, ModelError> {
    let folder = Folder::open(path)?;
    let family = folder_family(&folder, opts)?;
    let json = folder.tokenizer_json()?;
    let rows = family.vocab();
    let plain = Tokenizer::from_json(&json, None, None, rows)?;
    let mark = |key| -> Result<Option<u32>, ModelError> {
        Ok(folder
            .special_token(key)?
            .and_then(|text| plain.token_id(&text)))
    };
    let (bos, eos) = (mark("bos_token")?, mark("eos_token")?);
    let tokenizer = Tokenizer::from_json(&json, bos, eos, rows)?;
    let template = template(folder.chat_template()?.as_deref(), &tokenizer)?;
    let parts = Parts {
        name: None,
        digest: folder.digest()?,
        ends: folder.end_tokens()?,
        tokenizer,
        template,
        family,
    };
    assemble(path, opts, parts)
}

/// The model of a folder, as its `config.json` says.
fn folder_family(folder: &Folder, opts: &LoadOptions) -> Result<Family, ModelError> {
    let (json, activation, isa) = (folder.read("config.json")?, opts.activation, opts.isa);
    let HfModel { model_type } =
        serde_json::from_str(&json).map_err(|error| setting("config.json", error))?;
    match model_type.as_str() {
        "llama" => {
            let config = LlamaConfig::from_hf(&json)?;
            let names = Names::HuggingFace;
            let weights = LlamaWeights::load(folder, names, &config, activation, isa)?;
            Ok(Family::Llama(Llama { config, weights }))
        }
        "muse_glimmer" => muse(folder, &json, Member::Glimmer, opts),
        "muse_spark" => muse(folder, &json, Member::Spark, opts),
        _ => Err(ModelError::Architecture { found: model_type }),
    }
}

fn muse(
    folder: &Folder,
    json: &str,
    member: Member,
    opts: &LoadOptions,
) -> Result<Family, ModelError> {
    let config = MuseConfig::from_hf(json, member)?;
    let weights = MuseWeights::load(folder, &config, opts.activation, opts.isa)?;
    Ok(Family::Muse(Muse::new(config, weights)))
}

/// What `config.json` says first.
#[derive(Deserialize)]
struct HfModel {
    model_type: String,
}

fn template(source: Option<&str>, tokenizer: &Tokenizer) -> Result<ChatTemplate, ModelError> {
    let text = |id: Option<u32>| {
        let bytes = id.map_or(&[][..], |id| tokenizer.token_bytes(id));
        String::from_utf8_lossy(bytes).into_owned()
    };
    Ok(ChatTemplate::new(
        source,
        &text(tokenizer.bos()),
        &text(tokenizer.eos()),
    )?)
}

/// What a file or folder gave.
struct Parts {
    name: Option<String>,
    digest: [u8; 32],
    /// Tokens that it says end a text.
    ends: Vec<u32>,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    family: Family,
}

fn assemble(path: &Path, opts: &LoadOptions, parts: Parts) -> Result<Model, ModelError> {
    let Parts {
        name,
        digest,
        mut ends,
        tokenizer,
        template,
        family,
    } = parts;
    let file = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    let marks = END_MARKS.iter().filter_map(|mark| tokenizer.token_id(mark));
    ends.extend(
        marks
            .filter(|id| tokenizer.is_special(*id))
            .chain(tokenizer.eos()),
    );
    ends.retain(|id| (*id as usize) < family.vocab());
    ends.sort_unstable();
    ends.dedup();
    let ids = |mark| tokenizer.token_id(mark).map(|id| vec![id]);
    let thought = ids(THOUGHT.0).zip(ids(THOUGHT.1));
    let class = match opts.device {
        None => opts.isa.name(),
        Some(_) => Device::CLASS,
    };
    let info = ModelInfo {
        name: opts.name.clone().or(name).or(file).unwrap_or_default(),
        digest,
        numeric_class: format!("k{KERNEL_VERSION}-{class}-{}", opts.activation.name()),
        context_tokens: family.context(),
        vocab_size: family.vocab(),
        end_of_generation: ends,
    };
    let weights = match &opts.device {
        None => Weights::Host(Arc::new(family)),
        Some(device) => Weights::Device(Arc::new(DeviceModel::upload(family, device)?)),
    };
    Ok(Model {
        info,
        tokenizer,
        template,
        thought,
        weights,
    })
}
