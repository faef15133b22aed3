//! GGUF files: header, tokenizer, template and weights, loaded as a worker loads them.

use super::model;
use crate::{Limits, Target};

/// The file's bytes.
pub const TARGET: Target = Target {
    name: "gguf",
    run,
    seeds,
    words: &[
        "general.alignment",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "llama",
        "gpt2",
        "tokenizer.ggml.pre",
        "qwen2",
        "llama.rope.freq_base",
        "\u{2581}",
        "<0x0A>",
        "llama.attention.key_length",
    ],
    inputs: 6000,
    limits: Limits {
        memory: 16 << 20,
        ..Limits::SMALL
    },
};

fn run(input: &[u8]) {
    let file = model::file(input);
    if let Err(error) = model::load_and_use(file.path()) {
        assert!(!error.to_string().is_empty());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    vec![model::gguf("gpt2"), model::gguf("llama")]
}
