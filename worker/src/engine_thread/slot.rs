//! One model's engine: what it is asked, what it did, and what happens when it fails.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use conclave_proto::v1::AttemptError;
use conclave_worker_core::{
    Engine, EngineError, Event, Finished, Report, Request, Runner as _, SeqId, Stats, StopReason,
};

use super::SeqEvent;
use crate::backend::{AgentRunner, Backend, permanent, transient};
use crate::metrics::EngineMetrics;

/// Steps in a row that may fail before the engine is built anew.
const FAILURES_BEFORE_RESTART: u32 = 3;

/// One model's engine.
pub struct Slot<B: Backend> {
    /// What it runs on.
    pub backend: Arc<B>,
    /// `None` until the first start, and after a panic until the next.
    engine: Option<Engine<B::Runner>>,
    /// Live sequences and whether they have been reported as started.
    live: BTreeMap<SeqId, bool>,
    report: Report,
    /// The engine's counters after the last thing it did.
    pub seen: Stats,
    failures: u32,
    /// Without a good step between them.
    pub restarts: u32,
}

impl<B: Backend> Slot<B> {
    /// Without an engine yet.
    pub fn new(backend: Arc<B>) -> Self {
        Self {
            backend,
            engine: None,
            live: BTreeMap::new(),
            report: Report::default(),
            seen: Stats::default(),
            failures: 0,
            restarts: 0,
        }
    }

    /// Whether a step would do something.
    pub fn has_work(&self) -> bool {
        self.engine.as_ref().is_some_and(Engine::has_work)
    }

    /// Takes the memory that the model needs.
    pub fn start_engine(&mut self) -> Result<(), String> {
        let runner = self.backend.runner()?;
        let engine =
            Engine::new(self.backend.limits(), runner).map_err(|error| error.to_string())?;
        self.seen = engine.stats();
        self.engine = Some(engine);
        Ok(())
    }

    /// Puts an agent in the engine's queue. A panic ends what the engine holds, and this agent with it.
    pub fn start(
        &mut self,
        request: Request,
        plan: B::Plan,
        batch: &mut Vec<SeqEvent>,
    ) -> Result<(), AttemptError> {
        let started = catch_unwind(AssertUnwindSafe(|| self.try_start(request, plan)));
        started.unwrap_or_else(|_panic| {
            let why = "the engine panicked when it took on an agent";
            self.restart(why, batch);
            Err(transient(why))
        })
    }

    fn try_start(&mut self, request: Request, plan: B::Plan) -> Result<(), AttemptError> {
        if self.engine.is_none()
            && let Err(why) = self.start_engine()
        {
            // Who cannot start again is no engine that agents should be sent to.
            self.restarts += 1;
            return Err(transient(why));
        }
        let Some(engine) = &mut self.engine else {
            return Err(transient("the engine is down"));
        };
        let seq = request.id;
        engine.runner_mut().admit(seq, plan);
        match engine.submit(request) {
            Ok(()) => {
                self.live.insert(seq, false);
                self.seen = engine.stats();
                Ok(())
            }
            Err(error) => {
                engine.runner_mut().release(seq);
                engine.runner_mut().finish(&Finished {
                    seq,
                    reason: StopReason::Cancelled,
                    cached_prompt_tokens: 0,
                    generated: 0,
                });
                Err(refusal(error))
            }
        }
    }

    /// Ends a sequence; does nothing to one that is not here. A panic ends all that the engine holds.
    pub fn cancel(&mut self, seq: SeqId, batch: &mut Vec<SeqEvent>) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        let live = &mut self.live;
        let cancelled = catch_unwind(AssertUnwindSafe(|| {
            if let Ok(finished) = engine.cancel(seq) {
                end(engine.runner_mut(), &finished, batch);
                live.remove(&seq);
            }
            engine.stats()
        }));
        match cancelled {
            Ok(stats) => self.seen = stats,
            Err(_panic) => self.restart("the engine panicked at a cancel", batch),
        }
    }

    /// One step. A failure, of the runner or by panic, ends what it touched and nothing else.
    pub fn step(&mut self, batch: &mut Vec<SeqEvent>, metrics: &EngineMetrics) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        let began = Instant::now();
        let report = &mut self.report;
        let result = catch_unwind(AssertUnwindSafe(|| {
            let stepped = engine
                .step(report)
                .map_err(|error| crate::error::chain(&error));
            let runner = engine.runner_mut();
            for event in &report.events {
                relay(runner, event, &mut self.live, batch);
            }
            stepped
        }));
        match result {
            Ok(stepped) => {
                metrics.stepped(began.elapsed(), &self.seen, &report.stats);
                self.seen = report.stats;
                match stepped {
                    Ok(()) => (self.failures, self.restarts) = (0, 0),
                    Err(message) => {
                        tracing::error!(message, "a step failed");
                        self.failures += 1;
                    }
                }
                if self.failures >= FAILURES_BEFORE_RESTART {
                    self.restart("steps keep failing", batch);
                }
            }
            Err(_panic) => self.restart("the engine panicked", batch),
        }
    }

    /// Ends every sequence; the next start builds a new engine.
    fn restart(&mut self, why: &str, batch: &mut Vec<SeqEvent>) {
        tracing::error!(
            model = self.backend.model().name,
            why,
            "restarting the engine"
        );
        self.engine = None;
        self.failures = 0;
        self.restarts += 1;
        self.seen = Stats::default();
        self.fail_all(why, batch);
    }

    /// Ends every sequence with an error that another attempt may not meet.
    pub fn fail_all(&mut self, why: &str, batch: &mut Vec<SeqEvent>) {
        for seq in std::mem::take(&mut self.live).into_keys() {
            let outcome = Err(transient(why));
            batch.push(SeqEvent::Ended { seq, outcome });
        }
    }
}

/// Turns what the core reports into what the shell hears.
fn relay<R: AgentRunner>(
    runner: &mut R,
    event: &Event,
    live: &mut BTreeMap<SeqId, bool>,
    batch: &mut Vec<SeqEvent>,
) {
    match event {
        Event::Started { seq, cached_tokens } => {
            if live.insert(*seq, true) == Some(false) {
                batch.push(SeqEvent::Started {
                    seq: *seq,
                    cached_tokens: u32::try_from(*cached_tokens).unwrap_or(u32::MAX),
                });
            }
        }
        Event::Token { seq, .. } => {
            while let Some(delta) = runner.take_delta(*seq) {
                batch.push(SeqEvent::Delta { seq: *seq, delta });
            }
        }
        Event::Injected { .. } | Event::Preempted { .. } => {}
        Event::Finished(finished) => {
            live.remove(&finished.seq);
            end(runner, finished, batch);
        }
    }
}

fn end<R: AgentRunner>(runner: &mut R, finished: &Finished, batch: &mut Vec<SeqEvent>) {
    let seq = finished.seq;
    while let Some(delta) = runner.take_delta(seq) {
        batch.push(SeqEvent::Delta { seq, delta });
    }
    let outcome = match runner.finish(finished) {
        Some(outcome) => outcome.map(Box::new),
        None => Err(transient("the runner lost the agent")),
    };
    batch.push(SeqEvent::Ended { seq, outcome });
}

/// Whether another worker may take what this engine refused.
fn refusal(error: EngineError) -> AttemptError {
    use EngineError as E;
    match error {
        E::QueueFull { .. } | E::Duplicate(_) | E::Unknown(_) => transient(error.to_string()),
        E::TooLong { .. } | E::EmptyPrompt | E::NoTokensAsked | E::BadFork { .. } => {
            permanent(error.to_string())
        }
    }
}
