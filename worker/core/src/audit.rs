//! The scheduler's invariants, to be checked between steps by tests and the simulator.

use thiserror::Error;

use crate::block_pool::{BLOCK, BlockId, blocks_for};
use crate::scheduler::Scheduler;
use crate::sequence::SeqId;

/// An invariant that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// A block has not as many references as tables that name it: leaked, or freed in use.
    #[error("{block:?} counts {counted} holders, {held} tables name it")]
    RefCount {
        /// The block.
        block: BlockId,
        /// Its reference count.
        counted: u32,
        /// How many tables name it.
        held: u32,
    },
    /// Held, cached and free blocks are not all blocks.
    #[error("{held} held, {cached} cached and {free} free blocks are not {total}")]
    Partition {
        /// Blocks with holders.
        held: usize,
        /// Blocks in the eviction lists.
        cached: usize,
        /// Blocks in the free list.
        free: usize,
        /// Blocks in the pool.
        total: usize,
    },
    /// A block's name leads to another block, or to none.
    #[error("the name of {block:?} does not lead to it")]
    Name {
        /// The block.
        block: BlockId,
    },
    /// A running sequence has too many or too few blocks, tokens or published blocks.
    #[error("running {seq:?} contradicts itself")]
    Running {
        /// The sequence.
        seq: SeqId,
    },
    /// The running sequences are out of order or more than allowed.
    #[error("the running sequences are out of order or too many")]
    Order,
    /// The register of live sequences does not match queue and running sequences.
    #[error("live sequences, queue and running sequences do not match")]
    Live,
    /// A claim has no running holder: whoever waits for it waits for ever.
    #[error("a claim of {seq:?} outlived it")]
    Claim {
        /// The holder.
        seq: SeqId,
    },
}

impl Scheduler {
    /// Checks all invariants that hold between calls. Linear in blocks and sequences.
    ///
    /// # Errors
    /// The first fault found.
    pub fn audit(&self) -> Result<(), Fault> {
        self.audit_blocks()?;
        self.audit_sequences()?;
        let running = |seq| self.running.iter().any(|running| running.seq.id == seq);
        match self.claims.holders().find(|seq| !running(*seq)) {
            Some(seq) => Err(Fault::Claim { seq }),
            None => Ok(()),
        }
    }

    fn audit_blocks(&self) -> Result<(), Fault> {
        let total = self.pool.total();
        let mut holders = vec![0; total];
        for block in self.running.iter().flat_map(|running| &running.table) {
            holders[block.0 as usize] += 1;
        }
        for (block, held) in (0..).map(BlockId).zip(&holders) {
            let (counted, held) = (self.pool.refs(block), *held);
            if counted != held {
                return Err(Fault::RefCount {
                    block,
                    counted,
                    held,
                });
            }
            let name = self.pool.name(block);
            if name.is_some_and(|name| self.pool.find(name) != Some(block)) {
                return Err(Fault::Name { block });
            }
        }
        let held = holders.iter().filter(|held| **held > 0).count();
        let (cached, free) = (self.pool.cached(), self.pool.free());
        if held + cached + free != total {
            return Err(Fault::Partition {
                held,
                cached,
                free,
                total,
            });
        }
        Ok(())
    }

    fn audit_sequences(&self) -> Result<(), Fault> {
        for running in &self.running {
            let sound = running.planned == 0
                && running.computed < running.seq.tokens.len()
                && running.published <= running.computed / BLOCK
                && running.table.len() >= blocks_for(running.computed)
                && running.table.len() <= blocks_for(running.seq.tokens.len())
                && running.seq.generated() < running.seq.max_tokens;
            if !sound {
                return Err(Fault::Running {
                    seq: running.seq.id,
                });
            }
        }
        let sorted = self.running.is_sorted_by(|a, b| a.seq.order < b.seq.order);
        if !sorted || self.running.len() > self.limits.max_running {
            return Err(Fault::Order);
        }
        let waiting = self.waiting.values();
        let preempted = waiting.clone().filter(|waiting| waiting.preempted).count();
        let queued = waiting.map(|waiting| &waiting.seq);
        let mut all = queued.chain(self.running.iter().map(|running| &running.seq));
        let registered = all.all(|seq| self.live.get(&seq.id) == Some(&seq.order));
        let counted = self.live.len() == self.waiting.len() + self.running.len();
        if !registered || !counted || preempted != self.preempted {
            return Err(Fault::Live);
        }
        Ok(())
    }
}
