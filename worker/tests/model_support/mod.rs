//! Small random llama models, written as GGUF files, and what candle makes of them.
#![allow(dead_code)] // Each test file uses its part.

pub mod gguf;
pub mod naive;
pub mod run;

use half::f16;

/// The shape of the small models. K types ask for rows of 256.
pub const LAYERS: usize = 2;
pub const HIDDEN: usize = 256;
pub const FFN: usize = 512;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const DIM: usize = 64;
pub const EPS: f32 = 1e-5;
pub const THETA: f64 = 10_000.0;
/// Two rows more than tokens: padding.
pub const VOCAB: usize = 264;

/// ggml's numbers of the weight types.
pub const TYPES: [(&str, u32); 11] = [
    ("F32", 0),
    ("F16", 1),
    ("Q4_0", 2),
    ("Q4_1", 3),
    ("Q5_0", 6),
    ("Q5_1", 7),
    ("Q8_0", 8),
    ("Q4_K", 12),
    ("Q5_K", 13),
    ("Q6_K", 14),
    ("BF16", 30),
];

/// A stream of numbers that is the same on every run (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn bytes(&mut self, count: usize, out: &mut Vec<u8>) {
        out.extend((0..count).map(|_| self.next() as u8));
    }

    fn half(&mut self, scale: f32, out: &mut Vec<u8>) {
        out.extend(f16::from_f32(scale * (0.5 + 0.5 * self.unit().abs())).to_le_bytes());
    }
}

/// `count` random weights of about the size of 0.05, as blocks of a ggml type.
pub fn weights(numbers: &mut Numbers, ggml_type: u32, count: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let block = match ggml_type {
        0 | 1 | 30 => 1,
        12..=14 => 256,
        _ => 32,
    };
    for _ in 0..count / block {
        match ggml_type {
            0 => out.extend((0.08 * numbers.unit()).to_le_bytes()),
            1 => out.extend(f16::from_f32(0.08 * numbers.unit()).to_le_bytes()),
            30 => out.extend(half::bf16::from_f32(0.08 * numbers.unit()).to_le_bytes()),
            2 | 6 | 8 => {
                let (scale, rest) = match ggml_type {
                    2 => (0.01, 16),
                    6 => (0.005, 20),
                    _ => (0.0006, 32),
                };
                numbers.half(scale, &mut out);
                numbers.bytes(rest, &mut out);
            }
            3 | 7 => {
                let (scale, rest) = if ggml_type == 3 {
                    (0.01, 16)
                } else {
                    (0.005, 20)
                };
                numbers.half(scale, &mut out);
                numbers.half(-0.08, &mut out);
                numbers.bytes(rest, &mut out);
            }
            12 | 13 => {
                let scale = if ggml_type == 12 { 3e-4 } else { 1.5e-4 };
                numbers.half(scale, &mut out);
                numbers.half(0.002, &mut out);
                numbers.bytes(if ggml_type == 12 { 140 } else { 172 }, &mut out);
            }
            14 => {
                numbers.bytes(192 + 16, &mut out);
                numbers.half(3e-5, &mut out);
            }
            other => panic!("type {other}"),
        }
    }
    out
}
