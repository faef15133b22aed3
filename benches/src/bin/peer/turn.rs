//! One turn: the engine as a worker runs it, with sampling, text and confidence in the figures.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_kernels::{Kernels, KvDtype};
use conclave_worker::answer::AnswerKind;
use conclave_worker::confidence::ConfidencePolicy;
use conclave_worker::generation::{Generation, GenerationSpec};
use conclave_worker::model::{Forward, Model};
use conclave_worker::runner::ModelRunner;
use conclave_worker::sampling::Sampling;
use conclave_worker::vocabulary::Vocabulary;
use conclave_worker_core::{Engine, Event, Limits, Report, Request, SeqId};
use serde_json::json;

use crate::figure;
use crate::workload::Workload;

/// KV blocks: memory is taken as they are used.
const BLOCKS: u32 = 1024;

/// Tokens a step, as a worker's default.
const STEP_TOKENS: usize = 256;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// What all figures share.
pub struct Bench {
    pub model: Arc<Model>,
    pub kernels: Arc<Kernels>,
    pub work: Workload,
    vocabulary: Arc<Vocabulary>,
}

/// The tokens of each sequence, and how long they took.
struct Run {
    ids: Vec<Vec<u32>>,
    total: Duration,
    /// Seconds a token, all sequences together, once each has its first.
    per_token: f64,
}

impl Bench {
    pub fn new(model: Arc<Model>, kernels: Arc<Kernels>, work: Workload) -> Bench {
        let tokenizer = model.tokenizer();
        let tokens = (0..tokenizer.vocab_size() as u32)
            .map(|id| (tokenizer.token_bytes(id), tokenizer.is_special(id)));
        Bench {
            // Without end-of-generation tokens, so that every sequence has the length asked for.
            vocabulary: Arc::new(Vocabulary::new(tokens, &[])),
            model,
            kernels,
            work,
        }
    }

    fn forward(&self) -> Fallible<Forward> {
        let (model, kernels) = (Arc::clone(&self.model), Arc::clone(&self.kernels));
        Ok(Forward::new(model, kernels, BLOCKS as usize, KvDtype::F16)?)
    }

    /// The numeric class.
    pub fn class(&self) -> Fallible<String> {
        Ok(self.forward()?.numeric_class().to_owned())
    }

    /// An engine with an empty cache.
    pub fn engine(&self) -> Fallible<Engine<ModelRunner>> {
        let runner = ModelRunner::new(self.forward()?, Arc::clone(self.kernels.pool()));
        let limits = Limits {
            blocks: BLOCKS,
            step_tokens: STEP_TOKENS,
            chunk_tokens: STEP_TOKENS,
            ..Limits::default()
        };
        Ok(Engine::new(limits, runner)?)
    }

    /// Runs `prompts` side by side to `count_each` greedy tokens each.
    fn run(
        &self,
        engine: &mut Engine<ModelRunner>,
        prompts: Vec<Vec<u32>>,
        count_each: usize,
    ) -> Fallible<Run> {
        let started = Instant::now();
        let count = prompts.len();
        for (seq, prompt) in (0..).map(SeqId).zip(prompts) {
            let spec = GenerationSpec {
                prompt: prompt.clone(),
                seed: seq.0,
                sampling: Sampling::GREEDY,
                thought: None,
                answer_tokens: count_each,
                stop: Vec::new(),
                confidence: ConfidencePolicy::default(),
                answer: AnswerKind::FreeText,
                constraint: None,
                cued: false,
            };
            let generation = Generation::new(spec, Arc::clone(&self.vocabulary));
            engine.runner_mut().admit(seq, generation);
            engine.submit(Request::new(seq, prompt, count_each))?;
        }
        let mut report = Report::default();
        let mut ids: BTreeMap<SeqId, Vec<u32>> = BTreeMap::new();
        let (mut decoding, mut tokens) = (None, 0);
        while engine.has_work() {
            engine.step(&mut report)?;
            for event in &report.events {
                if let Event::Token { seq, token, .. } = event {
                    ids.entry(*seq).or_default().push(*token);
                    tokens += usize::from(decoding.is_some());
                }
            }
            if decoding.is_none() && ids.len() == count {
                decoding = Some(Instant::now());
            }
        }
        let decoding = decoding.ok_or("a sequence has no token")?.elapsed();
        for seq in (0..count as u64).map(SeqId) {
            engine.runner_mut().take(seq);
        }
        Ok(Run {
            ids: ids.into_values().collect(),
            total: started.elapsed(),
            per_token: decoding.as_secs_f64() / tokens.max(1) as f64,
        })
    }

