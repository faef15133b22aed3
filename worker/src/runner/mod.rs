//! From a plan to outcomes: the model's forward pass, then one step of each sampled generation.

mod sampler;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use conclave_kernels::Pool;
use conclave_worker_core::{Batch, Next, Outcome, Runner, SeqId, StopReason};

use crate::generation::Generation;
use crate::model::{Forward, ModelError, Part};
use crate::sampling::Scratch;

use sampler::Job;

/// Ended generations that are kept for [`ModelRunner::take`]; beyond that the oldest go.
const MAX_ENDED: usize = 1024;

/// Runs batches on a model and holds a [`Generation`] for each live sequence.
///
/// What fails in one generation (a grammar, say) ends that sequence only: its outcome is
/// [`StopReason::Failed`], and the error stays in the generation.
pub struct ModelRunner {
    forward: Forward,
    pool: Arc<Pool>,
    /// `None` only while a step is taken.
    generations: BTreeMap<SeqId, Option<Box<Generation>>>,
    ended: VecDeque<SeqId>,
    /// One for each lane of the pool.
    scratch: Vec<Mutex<Scratch>>,
    /// The step's; empty between steps.
    jobs: Vec<Mutex<Job>>,
}

impl std::fmt::Debug for ModelRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelRunner")
            .field("generations", &self.generations.len())
            .finish_non_exhaustive()
    }
}

impl ModelRunner {
    /// Without sequences. `pool` is the one that `forward` computes on; it samples several sequences at
    /// once, and is taken for each whole step.
    pub fn new(forward: Forward, pool: Arc<Pool>) -> Self {
        Self {
            forward,
            scratch: (0..pool.threads()).map(|_| Mutex::default()).collect(),
            jobs: Vec::new(),
            pool,
            generations: BTreeMap::new(),
            ended: VecDeque::new(),
        }
    }

    /// The model's side.
    pub fn forward(&self) -> &Forward {
        &self.forward
    }

    /// The model's side, to measure or to set up.
    pub fn forward_mut(&mut self) -> &mut Forward {
        &mut self.forward
    }

    /// Makes a generation known before its sequence is submitted to the engine.
    pub fn admit(&mut self, seq: SeqId, generation: Generation) {
        self.ended.retain(|ended| *ended != seq);
        self.generations.insert(seq, Some(Box::new(generation)));
    }

    /// The generation of a sequence: live, or ended and not yet taken.
    pub fn generation(&mut self, seq: SeqId) -> Option<&mut Generation> {
        self.generations.get_mut(&seq)?.as_deref_mut()
    }

    /// Hands over a generation, usually once its sequence has ended.
    pub fn take(&mut self, seq: SeqId) -> Option<Generation> {
        self.ended.retain(|ended| *ended != seq);
        self.generations.remove(&seq)?.map(|generation| *generation)
    }
}

impl ModelRunner {
    /// The forward pass, and a step of each job.
    fn compute(&mut self, batch: &Batch) -> Result<(), ModelError> {
        let rows = self.forward.run(batch)?;
        let row = |index| rows.row(index);
        let since = Instant::now();
        sampler::run(&self.pool, &self.scratch, &self.jobs, &row);
        if let Some(meter) = self.forward.meter() {
            meter.add(Part::Sampling, since);
        }
        Ok(())
    }
}

impl Runner for ModelRunner {
    type Error = ModelError;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), ModelError> {
        // For the whole step: workers of a process take turns.
        let pool = Arc::clone(&self.pool);
        let _lent = pool.lend();
        let generations = &mut self.generations;
        self.jobs.clear();
        let sampled = batch.entries().filter(|entry| entry.sample);
        self.jobs.extend(sampled.map(|entry| {
            Mutex::new(Job {
                seq: entry.seq,
                generation: generations.get_mut(&entry.seq).and_then(Option::take),
                outcome: None,
            })
        }));
        let ran = self.compute(batch);
        for job in self.jobs.drain(..) {
            let Job {
                seq,
                generation,
                outcome,
            } = job.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let (Some(generation), Some(place)) = (generation, self.generations.get_mut(&seq)) {
                *place = Some(generation);
            }
            out.push(outcome.unwrap_or(Outcome {
                seq,
                token: 0,
                logprob: 0.0,
                next: Next::Stop(StopReason::Failed),
            }));
        }
        ran
    }

    fn release(&mut self, seq: SeqId) {
        if let Some(generation) = self.generation(seq) {
            generation.close();
            self.ended.push_back(seq);
        }
        if self.ended.len() > MAX_ENDED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.generations.remove(&oldest);
        }
    }
}
