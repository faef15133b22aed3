//! The llama architecture once more, slow and plain, on weights that candle reads and dequantizes.

use std::collections::BTreeMap;
use std::io::Cursor;

use candle_core::Device;
use candle_core::quantized::gguf_file::Content;

use super::{DIM, EPS, FFN, HEADS, HIDDEN, KV_HEADS, LAYERS, THETA, VOCAB};

/// Every tensor of a GGUF file, in f32, rows first.
pub fn tensors(file: &[u8]) -> BTreeMap<String, Vec<f32>> {
    let mut reader = Cursor::new(file);
    let content = Content::read(&mut reader).unwrap();
    let mut tensors = BTreeMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut reader, name, &Device::Cpu).unwrap();
        let tensor = tensor
            .dequantize(&Device::Cpu)
            .unwrap()
            .flatten_all()
            .unwrap();
        tensors.insert(name.clone(), tensor.to_vec1().unwrap());
    }
    tensors
}

fn linear(x: &[f32], w: &[f32], rows: usize) -> Vec<f32> {
    let dot = |row: &[f32]| -> f64 {
        row.iter()
            .zip(x)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    w.chunks(w.len() / rows)
        .map(|row| dot(row) as f32)
        .collect()
}

fn norm(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let scale = 1.0 / (square / x.len() as f64 + f64::from(EPS)).sqrt();
    x.iter()
        .zip(weight)
        .map(|(x, w)| (f64::from(*x) * scale) as f32 * w)
        .collect()
}

/// Interleaved pairs, as q and k of GGUF files are permuted for.
fn rope(x: &mut [f32], position: usize) {
    for head in x.chunks_mut(DIM) {
        for (i, pair) in head.chunks_mut(2).enumerate() {
            let angle = position as f64 * THETA.powf(-2.0 * i as f64 / DIM as f64);
            let (sin, cos) = angle.sin_cos();
            let (a, b) = (f64::from(pair[0]), f64::from(pair[1]));
            pair[0] = (a * cos - b * sin) as f32;
            pair[1] = (a * sin + b * cos) as f32;
        }
    }
}

fn attend(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
    let mut out = Vec::new();
    for (head, q) in q.chunks(DIM).enumerate() {
        let at = head / (HEADS / KV_HEADS) * DIM;
        let score = |k: &Vec<f32>| -> f64 {
            let dot: f64 = q.iter().zip(&k[at..]).map(|(a, b)| f64::from(a * b)).sum();
            dot / (DIM as f64).sqrt()
        };
        let scores: Vec<f64> = keys.iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        out.extend((0..DIM).map(|d| {
            let mixed: f64 = weights
                .iter()
                .zip(values)
                .map(|(w, v)| w * f64::from(v[at + d]))
                .sum();
            (mixed / sum) as f32
        }));
    }
    out
}

/// The logits after each of `tokens`.
pub fn logits(w: &BTreeMap<String, Vec<f32>>, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut cache = vec![(Vec::new(), Vec::new()); LAYERS];
    let embedding = &w["token_embd.weight"];
    let head = w.get("output.weight").unwrap_or(embedding);
    let mut all = Vec::new();
    for (position, token) in tokens.iter().enumerate() {
        let mut x = embedding[*token as usize * HIDDEN..][..HIDDEN].to_vec();
        for (layer, (keys, values)) in cache.iter_mut().enumerate() {
            let part = |name: &str| &w[&format!("blk.{layer}.{name}.weight")];
            let normed = norm(&x, part("attn_norm"));
            let mut q = linear(&normed, part("attn_q"), HEADS * DIM);
            let mut k = linear(&normed, part("attn_k"), KV_HEADS * DIM);
            rope(&mut q, position);
            rope(&mut k, position);
            keys.push(k);
            values.push(linear(&normed, part("attn_v"), KV_HEADS * DIM));
            let attended = attend(&q, keys, values);
            let mixed = linear(&attended, part("attn_output"), HIDDEN);
            x.iter_mut().zip(mixed).for_each(|(x, y)| *x += y);
            let normed = norm(&x, part("ffn_norm"));
            let gate = linear(&normed, part("ffn_gate"), FFN);
            let up = linear(&normed, part("ffn_up"), FFN);
            let inner: Vec<f32> = gate
                .iter()
                .zip(up)
                .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                .collect();
            let mixed = linear(&inner, part("ffn_down"), HIDDEN);
            x.iter_mut().zip(mixed).for_each(|(x, y)| *x += y);
        }
        all.push(linear(&norm(&x, &w["output_norm.weight"]), head, VOCAB));
    }
    all
}
