//! Requests, sequences and their lifecycle.
//!
//! The lifecycle is types: a waiting sequence has no blocks, only a running one has a block
//! table, and a finished one is gone. Moves are functions that consume the one and return the other.

use std::cmp::Reverse;

use crate::block_pool::{BLOCK, BlockId, blocks_for};
use crate::chain::{BlockHash, Chain};

/// Names a sequence; chosen by the caller, unique among the engine's live sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model said that it is done.
    EndOfText,
    /// A stop string was met.
    StopString,
    /// The answer's grammar allows nothing more.
    Grammar,
    /// The branch fell below its confidence threshold.
    Confidence,
    /// `max_tokens` were generated.
    Length,
    /// [`crate::Engine::cancel`] was called.
    Cancelled,
    /// The runner failed, or broke its contract, on a batch that held the sequence.
    Failed,
}

/// How dear a cached block is once nobody refers to it.
///
/// It is one value for all that a sequence generates: a block is only reachable through those before
/// it, so an answer that follows a thought cannot outlive the thought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retention {
    /// Evicted before any context block, however fresh.
    Thought,
    /// Evicted by least recent use.
    #[default]
    Context,
}

/// A sequence to generate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Unique among live sequences.
    pub id: SeqId,
    /// The prompt; at least one token.
    pub tokens: Vec<u32>,
    /// The most tokens to generate, injected ones included; at least one.
    pub max_tokens: usize,
    /// Trust region, mixed into block hashes: sequences share KV only if their salts are equal.
    pub salt: u64,
    /// The first so many prompt tokens are an operator-registered public prefix, shared across salts.
    pub public_tokens: usize,
    /// Digest of weights, numeric class and KV dtype: KV of another domain never matches.
    pub chain_domain: u64,
    /// Smaller goes first; the largest is preempted first. Ties go by `id`.
    pub arrival: u64,
    /// Larger goes first, before `arrival` is looked at.
    pub priority: u8,
    /// How dear the generated tokens' blocks are in the cache; prompt blocks are always context.
    pub retention: Retention,
}

impl Request {
    /// A request in the public region with arrival 0, priority 0 and context retention.
    pub fn new(id: SeqId, tokens: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            id,
            tokens,
            max_tokens,
            salt: 0,
            public_tokens: 0,
            chain_domain: 0,
            arrival: 0,
            priority: 0,
            retention: Retention::Context,
        }
    }
}

/// A sequence that continues a live one from one of its tokens on, sharing its blocks copy-on-write.
/// Salt, domain, public prefix and priority are the parent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The child's id.
    pub id: SeqId,
    /// How many of the parent's leading tokens (prompt and generated) the child begins with.
    /// At least 1, at most what the parent has.
    pub keep: usize,
    /// Tokens that follow the kept ones, before the child generates.
    pub suffix: Vec<u32>,
    /// The most tokens the child generates, injected ones included; at least one.
    pub max_tokens: usize,
    /// The child's place in line, as in [`Request::arrival`].
    pub arrival: u64,
    /// As in [`Request::retention`].
    pub retention: Retention,
}

/// Where a live sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// In the queue, never started.
    Waiting,
    /// Holds blocks and takes part in steps.
    Running,
    /// Lost its blocks to an earlier sequence; in the queue again, to be recomputed.
    Preempted,
}

/// Place in line: priority, then arrival, then id. Smaller goes first and is preempted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    rank: Reverse<u8>,
    arrival: u64,
    id: SeqId,
}

/// What a sequence is wherever it stands.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub id: SeqId,
    pub order: Order,
    pub priority: u8,
    pub chain: Chain,
    pub retention: Retention,
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Blocks of the first so many tokens are kept as context, later ones as `retention` says.
    pub context_len: usize,
    pub max_tokens: usize,
    /// Names of the full blocks of `tokens`, as far as they were needed.
    pub hashes: Vec<BlockHash>,
    /// Prompt tokens whose KV was found when the sequence first started; `None` before that.
    pub cached_prompt_tokens: Option<usize>,
}

impl Sequence {
    pub fn new(request: Request) -> Self {
        Self {
            id: request.id,
            order: Order {
                rank: Reverse(request.priority),
                arrival: request.arrival,
                id: request.id,
            },
            priority: request.priority,
            chain: Chain {
                domain: request.chain_domain,
                salt: request.salt,
                // What is generated, or put behind a fork, is never public.
                public_tokens: request.public_tokens.min(request.tokens.len()),
            },
            retention: request.retention,
            context_len: request.tokens.len(),
            prompt_len: request.tokens.len(),
            max_tokens: request.max_tokens,
            hashes: Vec::new(),
            cached_prompt_tokens: None,
            tokens: request.tokens,
        }
    }

