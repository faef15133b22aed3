//! Who is about to compute which block, so that nobody computes it twice.

use std::collections::BTreeMap;

use crate::chain::BlockHash;
use crate::sequence::SeqId;

/// Blocks that running sequences have yet to compute. Only a running sequence claims, and it drops its
/// claims when it is preempted or ends: whoever waits for a claim waits for someone who moves.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    by_hash: BTreeMap<BlockHash, SeqId>,
}

impl Claims {
    /// `seq` will compute `hashes`, but for those that another computes already.
    pub fn add(&mut self, seq: SeqId, hashes: &[BlockHash]) {
        for hash in hashes {
            self.by_hash.entry(*hash).or_insert(seq);
        }
    }

    /// `seq` has computed `hashes`, or never will.
    pub fn drop(&mut self, seq: SeqId, hashes: &[BlockHash]) {
        for hash in hashes {
            if self.by_hash.get(hash) == Some(&seq) {
                self.by_hash.remove(hash);
            }
        }
    }

    /// Whether someone is about to compute `hash`.
    pub fn contains(&self, hash: BlockHash) -> bool {
        self.by_hash.contains_key(&hash)
    }

    /// Who holds claims; with repetitions.
    pub fn holders(&self) -> impl Iterator<Item = SeqId> {
        self.by_hash.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_the_first_claimants_until_it_drops_it() {
        let (a, b) = (SeqId(1), SeqId(2));
        let [x, y] = [BlockHash(1), BlockHash(2)];
        let mut claims = Claims::default();
        claims.add(a, &[x]);
        claims.add(b, &[x, y]);
        claims.drop(b, &[x, y]);
        assert!(claims.contains(x) && !claims.contains(y));
        claims.drop(a, &[x, y]);
        assert!(!claims.contains(x));
    }
}