    /// Every figure that is `wanted`.
    pub fn turn(&self, wanted: impl Fn(&str) -> bool) -> Fallible<()> {
        let shape = &self.work.shape;
        if wanted("contemplation") {
            self.contemplate()?;
            figure("peak", peak_mib()?);
        }
        for prompt in &shape.prefill {
            let name = format!("prefill-{prompt}");
            if wanted(&name) {
                let run = || self.prefill(*prompt);
                figure(&name, *prompt as f64 / best(shape.repeats, run)?);
            }
        }
        for agents in &shape.agents {
            let name = format!("decode-{agents}");
            if wanted(&name) {
                figure(&name, 1.0 / self.decode(*agents)?);
            }
        }
        Ok(())
    }

    /// Seconds from a prompt to its first token.
    fn prefill(&self, prompt: usize) -> Fallible<f64> {
        let mut engine = self.engine()?;
        // As long as it takes to touch the memory of a step.
        self.run(&mut engine, vec![self.work.ids[8..][..prompt].to_vec()], 1)?;
        let run = self.run(&mut engine, vec![self.work.ids[..prompt].to_vec()], 1)?;
        Ok(run.total.as_secs_f64())
    }

    /// Seconds a token with `agents` side by side.
    pub fn decode(&self, agents: usize) -> Fallible<f64> {
        let shape = &self.work.shape;
        best(shape.repeats, || {
            let prompts = (0..agents).map(|agent| self.work.decode_prompt(agent));
            let run = self.run(&mut self.engine()?, prompts.collect(), shape.decode_tokens)?;
            Ok(run.per_token)
        })
    }

    /// Drafts side by side, then a chair that reads their text; and, for the ratio, one draft alone.
    fn contemplate(&self) -> Fallible<()> {
        let shape = &self.work.shape;
        let mut engine = self.engine()?;
        let proposals = (0..shape.drafts).map(|agent| self.work.proposal(agent));
        let started = Instant::now();
        let drafts = self.run(&mut engine, proposals.collect(), shape.draft_tokens)?;
        let chair = self.work.chair(&drafts.ids);
        let answer = self.run(&mut engine, vec![chair], shape.draft_tokens)?;
        figure("contemplation", started.elapsed().as_secs_f64());
        let proposal = vec![self.work.proposal(0)];
        let one = self.run(&mut self.engine()?, proposal, shape.draft_tokens)?;
        figure("agent", one.total.as_secs_f64());
        let text: Vec<u8> = drafts.ids[0]
            .iter()
            .flat_map(|id| self.model.tokenizer().token_bytes(*id))
            .copied()
            .collect();
        let greedy: Vec<_> = drafts.ids.iter().chain(&answer.ids).collect();
        println!(
            "{}",
            json!({ "greedy": greedy, "text": String::from_utf8_lossy(&text) })
        );
        Ok(())
    }
}

/// The least of `repeats` times, seconds.
pub fn best(repeats: usize, mut run: impl FnMut() -> Fallible<f64>) -> Fallible<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..repeats {
        best = best.min(run()?);
    }
    Ok(best)
}

/// Peak resident memory of this process.
fn peak_mib() -> Fallible<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib
        .ok_or("/proc/self/status has no VmHWM")?
        .parse::<f64>()?
        / 1024.0)
}
