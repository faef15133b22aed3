//! A disk that forgets: what was not synced may be lost at a crash, from some write on; the first
//! write that is lost may be torn, and its checksum says so. Snapshot files are written whole or not.

use std::collections::BTreeMap;

use conclave_coordinator_core::{
    State,
    node::{Persist, Restored},
    snapshot,
};
use conclave_proto::v1::SnapshotManifest;
use raft::eraftpb::{Entry, HardState, Snapshot};

use super::rng::Rng;

/// One write to the log, whole or absent after a crash.
#[derive(Debug, Clone)]
enum Write {
    Batch(Persist),
    Compact { snapshot: Snapshot, keep_from: u64 },
}

/// A node's folder.
#[derive(Debug, Default)]
pub(super) struct Disk {
    hard_state: HardState,
    snapshot: Option<Snapshot>,
    entries: Vec<Entry>,
    /// Written, not synced.
    cache: Vec<Write>,
    /// State files by index.
    files: BTreeMap<u64, (SnapshotManifest, Vec<u8>)>,
    /// The next fsync fails.
    pub(super) fails: bool,
}

/// What a crash did to a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// Writes that never reached it.
    pub lost: usize,
    /// The first of them stopped half way.
    pub torn: bool,
}

impl Disk {
    pub(super) fn write(&mut self, persist: Persist) {
        self.cache.push(Write::Batch(persist));
    }

    pub(super) fn compact(&mut self, snapshot: Snapshot, keep_from: u64) {
        self.cache.push(Write::Compact {
            snapshot,
            keep_from,
        });
        self.sync();
    }

    /// Everything written is durable from here on.
    pub(super) fn sync(&mut self) {
        for write in std::mem::take(&mut self.cache) {
            self.take(write);
        }
    }

    /// The process is gone; the system may have written any part of what was not synced.
    pub(super) fn crash(&mut self, rng: &mut Rng) -> Damage {
        let cache = std::mem::take(&mut self.cache);
        let kept = rng.below(cache.len() as u64 + 1) as usize;
        let lost = cache.len() - kept;
        for write in cache.into_iter().take(kept) {
            self.take(write);
        }
        self.fails = false;
        let torn = lost > 0 && rng.below(2) == 0;
        Damage { lost, torn }
    }

    fn take(&mut self, write: Write) {
        match write {
            Write::Batch(persist) => {
                if let Some(snapshot) = persist.snapshot {
                    self.entries.clear();
                    self.snapshot = Some(snapshot);
                }
                if let Some(first) = persist.entries.first().map(|e| e.index) {
                    self.entries.retain(|e| e.index < first);
                    self.entries.extend(persist.entries);
                }
                if let Some(hard_state) = persist.hard_state {
                    self.hard_state = hard_state;
                }
            }
            Write::Compact {
                snapshot,
                keep_from,
            } => {
                self.entries.retain(|e| e.index >= keep_from);
                self.snapshot = Some(snapshot);
            }
        }
    }

    /// Stores a state, durably and whole, and forgets all but the one before it.
    pub(super) fn put(&mut self, manifest: SnapshotManifest, bytes: Vec<u8>) {
        let index = manifest.index;
        self.files.insert(index, (manifest, bytes));
        let newer: Vec<u64> = self.files.range(..index).map(|(at, _)| *at).collect();
        for old in newer.iter().rev().skip(1) {
            self.files.remove(old);
        }
    }

    /// The bytes behind a manifest.
    pub(super) fn get(&self, manifest: &SnapshotManifest) -> Option<&Vec<u8>> {
        self.files
            .get(&manifest.index)
            .filter(|(known, _)| known.digest == manifest.digest)
            .map(|(_, bytes)| bytes)
    }

    /// The state behind the manifest that a raft snapshot carries.
    pub(super) fn state_of(&self, snapshot: &Snapshot) -> Result<State, String> {
        let manifest =
            snapshot::manifest(snapshot.get_data()).map_err(|error| error.to_string())?;
        let bytes = self
            .get(&manifest)
            .ok_or_else(|| format!("no file of snapshot {}", manifest.index))?;
        snapshot::decode(&manifest, bytes).map_err(|error| error.to_string())
    }

    /// What a starting process finds.
    pub(super) fn open(&self) -> Result<(Restored, State), String> {
        let mut restored = Restored {
            hard_state: self.hard_state.clone(),
            entries: self.entries.clone(),
            ..Restored::default()
        };
        let mut state = State::new();
        if let Some(snapshot) = &self.snapshot {
            state = self.state_of(snapshot)?;
            restored.conf_state = snapshot.get_metadata().get_conf_state().clone();
            restored.applied = snapshot.get_metadata().index;
            restored.snapshot = Some(snapshot.clone());
        }
        Ok((restored, state))
    }

    /// The beginning of a cluster.
    pub(super) fn genesis(&mut self, id: u64) {
        let (manifest, bytes) = snapshot::genesis();
        let restored = Restored::genesis(id, &manifest);
        self.put(manifest, bytes);
        self.hard_state = restored.hard_state;
        self.snapshot = restored.snapshot;
    }
}
