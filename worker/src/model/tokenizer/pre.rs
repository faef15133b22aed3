//! How byte-level BPE tokenizers cut text into words before merging: llama.cpp's `tokenizer.ggml.pre`
//! names (`src/llama-vocab.cpp`), with the patterns of the models' own `tokenizer.json`.

use tokenizers::normalizers::{NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use crate::model::TokenizerError;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// What llama.cpp does for converters that named nothing.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

const KNOWN: &str = "smollm, llama-bpe, gpt-2, qwen2, tekken, gpt-4o, starcoder, default";

/// How a kind of tokenizer treats text before its merges.
pub(super) struct Pre {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) splitter: PreTokenizerWrapper,
    /// A word that is a token itself is not taken apart.
    pub(super) ignore_merges: bool,
    /// Whether prompts begin with the beginning-of-text token unless the file says otherwise.
    pub(super) adds_bos: bool,
}

impl Pre {
    /// The kind that `tokenizer.ggml.pre` names.
    pub(super) fn from_name(name: &str) -> Result<Pre, TokenizerError> {
        let plain = |splitter| Pre {
            normalizer: None,
            splitter,
            ignore_merges: false,
            adds_bos: false,
        };
        Ok(match name {
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone"
            | "minerva-7b" => plain(digits()),
            "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "roberta-bpe" | "jina-es" | "jina-de"
            | "jina-v2-es" | "jina-v2-de" | "gigachat" => plain(split(&[GPT2])?),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "lfm2" | "pixtral" => Pre {
                ignore_merges: true,
                adds_bos: true,
                ..plain(split(&[LLAMA3])?)
            },
            "dbrx" | "smaug-bpe" => plain(split(&[LLAMA3])?),
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "megrez" => Pre {
                normalizer: Some(NFC.into()),
                ..plain(split(&[QWEN2])?)
            },
            "tekken" => Pre {
                ignore_merges: true,
                adds_bos: true,
                ..plain(split(&[TEKKEN])?)
            },
            "gpt-4o" | "llama4" => plain(split(&[GPT4O])?),
            "default" => plain(split(&DEFAULT)?),
            other => {
                let problem = format!("pre-tokenizer {other:?} is not supported ({KNOWN} are)");
                return Err(TokenizerError::Unsupported(problem));
            }
        })
    }
}

/// Each digit by itself, then GPT-2's words: as SmolLM's `tokenizer.json`.
fn digits() -> PreTokenizerWrapper {
    let steps = vec![
        Digits::new(true).into(),
        ByteLevel::new(false, true, true).into(),
    ];
    Sequence::new(steps).into()
}

fn split(patterns: &[&str]) -> Result<PreTokenizerWrapper, TokenizerError> {
    let mut steps = Vec::new();
    for pattern in patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let step = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| TokenizerError::Malformed(error.to_string()))?;
        steps.push(step.into());
    }
    steps.push(ByteLevel::new(false, true, false).into());
    Ok(Sequence::new(steps).into())
}

#[cfg(test)]
mod tests {
    use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut words = PreTokenizedString::from(text);
        Pre::from_name(name)
            .unwrap()
            .splitter
            .pre_tokenize(&mut words)
            .unwrap();
        let splits = words.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits
            .into_iter()
            .map(|(word, _, _)| word.replace('Ġ', "_"))
            .collect()
    }

    #[test]
    fn kinds_differ_in_how_they_cut_numbers() {
        let text = "it's 12345 x";
        assert_eq!(words("gpt-2", text), ["it", "'s", "_12345", "_x"]);
        assert_eq!(
            words("smollm", text),
            ["it", "'s", "_", "1", "2", "3", "4", "5", "_x"]
        );
        assert_eq!(
            words("llama-bpe", text),
            ["it", "'s", "_", "123", "45", "_x"]
        );
        assert_eq!(
            words("qwen2", text),
            ["it", "'s", "_", "1", "2", "3", "4", "5", "_x"]
        );
        assert_eq!(
            words("default", text),
            ["it", "'", "s", "_", "123", "45", "_x"]
        );
    }

    #[test]
    fn an_unknown_kind_is_named_with_the_known_ones() {
        let error = Pre::from_name("klingon").err().unwrap().to_string();
        assert!(
            error.contains("klingon") && error.contains("smollm"),
            "{error}"
        );
    }
}
