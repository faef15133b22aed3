//! Where the time of a decode step goes, and what meeting shared blocks together saves.
//!
//! Agents of one prompt decode as a worker lets them: plan, forward pass, sampling, text. First the parts of a
//! step are timed one by one; then, clock off, steps with sequences grouped and each by itself take turns.
//!
//! ```text
//! cargo run --release -p conclave-worker --example profile [MODEL] [THREADS] [ISA]
//! ```
#![allow(clippy::print_stdout, reason = "prints a profile")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_kernels::{Isa, Kernels, KvDtype, Pool};
use conclave_worker::answer::AnswerKind;
use conclave_worker::confidence::ConfidencePolicy;
use conclave_worker::generation::{Generation, GenerationSpec};
use conclave_worker::model::{Forward, LoadOptions, Model, Part, pull};
use conclave_worker::runner::ModelRunner;
use conclave_worker::sampling::Sampling;
use conclave_worker::vocabulary::Vocabulary;
use conclave_worker_core::{BLOCK, Engine, Limits, Report, Request, SeqId, StepError};

/// Steps that are timed, after those that warm up.
const STEPS: usize = 64;
/// Steps before the clock starts.
const WARM_UP: usize = 8;

/// What the prompt repeats. Words, not any ids: how flat the logits are decides what sampling costs.
const TEXT: &str = "A lighthouse keeper counts the ships that pass in a week and writes down their names. On Monday \
    there were four, on Tuesday twice as many, and then fog came and nobody could see the water for two days. When \
    the sky cleared he saw nine ships wait at the mouth of the river for the tide. How many ships did he write down \
    in all, and which of them could he have counted twice? Think about it step by step before you answer. ";

struct Bench {
    model: Arc<Model>,
    kernels: Arc<Kernels>,
    vocabulary: Arc<Vocabulary>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let isa = args.iter().find_map(|arg| Isa::from_name(arg));
    let threads = args.iter().find_map(|arg| arg.parse().ok());
    let model = args
        .iter()
        .find(|arg| Isa::from_name(arg).is_none() && arg.parse::<usize>().is_err());
    let path = pull::resolve(model.map_or("smollm2-135m", String::as_str))?;
    let (isa, threads) = (
        isa.unwrap_or_else(conclave_kernels::detect),
        threads.unwrap_or_else(Pool::default_threads),
    );
    let options = LoadOptions {
        isa,
        ..LoadOptions::default()
    };
    let model = Model::load(&path, &options)?;
    let tokenizer = model.tokenizer();
    let tokens = (0..tokenizer.vocab_size() as u32)
        .map(|id| (tokenizer.token_bytes(id), tokenizer.is_special(id)));
    let bench = Bench {
        // Without end-of-generation tokens, so that every sequence has the same length.
        vocabulary: Arc::new(Vocabulary::new(tokens, &[])),
        kernels: Arc::new(Kernels::new(isa, Pool::new(threads))),
        model: Arc::clone(&model),
    };
    println!(
        "{}, {}, {threads} threads",
        model.info().name,
        bench.kernels.isa()
    );
    for agents in [1, 8, 32] {
        bench.parts(agents, 284)?;
    }
    println!("\n| agents | shared prompt | each alone | grouped | ratio |");
    println!("|---|---|---|---|---|");
    for (agents, prompt) in [(8, 284), (32, 284), (8, 2048), (32, 2048)] {
        bench.grouping(agents, prompt)?;
    }
    Ok(())
}

