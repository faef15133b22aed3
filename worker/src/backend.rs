//! What a worker computes with: the seam between the shell and a model.
//!
//! The shell (session, engine thread, replay) knows agents, attempts and drafts; it knows neither
//! tensors nor tokens. [`ModelBackend`](crate::model_backend::ModelBackend) is the one that serves a
//! model; tests put a scripted one in its place.

use conclave_proto::v1::{
    AttemptError, Draft, ErrorKind, ModelInfo, Prepare, Prepared, Start, TokenDelta,
};
use conclave_worker_core::{Finished, Limits, Request, Runner, SeqId};

/// A model that agents can be run on.
pub trait Backend: Send + Sync + 'static {
    /// Computes the batches of one engine.
    type Runner: AgentRunner<Plan = Self::Plan>;
    /// What the runner needs to know of one agent: made here, used there.
    type Plan: Send + 'static;

    /// Name, digest, numeric class and context of the model.
    fn model(&self) -> ModelInfo;

    /// The limits of an engine for this model.
    fn limits(&self) -> Limits;

    /// Makes a runner. Called on the engine's thread, when it starts and after a panic.
    ///
    /// # Errors
    /// In words; the worker is then unhealthy.
    fn runner(&self) -> Result<Self::Runner, String>;

    /// Turns an agent into a request for sequence `seq`. Tokenizes and compiles grammars: blocking.
    ///
    /// # Errors
    /// `PERMANENT` if no worker could run it, `TRANSIENT` if another might.
    fn plan(&self, seq: SeqId, start: &Start) -> Result<(Request, Self::Plan), AttemptError>;

    /// Checks a job and counts its prompt. Tokenizes and compiles grammars: blocking.
    fn prepare(&self, prepare: &Prepare) -> Prepared;
}

/// A runner that keeps text, grammar and counts for each of its sequences.
pub trait AgentRunner: Runner {
    /// As in [`Backend::Plan`].
    type Plan;

    /// Begins to keep `plan` for `seq`, which is about to be submitted.
    fn admit(&mut self, seq: SeqId, plan: Self::Plan);

    /// What came since the last call, one phase at a time: ask until there is none. `agent`, `attempt`
    /// and `cached_tokens` are the caller's to fill. Also answers for a sequence that has ended, until
    /// [`AgentRunner::finish`].
    fn take_delta(&mut self, seq: SeqId) -> Option<TokenDelta>;

    /// What `finished.seq` hands in, once; `None` for a sequence that was never admitted. Called after
    /// [`Runner::release`], which therefore must not forget the text.
    fn finish(&mut self, finished: &Finished) -> Option<Result<Draft, AttemptError>>;
}

/// An error that another attempt may not meet.
pub fn transient(message: impl Into<String>) -> AttemptError {
    AttemptError {
        kind: ErrorKind::Transient.into(),
        message: message.into(),
    }
}

/// An error that every attempt meets.
pub fn permanent(message: impl Into<String>) -> AttemptError {
    AttemptError {
        kind: ErrorKind::Permanent.into(),
        message: message.into(),
    }
}

/// The attempt did not run, or not to its end, because the worker drains; it does not count.
pub fn drained() -> AttemptError {
    AttemptError {
        kind: ErrorKind::Drained.into(),
        message: "the worker drains".into(),
    }
}
