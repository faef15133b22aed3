//! The engine on the default model: prefill, one sequence, eight agents on a
//! shared prompt. Sampling and text are in the figures, as for real agents.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use conclave_kernels::{BLOCK, Kernels, KvDtype, Pool, detect};
use conclave_worker::answer::AnswerKind;
use conclave_worker::confidence::ConfidencePolicy;
use conclave_worker::generation::{Generation, GenerationSpec};
use conclave_worker::model::{Forward, LoadOptions, Model};
use conclave_worker::runner::ModelRunner;
use conclave_worker::sampling::Sampling;
use conclave_worker::vocabulary::Vocabulary;
use conclave_worker_core::{Engine, Event, Limits, Report, Request, SeqId};

const PROMPT: usize = 284;
const NEW: usize = 96;
const RUNS: usize = 5;

struct Bench {
    model: Arc<Model>,
    kernels: Arc<Kernels>,
    vocabulary: Arc<Vocabulary>,
}

/// Returns the rate of one sequence alone, tokens/s.
pub fn print() -> Result<f64, Box<dyn Error>> {
    let started = Instant::now();
    let model = Model::load(&conclave_tests::model_path(), &LoadOptions::default())?;
    println!(
        "| load {} | {:.2} s |",
        model.info().name,
        started.elapsed().as_secs_f64()
    );
    let tokenizer = model.tokenizer();
    let tokens = (0..tokenizer.vocab_size() as u32)
        .map(|id| (tokenizer.token_bytes(id), tokenizer.is_special(id)));
    let bench = Bench {
        // Without end-of-generation tokens, so that every sequence has the same length.
        vocabulary: Arc::new(Vocabulary::new(tokens, &[])),
        kernels: Arc::new(Kernels::new(detect(), Pool::new(Pool::default_threads()))),
        model: Arc::clone(&model),
    };
    for prompt in [128, 512] {
        let rates = (0..RUNS).map(|_| bench.prefill(prompt));
        println!("| prefill {prompt} | {:.0} tokens/s |", median(rates)?);
    }
    let mut alone = 0.0;
    for agents in [1, 8, 32] {
        let rate = median((0..RUNS).map(|_| bench.decode(agents)))?;
        println!(
            "| decode, {agents} sequence(s) on a shared prompt of {PROMPT} | {rate:.0} tokens/s |"
        );
        if agents == 1 {
            alone = rate;
        }
    }
    Ok(alone)
}

fn median(rates: impl Iterator<Item = Result<f64, Box<dyn Error>>>) -> Result<f64, Box<dyn Error>> {
    let mut rates = rates.collect::<Result<Vec<_>, _>>()?;
    rates.sort_by(f64::total_cmp);
    Ok(rates[rates.len() / 2])
}

impl Bench {
    fn engine(&self) -> Result<Engine<ModelRunner>, Box<dyn Error>> {
        let blocks = 1024;
        let forward = Forward::new(
            Arc::clone(&self.model),
            Arc::clone(&self.kernels),
            blocks,
            KvDtype::F16,
        )?;
        let runner = ModelRunner::new(forward, Arc::clone(self.kernels.pool()));
        let limits = Limits {
            blocks: blocks as u32,
            ..Limits::default()
        };
        Ok(Engine::new(limits, runner)?)
    }

    fn submit(
        &self,
        engine: &mut Engine<ModelRunner>,
        seq: u64,
        prompt: usize,
        tokens: usize,
    ) -> Result<(), Box<dyn Error>> {
        // Any ids do: the time does not depend on the words.
        let prompt: Vec<u32> = (0..prompt as u32)
            .map(|i| 1000 + (i * 37) % 20_000)
            .collect();
        let generation = Generation::new(
            GenerationSpec {
                prompt: prompt.clone(),
                seed: seq,
                // The defaults of a job.
                sampling: Sampling {
                    temperature: 0.7,
                    top_p: 0.95,
                    ..Sampling::GREEDY
                },
                thought: None,
                answer_tokens: tokens,
                stop: Vec::new(),
                confidence: ConfidencePolicy::default(),
                answer: AnswerKind::FreeText,
                constraint: None,
                cued: false,
            },
            Arc::clone(&self.vocabulary),
        );
        engine.runner_mut().admit(SeqId(seq), generation);
        engine.submit(Request::new(SeqId(seq), prompt, tokens))?;
        Ok(())
    }

    /// Prompt tokens per second until the first token is sampled.
    fn prefill(&self, prompt: usize) -> Result<f64, Box<dyn Error>> {
        let mut engine = self.engine()?;
        self.submit(&mut engine, 0, prompt, 1)?;
        let started = Instant::now();
        let mut report = Report::default();
        while engine.has_work() {
            engine.step(&mut report)?;
        }
        Ok(prompt as f64 / started.elapsed().as_secs_f64())
    }

    /// Tokens per second of all sequences together, once the prompt is there.
    fn decode(&self, agents: u64) -> Result<f64, Box<dyn Error>> {
        let mut engine = self.engine()?;
        for seq in 0..agents {
            self.submit(&mut engine, seq, PROMPT / BLOCK * BLOCK + 1, NEW)?;
        }
        let mut report = Report::default();
        let mut decoding = 0;
        while decoding < agents {
            report.clear();
            engine.step(&mut report)?;
            let first = |e: &&Event| matches!(e, Event::Token { generated: 1, .. });
            decoding += report.events.iter().filter(first).count() as u64;
        }
        let (started, mut tokens) = (Instant::now(), 0);
        while engine.has_work() {
            report.clear();
            engine.step(&mut report)?;
            tokens += (report.events.iter())
                .filter(|e| matches!(e, Event::Token { .. }))
                .count();
        }
        Ok(tokens as f64 / started.elapsed().as_secs_f64())
    }
}
