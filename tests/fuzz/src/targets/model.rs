//! A model of a few kilobytes, to be damaged: as a GGUF file and as a folder.

use std::io::Write as _;
use std::path::Path;

use conclave_worker::model::{ChatMessage, LoadOptions, Model, ModelError};
use serde_json::json;
use tempfile::{NamedTempFile, TempDir};

const HIDDEN: u64 = 32;
const KV: u64 = 16;
const FFN: u64 = 32;
const TOKENS: [&str; 10] = [
    "a",
    "b",
    "c",
    "Ġ",
    "ab",
    "Ġa",
    ":",
    "<|begin|>",
    "<|im_end|>",
    "<think>",
];
const CHAT: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}";

/// Where files are written: memory, where the system has such a place.
fn place() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory
    } else {
        Path::new("/tmp")
    }
}

/// An empty folder.
pub(super) fn folder() -> TempDir {
    TempDir::new_in(place()).expect("a folder")
}

/// A file of these bytes.
pub(super) fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new_in(place()).expect("a file");
    file.write_all(bytes).expect("a file");
    file
}

/// Loads a model and asks it for what every job needs of it: tokens of a text and a prompt.
pub(super) fn load_and_use(path: &Path) -> Result<(), ModelError> {
    let model = Model::load(path, &LoadOptions::default())?;
    let tokenizer = model.tokenizer();
    assert!(tokenizer.vocab_size() <= model.info().vocab_size.max(1));
    for special in [false, true] {
        for id in tokenizer
            .encode("ab c<|im_end|>", special)
            .unwrap_or_default()
        {
            assert!(
                (id as usize) < tokenizer.vocab_size(),
                "every token has a row"
            );
            let _ = tokenizer.token_bytes(id);
        }
    }
    let _ = tokenizer.encode_prompt("a");
    let messages = [ChatMessage::new("user", "ab")];
    let _ = model.template().render(&messages, true);
    Ok(())
}

