//! A Hugging Face folder computes what the GGUF file of the same weights does, and is refused by name.

mod model_support;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::safetensors::save;
use candle_core::{DType, Device, Tensor};
use conclave_kernels::Activation;
use conclave_worker::model::{ChatMessage, ModelError};
use model_support::gguf::{File, vocabulary};
use model_support::{DIM, EPS, FFN, HEADS, HIDDEN, KV_HEADS, LAYERS, THETA, VOCAB, naive, run};
use tempfile::TempDir;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// GGUF files hold the rows of q and k permuted for interleaved rotation: back to halves.
fn halves(rows: &[f32]) -> Vec<f32> {
    let row = |head: usize, at: usize| &rows[(head * DIM + at) * HIDDEN..][..HIDDEN];
    let heads = rows.len() / HIDDEN / DIM;
    let source = |at: usize| (at % (DIM / 2)) * 2 + at / (DIM / 2);
    (0..heads)
        .flat_map(|head| (0..DIM).flat_map(move |at| row(head, source(at))))
        .copied()
        .collect()
}

fn tensors(gguf: &BTreeMap<String, Vec<f32>>) -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    let mut put = |name: String, data: Vec<f32>, columns: usize| {
        let tensor = Tensor::from_vec(data.clone(), (data.len() / columns, columns), &Device::Cpu);
        let tensor = tensor.unwrap();
        let is_norm = name.contains("norm");
        tensors.insert(
            name,
            if is_norm {
                tensor.flatten_all().unwrap()
            } else {
                tensor
            },
        );
    };
    put(
        "model.embed_tokens.weight".into(),
        gguf["token_embd.weight"].clone(),
        HIDDEN,
    );
    put(
        "lm_head.weight".into(),
        gguf["output.weight"].clone(),
        HIDDEN,
    );
    put(
        "model.norm.weight".into(),
        gguf["output_norm.weight"].clone(),
        HIDDEN,
    );
    for layer in 0..LAYERS {
        for (theirs, ours, columns) in [
            ("input_layernorm", "attn_norm", HIDDEN),
            ("post_attention_layernorm", "ffn_norm", HIDDEN),
            ("self_attn.q_proj", "attn_q", HIDDEN),
            ("self_attn.k_proj", "attn_k", HIDDEN),
            ("self_attn.v_proj", "attn_v", HIDDEN),
            ("self_attn.o_proj", "attn_output", HEADS * DIM),
            ("mlp.gate_proj", "ffn_gate", HIDDEN),
            ("mlp.up_proj", "ffn_up", HIDDEN),
            ("mlp.down_proj", "ffn_down", FFN),
        ] {
            let data = &gguf[&format!("blk.{layer}.{ours}.weight")];
            let rotated = matches!(ours, "attn_q" | "attn_k");
            let data = if rotated { halves(data) } else { data.clone() };
            put(
                format!("model.layers.{layer}.{theirs}.weight"),
                data,
                columns,
            );
        }
    }
    tensors
}

fn tokenizer(path: &Path) {
    let (tokens, merges) = vocabulary();
    let pairs = merges.iter().map(|merge| merge.split_once(' ').unwrap());
    let merges = pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
    let vocab: Vec<(String, u32)> = tokens[..259].iter().cloned().zip(0..).collect();
    let vocab: tokenizers::models::bpe::Vocab = vocab.into_iter().collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .unwrap();
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let marks = tokens[259..]
        .iter()
        .map(|mark| AddedToken::from(mark.clone(), true));
    tokenizer.add_special_tokens(marks).unwrap();
    tokenizer.save(path, false).unwrap();
}

const CHAT: &str =
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ eos_token }}";

/// A folder of the weights of `gguf`, in two shards of type `dtype`.
fn folder(gguf: &BTreeMap<String, Vec<f32>>, dtype: DType) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (mut first, mut second) = (HashMap::new(), HashMap::new());
    for (name, tensor) in tensors(gguf) {
        let shard = if name.contains("layers.1") {
            &mut second
        } else {
            &mut first
        };
        shard.insert(name, tensor.to_dtype(dtype).unwrap());
    }
    save(&first, path("model-00001-of-00002.safetensors")).unwrap();
    save(&second, path("model-00002-of-00002.safetensors")).unwrap();
    tokenizer(&path("tokenizer.json"));
    let config = serde_json::json!({
        "model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512, "rms_norm_eps": EPS, "rope_theta": THETA,
        "eos_token_id": 260, "vocab_size": VOCAB,
    });
    fs::write(path("config.json"), config.to_string()).unwrap();
    let tokens = serde_json::json!({ "eos_token": "<|im_end|>", "chat_template": CHAT });
    fs::write(path("tokenizer_config.json"), tokens.to_string()).unwrap();
    folder
}

