//! The Muse models of `fixtures/muse`, as folders that load.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use tempfile::TempDir;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// The models.
pub const NAMES: [&str; 2] = ["glimmer-2", "spark-2"];

/// What the reference says of a text.
pub struct Reference {
    pub prompt: Vec<u32>,
    /// After each token of the prompt.
    pub logits: Vec<Vec<f32>>,
    /// The likeliest tokens after the prompt.
    pub greedy: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/muse");
    fixtures.join(name)
}

/// What the reference says with the model `name`.
pub fn reference(name: &str) -> Reference {
    let path = fixture(name).join("reference.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let ids = tensors[name].to_dtype(DType::U32).unwrap();
        ids.to_vec1().unwrap()
    };
    Reference {
        prompt: ids("text.input_ids"),
        logits: tensors["text.logits"].to_vec2().unwrap(),
        greedy: ids("text.greedy"),
    }
}

const CHAT: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A folder of the model `name`, with a tokenizer of bytes and two marks, and a chat template.
pub fn folder(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    let alphabet = ByteLevel::alphabet();
    let mut letters: Vec<String> = alphabet.into_iter().map(String::from).collect();
    letters.sort();
    let vocab: Vocab = letters.into_iter().zip(3..).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, Vec::new());
    let mut tokenizer = Tokenizer::new(bpe.build().unwrap());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let marks = ["<|im_start|>", "<|im_end|>"].map(|mark| AddedToken::from(mark, true));
    tokenizer.add_special_tokens(marks).unwrap();
    tokenizer
        .save(folder.path().join("tokenizer.json"), false)
        .unwrap();
    let settings = serde_json::json!({ "eos_token": "<|im_end|>", "chat_template": CHAT });
    let path = folder.path().join("tokenizer_config.json");
    fs::write(path, settings.to_string()).unwrap();
    folder
}
