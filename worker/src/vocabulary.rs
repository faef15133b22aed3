//! What the steps after the logits need to know of a model's tokens.

use std::fmt;

/// The bytes of every token, which of them are marks, and which end a generation.
#[derive(Clone, PartialEq, Eq)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Token i has the bytes `starts[i]..starts[i + 1]`.
    starts: Vec<u32>,
    special: Vec<bool>,
    ends: Vec<u32>,
}

impl Vocabulary {
    /// Of tokens in the order of their ids, each with its bytes and whether it is a mark rather than text;
    /// `ends` are the ids that end a generation.
    pub fn new<'a>(tokens: impl IntoIterator<Item = (&'a [u8], bool)>, ends: &[u32]) -> Self {
        let mut vocabulary = Self {
            bytes: Vec::new(),
            starts: vec![0],
            special: Vec::new(),
            ends: ends.to_vec(),
        };
        for (bytes, special) in tokens {
            vocabulary.bytes.extend_from_slice(bytes);
            vocabulary.starts.push(vocabulary.bytes.len() as u32);
            vocabulary.special.push(special);
        }
        vocabulary
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.special.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.special.is_empty()
    }

    /// The raw bytes of a token, perhaps part of a character; a mark's are its name. Empty outside.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let range = self.starts.get(id as usize..).unwrap_or(&[]);
        match range {
            [start, end, ..] => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    /// The bytes that a token adds to a text: none if it is a mark.
    pub fn text(&self, id: u32) -> &[u8] {
        if self.is_special(id) {
            &[]
        } else {
            self.bytes(id)
        }
    }

    /// Whether a token is a mark (begin, end, role) rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The tokens that end a generation.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Whether a token ends a generation.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary")
            .field("len", &self.len())
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

/// A vocabulary for tests: 0..256 are the single bytes, then some words, then a mark, `<end>` and the
/// thought delimiters.
#[cfg(test)]
pub(crate) mod tiny {
    use super::Vocabulary;

    pub const WORDS: [&str; 12] = [
        "yes", "no", " yes", "{\"", "\":", "true", "null", "answer", " Final", "12", "\", ", "€",
    ];
    pub const MARK: u32 = 256 + WORDS.len() as u32;
    pub const END: u32 = MARK + 1;
    pub const CLOSE: u32 = MARK + 3;
    pub const LEN: usize = 256 + WORDS.len() + 4;

    pub fn vocabulary() -> Vocabulary {
        let bytes: Vec<[u8; 1]> = (0..=255).map(|byte| [byte]).collect();
        let singles = bytes.iter().map(|byte| (byte.as_slice(), false));
        let words = WORDS.iter().map(|word| (word.as_bytes(), false));
        let marks = [
            &b"<mark>"[..],
            &b"<end>"[..],
            &b"<think>"[..],
            &b"</think>"[..],
        ];
        let marks = marks.into_iter().map(|mark| (mark, true));
        Vocabulary::new(singles.chain(words).chain(marks), &[END])
    }

    /// Ids of a text: bytes only.
    pub fn ids(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_their_bytes_and_marks_no_text() {
        let vocabulary = tiny::vocabulary();
        assert_eq!(vocabulary.len(), tiny::LEN);
        assert_eq!(vocabulary.bytes(0x41), b"A");
        assert_eq!(vocabulary.text(256), b"yes");
        assert_eq!(vocabulary.bytes(tiny::END), b"<end>");
        assert_eq!(vocabulary.text(tiny::END), b"");
        assert!(vocabulary.is_end(tiny::END) && !vocabulary.is_end(tiny::MARK));
        assert_eq!(vocabulary.bytes(tiny::LEN as u32), b"");
        assert_eq!(vocabulary.bytes(u32::MAX), b"");
    }
}
