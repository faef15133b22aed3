//! Hugging Face folders: safetensors, `config.json`, `tokenizer.json`, `tokenizer_config.json`.

use std::fs;

use super::model;
use crate::{Limits, Target};

/// The files in the order of `FILES`, each with its length (four bytes) before it.
pub const TARGET: Target = Target {
    name: "model_folder",
    run,
    seeds,
    words: &[
        "\"F32\"",
        "\"BF16\"",
        "\"data_offsets\":",
        "\"shape\":",
        "\"type\":\"Unigram\"",
        "\"type\":\"WordPiece\"",
        "\"type\":\"WordLevel\"",
        "\"normalizer\":",
        "null",
        "\"Lowercase\"",
        "\"Precompiled\"",
        "\"Metaspace\"",
        "\"TemplateProcessing\"",
        "{\"Regex\":\"(a*)*b\"}",
        "\"rope_theta\":",
        "\"linear\"",
        "\"muse_glimmer\"",
        "\"num_hidden_layers\":",
        "\"num_local_experts\":",
    ],
    inputs: 4000,
    limits: Limits {
        memory: 32 << 20,
        ..Limits::SMALL
    },
};

const FILES: [&str; 4] = [
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

fn run(mut input: &[u8]) {
    let folder = model::folder();
    for name in FILES {
        let Some((length, rest)) = input.split_first_chunk() else {
            break;
        };
        let length = u32::from_le_bytes(*length) as usize;
        let bytes;
        (bytes, input) = rest.split_at(length.min(rest.len()));
        fs::write(folder.path().join(name), bytes).expect("a file");
    }
    if let Err(error) = model::load_and_use(folder.path()) {
        assert!(!error.to_string().is_empty());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let framed = |bytes: &Vec<u8>| {
        let length = u32::try_from(bytes.len()).expect("small").to_le_bytes();
        [&length[..], bytes].concat()
    };
    let folders = [model::hugging_face(), model::muse()];
    let folders = folders.iter();
    folders
        .map(|files| files.iter().flat_map(framed).collect())
        .collect()
}
