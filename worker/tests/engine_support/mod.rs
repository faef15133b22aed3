//! The default model behind a real engine.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use conclave_kernels::{Kernels, KvDtype, Pool};
use conclave_worker::agent::AgentFactory;
use conclave_worker::generation::Generation;
use conclave_worker::model::{Forward, LoadOptions, Model};
use conclave_worker::runner::ModelRunner;
use conclave_worker_core::{Engine, Event, Finished, Limits, Report, Request, SeqId};

/// The model file: `CONCLAVE_TEST_MODEL`, else the one in the user's cache. A missing one fails the tests,
/// for they say nothing without it.
fn path() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = || {
        variable("CONCLAVE_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("conclave")))
            .or_else(|| variable("HOME").map(|home| home.join(".cache/conclave")))
            .map(|cache| cache.join("models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"))
    };
    let path = variable("CONCLAVE_TEST_MODEL").or_else(cache);
    let path = path.expect("a cache folder");
    assert!(path.exists(), "{path:?} is missing: `make test` fetches it");
    path
}

/// The compute pool of this process.
fn pool() -> Arc<Pool> {
    static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
    Arc::clone(POOL.get_or_init(|| Pool::new(2)))
}

/// The model, loaded once.
pub fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let load = || Model::shared(&path(), &LoadOptions::default()).expect("the default model");
    Arc::clone(MODEL.get_or_init(load))
}

fn forward(model: Arc<Model>, blocks: usize) -> Forward {
    let kernels = Arc::new(Kernels::new(conclave_kernels::detect(), pool()));
    Forward::new(model, kernels, blocks, KvDtype::F16).expect("room for the cache")
}

/// Agents of the model, in the numeric class of [`Rig`].
#[allow(dead_code, reason = "not every test has agents")]
pub fn factory() -> Arc<AgentFactory> {
    static FACTORY: OnceLock<Arc<AgentFactory>> = OnceLock::new();
    let make = || AgentFactory::new(model(), forward(model(), 1).numeric_class());
    Arc::clone(FACTORY.get_or_init(make))
}

/// A sequence that ended.
pub struct Ended {
    pub generation: Generation,
    pub finished: Finished,
    #[allow(dead_code, reason = "not every test preempts")]
    pub preempted: bool,
}

impl Ended {
    /// All that must not depend on the rest of the batch.
    #[allow(dead_code, reason = "not every test compares")]
    pub fn bits(&self) -> (Vec<u32>, Vec<u32>, i64) {
        let logprobs = self.generation.logprobs().iter();
        (
            self.generation.ids().to_vec(),
            logprobs.map(|logprob| logprob.to_bits()).collect(),
            self.generation.confidence().mean(),
        )
    }
}

/// An engine on a model.
pub struct Rig {
    pub engine: Engine<ModelRunner>,
}

impl Rig {
    #[allow(dead_code, reason = "not every test takes the default model")]
    pub fn new(limits: Limits) -> Self {
        Self::on(model(), limits)
    }

    pub fn on(model: Arc<Model>, limits: Limits) -> Self {
        let runner = ModelRunner::new(forward(model, limits.blocks as usize), pool());
        let engine = Engine::new(limits, runner).expect("valid limits");
        Self { engine }
    }

    pub fn submit(&mut self, request: Request, generation: Generation) {
        self.engine.runner_mut().admit(request.id, generation);
        self.engine.submit(request).expect("a request that fits");
    }

    /// Steps until `seq` has ended.
    pub fn finish(&mut self, seq: SeqId) -> Ended {
        self.finish_all([seq]).remove(0)
    }

    /// Steps until all of `seqs` have ended; gives them in that order.
    pub fn finish_all(&mut self, seqs: impl IntoIterator<Item = SeqId>) -> Vec<Ended> {
        let seqs: Vec<SeqId> = seqs.into_iter().collect();
        let mut ended: Vec<Option<Ended>> = seqs.iter().map(|_| None).collect();
        let mut preempted = vec![false; seqs.len()];
        let mut report = Report::default();
        while ended.iter().any(Option::is_none) {
            assert!(self.engine.has_work(), "some of {seqs:?} never ended");
            self.engine.step(&mut report).expect("a step");
            for event in &report.events {
                let at = |seq: SeqId| seqs.iter().position(|of| *of == seq);
                match event {
                    Event::Preempted { seq } => {
                        at(*seq).into_iter().for_each(|at| preempted[at] = true);
                    }
                    Event::Finished(finished) => {
                        let Some(at) = at(finished.seq) else { continue };
                        let generation = self.engine.runner_mut().take(finished.seq);
                        ended[at] = Some(Ended {
                            generation: generation.expect("an admitted sequence"),
                            finished: *finished,
                            preempted: preempted[at],
                        });
                    }
                    _ => {}
                }
            }
        }
        ended.into_iter().flatten().collect()
    }
}
