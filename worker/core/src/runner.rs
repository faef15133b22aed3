//! The boundary to whoever computes: tensors, sampling, grammar and text are behind it.

use crate::batch::Batch;
use crate::sequence::{SeqId, StopReason};

/// Computes batches.
pub trait Runner {
    /// Why a batch could not be computed.
    type Error: std::error::Error + 'static;

    /// Computes `batch` and appends to `out` (empty at the call) exactly one outcome for each entry with
    /// `sample`, in the order of the entries.
    ///
    /// First all [`Batch::copies`] are made, in their order; then each entry's tokens are computed: their
    /// KV is written to the entry's blocks at `start_pos..`, attending to the slots before. No two entries
    /// of a batch write to the same block, and no entry reads what another writes in the same batch.
    ///
    /// What a token's outcome is must depend on its sequence only, never on the rest of the batch.
    ///
    /// # Errors
    /// After an error the engine ends every sequence of the batch with [`StopReason::Failed`].
    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), Self::Error>;

    /// `seq` has ended: what is kept for it (sampler, grammar, text) can go. Not called on preemption.
    fn release(&mut self, seq: SeqId);
}

/// What sampling gave for one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The entry's sequence.
    pub seq: SeqId,
    /// The sampled token.
    pub token: u32,
    /// Its natural log-probability; passed on as it is.
    pub logprob: f32,
    /// What follows.
    pub next: Next,
}

/// What follows a sampled token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next token is sampled.
    Continue,
    /// These tokens are appended as if they had been sampled, and the one after them is sampled: a model
    /// without thinking tokens gets thought, answer cue and answer in one sequence.
    Inject(Vec<u32>),
    /// The sequence ends with the sampled token.
    Stop(StopReason),
}
