//! A payload's hash is proposed only when so many voters hold the payload durably that one of them
//! outlives whatever the cluster outlives; what the state names is held by somebody as long as it is
//! named; and once faults stop, by every member.

use std::collections::{BTreeMap, BTreeSet};

use conclave_coordinator_core::{Payloads, State};

use super::Check;

type Hash = [u8; 32];

#[derive(Debug, Default)]
pub(super) struct BlobsPresent {
    /// Who holds which.
    holders: BTreeMap<Hash, BTreeSet<u64>>,
    /// Every payload that was ever stored, for the other laws to read.
    bytes: BTreeMap<Hash, Vec<u8>>,
}

impl Payloads for BlobsPresent {
    fn blob(&self, hash: &[u8]) -> Option<Vec<u8>> {
        let hash: Hash = hash.try_into().ok()?;
        self.bytes.get(&hash).cloned()
    }
}

impl BlobsPresent {
    pub(super) fn stored(&mut self, node: u64, hash: Hash, bytes: &[u8]) {
        self.holders.entry(hash).or_default().insert(node);
        self.bytes.entry(hash).or_insert_with(|| bytes.to_vec());
    }

    pub(super) fn gone(&mut self, node: u64, hash: &Hash) {
        if let Some(holders) = self.holders.get_mut(hash) {
            holders.remove(&node);
        }
    }

    /// A node is switched off for good.
    pub(super) fn left(&mut self, node: u64) {
        for holders in self.holders.values_mut() {
            holders.remove(&node);
        }
    }

    /// A node that knows these voters proposes a command with this hash in it.
    pub(super) fn named(&self, node: u64, voters: &[u64], hash: &Hash) -> Check {
        let holders = self.holders.get(hash);
        let have = holders.map_or(0, |h| voters.iter().filter(|v| h.contains(v)).count());
        // A majority when it was stored; and still enough if one voter has come or gone since.
        let need = voters.len().div_ceil(2);
        if have >= need {
            return Ok(());
        }
        Err(format!(
            "coordinator {node} proposes {} which {have} of {voters:?} hold, {need} must",
            short(hash)
        ))
    }

    /// What a state names is held by one of those that are there, up or down.
    pub(super) fn survives(&self, state: &State) -> Check {
        let held = |hash: &Hash| self.holders.get(hash).is_some_and(|h| !h.is_empty());
        match state.live_blobs().keys().find(|hash| !held(hash)) {
            None => Ok(()),
            Some(hash) => Err(format!("nobody holds {} any more", short(hash))),
        }
    }

    /// What this member's state names and it does not hold.
    pub(super) fn missing(&self, node: u64, state: &State) -> Option<String> {
        let held = |hash: &Hash| self.holders.get(hash).is_some_and(|h| h.contains(&node));
        let live = state.live_blobs();
        let missing = live.keys().find(|hash| !held(hash))?;
        Some(format!(
            "coordinator {node} does not hold {}",
            short(missing)
        ))
    }
}

fn short(hash: &Hash) -> String {
    format!("payload {:02x}{:02x}{:02x}", hash[0], hash[1], hash[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_that_came_before_its_payload_is_found() {
        let mut law = BlobsPresent::default();
        let hash = [7; 32];
        assert!(law.named(1, &[1, 2, 3], &hash).is_err());
        law.stored(1, hash, b"x");
        law.stored(4, hash, b"x");
        assert!(law.named(1, &[1, 2, 3], &hash).is_err(), "4 has no vote");
        law.stored(2, hash, b"x");
        assert_eq!(law.named(1, &[1, 2, 3], &hash), Ok(()));
        law.left(2);
        assert!(law.named(1, &[1, 2, 3], &hash).is_err());
        law.gone(1, &hash);
        assert!(law.named(1, &[1, 3, 4], &hash).is_err());
    }
}
