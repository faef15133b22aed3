//! Models of every weight type and both file forms compute what the architecture says; files that are no
//! models are refused by name and never by a panic.

mod model_support;

use std::path::PathBuf;

use conclave_kernels::Activation;
use conclave_worker::model::{ModelError, Tokenizer};
use model_support::gguf::File;
use model_support::{TYPES, VOCAB, naive, run};
use proptest::prelude::*;
use tempfile::TempDir;

fn write(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn refused(file: &File) -> ModelError {
    let (_folder, path) = write(&file.encode().0);
    run::load(&path, Activation::Int8).expect_err("the file is wrong")
}

/// Largest difference, over the largest logit.
fn difference(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    let largest = theirs
        .iter()
        .flatten()
        .fold(0f32, |max, x| max.max(x.abs()));
    pairs.fold(0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

fn tokens(count: u32) -> Vec<u32> {
    (0..count).map(|i| i * 37 % 250).collect()
}

#[test]
fn every_weight_type_computes_what_candle_dequantizes() {
    let all = tokens(23);
    let (prompt, forced) = all.split_at(19);
    for (name, ty) in TYPES {
        let bytes = File::llama(ty, name != "Q6_K").encode().0;
        let expected = naive::logits(&naive::tensors(&bytes), &all);
        let (_folder, path) = write(&bytes);
        for (activation, bound) in [(Activation::F32, 1e-4), (Activation::Int8, 0.1)] {
            let model = run::load(&path, activation).unwrap();
            let ours = run::logits(&model, prompt, forced, 7);
            let difference = difference(&ours, &expected[prompt.len() - 1..]);
            assert!(difference < bound, "{name} {activation:?}: {difference}");
        }
    }
}

#[test]
fn a_prompt_in_chunks_gives_the_same_bits_as_whole() {
    let (_folder, path) = write(&File::llama(3, true).encode().0);
    let (model, all) = (run::load(&path, Activation::Int8).unwrap(), tokens(60));
    let whole = run::logits(&model, &all[..50], &all[50..], 256);
    for chunk in [1, 5, 16, 33] {
        assert_eq!(
            run::logits(&model, &all[..50], &all[50..], chunk),
            whole,
            "chunk {chunk}"
        );
    }
}

#[test]
fn tokenizer_template_and_marks_come_from_the_file() {
    let (_folder, path) = write(&File::llama(8, true).encode().0);
    let model = run::load(&path, Activation::Int8).unwrap();
    let tokenizer: &Tokenizer = model.tokenizer();
    let text = "hello<|im_end|> héé";
    let marked = tokenizer.encode(text, true).unwrap();
    assert_eq!(
        &marked[..3],
        [258, u32::from(b'o'), 260],
        "hell o <|im_end|>"
    );
    let plain = tokenizer.encode(text, false).unwrap();
    assert!(!plain.contains(&260), "users cannot write marks: {plain:?}");
    for ids in [marked, plain] {
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|id| tokenizer.token_bytes(*id))
            .copied()
            .collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
    }
    assert_eq!(model.info().end_of_generation, [260]);
    assert_eq!(model.info().vocab_size, VOCAB);
    assert!(tokenizer.is_special(260) && tokenizer.is_special(263) && !tokenizer.is_special(258));
    let messages = [conclave_worker::model::ChatMessage::new("user", "hi")];
    assert_eq!(
        model.template().render(&messages, true).unwrap(),
        "user: hi<|im_end|>"
    );
}

#[test]
fn a_sentence_piece_vocabulary_merges_by_score_and_falls_back_to_bytes() {
    let mut file = File::llama(8, true);
    let pieces = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("<0xC3>", 0.0, 6),
        ("<0xA9>", 0.0, 6),
        ("▁", -9.0, 1),
        ("h", -9.0, 1),
        ("e", -9.0, 1),
        ("l", -9.0, 1),
        ("o", -9.0, 1),
        ("▁h", -1.0, 1),
        ("el", -2.0, 1),
        ("he", -3.0, 1),
        ("lo", -4.0, 1),
        ("▁hel", -5.0, 1),
    ];
    file.sentence_piece(&pieces);
    let (_folder, path) = write(&file.encode().0);
    let model = run::load(&path, Activation::Int8).unwrap();
    let tokenizer = model.tokenizer();
    // "▁h" is the best merge, then "el", then "lo"; "▁hel" comes of the first two.
    assert_eq!(tokenizer.encode("hello", true).unwrap(), [14, 13]);
    assert_eq!(
        tokenizer.encode_prompt("h").unwrap(),
        [1, 10],
        "prompts begin with a mark"
    );
    assert_eq!(tokenizer.encode("hé</s>", true).unwrap(), [10, 3, 4, 2]);
    assert_eq!(tokenizer.token_bytes(14), b" hel");
    assert_eq!(tokenizer.token_bytes(3), [0xc3]);
    assert_eq!(model.info().end_of_generation, [2]);
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let good = File::llama(3, true);
    let wrong = |change: &dyn Fn(&mut File)| {
        let mut file = good.clone();
        change(&mut file);
        refused(&file).to_string()
    };
    let cases: [(&str, String); 8] = [
        (
            "mamba",
            wrong(&|file| file.text("general.architecture", "mamba")),
        ),
        (
            "llama.block_count",
            wrong(&|file| file.remove("llama.block_count")),
        ),
        (
            "IQ2_XS",
            wrong(&|file| file.tensor("blk.1.attn_q.weight").2 = 17),
        ),
        (
            "blk.1.attn_q.weight",
            wrong(&|file| file.tensor("blk.1.attn_q.weight").2 = 17),
        ),
        (
            "blk.0.ffn_up.weight",
            wrong(&|file| file.tensors.retain(|t| !t.0.contains("0.ffn_up"))),
        ),
        (
            "[256, 512]",
            wrong(&|file| file.tensor("blk.0.ffn_up.weight").1 = vec![512, 256]),
        ),
        (
            "klingon",
            wrong(&|file| file.text("tokenizer.ggml.pre", "klingon")),
        ),
        ("alignment", wrong(&|file| file.u32("general.alignment", 0))),
    ];
    for (expected, found) in cases {
        assert!(
            found.contains(expected),
            "{found:?} does not name {expected:?}"
        );
    }
    let (_folder, path) = write(b"PK\x03\x04 a zip");
    let error = run::load(&path, Activation::Int8).unwrap_err();
    assert!(matches!(error, ModelError::NotGguf { .. }), "{error}");
}

#[test]
fn a_header_that_promises_too_much_is_refused() {
    let mut file = File::llama(3, true);
    file.tensor("blk.0.attn_q.weight").1 = vec![1 << 40, 1 << 40];
    assert!(matches!(refused(&file), ModelError::Malformed { .. }));
    let mut file = File::llama(3, true);
    file.tensor("token_embd.weight").1 = vec![0, 1 << 50];
    assert!(matches!(refused(&file), ModelError::Malformed { .. }));
    // Nothing of an empty tensor is in the file, wherever it says that it begins.
    let mut file = File::llama(3, true);
    file.tensor("output_norm.weight").1 = vec![0];
    let error = refused(&file).to_string();
    assert!(
        error.contains("output_norm.weight") && error.contains("empty"),
        "{error}"
    );
    for key in [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
    ] {
        let mut file = File::llama(3, true);
        file.u32(key, u32::MAX);
        assert!(refused(&file).to_string().contains("llama."), "{key}");
    }
    let (mut bytes, _) = File::llama(3, true).encode();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let (_folder, path) = write(&bytes);
    assert!(
        run::load(&path, Activation::Int8).is_err(),
        "a count of 2^64 tensors"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_truncated_file_is_refused(share in 0.0..1.0f64) {
        let (bytes, _) = File::llama(3, true).encode();
        let (_folder, path) = write(&bytes[..(share * bytes.len() as f64) as usize]);
        prop_assert!(run::load(&path, Activation::Int8).is_err());
    }

    #[test]
    fn a_damaged_header_never_panics(flips in prop::collection::vec((0.0..1.0f64, any::<u8>()), 1..4)) {
        let (mut bytes, header) = File::llama(3, true).encode();
        for (at, value) in flips {
            bytes[(at * header as f64) as usize] = value;
        }
        let (_folder, path) = write(&bytes);
        // A flip may hit a name or a byte of a token: then the model loads.
        let _ = run::load(&path, Activation::Int8);
    }
}
