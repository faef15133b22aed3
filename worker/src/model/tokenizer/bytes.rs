//! The bytes that a token of the vocabulary stands for.

use std::sync::LazyLock;

/// GPT-2's alphabet backwards: printable Latin-1 stands for itself, the other bytes lie from U+0100 on.
static ALPHABET: LazyLock<[Option<u8>; 512]> = LazyLock::new(|| {
    let mut table = [None; 512];
    let mut next = 256;
    for byte in 0..=255u8 {
        let at = if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            usize::from(byte)
        } else {
            next += 1;
            next - 1
        };
        table[at] = Some(byte);
    }
    table
});

/// A token of a byte-level vocabulary. A character outside the alphabet stands for itself.
pub(super) fn byte_level(token: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for c in token.chars() {
        match ALPHABET.get(c as usize).copied().flatten() {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// A token of a SentencePiece vocabulary: `▁` is a space, `<0x0A>` a byte.
pub(super) fn sentence_piece(token: &str) -> Vec<u8> {
    let byte = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    match byte
        .filter(|hex| hex.len() == 2)
        .map(|hex| u8::from_str_radix(hex, 16))
    {
        Some(Ok(byte)) => vec![byte],
        _ => token.replace('▁', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_covers_every_byte_once() {
        let mut bytes: Vec<u8> = ALPHABET.iter().flatten().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn tokens_give_back_their_bytes() {
        assert_eq!(byte_level("ĠCafé"), [b" Caf".as_slice(), &[0xe9]].concat());
        assert_eq!(byte_level("Ċ"), b"\n");
        assert_eq!(sentence_piece("▁der"), b" der");
        assert_eq!(sentence_piece("<0x0A>"), b"\n");
        assert_eq!(sentence_piece("<0xZZ>"), b"<0xZZ>");
    }
}
