//! One step of many generations, side by side on the compute pool.

use std::sync::{Mutex, MutexGuard, PoisonError};

use conclave_kernels::Pool;
use conclave_worker_core::{Outcome, SeqId};

use crate::generation::Generation;
use crate::sampling::Scratch;

/// One generation's step.
pub(super) struct Job {
    /// Whose.
    pub seq: SeqId,
    /// Absent if nobody admitted the sequence.
    pub generation: Option<Box<Generation>>,
    /// Stays absent if the generation is, or failed.
    pub outcome: Option<Outcome>,
}

/// Takes the step of every job: job `i` gets the raw logits `row(i)`. A job's outcome depends on its own row and
/// generation only, so it does not matter which thread takes it.
///
/// Each job is locked once, and each scratch only by the lane that it belongs to: nobody ever waits.
pub(super) fn run<'a>(
    pool: &Pool,
    scratch: &[Mutex<Scratch>],
    jobs: &[Mutex<Job>],
    row: &(dyn Fn(usize) -> &'a [f32] + Sync),
) {
    pool.run_lanes(jobs.len(), &|lane, index| {
        let mut scratch = lock(&scratch[lane % scratch.len()]);
        step(&mut lock(&jobs[index]), row(index), &mut scratch);
    });
}

/// What a panic leaves behind ends with its engine.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn step(job: &mut Job, logits: &[f32], scratch: &mut Scratch) {
    let Some(generation) = &mut job.generation else {
        return;
    };
    job.outcome = generation
        .on_logits(logits, scratch)
        .ok()
        .map(|step| Outcome {
            seq: job.seq,
            token: step.token,
            logprob: step.logprob,
            next: step.next,
        });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use conclave_worker_core::Next;

    use super::*;
    use crate::answer::AnswerKind;
    use crate::confidence::ConfidencePolicy;
    use crate::generation::GenerationSpec;
    use crate::sampling::Sampling;
    use crate::vocabulary::tiny;

    fn generation(seed: u64) -> Box<Generation> {
        let spec = GenerationSpec {
            prompt: tiny::ids("x"),
            seed,
            sampling: Sampling {
                temperature: 1.0,
                ..Sampling::GREEDY
            },
            thought: None,
            answer_tokens: 9,
            stop: Vec::new(),
            confidence: ConfidencePolicy::default(),
            answer: AnswerKind::FreeText,
            constraint: None,
            cued: false,
        };
        Box::new(Generation::new(spec, Arc::new(tiny::vocabulary())))
    }

    /// One step of `count` generations, of which the second was never admitted and the third gets
    /// broken logits.
    fn outcomes(threads: usize, count: usize) -> Vec<Option<Outcome>> {
        let row = |seed: usize| -> Vec<f32> {
            let broken = seed == 2;
            let logit = |id: usize| ((id * 31 + seed * 7) % 13) as f32;
            let logit = |id| if broken { f32::NAN } else { logit(id) };
            (0..tiny::LEN).map(logit).collect()
        };
        let rows: Vec<Vec<f32>> = (0..count).map(row).collect();
        let job = |seq: usize| {
            Mutex::new(Job {
                seq: SeqId(seq as u64),
                generation: (seq != 1).then(|| generation(seq as u64)),
                outcome: None,
            })
        };
        let jobs: Vec<_> = (0..count).map(job).collect();
        let scratch: Vec<_> = (0..threads).map(|_| Mutex::default()).collect();
        run(&Pool::new(threads), &scratch, &jobs, &|index| &rows[index]);
        jobs.into_iter()
            .map(|job| job.into_inner().unwrap().outcome)
            .collect()
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        for count in [0, 1, 5, 17] {
            let one = outcomes(1, count);
            assert_eq!(outcomes(2, count), one);
            assert_eq!(outcomes(3, count), one);
        }
    }

    #[test]
    fn one_that_fails_fails_alone() {
        let outcomes = outcomes(2, 6);
        let failed: Vec<bool> = outcomes.iter().map(Option::is_none).collect();
        assert_eq!(failed, [false, true, true, false, false, false]);
        let next = |outcome: &Option<Outcome>| outcome.as_ref().map(|o| o.next.clone());
        assert_eq!(next(&outcomes[5]), Some(Next::Continue));
    }
}
