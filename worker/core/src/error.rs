//! What can be refused and what can go wrong.

use thiserror::Error;

use crate::sequence::SeqId;

/// Why a call was refused. The engine's state is as before the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EngineError {
    /// The waiting queue holds as many requests as it may.
    #[error("the waiting queue is full ({limit} requests)")]
    QueueFull {
        /// The queue's bound.
        limit: usize,
    },
    /// The sequence would not fit even if it were alone.
    #[error("the sequence needs up to {need} tokens, and {have} fit")]
    TooLong {
        /// Prompt and `max_tokens` together, in tokens.
        need: usize,
        /// The context limit or the pool's size, whichever is smaller, in tokens.
        have: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// There is nothing to generate.
    #[error("max_tokens is 0")]
    NoTokensAsked,
    /// The id belongs to a live sequence.
    #[error("sequence {0:?} exists already")]
    Duplicate(SeqId),
    /// The id belongs to no live sequence.
    #[error("sequence {0:?} does not exist")]
    Unknown(SeqId),
    /// A fork keeps none of the parent's tokens, or more than there are.
    #[error("a fork cannot keep {keep} tokens of a sequence of {len}")]
    BadFork {
        /// What was asked for.
        keep: usize,
        /// What the parent has.
        len: usize,
    },
}

/// Why limits make no engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("limit `{name}` must be at least 1")]
pub struct LimitsError {
    /// The field of [`crate::Limits`].
    pub name: &'static str,
}

/// Why a step failed. Every sequence of its batch has ended with [`crate::StopReason::Failed`] and holds
/// nothing; the report says which. Others go on with the next step.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum StepError<E: std::error::Error + 'static> {
    /// The runner could not compute the batch.
    #[error("the runner failed")]
    Runner(#[source] E),
    /// The runner owes an outcome for an entry that samples, or gave it out of order.
    #[error("the runner gave no outcome for {seq:?} at its place")]
    OutcomeMissing {
        /// The entry's sequence.
        seq: SeqId,
    },
    /// The runner gave an outcome that no entry asked for.
    #[error("the runner gave an outcome for {seq:?}, which none asked for")]
    OutcomeUnexpected {
        /// The outcome's sequence.
        seq: SeqId,
    },
}
