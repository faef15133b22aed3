//! Tokenizers from the metadata of GGUF files and from `tokenizer.json`.

use std::collections::BTreeMap;
use std::panic::catch_unwind;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::{AddedToken, DecoderWrapper};

use super::pre::Pre;
use super::{Tokenizer, bytes};
use crate::model::gguf::Gguf;
use crate::model::{ModelError, TokenizerError};

/// llama.cpp's token types (`llama_token_type`).
const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;

impl Tokenizer {
    /// The tokenizer of a GGUF file whose model gives `rows` logits.
    pub(crate) fn from_gguf(gguf: &Gguf, rows: usize) -> Result<Tokenizer, ModelError> {
        let key = "tokenizer.ggml.model";
        let kind = gguf.opt_text(key)?.ok_or_else(|| missing(key))?;
        let key = "tokenizer.ggml.tokens";
        let tokens = gguf.opt_texts(key)?.ok_or_else(|| missing(key))?;
        if tokens.len() > rows {
            let problem = format!("{} tokens for {rows} rows of embeddings", tokens.len());
            return Err(TokenizerError::Malformed(problem).into());
        }
        let types = match gguf.opt_numbers("tokenizer.ggml.token_type")? {
            Some(types) => types.into_iter().map(|ty| ty as u32).collect(),
            None => vec![1; tokens.len()],
        };
        if types.len() != tokens.len() {
            let problem = format!("{} types for {} tokens", types.len(), tokens.len());
            return Err(TokenizerError::Malformed(problem).into());
        }
        let file = Pieces {
            gguf,
            tokens,
            types,
        };
        let (inner, adds_bos, read): (_, _, fn(&str) -> Vec<u8>) = match kind {
            "gpt2" => {
                let (inner, adds_bos) = file.byte_level()?;
                (inner, adds_bos, bytes::byte_level)
            }
            "llama" => (file.sentence_piece()?, true, bytes::sentence_piece),
            other => {
                let problem = format!("kind {other:?} is not supported (gpt2, llama are)");
                return Err(TokenizerError::Unsupported(problem).into());
            }
        };
        file.finish(inner, adds_bos, read, rows)
    }

    /// The tokenizer of a Hugging Face folder (`tokenizer.json`), with what other files say of the special
    /// tokens.
    pub(crate) fn from_json(
        json: &[u8],
        bos: Option<u32>,
        eos: Option<u32>,
        rows: usize,
    ) -> Result<Tokenizer, TokenizerError> {
        let malformed = |error: tokenizers::Error| TokenizerError::Malformed(error.to_string());
        let inner = read_json(json)?;
        // An id without a row would fail every batch that it is in.
        let highest = inner.get_vocab(true).into_values().max();
        if let Some(id) = highest.filter(|id| *id as usize >= rows) {
            let problem = format!("token {id} for {rows} rows of embeddings");
            return Err(TokenizerError::Malformed(problem));
        }
        let added = inner.get_added_tokens_decoder();
        let byte_level = inner.get_decoder().is_some_and(is_byte_level);
        let read = if byte_level {
            bytes::byte_level
        } else {
            bytes::sentence_piece
        };
        let (mut all, mut special) = (Vec::new(), Vec::new());
        for id in 0..rows as u32 {
            match (added.get(&id), inner.id_to_token(id)) {
                (Some(token), _) => {
                    all.push(token.content.as_bytes().into());
                    special.push(token.special);
                }
                (None, Some(text)) => {
                    all.push(read(&text).into());
                    special.push(false);
                }
                (None, None) => {
                    all.push(Box::default());
                    special.push(true);
                }
            }
        }
        // What the post-processor puts round an empty text tells whether prompts begin with a mark.
        let around = inner.encode_fast("", true).map_err(malformed)?;
        let adds_bos = bos.is_some() && around.get_ids().first() == bos.as_ref();
        Ok(Tokenizer::assemble(inner, all, special, bos, eos, adds_bos))
    }

    fn assemble(
        inner: tokenizers::Tokenizer,
        bytes: Vec<Box<[u8]>>,
        special: Vec<bool>,
        bos: Option<u32>,
        eos: Option<u32>,
        adds_bos: bool,
    ) -> Tokenizer {
        let mut plain = inner.clone();
        plain.set_encode_special_tokens(true);
        Tokenizer {
            marked: inner,
            plain,
            bytes,
            special,
            bos,
            eos,
            adds_bos,
        }
    }
}

/// The library expects JSON and panics in places where it finds none, or values that it has no place for:
/// a model's file must end in an error.
fn read_json(json: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let malformed =
        |problem: String| TokenizerError::Malformed(format!("tokenizer.json: {problem}"));
    serde_json::from_slice::<serde::de::IgnoredAny>(json).map_err(|e| malformed(e.to_string()))?;
    match catch_unwind(|| tokenizers::Tokenizer::from_bytes(json)) {
        Ok(read) => read.map_err(|e| malformed(e.to_string())),
        Err(_) => Err(malformed("its reader gave up (see above)".to_owned())),
    }
}

/// The vocabulary in a GGUF file.
struct Pieces<'a> {
    gguf: &'a Gguf,
    tokens: Vec<String>,
    types: Vec<u32>,
}

