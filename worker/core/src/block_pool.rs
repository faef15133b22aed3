//! Ref-counted blocks and the prefix cache.
//!
//! A block is *held* (someone's table names it), *cached* (nobody holds it, its content has a name and
//! can be found again) or *free*. Allocation takes free blocks first, then evicts cached ones: thoughts
//! before context, and within a class the least recently used. The pool deals in ids; the runner owns
//! the memory.

use crate::chain::BlockHash;
use crate::lru::Lists;
use crate::names::Names;
use crate::sequence::Retention;

/// Tokens in a block.
pub const BLOCK: usize = 16;

/// Names a block of KV memory: `0..pool size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// How many blocks `tokens` tokens take.
pub const fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK)
}

const FREE: usize = 0;
const THOUGHTS: usize = 1;
const CONTEXT: usize = 2;

#[derive(Clone, Copy, Debug, Default)]
struct Meta {
    refs: u32,
    hash: Option<BlockHash>,
    retention: Retention,
}

impl Meta {
    /// The list that an unheld block belongs to.
    fn list(&self) -> usize {
        match (self.hash, self.retention) {
            (None, _) => FREE,
            (Some(_), Retention::Thought) => THOUGHTS,
            (Some(_), Retention::Context) => CONTEXT,
        }
    }
}

/// All blocks of one device, who holds them and what they contain.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Meta>,
    unheld: Lists<3>,
    names: Names,
    evictions: u64,
}

impl BlockPool {
    /// A pool of `blocks` free blocks.
    pub fn new(blocks: u32) -> Self {
        let mut unheld = Lists::new(blocks as usize);
        for block in 0..blocks {
            unheld.push_back(FREE, block);
        }
        Self {
            blocks: vec![Meta::default(); blocks as usize],
            unheld,
            names: Names::new(blocks as usize),
            evictions: 0,
        }
    }

    /// How many blocks there are.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks with neither holder nor content.
    pub fn free(&self) -> usize {
        self.unheld.len(FREE)
    }

    /// Blocks without holder whose content can still be found.
    pub fn cached(&self) -> usize {
        self.unheld.len(THOUGHTS) + self.unheld.len(CONTEXT)
    }

    /// Blocks that [`BlockPool::alloc`] can still give: free and cached ones.
    pub fn available(&self) -> usize {
        self.free() + self.cached()
    }

    /// Cached blocks that lost their content to an allocation, since the pool was made.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// How many hold `block`.
    pub fn refs(&self, block: BlockId) -> u32 {
        self.blocks[block.0 as usize].refs
    }

    /// The name of `block`'s content, if it has one.
    pub fn name(&self, block: BlockId) -> Option<BlockHash> {
        self.blocks[block.0 as usize].hash
    }

    /// A block with undefined content and one holder, or `None` if all are held.
    pub fn alloc(&mut self) -> Option<BlockId> {
        let block = [FREE, THOUGHTS, CONTEXT]
            .into_iter()
            .find_map(|list| self.unheld.pop_front(list))?;
        let meta = &mut self.blocks[block as usize];
        if let Some(hash) = meta.hash.take() {
            self.names.remove(hash, BlockId(block));
            self.evictions += 1;
        }
        meta.refs = 1;
        Some(BlockId(block))
    }

    /// One more holder for `block`, held or cached.
    pub fn retain(&mut self, block: BlockId) {
        let meta = &mut self.blocks[block.0 as usize];
        if meta.refs == 0 {
            self.unheld.remove(meta.list(), block.0);
        }
        meta.refs += 1;
    }

    /// One holder less. The last one leaves the block cached if it has a name, free otherwise.
    pub fn release(&mut self, block: BlockId) {
        let meta = &mut self.blocks[block.0 as usize];
        debug_assert!(meta.refs > 0, "{block:?} was released by nobody");
        meta.refs = meta.refs.saturating_sub(1);
        if meta.refs == 0 {
            self.unheld.push_back(meta.list(), block.0);
        }
    }

