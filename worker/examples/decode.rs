//! Speed of the forward pass without sampling: prefill of 128 and 512 tokens, decode alone, with eight and
//! with 32 sequences that share a prompt.
//!
//! ```text
//! cargo run --release -p conclave-worker --example decode [MODEL] [THREADS]
//! ```
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_kernels::{Kernels, KvDtype, Pool};
use conclave_worker::model::{Forward, LoadOptions, Model, ModelError, pull};
use conclave_worker_core::{
    Batch, Engine, Limits, Next, Outcome, Report, Request, Runner, SeqId, StepError,
};

/// Tokens that each sequence generates.
const TOKENS: usize = 48;

/// Continues with the likeliest token, and keeps the time.
struct Greedy {
    forward: Forward,
    prefill: (Duration, usize),
    decode: (Duration, usize),
}

impl Runner for Greedy {
    type Error = ModelError;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), ModelError> {
        let start = Instant::now();
        let logits = self.forward.run(batch)?;
        let is_decode = batch.total_tokens() == batch.len();
        for (index, entry) in batch.entries().filter(|entry| entry.sample).enumerate() {
            let row = logits.row(index).iter().zip(0u32..);
            let (_, token) = row.fold((f32::MIN, 0), |best, (logit, id)| {
                if *logit > best.0 { (*logit, id) } else { best }
            });
            out.push(Outcome {
                seq: entry.seq,
                token,
                logprob: 0.0,
                next: Next::Continue,
            });
        }
        let slot = if is_decode {
            &mut self.decode
        } else {
            &mut self.prefill
        };
        slot.0 += start.elapsed();
        slot.1 += batch.total_tokens();
        Ok(())
    }

    fn release(&mut self, _seq: SeqId) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = pull::resolve(&args.next().unwrap_or_else(|| "smollm2-135m".to_owned()))?;
    let threads = args
        .next()
        .map_or(Ok(Pool::default_threads()), |count| count.parse())?;
    let start = Instant::now();
    let model = Model::load(&path, &LoadOptions::default())?;
    println!(
        "{} in {:.2} s, {} MiB of weights, {} threads",
        model.info().name,
        start.elapsed().as_secs_f64(),
        model.weight_bytes() >> 20,
        threads,
    );
    let kernels = Arc::new(Kernels::new(conclave_kernels::detect(), Pool::new(threads)));
    for (prompt, sequences) in [(128, 1), (512, 1), (128, 8), (128, 32), (1024, 8)] {
        measure(&model, &kernels, prompt, sequences)?;
    }
    Ok(())
}

fn measure(
    model: &Arc<Model>,
    kernels: &Arc<Kernels>,
    prompt: usize,
    sequences: u64,
) -> Result<(), Box<dyn Error>> {
    let limits = Limits {
        blocks: 1024,
        chunk_tokens: 512,
        ..Limits::default()
    };
    let forward = Forward::new(model.clone(), kernels.clone(), 1024, KvDtype::F16)?;
    let class = forward.numeric_class().to_owned();
    let zero = (Duration::ZERO, 0);
    let mut engine = Engine::new(
        limits,
        Greedy {
            forward,
            prefill: zero,
            decode: zero,
        },
    )?;
    let tokens: Vec<u32> = (0..prompt as u32)
        .map(|i| 1000 + i * 7919 % 40_000)
        .collect();
    let start = Instant::now();
    for id in 0..sequences {
        engine.submit(Request::new(SeqId(id), tokens.clone(), TOKENS))?;
    }
    let mut report = Report::default();
    while engine.has_work() {
        engine
            .step(&mut report)
            .map_err(|error: StepError<ModelError>| error.to_string())?;
    }
    let (whole, greedy) = (start.elapsed(), engine.runner());
    let rate = |(time, tokens): (Duration, usize)| tokens as f64 / time.as_secs_f64();
    println!(
        "{class}  {sequences:>2} x {prompt:>4} tokens: prefill {:>7.1} tokens/s ({}), decode {:>6.1} tokens/s, \
         engine {:.2} ms a step",
        rate(greedy.prefill),
        greedy.prefill.1,
        rate(greedy.decode),
        (whole - greedy.prefill.0 - greedy.decode.0).as_secs_f64() * 1e3 / TOKENS as f64,
    );
    Ok(())
}
