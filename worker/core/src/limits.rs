//! How much the engine takes on.

use crate::block_pool::BLOCK;
use crate::error::LimitsError;

/// How much the engine takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks of 16 tokens in the pool.
    pub blocks: u32,
    /// The most tokens that one step computes.
    pub step_tokens: usize,
    /// The most tokens of one sequence that one step computes.
    pub chunk_tokens: usize,
    /// The most sequences that hold blocks at a time.
    pub max_running: usize,
    /// The most requests in the queue; preempted sequences do not count.
    pub max_waiting: usize,
    /// The most tokens a sequence may reach: the model's context.
    pub max_context: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            blocks: 1024,
            step_tokens: 512,
            chunk_tokens: 256,
            max_running: 64,
            max_waiting: 1024,
            max_context: 8192,
        }
    }
}

impl Limits {
    /// Whether an engine can work within them.
    ///
    /// # Errors
    /// If a limit is 0.
    pub fn check(&self) -> Result<(), LimitsError> {
        let limits = [
            ("blocks", self.blocks as usize),
            ("step_tokens", self.step_tokens),
            ("chunk_tokens", self.chunk_tokens),
            ("max_running", self.max_running),
            ("max_waiting", self.max_waiting),
            ("max_context", self.max_context),
        ];
        match limits.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(LimitsError { name }),
            None => Ok(()),
        }
    }

    /// The most tokens, prompt and generated, that a sequence may ask for.
    pub fn longest(&self) -> usize {
        // The last token of a sequence is never computed: it takes no slot.
        self.max_context.min(self.blocks as usize * BLOCK + 1)
    }
}
