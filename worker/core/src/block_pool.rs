//! Ref-counted blocks and the prefix cache.
//!
//! A block is *held* (someone's table names it), *cached* (nobody holds it, its content has a name and
//! can be found again) or *free*. Allocation takes free blocks first, then evicts cached ones: thoughts
//! before context, and within a class the least recently used. The pool deals in ids; the runner owns
//! the memory.

use std::collections::BTreeMap;

use crate::chain::BlockHash;
use crate::lru::Lists;
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
    index: BTreeMap<BlockHash, BlockId>,
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
            index: BTreeMap::new(),
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
            self.index.remove(&hash);
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
        self.index.get(&hash).copied()
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
                known
            }
            None => {
                let meta = &mut self.blocks[block.0 as usize];
                debug_assert!(meta.refs > 0 && meta.hash.is_none(), "{block:?} has a name");
                meta.hash = Some(hash);
                meta.retention = retention;
                self.index.insert(hash, block);
                block
            }
        }
    }

    /// Takes the name off a held block that is about to be written, so that nobody finds it.
    pub fn unpublish(&mut self, block: BlockId) {
        let meta = &mut self.blocks[block.0 as usize];
        debug_assert!(meta.refs == 1, "{block:?} is shared or unheld");
        if let Some(hash) = meta.hash.take() {
            self.index.remove(&hash);
        }
    }
}