fn difference(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs
        .iter()
        .flatten()
        .fold(0f32, |max, x| max.max(x.abs()));
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    pairs.fold(0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

#[test]
fn a_folder_computes_what_the_gguf_file_does() {
    let gguf = naive::tensors(&File::llama(0, false).encode().0);
    let all: Vec<u32> = (0..30).map(|i| i * 31 % 250).collect();
    let expected = naive::logits(&gguf, &all);
    for (dtype, bound) in [(DType::F32, 1e-4), (DType::F16, 1e-2), (DType::BF16, 5e-2)] {
        let folder = folder(&gguf, dtype);
        let model = run::load(folder.path(), Activation::F32).unwrap();
        let ours = run::logits(&model, &all[..25], &all[25..], 9);
        let difference = difference(&ours, &expected[24..]);
        assert!(difference < bound, "{dtype:?}: {difference}");
    }
}

#[test]
fn settings_tokenizer_and_template_come_from_the_folder() {
    let folder = folder(
        &naive::tensors(&File::llama(0, false).encode().0),
        DType::F32,
    );
    let model = run::load(folder.path(), Activation::F32).unwrap();
    let ids = model.tokenizer().encode("hello<|im_end|>", true).unwrap();
    assert_eq!(ids, [258, u32::from(b'o'), 260]);
    assert_eq!(model.tokenizer().token_bytes(258), b"hell");
    assert_eq!(model.info().end_of_generation, [260]);
    let rendered = model
        .template()
        .render(&[ChatMessage::new("user", "hi")], true)
        .unwrap();
    assert_eq!(rendered, "[user]hi<|im_end|>");
}

#[test]
fn what_is_wrong_with_a_folder_is_named() {
    let gguf = naive::tensors(&File::llama(0, false).encode().0);
    let refused = |change: &dyn Fn(&Path)| -> ModelError {
        let folder = folder(&gguf, DType::F32);
        change(folder.path());
        run::load(folder.path(), Activation::F32).expect_err("the folder is wrong")
    };
    let edit = |folder: &Path, from: &str, to: &str| {
        let path = folder.join("config.json");
        fs::write(&path, fs::read_to_string(&path).unwrap().replace(from, to)).unwrap();
    };
    let error = refused(&|folder| edit(folder, "\"llama\"", "\"mamba\""));
    assert!(
        matches!(&error, ModelError::Architecture { found } if found == "mamba"),
        "{error}"
    );
    let error = refused(&|folder| {
        edit(
            folder,
            "\"intermediate_size\":512",
            "\"intermediate_size\":500",
        )
    });
    assert!(matches!(error, ModelError::Shape { .. }), "{error}");
    let error = refused(&|folder| {
        let scalar = Tensor::new(1f32, &Device::Cpu).unwrap();
        let lone = HashMap::from([("model.embed_tokens.weight", scalar)]);
        save(&lone, folder.join("model-00001-of-00002.safetensors")).unwrap();
    });
    assert!(matches!(error, ModelError::Shape { .. }), "{error}");
    let error = refused(&|folder| {
        let path = folder.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&path).unwrap();
        let beyond = (0..VOCAB).map(|n| AddedToken::from(format!("<beyond {n}>"), true));
        tokenizer.add_special_tokens(beyond).unwrap();
        tokenizer.save(&path, false).unwrap();
    });
    assert!(matches!(error, ModelError::Tokenizer(_)), "{error}");
    assert!(error.to_string().contains("rows of embeddings"), "{error}");
    let error = refused(&|folder| fs::remove_file(folder.join("tokenizer.json")).unwrap());
    assert!(matches!(error, ModelError::Tokenizer(_)), "{error}");
    let error = refused(&|folder| {
        fs::write(folder.join("model-00002-of-00002.safetensors"), b"broken").unwrap();
    });
    assert!(matches!(error, ModelError::Malformed { .. }), "{error}");
    let error = refused(&|folder| {
        fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    });
    assert!(matches!(error, ModelError::MissingTensor { .. }), "{error}");
}