impl Bench {
    /// An engine on which `agents` sequences on one prompt are about to decode.
    fn engine(&self, agents: u64, prompt: usize) -> Result<Engine<ModelRunner>, Box<dyn Error>> {
        let blocks = 1024;
        let (model, kernels) = (Arc::clone(&self.model), Arc::clone(&self.kernels));
        let forward = Forward::new(model, kernels, blocks, KvDtype::F16)?;
        let runner = ModelRunner::new(forward, Arc::clone(self.kernels.pool()));
        let limits = Limits {
            blocks: blocks as u32,
            ..Limits::default()
        };
        let mut engine = Engine::new(limits, runner)?;
        // A block that is not full belongs to each alone, so whole blocks make the prompt shared.
        let words = self.model.tokenizer().encode(TEXT, false)?;
        let words = words.into_iter().cycle();
        let prompt: Vec<u32> = words.take(prompt / BLOCK * BLOCK + 1).collect();
        for seq in 0..agents {
            let spec = GenerationSpec {
                prompt: prompt.clone(),
                seed: seq,
                // The defaults of a job.
                sampling: Sampling {
                    temperature: 0.7,
                    top_p: 0.95,
                    ..Sampling::GREEDY
                },
                thought: None,
                answer_tokens: 512,
                stop: Vec::new(),
                confidence: ConfidencePolicy::default(),
                answer: AnswerKind::FreeText,
                constraint: None,
                cued: false,
            };
            let generation = Generation::new(spec, Arc::clone(&self.vocabulary));
            engine.runner_mut().admit(SeqId(seq), generation);
            engine.submit(Request::new(SeqId(seq), prompt.clone(), 512))?;
        }
        let mut report = Report::default();
        let mut warm = 0;
        while warm < WARM_UP {
            step(&mut engine, &mut report)?;
            warm += usize::from(engine.batch().total_tokens() == agents as usize);
        }
        Ok(engine)
    }

    /// Prints what a step is made of.
    fn parts(&self, agents: u64, prompt: usize) -> Result<(), Box<dyn Error>> {
        let mut engine = self.engine(agents, prompt)?;
        let mut report = Report::default();
        let mut times = vec![Vec::new(); Part::ALL.len() + 2];
        let mut calls = [0; Part::ALL.len()];
        for _ in 0..STEPS {
            engine.runner_mut().forward_mut().measure(true);
            let whole = step(&mut engine, &mut report)?;
            let meter = engine.runner_mut().forward_mut().measure(false);
            let meter = meter.unwrap_or_default();
            let mut rest = whole;
            for (index, part) in Part::ALL.into_iter().enumerate() {
                let (time, count) = meter.of(part);
                rest = rest.saturating_sub(time);
                times[index].push(time);
                calls[index] = count;
            }
            times[Part::ALL.len()].push(rest);
            times[Part::ALL.len() + 1].push(whole);
        }
        let medians: Vec<Duration> = times.into_iter().map(median).collect();
        let whole = medians.last().copied().unwrap_or_default();
        println!("\nA step of {agents} agents on a shared prompt of {prompt} tokens: medians");
        println!("| part | calls | microseconds | share |");
        println!("|---|---|---|---|");
        let names = Part::ALL.into_iter().map(Part::name);
        let names = names.chain(["plan, report and the rest", "whole step"]);
        let calls = calls.into_iter().chain([1, 1]);
        for ((name, calls), time) in names.zip(calls).zip(medians) {
            println!(
                "| {name} | {calls} | {:.1} | {:.1} % |",
                time.as_secs_f64() * 1e6,
                100.0 * time.as_secs_f64() / whole.as_secs_f64()
            );
        }
        Ok(())
    }

    /// Prints the time of a step with and without grouping.
    fn grouping(&self, agents: u64, prompt: usize) -> Result<(), Box<dyn Error>> {
        let mut engine = self.engine(agents, prompt)?;
        let mut report = Report::default();
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..STEPS {
            for (grouped, times) in [false, true].into_iter().zip(&mut times) {
                engine.runner_mut().forward_mut().set_grouped(grouped);
                times.push(step(&mut engine, &mut report)?);
            }
        }
        let [alone, grouped] = times.map(|times| median(times).as_secs_f64() * 1e3);
        println!(
            "| {agents} | {prompt} | {alone:.2} ms | {grouped:.2} ms | {:.2} |",
            alone / grouped
        );
        Ok(())
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn step(engine: &mut Engine<ModelRunner>, report: &mut Report) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    engine
        .step(report)
        .map_err(|error: StepError<_>| error.to_string())?;
    Ok(start.elapsed())
}
