//! Recorded agents run again and compared token for token.
//!
//! A draft is decided by its prompt, its seed, the model and the numeric class. So each agent is run in
//! a fresh engine, next to whichever others fit, and must give the ids it gave, with the same bits of
//! log-probability. A draft that was cut is run to where it was cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use conclave_kernels::{Activation, Isa, KvDtype};
use conclave_proto::v1::{AgentSpec, AttemptKey, Draft, Message, Start, StopReason};
use conclave_worker_core::{Engine, Event, Finished, Report, Request, SeqId};

use crate::backend::{AgentRunner, Backend};
use crate::device::{self, DeviceKind};
use crate::model::{Device, LoadOptions, Model, ModelError};
use crate::model_backend::{KvSize, ModelBackend, RunOptions, process_pool};

/// The most memory for the replay's KV cache, bytes.
const KV_BYTES: usize = 512 * 1024 * 1024;

/// Agents that are run side by side.
const SIDE_BY_SIDE: usize = 16;

/// Tokens that one step computes.
const STEP_TOKENS: usize = 512;

/// One recorded agent.
#[derive(Clone, Debug, Default)]
pub struct ReplayCase {
    /// What it was to do.
    pub spec: AgentSpec,
    /// The job's conversation.
    pub messages: Vec<Message>,
    /// Its round's shared context.
    pub context: String,
    /// Its trust region. Decides what is found in caches, never what is computed.
    pub salt: Vec<u8>,
    /// What it handed in.
    pub draft: Draft,
}

/// What became of one agent's replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentReplay {
    /// The agent.
    pub agent: u32,
    /// Whether it was the same.
    pub result: ReplayResult,
}

/// How a replay compares with its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayResult {
    /// The same prompt, ids, log-probabilities and answer.
    Identical {
        /// Ids compared.
        tokens: usize,
    },
    /// An id differs, or one of the two ends earlier.
    Differs {
        /// The first place that differs, counted from 0.
        at: usize,
        /// The recorded id.
        expected: Option<u32>,
        /// The replayed id.
        got: Option<u32>,
    },
    /// The prompt is not the one recorded; nothing else was compared.
    PromptDiffers,
    /// All ids are equal, and the bits of some log-probability are not.
    LogprobsDiffer,
    /// All ids are equal, and what was made of them (text, canonical form, validity) is not.
    AnswerDiffers,
    /// The draft was made by another model. Digests are in hex.
    WrongModel {
        /// The recorded digest.
        recorded: String,
        /// Ours.
        ours: String,
    },
    /// The draft was made in another numeric class: the bits need not agree.
    WrongClass {
        /// The recorded class.
        recorded: String,
        /// Ours.
        ours: String,
    },
    /// The agent cannot be run.
    Refused {
        /// Why.
        message: String,
    },
}

impl ReplayResult {
    /// Whether nothing differs.
    pub fn identical(&self) -> bool {
        matches!(self, Self::Identical { .. })
    }
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayProgress {
    /// Agents compared.
    pub agents: usize,
    /// Of so many.
    pub agents_total: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// Of at most so many.
    pub tokens_total: usize,
}

/// Why nothing could be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine cannot be built, or failed.
    #[error("the replay's engine failed: {0}")]
    Engine(String),
}

/// What a numeric class says of how a model must be loaded and run to be in it.
///
/// `None` if the class is not of this build's form, or of a device that is not here; replaying will then say
/// [`ReplayResult::WrongClass`].
pub fn settings_of(class: &str) -> Option<(LoadOptions, KvDtype)> {
    let mut parts = class.split('-').skip(1);
    let (isa, device) = match parts.next()? {
        Device::CLASS => (
            conclave_kernels::detect(),
            Some(device::open(DeviceKind::Cuda(0)).ok()??),
        ),
        isa => (Isa::from_name(isa)?, None),
    };
    let activation = parts.next()?;
    let activation = [Activation::F32, Activation::Int8]
        .into_iter()
        .find(|known| known.name() == activation)?;
    let kv = parts.next()?.strip_prefix("kv")?;
    let kv = [KvDtype::F16, KvDtype::F32]
        .into_iter()
        .find(|known| known.name() == kv)?;
    let options = LoadOptions {
        activation,
        isa,
        device,
        name: None,
    };
    isa.available().then_some((options, kv))
}

