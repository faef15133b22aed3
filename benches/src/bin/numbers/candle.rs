//! A neighbour in the same run: candle-transformers' own quantized Llama on the
//! same file, one sequence, greedy.

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

const PROMPT: usize = 128;
const NEW: usize = 32;

/// `ours`: the rate of our engine with one sequence, tokens/s.
pub fn print(ours: f64) -> Result<(), Box<dyn Error>> {
    let mut reader = BufReader::new(File::open(conclave_tests::model_path())?);
    let content = Content::read(&mut reader)?;
    let mut model = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;
    let prompt: Vec<u32> = (0..PROMPT as u32)
        .map(|i| 1000 + (i * 37) % 20_000)
        .collect();
    let mut token = next(&mut model, &prompt, 0)?;
    let started = Instant::now();
    for position in PROMPT..PROMPT + NEW {
        token = next(&mut model, &[token], position)?;
    }
    let rate = NEW as f64 / started.elapsed().as_secs_f64();
    println!(
        "| decode, one sequence, candle-transformers on the same file | {rate:.0} tokens/s (ours {:.1} x) |",
        ours / rate
    );
    Ok(())
}

fn next(model: &mut ModelWeights, tokens: &[u32], position: usize) -> Result<u32, Box<dyn Error>> {
    let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
    let logits = model.forward(&input, position)?;
    Ok(logits.squeeze(0)?.argmax(0)?.to_scalar::<u32>()?)
}