    /// The sequence that `fork`, which keeps no more than there is, makes of this one.
    pub fn forked(&self, fork: Fork) -> Self {
        let mut tokens = self.tokens[..fork.keep].to_vec();
        tokens.extend_from_slice(&fork.suffix);
        let mut child = Self::new(Request {
            id: fork.id,
            tokens,
            max_tokens: fork.max_tokens,
            salt: self.chain.salt,
            public_tokens: self.chain.public_tokens.min(fork.keep),
            chain_domain: self.chain.domain,
            arrival: fork.arrival,
            priority: self.priority,
            retention: fork.retention,
        });
        // Whatever follows a part of the parent's thought is of no use without it.
        if fork.keep > self.context_len {
            child.context_len = self.context_len;
            child.retention = child.retention.min(self.retention);
        }
        child
    }

    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Brings `hashes` up to all full blocks of `tokens`.
    pub fn extend_hashes(&mut self) {
        self.chain.extend(&mut self.hashes, &self.tokens);
    }

    /// A block is as dear as the last token in it.
    pub fn retention_of(&self, block: usize) -> Retention {
        if (block + 1) * BLOCK <= self.context_len {
            Retention::Context
        } else {
            self.retention
        }
    }

    /// Room for all that will be generated, so that decoding does not allocate.
    pub fn reserve_all(&mut self) {
        let total = self.prompt_len + self.max_tokens;
        self.tokens.reserve(total - self.tokens.len());
        self.hashes.reserve(total / BLOCK - self.hashes.len());
    }
}

/// In the queue: owns no block.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub seq: Sequence,
    pub preempted: bool,
    /// The block that a running sequence is about to compute for us, when last looked at.
    pub waits_on: Option<BlockHash>,
}

impl Waiting {
    pub fn new(seq: Sequence) -> Self {
        Self {
            seq,
            preempted: false,
            waits_on: None,
        }
    }

    /// Starts with `table` holding the KV of the first `computed` tokens.
    pub fn start(mut self, mut table: Vec<BlockId>, computed: usize) -> Running {
        self.seq.reserve_all();
        let blocks = blocks_for(self.seq.prompt_len + self.seq.max_tokens);
        table.reserve(blocks.saturating_sub(table.len()));
        let hit = computed.min(self.seq.prompt_len);
        self.seq.cached_prompt_tokens.get_or_insert(hit);
        Running {
            published: computed / BLOCK,
            seq: self.seq,
            table,
            computed,
            planned: 0,
        }
    }
}

/// Holds blocks and takes part in steps.
#[derive(Debug)]
pub(crate) struct Running {
    pub seq: Sequence,
    /// Block i holds the KV of tokens `16 i .. 16 i + 16`.
    pub table: Vec<BlockId>,
    /// How many leading tokens have KV. Always below `seq.tokens.len()` between steps.
    pub computed: usize,
    /// How many leading blocks of `table` are full and known to the prefix cache.
    pub published: usize,
    /// How many tokens this step computes.
    pub planned: usize,
}

impl Running {
    /// Tokens without KV; at least 1 between steps.
    pub fn pending(&self) -> usize {
        self.seq.tokens.len() - self.computed
    }

    /// The sequence without its blocks, which the caller has released.
    pub fn preempt(self) -> Waiting {
        Waiting {
            seq: self.seq,
            preempted: true,
            waits_on: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thinker() -> Sequence {
        let mut request = Request::new(SeqId(0), vec![1; 32], 100);
        request.retention = Retention::Thought;
        let mut seq = Sequence::new(request);
        seq.tokens.extend([2; 40]);
        seq
    }

    fn fork(keep: usize) -> Fork {
        Fork {
            id: SeqId(1),
            keep,
            suffix: vec![3; 30],
            max_tokens: 5,
            arrival: 0,
            retention: Retention::Context,
        }
    }

    #[test]
    fn a_block_is_kept_as_its_last_token_is() {
        let mut seq = thinker();
        seq.context_len = 40;
        let kept: Vec<_> = (0..4).map(|block| seq.retention_of(block)).collect();
        let (context, thought) = (Retention::Context, Retention::Thought);
        assert_eq!(kept, [context, context, thought, thought]);
    }

    #[test]
    fn what_follows_a_forked_thought_is_kept_no_longer_than_it() {
        let child = thinker().forked(fork(48));
        assert_eq!(child.retention_of(1), Retention::Context);
        assert_eq!(child.retention_of(2), Retention::Thought);
        assert_eq!(child.retention_of(4), Retention::Thought);
    }

    #[test]
    fn a_fork_of_the_prompt_is_kept_as_it_asks() {
        let child = thinker().forked(fork(32));
        assert_eq!(child.retention_of(2), Retention::Context);
        assert_eq!(child.retention_of(9), Retention::Context);
    }

    #[test]
    fn lines_form_by_priority_then_arrival_then_id() {
        let order = |priority, arrival, id| {
            let mut request = Request::new(SeqId(id), vec![1], 1);
            (request.priority, request.arrival) = (priority, arrival);
            Sequence::new(request).order
        };
        let line = [
            order(2, 9, 9),
            order(1, 1, 5),
            order(1, 2, 3),
            order(1, 2, 4),
        ];
        assert!(line.is_sorted());
    }
}
