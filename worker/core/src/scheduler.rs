//! All live sequences: what may join, what leaves, and what a step's outcomes do to them.
//!
//! One rule covers prefill, chunked prefill, injected tokens and decode: how many tokens of each
//! sequence this step. A step's token budget goes first to running sequences with little to compute
//! (decodes and injected tokens), then to running prefills, then to sequences from the queue; within
//! each, earlier ones first. A sequence that needs a block when there is none takes it from the latest
//! running sequence behind it that is not yet part of this step's plan. As nothing in the plan is ever
//! preempted, every step with running sequences computes something, and the earliest sequence never
//! loses what it has: every accepted request ends in a bounded number of steps.

use std::collections::BTreeMap;

use crate::block_pool::{BLOCK, BlockPool, blocks_for};
use crate::chain::Chain;
use crate::claims::Claims;
use crate::error::{EngineError, LimitsError};
use crate::limits::Limits;
use crate::report::{Event, Finished, Stats};
use crate::runner::{Next, Outcome};
use crate::sequence::{
    Fork, Lifecycle, Order, Request, Running, SeqId, Sequence, StopReason, Waiting,
};

/// All live sequences and the blocks they hold.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) limits: Limits,
    pub(crate) pool: BlockPool,
    pub(crate) claims: Claims,
    /// Every live sequence's place in line.
    pub(crate) live: BTreeMap<SeqId, Order>,
    pub(crate) waiting: BTreeMap<Order, Waiting>,
    /// In order.
    pub(crate) running: Vec<Running>,
    /// How many of `waiting` were preempted: they do not count against the queue's bound.
    pub(crate) preempted: usize,
    pub(crate) counters: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub prefix_hits: u64,
    pub prefix_misses: u64,
    pub preemptions: u64,
    pub computed_tokens: u64,
}