/// Runs the agents again on `model`, which was loaded with `options`, and compares. Blocking: seconds to
/// minutes. `progress` is called after each step. The results are in the order of the cases.
///
/// # Errors
/// [`ReplayError`] if the model cannot be run at all.
pub fn replay_agents(
    model: Arc<Model>,
    options: &LoadOptions,
    kv: KvDtype,
    cases: &[ReplayCase],
    progress: &mut dyn FnMut(ReplayProgress),
) -> Result<Vec<AgentReplay>, ReplayError> {
    let run = RunOptions {
        kv,
        kv_size: KvSize::Sequences {
            count: cases.len().clamp(1, SIDE_BY_SIDE),
            bytes: KV_BYTES,
        },
        max_sequences: SIDE_BY_SIDE,
        max_waiting: cases.len().max(1),
        step_tokens: STEP_TOKENS,
    };
    let backend = ModelBackend::new(model, options.isa, process_pool(0), run)?;
    replay_on(&backend, cases, progress)
}

/// As [`replay_agents`], on any backend.
///
/// # Errors
/// [`ReplayError::Engine`].
pub fn replay_on<B: Backend>(
    backend: &B,
    cases: &[ReplayCase],
    progress: &mut dyn FnMut(ReplayProgress),
) -> Result<Vec<AgentReplay>, ReplayError> {
    let runner = backend.runner().map_err(ReplayError::Engine)?;
    let engine = Engine::new(backend.limits(), runner)
        .map_err(|error| ReplayError::Engine(error.to_string()))?;
    let mut replay = Replay {
        engine,
        cases,
        live: BTreeMap::new(),
        results: cases.iter().map(|_| None).collect(),
        progress: ReplayProgress {
            agents_total: cases.len(),
            tokens_total: cases.iter().map(|case| case.draft.token_ids.len()).sum(),
            ..ReplayProgress::default()
        },
    };
    for index in 0..cases.len() {
        replay.submit(backend, index);
    }
    replay.run(progress)?;
    let paired = cases.iter().zip(replay.results);
    let unanswered = || ReplayError::Engine("an agent never ended".into());
    paired
        .map(|(case, result)| {
            Ok(AgentReplay {
                agent: case.spec.agent,
                result: result.ok_or_else(unanswered)?,
            })
        })
        .collect()
}

struct Replay<'a, R> {
    engine: Engine<R>,
    cases: &'a [ReplayCase],
    /// Case and generated tokens of each sequence.
    live: BTreeMap<SeqId, (usize, usize)>,
    results: Vec<Option<ReplayResult>>,
    progress: ReplayProgress,
}

impl<R: AgentRunner> Replay<'_, R> {
    fn submit<B: Backend<Runner = R, Plan = R::Plan>>(&mut self, backend: &B, index: usize) {
        let case = &self.cases[index];
        let ours = backend.model();
        if case.draft.model_digest != ours.digest {
            let (recorded, ours) = (
                hex::encode(&case.draft.model_digest),
                hex::encode(&ours.digest),
            );
            return self.settle(index, ReplayResult::WrongModel { recorded, ours });
        }
        if case.draft.numeric_class != ours.numeric_class {
            let (recorded, ours) = (case.draft.numeric_class.clone(), ours.numeric_class);
            return self.settle(index, ReplayResult::WrongClass { recorded, ours });
        }
        let seq = SeqId(index as u64);
        match backend.plan(seq, &case.start(ours.name)) {
            Ok((request, plan)) => self.admit(index, request, plan),
            Err(error) => self.settle(
                index,
                ReplayResult::Refused {
                    message: error.message,
                },
            ),
        }
    }

    fn admit(&mut self, index: usize, request: Request, plan: R::Plan) {
        let seq = request.id;
        self.engine.runner_mut().admit(seq, plan);
        match self.engine.submit(request) {
            Ok(()) => {
                self.live.insert(seq, (index, 0));
                self.cut(seq);
            }
            Err(error) => {
                // The engine never knew it, so it will not give back what the runner keeps of it.
                let runner = self.engine.runner_mut();
                runner.release(seq);
                runner.finish(&Finished {
                    seq,
                    reason: conclave_worker_core::StopReason::Cancelled,
                    cached_prompt_tokens: 0,
                    generated: 0,
                });
                let message = error.to_string();
                self.settle(index, ReplayResult::Refused { message });
            }
        }
    }

    fn run(&mut self, progress: &mut dyn FnMut(ReplayProgress)) -> Result<(), ReplayError> {
        let mut report = Report::default();
        progress(self.progress);
        while self.engine.has_work() {
            self.engine
                .step(&mut report)
                .map_err(|error| ReplayError::Engine(error.to_string()))?;
            for event in &report.events {
                match event {
                    Event::Token { seq, .. } => self.count(*seq, 1),
                    Event::Injected { seq, tokens } => self.count(*seq, tokens.len()),
                    Event::Finished(finished) => self.ended(finished),
                    Event::Started { .. } | Event::Preempted { .. } => {}
                }
            }
            let live: Vec<SeqId> = self.live.keys().copied().collect();
            live.into_iter().for_each(|seq| self.cut(seq));
            progress(self.progress);
        }
        Ok(())
    }

    fn count(&mut self, seq: SeqId, tokens: usize) {
        self.progress.tokens += tokens;
        if let Some((_, generated)) = self.live.get_mut(&seq) {
            *generated += tokens;
        }
    }

    /// Ends a sequence where its record was cut.
    fn cut(&mut self, seq: SeqId) {
        let Some(&(index, generated)) = self.live.get(&seq) else {
            return;
        };
        let draft = &self.cases[index].draft;
        let due = draft.stop() == StopReason::Cancelled && generated >= draft.token_ids.len();
        if due && let Ok(finished) = self.engine.cancel(seq) {
            self.ended(&finished);
        }
    }

    fn ended(&mut self, finished: &Finished) {
        let Some((index, _)) = self.live.remove(&finished.seq) else {
            return;
        };
        let result = match self.engine.runner_mut().finish(finished) {
            Some(Ok(draft)) => compare(&self.cases[index].draft, &draft),
            Some(Err(error)) => ReplayResult::Refused {
                message: error.message,
            },
            None => ReplayResult::Refused {
                message: "the runner lost the agent".into(),
            },
        };
        self.settle(index, result);
    }

    fn settle(&mut self, index: usize, result: ReplayResult) {
        self.results[index] = Some(result);
        self.progress.agents += 1;
    }
}