impl Pieces<'_> {
    fn vocab(&self) -> Vocab {
        self.tokens
            .iter()
            .zip(0u32..)
            .map(|(token, id)| (token.clone(), id))
            .collect()
    }

    /// Byte-level BPE, and whether prompts begin with a mark by default.
    fn byte_level(&self) -> Result<(tokenizers::Tokenizer, bool), ModelError> {
        let name = self
            .gguf
            .opt_text("tokenizer.ggml.pre")?
            .unwrap_or("default");
        let pre = Pre::from_name(name)?;
        let key = "tokenizer.ggml.merges";
        let merges = parse_merges(&self.gguf.opt_texts(key)?.ok_or_else(|| missing(key))?)?;
        let bpe = BPE::builder()
            .vocab_and_merges(self.vocab(), merges)
            .ignore_merges(pre.ignore_merges)
            .build()
            .map_err(malformed)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(pre.splitter));
        if let Some(normalizer) = pre.normalizer {
            inner.with_normalizer(Some(normalizer)).map_err(malformed)?;
        }
        Ok((inner, pre.adds_bos))
    }

    /// SentencePiece as BPE with byte fallback, as transformers' slow-to-fast converter makes it.
    fn sentence_piece(&self) -> Result<tokenizers::Tokenizer, ModelError> {
        let merges = match self.gguf.opt_texts("tokenizer.ggml.merges")? {
            Some(merges) => parse_merges(&merges)?,
            None => {
                let key = "tokenizer.ggml.scores";
                let scores = self.gguf.opt_numbers(key)?.ok_or_else(|| missing(key))?;
                merges_from_scores(&self.tokens, &self.types, &scores)
            }
        };
        let unknown = self.types.iter().position(|ty| *ty == UNKNOWN).unwrap_or(0);
        let mut builder = BPE::builder()
            .vocab_and_merges(self.vocab(), merges)
            .byte_fallback(true)
            .fuse_unk(true);
        if let Some(token) = self.tokens.get(unknown) {
            builder = builder.unk_token(token.clone());
        }
        let mut inner = tokenizers::Tokenizer::new(builder.build().map_err(malformed)?);
        let mut steps: Vec<NormalizerWrapper> = Vec::new();
        if self
            .gguf
            .opt_bool("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true)
        {
            steps.push(Prepend::new("▁".to_owned()).into());
        }
        steps.push(Replace::new(" ", "▁").map_err(malformed)?.into());
        inner
            .with_normalizer(Some(Sequence::new(steps)))
            .map_err(malformed)?;
        Ok(inner)
    }

    fn finish(
        self,
        mut inner: tokenizers::Tokenizer,
        adds_bos: bool,
        read: fn(&str) -> Vec<u8>,
        rows: usize,
    ) -> Result<Tokenizer, ModelError> {
        let mark = |key: &str| -> Result<Option<u32>, ModelError> {
            let id = self.gguf.opt_u64(key)?;
            Ok(id
                .filter(|id| *id < self.tokens.len() as u64)
                .map(|id| id as u32))
        };
        let bos = mark("tokenizer.ggml.bos_token_id")?;
        let eos = mark("tokenizer.ggml.eos_token_id")?;
        let adds_bos = self
            .gguf
            .opt_bool("tokenizer.ggml.add_bos_token")?
            .unwrap_or(adds_bos);
        let (mut all, mut special, mut added) = (Vec::new(), Vec::new(), Vec::new());
        for (id, (token, ty)) in (0u32..).zip(self.tokens.iter().zip(&self.types)) {
            let is_mark = matches!(*ty, UNKNOWN | CONTROL) || [bos, eos].contains(&Some(id));
            if is_mark || *ty == USER_DEFINED {
                added.push(AddedToken::from(token.clone(), is_mark).normalized(false));
                all.push(token.as_bytes().into());
            } else {
                all.push(read(token).into());
            }
            special.push(is_mark);
        }
        // Rows beyond the vocabulary are padding of the weights.
        all.resize_with(rows, Box::default);
        special.resize(rows, true);
        inner.add_tokens(added).map_err(malformed)?;
        Ok(Tokenizer::assemble(inner, all, special, bos, eos, adds_bos))
    }
}

fn parse_merges(lines: &[String]) -> Result<Merges, TokenizerError> {
    let pair = |line: &String| match line.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(TokenizerError::Malformed(format!("{line:?} is no merge"))),
    };
    lines.iter().map(pair).collect()
}

/// Every way to make a token from two others, best score first: transformers'
/// `convert_slow_tokenizer.py`, `generate_merges`.
fn merges_from_scores(tokens: &[String], types: &[u32], scores: &[f64]) -> Merges {
    let ids: BTreeMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
    let mut merges: Vec<(f64, usize, usize)> = Vec::new();
    for (token, score) in tokens
        .iter()
        .zip(scores)
        .zip(types)
        .filter_map(|(pair, ty)| {
            // Marks are never put together from text.
            (!matches!(*ty, UNKNOWN | CONTROL)).then_some(pair)
        })
    {
        let mut ways: Vec<(f64, usize, usize)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                Some((*score, *ids.get(left)?, *ids.get(right)?))
            })
            .collect();
        ways.sort_by_key(|way| (way.1, way.2));
        merges.extend(ways);
    }
    let chars = |id: usize| tokens[id].chars().count();
    merges.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| chars(b.1).cmp(&chars(a.1)))
            .then_with(|| chars(b.2).cmp(&chars(a.2)))
    });
    let text = |id: usize| tokens[id].clone();
    merges
        .into_iter()
        .map(|(_, left, right)| (text(left), text(right)))
        .collect()
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(steps) => steps.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

fn missing(key: &str) -> ModelError {
    ModelError::MissingSetting {
        key: key.to_owned(),
    }
}

fn malformed(error: impl ToString) -> TokenizerError {
    TokenizerError::Malformed(error.to_string())
}
