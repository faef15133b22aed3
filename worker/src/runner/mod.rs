//! From a plan to outcomes: the model's forward pass, then one step of each sampled generation.

mod sampler;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use conclave_kernels::Pool;
use conclave_worker_core::{Batch, Next, Outcome, Runner, SeqId, StopReason};

use crate::generation::Generation;
use crate::model::{Forward, ModelError};
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
    generations: BTreeMap<SeqId, Box<Generation>>,
    ended: VecDeque<SeqId>,
    scratch: Vec<Scratch>,
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
            scratch: (0..pool.threads()).map(|_| Scratch::default()).collect(),
            pool,
            generations: BTreeMap::new(),
            ended: VecDeque::new(),
        }
    }

    /// The model's side.
    pub fn forward(&self) -> &Forward {
        &self.forward
    }

    /// Makes a generation known before its sequence is submitted to the engine.
    pub fn admit(&mut self, seq: SeqId, generation: Generation) {
        self.ended.retain(|ended| *ended != seq);
        self.generations.insert(seq, Box::new(generation));
    }

    /// The generation of a sequence: live, or ended and not yet taken.
    pub fn generation(&mut self, seq: SeqId) -> Option<&mut Generation> {
        self.generations
            .get_mut(&seq)
            .map(|generation| &mut **generation)
    }

    /// Hands over a generation, usually once its sequence has ended.
    pub fn take(&mut self, seq: SeqId) -> Option<Generation> {
        self.ended.retain(|ended| *ended != seq);
        self.generations.remove(&seq).map(|generation| *generation)
    }
}

impl Runner for ModelRunner {
    type Error = ModelError;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), ModelError> {
        // For the whole step: workers of a process take turns.
        let _lent = self.pool.lend();
        let rows = self.forward.run(batch)?;
        let sampled = batch.entries().filter(|entry| entry.sample);
        let mut jobs: Vec<Job<'_>> = sampled
            .enumerate()
            .map(|(row, entry)| Job {
                seq: entry.seq,
                logits: rows.row(row),
                generation: self.generations.remove(&entry.seq),
                outcome: None,
            })
            .collect();
        sampler::run(&self.pool, &mut self.scratch, &mut jobs);
        for job in jobs {
            let failed = Outcome {
                seq: job.seq,
                token: 0,
                logprob: 0.0,
                next: Next::Stop(StopReason::Failed),
            };
            out.push(job.outcome.unwrap_or(failed));
            if let Some(generation) = job.generation {
                self.generations.insert(job.seq, generation);
            }
        }
        Ok(())
    }

    fn release(&mut self, seq: SeqId) {
        if let Some(generation) = self.generations.get_mut(&seq) {
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
