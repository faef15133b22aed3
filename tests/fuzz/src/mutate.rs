//! From an input another one: bytes, lengths, numbers and words changed where it may hurt.

use crate::rng::Rng;

/// Longest mutated input, bytes: cost follows length, and the limits are held to every byte.
const MOST: usize = 64 << 10;

/// Numbers at the edges of what parsers count with.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 53,
    (1 << 62) - 1,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// The same edges and worse, as text.
const TEXTS: [&str; 14] = [
    "0",
    "-1",
    "1e999",
    "-0.0",
    "NaN",
    "inf",
    "255",
    "65536",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "0x",
    "\u{feff}\u{0}\u{10ffff}",
];

/// What nests.
const OPENERS: [&str; 8] = ["[", "{", "(", "{\"a\":", "[[", "a(?:", "{% if a %}", "\x0a"];

/// Changes `input` between one and eight times.
pub(crate) fn mutate(rng: &mut Rng, input: &mut Vec<u8>, others: &[Vec<u8>], words: &[&str]) {
    for _ in 0..1 + rng.below(8) {
        once(rng, input, others, words);
        input.truncate(MOST);
    }
}

fn once(rng: &mut Rng, input: &mut Vec<u8>, others: &[Vec<u8>], words: &[&str]) {
    match rng.below(13) {
        0 => flip(rng, input),
        1 => set(rng, input),
        2 => insert_bytes(rng, input),
        3 => remove(rng, input),
        4 => repeat(rng, input),
        5 => input.truncate(rng.below(input.len() + 1)),
        6 => splice(rng, input, others),
        7 => fixed_number(rng, input),
        8 => varint(rng, input),
        9 => text_number(rng, input),
        10 | 11 => word(rng, input, words),
        _ => nest(rng, input),
    }
}

fn flip(rng: &mut Rng, input: &mut [u8]) {
    let at = rng.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << rng.below(8);
    }
}

fn set(rng: &mut Rng, input: &mut [u8]) {
    let (at, value) = (rng.below(input.len()), rng.byte());
    if let Some(byte) = input.get_mut(at) {
        *byte = value;
    }
}

fn put(rng: &mut Rng, input: &mut Vec<u8>, bytes: &[u8]) {
    let at = rng.below(input.len() + 1);
    input.splice(at..at, bytes.iter().copied());
}

fn insert_bytes(rng: &mut Rng, input: &mut Vec<u8>) {
    let bytes: Vec<u8> = (0..1 + rng.below(8)).map(|_| rng.byte()).collect();
    put(rng, input, &bytes);
}

/// A range of the input; empty if it is.
fn range(rng: &mut Rng, input: &[u8]) -> std::ops::Range<usize> {
    let start = rng.below(input.len() + 1);
    // Mostly short: long ones destroy what a parser gets far with.
    let most = if rng.below(4) == 0 { input.len() } else { 16 };
    start..start + rng.below((input.len() - start).min(most) + 1)
}

fn remove(rng: &mut Rng, input: &mut Vec<u8>) {
    let range = range(rng, input);
    input.drain(range);
}

fn repeat(rng: &mut Rng, input: &mut Vec<u8>) {
    let range = range(rng, input);
    let times = if rng.below(8) == 0 {
        200
    } else {
        1 + rng.below(3)
    };
    let bytes = input[range].repeat(times);
    put(rng, input, &bytes);
}

fn splice(rng: &mut Rng, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    let Some(other) = rng.pick(others) else {
        return;
    };
    let bytes = other[range(rng, other)].to_vec();
    put(rng, input, &bytes);
}

/// Overwrites what may be a length or an offset of 4 or 8 bytes.
fn fixed_number(rng: &mut Rng, input: &mut [u8]) {
    let width = if rng.below(2) == 0 { 4 } else { 8 };
    let Some(last) = input.len().checked_sub(width) else {
        return;
    };
    let at = rng.below(last + 1);
    let old = input[at..at + width]
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte));
    let number = match rng.below(4) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => old.wrapping_mul(1 + rng.next() % 1000),
        _ => EDGES[rng.below(EDGES.len())],
    };
    input[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
}

/// Replaces a byte by a number as protobuf writes it.
fn varint(rng: &mut Rng, input: &mut Vec<u8>) {
    let mut number = EDGES[rng.below(EDGES.len())];
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
    let at = rng.below(input.len());
    let end = (at + 1).min(input.len());
    input.splice(at.min(end)..end, bytes);
}

/// Replaces a number written in digits.
fn text_number(rng: &mut Rng, input: &mut Vec<u8>) {
    let digits: Vec<usize> = (0..input.len())
        .filter(|at| input[*at].is_ascii_digit() && (*at == 0 || !input[*at - 1].is_ascii_digit()))
        .collect();
    let Some(&start) = rng.pick(&digits) else {
        return;
    };
    let end = input[start..]
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .map_or(input.len(), |length| start + length);
    let text = TEXTS[rng.below(TEXTS.len())];
    input.splice(start..end, text.bytes());
}

fn word(rng: &mut Rng, input: &mut Vec<u8>, words: &[&str]) {
    if let Some(word) = rng.pick(words) {
        put(rng, input, word.as_bytes());
    }
}

fn nest(rng: &mut Rng, input: &mut Vec<u8>) {
    let opener = OPENERS[rng.below(OPENERS.len())];
    let times = [2, 20, 200, 4000][rng.below(4)];
    put(rng, input, opener.repeat(times).as_bytes());
}
