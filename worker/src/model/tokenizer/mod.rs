//! Text to tokens and back.

mod build;
mod bytes;
mod pre;

use std::fmt;

use super::TokenizerError;

/// A tokenizer and the bytes of its tokens.
pub struct Tokenizer {
    /// Finds special tokens in the text.
    marked: tokenizers::Tokenizer,
    /// Takes the text of special tokens as plain text.
    plain: tokenizers::Tokenizer,
    bytes: Vec<Box<[u8]>>,
    special: Vec<bool>,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokens of `text`, with nothing added. With `allow_special`, the text of a special token becomes
    /// that token (a rendered chat needs it); without, it stays text (what users write).
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, allow_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let inner = if allow_special {
            &self.marked
        } else {
            &self.plain
        };
        let encoding = inner
            .encode_fast(text, false)
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a bare prompt: as [`Tokenizer::encode`] with special tokens, and a beginning-of-text
    /// token first if the model was trained with one.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode(text, true)?;
        if let (true, Some(bos)) = (self.adds_bos, self.bos) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The raw bytes of a token, perhaps part of a character; a special token's are its text. Empty for an
    /// id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// The id of the token that the vocabulary writes as `text`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.marked.token_to_id(text)
    }

    /// Whether a token is a mark (begin, end, role) rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-text token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }
}
