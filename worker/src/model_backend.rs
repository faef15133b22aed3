//! A model of ours as a [`Backend`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use conclave_kernels::{BLOCK, Kernels, KvDtype, Pool};
use conclave_proto::v1::{AttemptError, Draft, ModelInfo, Prepare, Prepared, Start, TokenDelta};
use conclave_worker_core::{Batch, Finished, Limits, Outcome, Request, Runner, SeqId};

use crate::agent::{AgentError, AgentFactory};
use crate::backend::{AgentRunner, Backend, transient};
use crate::generation::Generation;
use crate::model::{Forward, Model, ModelError};
use crate::runner::ModelRunner;

/// The most tokens of one sequence in one step: a long prompt shares its steps.
const CHUNK_TOKENS: usize = 256;

/// The compute pool of this process: who asks first decides how many threads it has (0: as many as the
/// cgroup grants).
pub fn process_pool(threads: usize) -> Arc<Pool> {
    static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
    let threads = match threads {
        0 => Pool::default_threads(),
        threads => threads,
    };
    Arc::clone(POOL.get_or_init(|| Pool::new(threads)))
}

/// How a model is run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Storage of keys and values; part of the numeric class.
    pub kv: KvDtype,
    /// Memory for the KV cache.
    pub kv_size: KvSize,
    /// Sequences that run side by side.
    pub max_sequences: usize,
    /// Sequences that may wait.
    pub max_waiting: usize,
    /// The most tokens that one step computes.
    pub step_tokens: usize,
}

/// Memory for a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// Blocks of 16 tokens.
    Blocks(u32),
    /// As many blocks as fit into so many bytes, at least one.
    Bytes(usize),
    /// As [`KvSize::Bytes`], but no more than so many sequences of the model's whole context can fill.
    Sequences {
        /// How many.
        count: usize,
        /// The most memory.
        bytes: usize,
    },
}

/// A loaded model, and how it is run.
pub struct ModelBackend {
    factory: Arc<AgentFactory>,
    kernels: Arc<Kernels>,
    pool: Arc<Pool>,
    kv: KvDtype,
    limits: Limits,
    /// Memory on a device, for the first runner: what does not fit is told before the worker starts, and nobody
    /// else takes it meanwhile.
    taken: Mutex<Option<Forward>>,
}

impl ModelBackend {
    /// `isa` must be the one that the model's weights are packed for.
    ///
    /// # Errors
    /// As [`Forward::new`].
    pub fn new(
        model: Arc<Model>,
        isa: conclave_kernels::Isa,
        pool: Arc<Pool>,
        options: RunOptions,
    ) -> Result<Self, ModelError> {
        let kernels = Arc::new(Kernels::new(isa, Arc::clone(&pool)));
        // One block, to ask what a block costs and what the class is called.
        let probe = Forward::new(Arc::clone(&model), Arc::clone(&kernels), 1, options.kv)?;
        let fit = |bytes: usize| {
            let blocks = bytes / probe.cache_bytes().max(1);
            u32::try_from(blocks).unwrap_or(u32::MAX).max(1)
        };
        let blocks = match options.kv_size {
            KvSize::Blocks(blocks) => blocks,
            KvSize::Bytes(bytes) => fit(bytes),
            KvSize::Sequences { count, bytes } => {
                let full = count.saturating_mul(model.info().context_tokens.div_ceil(BLOCK));
                fit(bytes).min(u32::try_from(full).unwrap_or(u32::MAX).max(1))
            }
        };
        let limits = Limits {
            blocks,
            step_tokens: options.step_tokens,
            chunk_tokens: options.step_tokens.min(CHUNK_TOKENS),
            max_running: options.max_sequences,
            max_waiting: options.max_waiting,
            max_context: model.info().context_tokens,
        };
        let backend = Self {
            factory: AgentFactory::shared(model, probe.numeric_class()),
            kernels,
            pool,
            kv: options.kv,
            limits,
            taken: Mutex::default(),
        };
        drop(probe);
        if backend.factory.model().device().is_some() {
            *backend.taken() = Some(backend.forward()?);
        }
        Ok(backend)
    }

    /// Memory for the largest step that the limits allow.
    fn forward(&self) -> Result<Forward, ModelError> {
        let (model, kernels) = (self.factory.model(), &self.kernels);
        let blocks = self.limits.blocks as usize;
        let mut forward = Forward::new(Arc::clone(model), Arc::clone(kernels), blocks, self.kv)?;
        forward.reserve(self.limits.step_tokens, self.limits.max_running)?;
        Ok(forward)
    }

    fn taken(&self) -> MutexGuard<'_, Option<Forward>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for ModelBackend {
    type Runner = ModelAgents;
    type Plan = Generation;

    fn model(&self) -> ModelInfo {
        let info = self.factory.model().info();
        ModelInfo {
            name: info.name.clone(),
            digest: info.digest.to_vec(),
            numeric_class: self.factory.numeric_class().to_owned(),
            context_tokens: u32::try_from(info.context_tokens).unwrap_or(u32::MAX),
        }
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn runner(&self) -> Result<ModelAgents, String> {
        let taken = self.taken().take();
        let forward = taken.map_or_else(|| self.forward(), Ok);
        let forward = forward.map_err(|error| error.to_string())?;
        Ok(ModelAgents {
            runner: ModelRunner::new(forward, Arc::clone(&self.pool)),
            factory: Arc::clone(&self.factory),
            prompts: BTreeMap::new(),
        })
    }

    fn plan(&self, seq: SeqId, start: &Start) -> Result<(Request, Generation), AttemptError> {
        let planned = self.factory.request(start, seq, seq.0)?;
        let (need, have) = (
            planned.0.tokens.len() + planned.0.max_tokens,
            self.limits.longest(),
        );
        if need > have {
            // A worker with more memory may take it.
            return Err(transient(AgentError::Memory { need, have }.to_string()));
        }
        Ok(planned)
    }

    fn prepare(&self, prepare: &Prepare) -> Prepared {
        self.factory.prepare(prepare, self.limits.longest())
    }
}

/// A [`ModelRunner`] that makes drafts.
pub struct ModelAgents {
    runner: ModelRunner,
    factory: Arc<AgentFactory>,
    /// Tokens of each prompt, for watchers.
    prompts: BTreeMap<SeqId, u32>,
}

impl Runner for ModelAgents {
    type Error = ModelError;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), ModelError> {
        self.runner.run(batch, out)
    }

    fn release(&mut self, seq: SeqId) {
        self.runner.release(seq);
    }
}

impl AgentRunner for ModelAgents {
    type Plan = Generation;

    fn admit(&mut self, seq: SeqId, plan: Generation) {
        let prompt = u32::try_from(plan.prompt().len()).unwrap_or(u32::MAX);
        self.prompts.insert(seq, prompt);
        self.runner.admit(seq, plan);
    }

    fn take_delta(&mut self, seq: SeqId) -> Option<TokenDelta> {
        let delta = self.runner.generation(seq)?.take_delta()?;
        Some(TokenDelta {
            offset: delta.offset,
            tokens: delta.tokens,
            text: delta.text,
            thought: delta.thought,
            confidence_micro: delta.confidence_micro,
            prompt_tokens: self.prompts.get(&seq).copied().unwrap_or(0),
            ..TokenDelta::default()
        })
    }

    fn finish(&mut self, finished: &Finished) -> Option<Result<Draft, AttemptError>> {
        self.prompts.remove(&finished.seq);
        let ended = self.runner.take(finished.seq)?;
        Some(self.factory.draft(ended, finished))
    }
}
