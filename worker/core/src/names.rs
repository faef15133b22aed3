//! From the name of a block's content to the block: a hash table threaded through two arrays, so that nothing
//! allocates. A block has one name at most, so each is in one chain at most.

use crate::block_pool::BlockId;
use crate::chain::BlockHash;

/// The end of a chain.
const NIL: u32 = u32::MAX;

/// The names of some of the blocks `0..blocks`.
#[derive(Debug)]
pub(crate) struct Names {
    /// The first block of each chain; a power of two of them.
    chains: Vec<u32>,
    /// What each block is called and which one follows in its chain.
    links: Vec<(BlockHash, u32)>,
}

impl Names {
    pub fn new(blocks: usize) -> Self {
        Self {
            chains: vec![NIL; blocks.next_power_of_two()],
            links: vec![(BlockHash::ROOT, NIL); blocks],
        }
    }

    /// The block of this name.
    pub fn get(&self, hash: BlockHash) -> Option<BlockId> {
        let mut at = self.chains[self.chain(hash)];
        while at != NIL {
            let (name, next) = self.links[at as usize];
            if name == hash {
                return Some(BlockId(at));
            }
            at = next;
        }
        None
    }

    /// Calls `block`, which has no name, by one that no other has.
    pub fn insert(&mut self, hash: BlockHash, block: BlockId) {
        let chain = self.chain(hash);
        self.links[block.0 as usize] = (hash, self.chains[chain]);
        self.chains[chain] = block.0;
    }

    /// Takes away the name of `block`, which has this one.
    pub fn remove(&mut self, hash: BlockHash, block: BlockId) {
        let (chain, next) = (self.chain(hash), self.links[block.0 as usize].1);
        if self.chains[chain] == block.0 {
            self.chains[chain] = next;
            return;
        }
        let mut at = self.chains[chain];
        while at != NIL {
            let link = &mut self.links[at as usize].1;
            if *link == block.0 {
                *link = next;
                return;
            }
            at = *link;
        }
    }

    /// Names are digests: their low bits are as good as any.
    fn chain(&self, hash: BlockHash) -> usize {
        hash.0 as usize & (self.chains.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few names for few blocks, so that chains are long: the table is the map that it stands for.
        #[test]
        fn it_answers_as_a_map_does(ops in prop::collection::vec((0u32..6, 0u128..40), 0..200)) {
            let (mut names, mut map) = (Names::new(6), BTreeMap::new());
            let mut called: [Option<u128>; 6] = [None; 6];
            for (block, name) in ops {
                match called[block as usize].take() {
                    Some(old) => {
                        names.remove(BlockHash(old), BlockId(block));
                        map.remove(&old);
                    }
                    None if !map.contains_key(&name) => {
                        names.insert(BlockHash(name), BlockId(block));
                        map.insert(name, block);
                        called[block as usize] = Some(name);
                    }
                    None => {}
                }
                for name in 0..40 {
                    let expected = map.get(&name).map(|block| BlockId(*block));
                    prop_assert_eq!(names.get(BlockHash(name)), expected);
                }
            }
        }
    }
}
