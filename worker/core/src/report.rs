//! What a step did.

use crate::sequence::{SeqId, StopReason};

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The sequence; its id is free again.
    pub seq: SeqId,
    /// Why it ended.
    pub reason: StopReason,
    /// Prompt tokens whose KV was found instead of computed when it first started.
    pub cached_prompt_tokens: usize,
    /// Tokens after the prompt: sampled and injected.
    pub generated: usize,
}

/// One thing that happened in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The sequence left the queue: for the first time, or resumed after a preemption.
    Started {
        /// The sequence.
        seq: SeqId,
        /// Leading tokens whose KV was found instead of computed.
        cached_tokens: usize,
    },
    /// A token was sampled.
    Token {
        /// The sequence.
        seq: SeqId,
        /// The token's id.
        token: u32,
        /// Its natural log-probability, as the runner defines it.
        logprob: f32,
        /// Tokens after the prompt so far, this one included.
        generated: usize,
    },
    /// Tokens were appended that were not sampled, right after the sampled one.
    Injected {
        /// The sequence.
        seq: SeqId,
        /// Their ids; cut short where `max_tokens` ends.
        tokens: Vec<u32>,
    },
    /// The sequence lost its blocks to an earlier one and will be recomputed.
    Preempted {
        /// The sequence.
        seq: SeqId,
    },
    /// The sequence ended.
    Finished(Finished),
}

/// What a step did, in the order in which it happened. Meant to be reused from step to step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What happened.
    pub events: Vec<Event>,
    /// How the engine stands after the step.
    pub stats: Stats,
}

impl Report {
    /// Forgets the last step; keeps the memory.
    pub fn clear(&mut self) {
        self.events.clear();
        self.stats = Stats::default();
    }
}

/// How the engine stands. Counters run since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks in the pool.
    pub blocks_total: usize,
    /// Blocks with neither holder nor content.
    pub blocks_free: usize,
    /// Blocks without holder whose content can be found.
    pub blocks_cached: usize,
    /// Counter: full blocks adopted from the prefix cache when a sequence started.
    pub prefix_hits: u64,
    /// Counter: full blocks of starting sequences that were not in the prefix cache.
    pub prefix_misses: u64,
    /// Counter: cached blocks that lost their content to an allocation.
    pub evictions: u64,
    /// Counter: sequences that lost their blocks to an earlier one.
    pub preemptions: u64,
    /// Counter: tokens whose KV was computed.
    pub computed_tokens: u64,
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences in the queue, preempted ones included.
    pub waiting: usize,
    /// Of those waiting, how many wait for blocks that a running sequence is computing.
    pub deferred: usize,
    /// Tokens in the last step's batch.
    pub batch_tokens: usize,
    /// Sequences in the last step's batch.
    pub batch_sequences: usize,
}