impl Scheduler {
    /// No sequences, all blocks free.
    ///
    /// # Errors
    /// If a limit is 0.
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        limits.check()?;
        Ok(Self {
            limits,
            pool: BlockPool::new(limits.blocks),
            claims: Claims::default(),
            live: BTreeMap::new(),
            waiting: BTreeMap::new(),
            running: Vec::with_capacity(limits.max_running.min(1024)),
            preempted: 0,
            counters: Counters::default(),
        })
    }

    /// Puts a request in the queue.
    ///
    /// # Errors
    /// [`EngineError::EmptyPrompt`], [`EngineError::NoTokensAsked`], [`EngineError::Duplicate`],
    /// [`EngineError::TooLong`], [`EngineError::QueueFull`].
    pub fn submit(&mut self, request: Request) -> Result<(), EngineError> {
        self.check_new(request.id, request.tokens.len(), request.max_tokens)?;
        self.enqueue(Sequence::new(request))
    }

    /// Starts `fork` from the live sequence `parent`. If the parent holds the KV of all kept tokens and
    /// nobody in the queue is before the child, the child runs at once on the parent's blocks; otherwise
    /// it queues, and finds the parent's full blocks in the prefix cache.
    ///
    /// # Errors
    /// [`EngineError::Unknown`] for the parent, [`EngineError::BadFork`], and those of
    /// [`Scheduler::submit`].
    pub fn fork(&mut self, parent: SeqId, fork: Fork) -> Result<(), EngineError> {
        let order = *self.live.get(&parent).ok_or(EngineError::Unknown(parent))?;
        let at = self.running_at(order);
        let source = match (at, self.waiting.get(&order)) {
            (Some(at), _) => &self.running[at].seq,
            (None, Some(waiting)) => &waiting.seq,
            (None, None) => return Err(EngineError::Unknown(parent)),
        };
        let (keep, len) = (fork.keep, source.tokens.len());
        if keep == 0 || keep > len {
            return Err(EngineError::BadFork { keep, len });
        }
        self.check_new(fork.id, keep + fork.suffix.len(), fork.max_tokens)?;
        let child = source.forked(fork);
        match at.filter(|&at| self.may_share(at, keep, &child)) {
            Some(at) => {
                self.share(at, keep, child);
                Ok(())
            }
            None => self.enqueue(child),
        }
    }

    /// Ends a live sequence; its blocks are released at once.
    ///
    /// # Errors
    /// [`EngineError::Unknown`].
    pub fn cancel(&mut self, id: SeqId) -> Result<Finished, EngineError> {
        let order = *self.live.get(&id).ok_or(EngineError::Unknown(id))?;
        if let Some(at) = self.running_at(order) {
            return Ok(self.finish(at, StopReason::Cancelled));
        }
        let waiting = self
            .waiting
            .remove(&order)
            .ok_or(EngineError::Unknown(id))?;
        self.preempted -= usize::from(waiting.preempted);
        Ok(self.forget(&waiting.seq, StopReason::Cancelled))
    }

    /// Where a sequence stands; `None` if it is not live.
    pub fn lifecycle(&self, id: SeqId) -> Option<Lifecycle> {
        let order = self.live.get(&id)?;
        Some(match self.waiting.get(order) {
            None => Lifecycle::Running,
            Some(waiting) if waiting.preempted => Lifecycle::Preempted,
            Some(_) => Lifecycle::Waiting,
        })
    }

    /// The prompt, generated and injected tokens of a live sequence.
    pub fn tokens(&self, id: SeqId) -> Option<&[u32]> {
        let order = self.live.get(&id)?;
        if let Some(waiting) = self.waiting.get(order) {
            return Some(&waiting.seq.tokens);
        }
        let at = self.running_at(*order)?;
        Some(&self.running[at].seq.tokens)
    }

    /// How many leading tokens of `tokens` the prefix cache holds, in whole blocks. Changes nothing.
    pub fn cached_prefix(&self, chain: &Chain, tokens: &[u32]) -> usize {
        self.pool.find_prefix(&chain.hashes(tokens)).count() * BLOCK
    }

    /// Whether any sequence is live.
    pub fn has_work(&self) -> bool {
        !self.live.is_empty()
    }

    /// The blocks and the prefix cache.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How things stand; the batch's fields are 0.
    pub fn stats(&self) -> Stats {
        Stats {
            blocks_total: self.pool.total(),
            blocks_free: self.pool.free(),
            blocks_cached: self.pool.cached(),
            prefix_hits: self.counters.prefix_hits,
            prefix_misses: self.counters.prefix_misses,
            evictions: self.pool.evictions(),
            preemptions: self.counters.preemptions,
            computed_tokens: self.counters.computed_tokens,
            running: self.running.len(),
            waiting: self.waiting.len(),
            deferred: self
                .waiting
                .values()
                .filter(|w| w.waits_on.is_some())
                .count(),
            batch_tokens: 0,
            batch_sequences: 0,
        }
    }

    /// Takes note of what was computed. `outcomes` holds one for each sequence of the plan that samples,
    /// in order; `ended` gets the sequences that ended.
    pub(crate) fn complete(
        &mut self,
        outcomes: &mut Vec<Outcome>,
        events: &mut Vec<Event>,
        ended: &mut Vec<SeqId>,
    ) {
        let mut outcomes = outcomes.drain(..);
        let mut at = 0;
        while at < self.running.len() {
            let sampled = self.advance(at);
            let outcome = if sampled { outcomes.next() } else { None };
            let stop = outcome.and_then(|outcome| self.append(at, outcome, events));
            if let Some(reason) = stop {
                let finished = self.finish(at, reason);
                ended.push(finished.seq);
                events.push(Event::Finished(finished));
            } else {
                at += 1;
            }
        }
    }

    /// Ends every sequence of the plan: its KV cannot be trusted.
    pub(crate) fn fail_planned(&mut self, events: &mut Vec<Event>, ended: &mut Vec<SeqId>) {
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].planned == 0 {
                at += 1;
                continue;
            }
            let finished = self.finish(at, StopReason::Failed);
            ended.push(finished.seq);
            events.push(Event::Finished(finished));
        }
    }

    /// Counts the planned tokens of running sequence `at` as computed and publishes the blocks they
    /// filled. True if its last token is computed.
    fn advance(&mut self, at: usize) -> bool {
        let running = &mut self.running[at];
        if running.planned == 0 {
            return false;
        }
        running.computed += running.planned;
        self.counters.computed_tokens += running.planned as u64;
        running.planned = 0;
        running.seq.extend_hashes();
        for block in running.published..running.computed / BLOCK {
            let hash = running.seq.hashes[block];
            self.claims.drop(running.seq.id, &[hash]);
            let retention = running.seq.retention_of(block);
            running.table[block] = self.pool.publish(running.table[block], hash, retention);
            running.published = block + 1;
        }
        running.pending() == 0
    }

    /// Appends what was sampled; says so if the sequence ends with it.
    fn append(
        &mut self,
        at: usize,
        outcome: Outcome,
        events: &mut Vec<Event>,
    ) -> Option<StopReason> {
        let sequence = &mut self.running[at].seq;
        let seq = sequence.id;
        sequence.tokens.push(outcome.token);
        events.push(Event::Token {
            seq,
            token: outcome.token,
            logprob: outcome.logprob,
            generated: sequence.generated(),
        });
        match outcome.next {
            Next::Stop(reason) => return Some(reason),
            Next::Continue => {}
            Next::Inject(mut tokens) => {
                tokens.truncate(sequence.max_tokens - sequence.generated());
                if !tokens.is_empty() {
                    sequence.tokens.extend_from_slice(&tokens);
                    events.push(Event::Injected { seq, tokens });
                }
            }
        }
        (sequence.generated() >= sequence.max_tokens).then_some(StopReason::Length)
    }

    fn check_new(&self, id: SeqId, len: usize, max_tokens: usize) -> Result<(), EngineError> {
        if len == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if max_tokens == 0 {
            return Err(EngineError::NoTokensAsked);
        }
        if self.live.contains_key(&id) {
            return Err(EngineError::Duplicate(id));
        }
        let (need, have) = (len.saturating_add(max_tokens), self.limits.longest());
        if need > have {
            return Err(EngineError::TooLong { need, have });
        }
        Ok(())
    }

    fn enqueue(&mut self, seq: Sequence) -> Result<(), EngineError> {
        let limit = self.limits.max_waiting;
        if self.waiting.len() - self.preempted >= limit {
            return Err(EngineError::QueueFull { limit });
        }
        self.live.insert(seq.id, seq.order);
        self.waiting.insert(seq.order, Waiting::new(seq));
        Ok(())
    }

    /// Whether a child that keeps `keep` tokens can run on the blocks of running sequence `at`.
    fn may_share(&self, at: usize, keep: usize, child: &Sequence) -> bool {
        let first_waiting = self.waiting.keys().next();
        self.running.len() < self.limits.max_running
            && first_waiting.is_none_or(|first| child.order < *first)
            && self.running[at].computed >= keep.min(child.tokens.len() - 1)
    }

    fn share(&mut self, at: usize, keep: usize, child: Sequence) {
        let computed = keep.min(child.tokens.len() - 1);
        let table = self.running[at].table[..blocks_for(computed)].to_vec();
        for block in &table {
            self.pool.retain(*block);
        }
        self.live.insert(child.id, child.order);
        self.insert_running(Waiting::new(child).start(table, computed));
    }

    /// Puts a sequence that has its first blocks among the running ones; returns where.
    pub(crate) fn insert_running(&mut self, mut running: Running) -> usize {
        running.seq.extend_hashes();
        let missing = &running.seq.hashes[running.published..];
        self.claims.add(running.seq.id, missing);
        let order = running.seq.order;
        let at = self
            .running
            .partition_point(|other| other.seq.order < order);
        self.running.insert(at, running);
        at
    }

    /// Takes running sequence `at` out and releases what it holds.
    pub(crate) fn remove_running(&mut self, at: usize) -> Running {
        let mut running = self.running.remove(at);
        self.pool.release_table(&running.table);
        running.table.clear();
        let missing = &running.seq.hashes[running.published..];
        self.claims.drop(running.seq.id, missing);
        running
    }

    fn running_at(&self, order: Order) -> Option<usize> {
        self.running
            .binary_search_by_key(&order, |running| running.seq.order)
            .ok()
    }

    fn finish(&mut self, at: usize, reason: StopReason) -> Finished {
        let running = self.remove_running(at);
        self.forget(&running.seq, reason)
    }

    fn forget(&mut self, seq: &Sequence, reason: StopReason) -> Finished {
        self.live.remove(&seq.id);
        Finished {
            seq: seq.id,
            reason,
            cached_prompt_tokens: seq.cached_prompt_tokens.unwrap_or(0),
            generated: seq.generated(),
        }
    }
}