impl ReplayCase {
    fn start(&self, model: String) -> Start {
        Start {
            key: Some(AttemptKey {
                agent: self.spec.agent,
                ..AttemptKey::default()
            }),
            spec: Some(self.spec.clone()),
            model,
            messages: self.messages.clone(),
            context: self.context.clone(),
            salt: self.salt.clone(),
            ..Start::default()
        }
    }
}

fn compare(recorded: &Draft, replayed: &Draft) -> ReplayResult {
    if recorded.prompt_digest != replayed.prompt_digest {
        return ReplayResult::PromptDiffers;
    }
    let (a, b) = (&recorded.token_ids, &replayed.token_ids);
    let longest = a.len().max(b.len());
    if let Some(at) = (0..longest).find(|&at| a.get(at) != b.get(at)) {
        return ReplayResult::Differs {
            at,
            expected: a.get(at).copied(),
            got: b.get(at).copied(),
        };
    }
    if recorded.logprob_digest != replayed.logprob_digest {
        return ReplayResult::LogprobsDiffer;
    }
    let made = |draft: &Draft| {
        let texts = (
            draft.thought.clone(),
            draft.answer.clone(),
            draft.canonical.clone(),
        );
        (
            texts,
            draft.valid,
            draft.stop,
            draft.confidence_micro,
            draft.lowest_window_micro,
        )
    };
    if made(recorded) != made(replayed) {
        return ReplayResult::AnswerDiffers;
    }
    ReplayResult::Identical { tokens: longest }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(ids: &[u32]) -> Draft {
        Draft {
            token_ids: ids.to_vec(),
            ..Draft::default()
        }
    }

    #[test]
    fn the_first_difference_is_named_a_missing_tail_too() {
        let differs = |at, expected, got| ReplayResult::Differs { at, expected, got };
        assert_eq!(
            compare(&draft(&[1, 2, 3]), &draft(&[1, 9, 3])),
            differs(1, Some(2), Some(9))
        );
        assert_eq!(
            compare(&draft(&[1, 2]), &draft(&[1])),
            differs(1, Some(2), None)
        );
        assert_eq!(
            compare(&draft(&[1, 2]), &draft(&[1, 2])),
            ReplayResult::Identical { tokens: 2 }
        );
        let other_bits = Draft {
            logprob_digest: vec![1],
            ..draft(&[1])
        };
        assert_eq!(
            compare(&draft(&[1]), &other_bits),
            ReplayResult::LogprobsDiffer
        );
    }

    #[test]
    fn a_class_names_how_to_load_the_model() {
        let (options, kv) = settings_of("k1-portable-f32-kvf16").unwrap();
        assert_eq!(
            (options.isa, options.activation, kv),
            (Isa::Portable, Activation::F32, KvDtype::F16)
        );
        assert!(settings_of("sm90-bf16").is_none());
    }
}