    /// Releases a whole table, its end first: the end of a prefix is the first to be evicted, since
    /// nothing is found behind a missing block.
    pub fn release_table(&mut self, table: &[BlockId]) {
        for block in table.iter().rev() {
            self.release(*block);
        }
    }

    /// The block named `hash`, held or cached; its age does not change.
    pub fn find(&self, hash: BlockHash) -> Option<BlockId> {
        self.names.get(hash)
    }

    /// The leading blocks of `hashes` that are known, in order.
    pub fn find_prefix<'a>(
        &'a self,
        hashes: &'a [BlockHash],
    ) -> impl Iterator<Item = BlockId> + 'a {
        hashes.iter().map_while(|hash| self.find(*hash))
    }

    /// Names the content of a held block, so that others find it. If another block has the name already
    /// the caller's is let go and the other one, with one more holder, is returned in its place: equal
    /// names mean equal bits.
    pub fn publish(&mut self, block: BlockId, hash: BlockHash, retention: Retention) -> BlockId {
        match self.find(hash) {
            Some(known) if known == block => block,
            Some(known) => {
                self.retain(known);
                self.release(block);
                let meta = &mut self.blocks[known.0 as usize];
                meta.retention = meta.retention.max(retention);
                known
            }
            None => {
                let meta = &mut self.blocks[block.0 as usize];
                debug_assert!(meta.refs > 0 && meta.hash.is_none(), "{block:?} has a name");
                meta.hash = Some(hash);
                meta.retention = retention;
                self.names.insert(hash, block);
                block
            }
        }
    }

    /// Takes the name off a held block that is about to be written, so that nobody finds it.
    pub fn unpublish(&mut self, block: BlockId) {
        let meta = &mut self.blocks[block.0 as usize];
        debug_assert!(meta.refs == 1, "{block:?} is shared or unheld");
        if let Some(hash) = meta.hash.take() {
            self.names.remove(hash, block);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(n: u128) -> BlockHash {
        BlockHash(n)
    }

    /// Allocates, names and releases a block for each of `named`, in order.
    fn cache(pool: &mut BlockPool, named: &[(u128, Retention)]) {
        let blocks: Vec<_> = named.iter().map(|_| pool.alloc().unwrap()).collect();
        for (block, (name, retention)) in blocks.iter().zip(named) {
            pool.publish(*block, hash(*name), *retention);
        }
        for block in blocks {
            pool.release(block);
        }
    }

    #[test]
    fn the_least_recently_used_is_evicted_first() {
        let mut pool = BlockPool::new(3);
        let context = Retention::Context;
        cache(&mut pool, &[(1, context), (2, context), (3, context)]);
        let used = pool.find(hash(1)).unwrap();
        pool.retain(used);
        pool.release(used);
        for gone in [2, 3, 1] {
            assert!(pool.find(hash(gone)).is_some());
            pool.alloc().unwrap();
            assert!(pool.find(hash(gone)).is_none(), "{gone} should have gone");
        }
        assert_eq!(pool.alloc(), None);
        assert_eq!(pool.evictions(), 3);
    }

    #[test]
    fn thoughts_are_evicted_before_older_context() {
        let mut pool = BlockPool::new(3);
        let (context, thought) = (Retention::Context, Retention::Thought);
        cache(&mut pool, &[(1, context), (2, thought), (3, thought)]);
        for gone in [2, 3, 1] {
            pool.alloc().unwrap();
            assert!(pool.find(hash(gone)).is_none(), "{gone} should have gone");
        }
    }

    #[test]
    fn free_blocks_are_taken_before_any_is_evicted() {
        let mut pool = BlockPool::new(2);
        cache(&mut pool, &[(1, Retention::Thought)]);
        pool.alloc().unwrap();
        assert!(pool.find(hash(1)).is_some());
        assert_eq!(pool.evictions(), 0);
    }

    #[test]
    fn the_end_of_a_released_table_is_evicted_before_its_beginning() {
        let mut pool = BlockPool::new(3);
        let table: Vec<_> = (0..3).map(|_| pool.alloc().unwrap()).collect();
        for (name, block) in table.iter().enumerate() {
            pool.publish(*block, hash(name as u128), Retention::Context);
        }
        pool.release_table(&table);
        pool.alloc().unwrap();
        assert_eq!(pool.find_prefix(&[hash(0), hash(1), hash(2)]).count(), 2);
    }

    #[test]
    fn equal_blocks_become_one() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (pool.alloc().unwrap(), pool.alloc().unwrap());
        assert_eq!(pool.publish(a, hash(1), Retention::Thought), a);
        assert_eq!(pool.publish(b, hash(1), Retention::Context), a);
        assert_eq!((pool.refs(a), pool.refs(b), pool.free()), (2, 0, 1));
        // It is as dear as to whom it is dearest.
        pool.release(a);
        pool.release(a);
        cache(&mut pool, &[(2, Retention::Thought)]);
        pool.alloc().unwrap();
        assert_eq!(pool.find(hash(1)), Some(a));
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Alloc,
        Retain(usize),
        Release(usize),
        Adopt(u128),
        Publish(usize, u128, Retention),
        Unpublish(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let retention = prop_oneof![Just(Retention::Thought), Just(Retention::Context)];
        prop_oneof![
            3 => Just(Op::Alloc),
            1 => (0..64usize).prop_map(Op::Retain),
            3 => (0..64usize).prop_map(Op::Release),
            2 => (0..12u128).prop_map(Op::Adopt),
            3 => (0..64usize, 0..12u128, retention).prop_map(|(at, name, r)| Op::Publish(at, name, r)),
            1 => (0..64usize).prop_map(Op::Unpublish),
        ]
    }

    /// A pool and one entry for each reference that somebody has.
    struct Model {
        pool: BlockPool,
        held: Vec<BlockId>,
    }

    impl Model {
        fn apply(&mut self, op: Op) {
            let Self { pool, held } = self;
            let pick = |at: usize| (!held.is_empty()).then(|| at % held.len());
            match op {
                Op::Alloc => match pool.alloc() {
                    Some(block) => {
                        assert!(!held.contains(&block), "{block:?} was given away twice");
                        held.push(block);
                    }
                    None => assert_eq!(pool.available(), 0),
                },
                Op::Adopt(name) => {
                    if let Some(block) = pool.find(hash(name)) {
                        pool.retain(block);
                        held.push(block);
                    }
                }
                Op::Retain(at) => {
                    if let Some(at) = pick(at) {
                        pool.retain(held[at]);
                        held.push(held[at]);
                    }
                }
                Op::Release(at) => {
                    if let Some(at) = pick(at) {
                        pool.release(held.swap_remove(at));
                    }
                }
                Op::Publish(at, name, retention) => {
                    if let Some(at) = pick(at).filter(|at| pool.name(held[*at]).is_none()) {
                        held[at] = pool.publish(held[at], hash(name), retention);
                        assert_eq!(pool.find(hash(name)), Some(held[at]));
                    }
                }
                Op::Unpublish(at) => {
                    if let Some(at) = pick(at).filter(|at| pool.refs(held[*at]) == 1) {
                        pool.unpublish(held[at]);
                        assert_eq!(pool.name(held[at]), None);
                    }
                }
            }
        }

        fn check(&self) {
            let mut distinct = self.held.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len() + self.pool.available(), self.pool.total());
            for block in (0..8).map(BlockId) {
                let holders = self.held.iter().filter(|other| **other == block).count();
                assert_eq!(self.pool.refs(block) as usize, holders, "{block:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn reference_counts_equal_the_holders_and_no_block_is_lost(
            ops in prop::collection::vec(op(), 0..300),
        ) {
            let mut model = Model {
                pool: BlockPool::new(8),
                held: Vec::new(),
            };
            for op in ops {
                model.apply(op);
                model.check();
            }
        }
    }
}
