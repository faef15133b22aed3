//! The engine: a scheduler, a runner, and the four statements of a step between them.

use crate::batch::Batch;
use crate::error::{EngineError, LimitsError, StepError};
use crate::limits::Limits;
use crate::report::{Finished, Report, Stats};
use crate::runner::{Outcome, Runner};
use crate::scheduler::Scheduler;
use crate::sequence::{Fork, Request, SeqId};

/// Runs many sequences through one [`Runner`]. One owner, no locks: whoever holds it calls
/// [`Engine::step`] while [`Engine::has_work`].
#[derive(Debug)]
pub struct Engine<R> {
    scheduler: Scheduler,
    runner: R,
    batch: Batch,
    outcomes: Vec<Outcome>,
    ended: Vec<SeqId>,
}

impl<R: Runner> Engine<R> {
    /// An engine without sequences. The runner must have memory for `limits.blocks` blocks of
    /// [`crate::BLOCK`] tokens.
    ///
    /// # Errors
    /// If a limit is 0.
    pub fn new(limits: Limits, runner: R) -> Result<Self, LimitsError> {
        Ok(Self {
            scheduler: Scheduler::new(limits)?,
            runner,
            batch: Batch::default(),
            outcomes: Vec::new(),
            ended: Vec::new(),
        })
    }

    /// Puts a request in the queue; it starts with one of the next steps. What the runner keeps for the
    /// sequence must be there by the next step.
    ///
    /// # Errors
    /// As [`Scheduler::submit`].
    pub fn submit(&mut self, request: Request) -> Result<(), EngineError> {
        self.scheduler.submit(request)
    }

    /// Continues a live sequence in a second one that shares its blocks copy-on-write. The runner is not
    /// told: what it keeps for the child must be there by the next step.
    ///
    /// # Errors
    /// As [`Scheduler::fork`].
    pub fn fork(&mut self, parent: SeqId, fork: Fork) -> Result<(), EngineError> {
        self.scheduler.fork(parent, fork)
    }

    /// Ends a live sequence now: its blocks are free for the next step. What is returned is not repeated
    /// in a report.
    ///
    /// # Errors
    /// [`EngineError::Unknown`].
    pub fn cancel(&mut self, id: SeqId) -> Result<Finished, EngineError> {
        let finished = self.scheduler.cancel(id)?;
        self.runner.release(id);
        Ok(finished)
    }

    /// Computes one batch. `report` is overwritten, also when the step fails. Without live sequences the
    /// step does nothing.
    ///
    /// # Errors
    /// If the runner fails or breaks its contract; the sequences of the batch have then ended.
    pub fn step(&mut self, report: &mut Report) -> Result<(), StepError<R::Error>> {
        report.clear();
        self.scheduler.schedule(&mut self.batch, &mut report.events);
        let ran = self.run();
        self.complete(ran.is_ok(), report);
        report.stats = self.stats();
        ran
    }

    /// Whether any sequence is live: whether a step would do something.
    pub fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    /// How the engine stands; the batch is the last step's.
    pub fn stats(&self) -> Stats {
        Stats {
            batch_tokens: self.batch.total_tokens(),
            batch_sequences: self.batch.len(),
            ..self.scheduler.stats()
        }
    }

    /// The sequences and their blocks, to look at.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The plan of the last step.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The runner.
    pub fn runner(&self) -> &R {
        &self.runner
    }

    /// The runner, for what is set up per sequence outside of steps.
    pub fn runner_mut(&mut self) -> &mut R {
        &mut self.runner
    }

    fn run(&mut self) -> Result<(), StepError<R::Error>> {
        self.outcomes.clear();
        if self.batch.is_empty() {
            return Ok(());
        }
        self.runner
            .run(&self.batch, &mut self.outcomes)
            .map_err(StepError::Runner)?;
        let mut outcomes = self.outcomes.iter();
        for entry in self.batch.entries().filter(|entry| entry.sample) {
            if outcomes
                .next()
                .is_none_or(|outcome| outcome.seq != entry.seq)
            {
                return Err(StepError::OutcomeMissing { seq: entry.seq });
            }
        }
        match outcomes.next() {
            Some(extra) => Err(StepError::OutcomeUnexpected { seq: extra.seq }),
            None => Ok(()),
        }
    }

    fn complete(&mut self, ran: bool, report: &mut Report) {
        self.ended.clear();
        if ran {
            self.scheduler
                .complete(&mut self.outcomes, &mut report.events, &mut self.ended);
        } else {
            self.scheduler
                .fail_planned(&mut report.events, &mut self.ended);
        }
        for seq in &self.ended {
            self.runner.release(*seq);
        }
    }
}