/// Names as llama.cpp writes them, as transformers writes them, and shapes, rows first.
fn tensors() -> Vec<(&'static str, &'static str, Vec<u64>)> {
    let vocab = TOKENS.len() as u64;
    vec![
        (
            "token_embd.weight",
            "model.embed_tokens.weight",
            vec![vocab, HIDDEN],
        ),
        ("output_norm.weight", "model.norm.weight", vec![HIDDEN]),
        (
            "blk.0.attn_norm.weight",
            "model.layers.0.input_layernorm.weight",
            vec![HIDDEN],
        ),
        (
            "blk.0.ffn_norm.weight",
            "model.layers.0.post_attention_layernorm.weight",
            vec![HIDDEN],
        ),
        (
            "blk.0.attn_q.weight",
            "model.layers.0.self_attn.q_proj.weight",
            vec![HIDDEN, HIDDEN],
        ),
        (
            "blk.0.attn_k.weight",
            "model.layers.0.self_attn.k_proj.weight",
            vec![KV, HIDDEN],
        ),
        (
            "blk.0.attn_v.weight",
            "model.layers.0.self_attn.v_proj.weight",
            vec![KV, HIDDEN],
        ),
        (
            "blk.0.attn_output.weight",
            "model.layers.0.self_attn.o_proj.weight",
            vec![HIDDEN, HIDDEN],
        ),
        (
            "blk.0.ffn_gate.weight",
            "model.layers.0.mlp.gate_proj.weight",
            vec![FFN, HIDDEN],
        ),
        (
            "blk.0.ffn_up.weight",
            "model.layers.0.mlp.up_proj.weight",
            vec![FFN, HIDDEN],
        ),
        (
            "blk.0.ffn_down.weight",
            "model.layers.0.mlp.down_proj.weight",
            vec![HIDDEN, FFN],
        ),
    ]
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

fn texts(items: &[&str]) -> Vec<u8> {
    let count = (items.len() as u64).to_le_bytes();
    let items: Vec<u8> = items.iter().flat_map(|item| text(item)).collect();
    [&8u32.to_le_bytes()[..], &count, &items].concat()
}

/// Key, type number, value.
fn metadata(kind: &str) -> Vec<(String, u32, Vec<u8>)> {
    let types: Vec<u8> = (0..TOKENS.len())
        .flat_map(|id| if id < 7 { 1i32 } else { 3 }.to_le_bytes())
        .collect();
    let types = [
        &5u32.to_le_bytes()[..],
        &(TOKENS.len() as u64).to_le_bytes(),
        &types,
    ]
    .concat();
    let scores: Vec<u8> = (0..TOKENS.len())
        .flat_map(|_| 0.5f32.to_le_bytes())
        .collect();
    let scores = [
        &6u32.to_le_bytes()[..],
        &(TOKENS.len() as u64).to_le_bytes(),
        &scores,
    ]
    .concat();
    let mut all = vec![
        ("general.architecture".to_owned(), 8, text("llama")),
        (
            "llama.attention.layer_norm_rms_epsilon".to_owned(),
            6,
            1e-5f32.to_le_bytes().to_vec(),
        ),
        ("tokenizer.ggml.model".to_owned(), 8, text(kind)),
        ("tokenizer.ggml.tokens".to_owned(), 9, texts(&TOKENS)),
        ("tokenizer.ggml.token_type".to_owned(), 9, types),
        ("tokenizer.chat_template".to_owned(), 8, text(CHAT)),
    ];
    if kind == "gpt2" {
        all.push(("tokenizer.ggml.pre".to_owned(), 8, text("smollm")));
        all.push((
            "tokenizer.ggml.merges".to_owned(),
            9,
            texts(&["a b", "Ġ a"]),
        ));
    } else {
        all.push(("tokenizer.ggml.scores".to_owned(), 9, scores));
    }
    for (key, value) in [
        ("llama.block_count", 1u64),
        ("llama.context_length", 64),
        ("llama.embedding_length", HIDDEN),
        ("llama.feed_forward_length", FFN),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("tokenizer.ggml.bos_token_id", 7),
        ("tokenizer.ggml.eos_token_id", 8),
        ("general.alignment", 32),
    ] {
        all.push((key.to_owned(), 10, value.to_le_bytes().to_vec()));
    }
    all
}

/// A GGUF file whose tokenizer is of this kind (`gpt2`, `llama`).
pub(super) fn gguf(kind: &str) -> Vec<u8> {
    let (metadata, tensors) = (metadata(kind), tensors());
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, kind, value) in metadata {
        out.extend(text(&key));
        out.extend(kind.to_le_bytes());
        out.extend(value);
    }
    let mut offset = 0u64;
    for (name, _, shape) in &tensors {
        out.extend(text(name));
        out.extend((shape.len() as u32).to_le_bytes());
        shape
            .iter()
            .rev()
            .for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(1u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += shape.iter().product::<u64>() * 2;
    }
    let data = out.len().next_multiple_of(32) + offset as usize;
    out.resize(data, 0x2c);
    out
}

/// The files of a folder of llama, in the order in which [`super::model_folder`] writes them.
pub(super) fn hugging_face() -> Vec<Vec<u8>> {
    let config = json!({
        "model_type": "llama", "num_hidden_layers": 1, "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "eos_token_id": [8],
        "rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    });
    let tensors = tensors().into_iter();
    files(
        config,
        tensors.map(|(_, name, shape)| (name.to_owned(), shape)),
    )
}

/// The same of `muse_spark`, with a dense layer and one of experts.
pub(super) fn muse() -> Vec<Vec<u8>> {
    let (hidden, width, q) = (8, 4, 8);
    let config = json!({
        "model_type": "muse_spark", "image_token_id": 9, "video_token_id": 9, "audio_token_id": 9,
        "text_config": {
            "num_hidden_layers": 2, "hidden_size": hidden, "intermediate_size": 8, "head_dim": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
            "layer_types": ["sliding_attention", "full_attention"], "layer_rope_theta": [500_000.0, 0],
            "mlp_layer_types": ["dense", "sparse"], "sliding_window": 4, "num_local_experts": 2,
            "num_experts_per_tok": 1, "moe_hidden_size": width, "moe_intermediate_size": 4,
            "hidden_act": "silu", "eos_token_id": 8,
        },
    });
    let text = |name: &str| format!("model.language_model.{name}");
    let mut tensors = vec![
        ("lm_head.weight".to_owned(), vec![10, hidden]),
        (text("embed_tokens.weight"), vec![10, hidden]),
        (text("norm.weight"), vec![hidden]),
    ];
    let shared: [(&str, &[u64]); 10] = [
        ("input_layernorm.weight", &[hidden]),
        ("self_attn.q_proj.weight", &[q, hidden]),
        ("self_attn.k_proj.weight", &[4, hidden]),
        ("self_attn.v_proj.weight", &[4, hidden]),
        ("self_attn.gate_proj.weight", &[q, hidden]),
        ("self_attn.o_proj.weight", &[hidden, q]),
        ("post_attention_residual_gate.gate", &[hidden]),
        ("pre_feedforward_layernorm.weight", &[hidden]),
        ("post_feedforward_layernorm.weight", &[hidden]),
        ("post_feedforward_residual_gate.gate", &[hidden]),
    ];
    let own: [(usize, &str, &[u64]); 11] = [
        (0, "mlp.gate_proj.weight", &[8, hidden]),
        (0, "mlp.up_proj.weight", &[8, hidden]),
        (0, "mlp.down_proj.weight", &[hidden, 8]),
        (1, "mlp.gate.weight", &[2, hidden]),
        (1, "mlp.gate.e_score_correction_bias", &[2]),
        (1, "mlp.pre_expert_proj.weight", &[width, hidden]),
        (1, "mlp.pre_expert_norm.weight", &[width]),
        (1, "mlp.experts.gate_up_proj", &[2, 8, width]),
        (1, "mlp.experts.down_proj", &[2, width, 4]),
        (1, "mlp.experts.post_expert_norm.weight", &[width]),
        (1, "mlp.post_expert_proj.weight", &[hidden, width]),
    ];
    let shared = (0..2).flat_map(|layer| shared.map(|(name, shape)| (layer, name, shape)));
    for (layer, name, shape) in shared.chain(own) {
        tensors.push((text(&format!("layers.{layer}.{name}")), shape.to_vec()));
    }
    files(config, tensors.into_iter())
}

/// The files of a folder.
fn files(
    config: serde_json::Value,
    tensors: impl Iterator<Item = (String, Vec<u64>)>,
) -> Vec<Vec<u8>> {
    let mut header = serde_json::Map::new();
    let mut offset = 0u64;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<u64>() * 2;
        let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [offset, end]});
        header.insert(name, entry);
        offset = end;
    }
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.resize(weights.len() + offset as usize, 0x2c);
    let vocab: serde_json::Map<_, _> = TOKENS
        .iter()
        .zip(0..)
        .take(7)
        .map(|(token, id)| ((*token).to_owned(), json!(id)))
        .collect();
    let added: Vec<_> = (7..10)
        .map(|id| {
            json!({"id": id, "content": TOKENS[id], "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocab, "merges": ["a b", "Ġ a"]},
    });
    let settings = json!({
        "bos_token": "<|begin|>", "eos_token": {"content": "<|im_end|>"},
        "chat_template": [{"name": "default", "template": CHAT}],
    });
    let texts = [config, tokenizer, settings].map(|value| value.to_string().into_bytes());
    [vec![weights], texts.to_vec()].concat()
}
