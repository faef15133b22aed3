//! From the queue to the running: prefix hits, and waiting for blocks that someone else is computing.
//!
//! When many sequences with one prompt arrive together, the first prefills and the others wait until its
//! blocks are cached: n samples of one prompt cost one prefill. A sequence waits for a claim, claims are
//! held by running sequences only and go when their holder is preempted or ends, so nobody waits for
//! someone who waits.

use std::ops::Bound;

use crate::block_pool::{BLOCK, blocks_for};
use crate::chain::BlockHash;
use crate::plan::Step;
use crate::report::Event;
use crate::scheduler::Scheduler;
use crate::sequence::{Order, Running, Sequence};

/// What becomes of a sequence in the queue.
enum Verdict {
    /// It starts with this many cached blocks, that hold the KV of this many tokens.
    Start { hits: usize, cached: usize },
    /// A running sequence is about to compute this block for it.
    Defer(BlockHash),
    /// There are too few blocks for it.
    Wait,
}

impl Scheduler {
    /// Starts sequences from the queue, in order, while budget, places and blocks last. One that is
    /// deferred is passed over; one that lacks blocks is not, so that large requests do not starve.
    pub(crate) fn admit(&mut self, step: &mut Step<'_>) {
        let mut after = Bound::Unbounded;
        while step.budget > 0 && self.running.len() < self.limits.max_running {
            let next = self.waiting.range((after, Bound::Unbounded)).next();
            let Some((&order, waiting)) = next else {
                return;
            };
            after = Bound::Excluded(order);
            if waiting
                .waits_on
                .is_some_and(|hash| self.claims.contains(hash))
            {
                continue;
            }
            match self.verdict(order) {
                Some(Verdict::Start { hits, cached }) => self.start(order, hits, cached, step),
                Some(Verdict::Defer(hash)) => {
                    if let Some(waiting) = self.waiting.get_mut(&order) {
                        waiting.waits_on = Some(hash);
                    }
                }
                Some(Verdict::Wait) | None => return,
            }
        }
    }

    fn verdict(&mut self, order: Order) -> Option<Verdict> {
        let waiting = self.waiting.get_mut(&order)?;
        waiting.waits_on = None;
        waiting.seq.extend_hashes();
        let seq = &self.waiting.get(&order)?.seq;
        let (mut hits, mut revived) = (0, 0);
        for block in self.pool.find_prefix(&seq.hashes) {
            hits += 1;
            revived += usize::from(self.pool.refs(block) == 0);
        }
        let next = seq.hashes.get(hits);
        if let Some(next) = next.filter(|hash| self.claims.contains(**hash)) {
            return Some(Verdict::Defer(*next));
        }
        if !self.has_room(seq, hits, revived) {
            return Some(Verdict::Wait);
        }
        // The last token is always computed, or there would be nothing to sample from.
        let cached = (hits * BLOCK).min(seq.tokens.len() - 1);
        Some(Verdict::Start { hits, cached })
    }

    /// Whether all tokens of `seq` so far find room beside what the running sequences still need for
    /// theirs, with a block to spare for each running one. Of the blocks it needs, `hits` are cached, of
    /// which `revived` are held by nobody yet. Alone, a sequence always finds room.
    fn has_room(&self, seq: &Sequence, hits: usize, revived: usize) -> bool {
        if self.running.is_empty() {
            return true;
        }
        let promised: usize = self.running.iter().map(|r| self.still_needs(r)).sum();
        // If the whole of the sequence is cached its last block is copied to compute the last token.
        let copied = usize::from(hits * BLOCK == seq.tokens.len());
        let need = blocks_for(seq.tokens.len()) - hits + copied + revived;
        need + promised + self.running.len() <= self.pool.available()
    }

    /// How many more blocks a running sequence takes for the tokens that it has.
    fn still_needs(&self, running: &Running) -> usize {
        let grows = blocks_for(running.seq.tokens.len()) - running.table.len();
        let next = running.table.get(running.computed / BLOCK);
        grows + usize::from(next.is_some_and(|block| self.pool.refs(*block) > 1))
    }

    fn start(&mut self, order: Order, hits: usize, cached: usize, step: &mut Step<'_>) {
        let Some(waiting) = self.waiting.remove(&order) else {
            return;
        };
        self.preempted -= usize::from(waiting.preempted);
        let hashes = &waiting.seq.hashes;
        let table: Vec<_> = self.pool.find_prefix(hashes).take(hits).collect();
        self.counters.prefix_hits += hits as u64;
        self.counters.prefix_misses += (hashes.len() - hits) as u64;
        for block in &table {
            self.pool.retain(*block);
        }
        step.events.push(Event::Started {
            seq: waiting.seq.id,
            cached_tokens: cached,
        });
        let at = self.insert_running(waiting.start(table, cached));
        self.plan(at, step);
    }
}
