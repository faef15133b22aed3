//! The plan of a step: tokens for running sequences, blocks for the tokens, preemption for the blocks.

use crate::batch::{Batch, BatchEntry, CopyBlock};
use crate::block_pool::{BLOCK, BlockId, blocks_for};
use crate::report::Event;
use crate::scheduler::Scheduler;
use crate::sequence::Running;

/// A sequence with at most so many tokens to compute is served before longer ones.
const SHORT: usize = BLOCK;

impl Scheduler {
    /// Fills `batch` with the next step's plan; empty iff nothing is live.
    pub(crate) fn schedule(&mut self, batch: &mut Batch, events: &mut Vec<Event>) {
        batch.clear();
        let mut step = Step {
            budget: self.limits.step_tokens,
            batch,
            events,
        };
        self.plan_running(&mut step, |pending| pending <= SHORT);
        self.plan_running(&mut step, |pending| pending > SHORT);
        self.admit(&mut step);
        for running in self.running.iter().filter(|running| running.planned > 0) {
            batch.push(entry(running));
        }
        batch.plant();
    }

    fn plan_running(&mut self, step: &mut Step<'_>, takes: impl Fn(usize) -> bool) {
        let mut at = 0;
        while at < self.running.len() && step.budget > 0 {
            let running = &self.running[at];
            if running.planned == 0 && takes(running.pending()) {
                self.plan(at, step);
            }
            at += 1;
        }
    }

    /// Plans as many tokens of running sequence `at` as budget, chunk and blocks allow.
    pub(crate) fn plan(&mut self, at: usize, step: &mut Step<'_>) {
        let pending = self.running[at].pending();
        let want = pending.min(step.budget).min(self.limits.chunk_tokens);
        let got = self.make_room(at, want, step);
        self.running[at].planned = got;
        step.budget -= got;
    }

    /// Gives running sequence `at` blocks to write its next `want` tokens to; returns for how many there
    /// is room.
    fn make_room(&mut self, at: usize, want: usize, step: &mut Step<'_>) -> usize {
        if !self.make_writable(at, step) {
            return 0;
        }
        let computed = self.running[at].computed;
        while self.running[at].table.len() < blocks_for(computed + want) {
            let Some(block) = self.take_block(at, step) else {
                break;
            };
            self.running[at].table.push(block);
        }
        want.min(self.running[at].table.len() * BLOCK - computed)
    }

    /// Sees to it that nobody else holds or finds the block that the next token is written to.
    fn make_writable(&mut self, at: usize, step: &mut Step<'_>) -> bool {
        let running = &self.running[at];
        let index = running.computed / BLOCK;
        let Some(&src) = running.table.get(index) else {
            return true;
        };
        // A block named as ours is about to get the bits that it has, and its name again. Another's, which
        // a fork holds beyond what it keeps, is left in the cache.
        let name = self.pool.name(src);
        let ours = name.is_none() || running.seq.hashes.get(index) == name.as_ref();
        loop {
            if ours && self.pool.refs(src) == 1 {
                self.pool.unpublish(src);
                return true;
            }
            if let Some(dst) = self.pool.alloc() {
                step.batch.push_copy(CopyBlock { src, dst });
                self.pool.release(src);
                self.running[at].table[index] = dst;
                return true;
            }
            if !self.preempt_behind(at, step) {
                return false;
            }
        }
    }

    fn take_block(&mut self, at: usize, step: &mut Step<'_>) -> Option<BlockId> {
        loop {
            if let Some(block) = self.pool.alloc() {
                return Some(block);
            }
            if !self.preempt_behind(at, step) {
                return None;
            }
        }
    }

    /// Preempts the latest running sequence behind `at` that is not in the plan, if there is one.
    fn preempt_behind(&mut self, at: usize, step: &mut Step<'_>) -> bool {
        let behind = &self.running[at + 1..];
        let Some(offset) = behind.iter().rposition(|running| running.planned == 0) else {
            return false;
        };
        let waiting = self.remove_running(at + 1 + offset).preempt();
        step.events.push(Event::Preempted {
            seq: waiting.seq.id,
        });
        self.counters.preemptions += 1;
        self.preempted += 1;
        self.waiting.insert(waiting.seq.order, waiting);
        true
    }
}

/// A plan in the making.
pub(crate) struct Step<'a> {
    /// Tokens that may still be planned.
    pub budget: usize,
    pub batch: &'a mut Batch,
    pub events: &'a mut Vec<Event>,
}

fn entry(running: &Running) -> BatchEntry<'_> {
    let end = running.computed + running.planned;
    BatchEntry {
        seq: running.seq.id,
        tokens: &running.seq.tokens[running.computed..end],
        start_pos: running.computed,
        block_table: &running.table[..blocks_for(end)],
        sample: end == running.seq.tokens.len(),
    }
}
