//! One step of many generations, side by side on the compute pool.

use std::sync::{Mutex, PoisonError};

use conclave_kernels::Pool;
use conclave_worker_core::{Outcome, SeqId};

use crate::generation::Generation;
use crate::sampling::Scratch;

/// One generation's step.
pub(super) struct Job<'a> {
    /// Whose.
    pub seq: SeqId,
    /// Its row of raw logits.
    pub logits: &'a [f32],
    /// Absent if nobody admitted the sequence.
    pub generation: Option<Box<Generation>>,
    /// Stays absent if the generation is, or failed.
    pub outcome: Option<Outcome>,
}

/// Takes the step of every job. A job's outcome depends on its own row and generation only, so it does
/// not matter which thread takes it.
pub(super) fn run(pool: &Pool, scratch: &mut [Scratch], jobs: &mut [Job<'_>]) {
    let share = jobs.len().div_ceil(scratch.len().max(1)).max(1);
    let lanes: Vec<_> = jobs
        .chunks_mut(share)
        .zip(scratch)
        .map(Mutex::new)
        .collect();
    pool.run(lanes.len(), &|lane| {
        // Each lane is locked once, by the thread that runs it.
        let mut lane = lanes[lane].lock().unwrap_or_else(PoisonError::into_inner);
        let (jobs, scratch) = &mut *lane;
        for job in jobs.iter_mut() {
            step(job, scratch);
        }
    });
}

fn step(job: &mut Job<'_>, scratch: &mut Scratch) {
    let Some(generation) = &mut job.generation else {
        return;
    };
    job.outcome = generation
        .on_logits(job.logits, scratch)
        .ok()
        .map(|step| Outcome {
            seq: job.seq,
            token: step.token,
            logprob: step.logprob,
            next: step.next,
        });
}
