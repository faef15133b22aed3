//! A disk that forgets: what was not synced may be lost at a crash, from some write on; the first
//! write that is lost may be torn, and its checksum says so. It may be full: then it refuses what is
//! to be written. Snapshot files and payloads are written whole or not.

use std::collections::BTreeMap;

use conclave_coordinator_core::{
    State,
    node::{Persist, Restored},
    snapshot,
};
use conclave_proto::v1::SnapshotManifest;
use raft::eraftpb::{Entry, HardState, Snapshot};

use super::{blobs::Blobs, cx::Cx, rng::Rng};

/// Bytes of a log record besides its entries.
const RECORD: u64 = 32;

/// No room for what was to be written; nothing of it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Why a starting process cannot use what it finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// A newer program wrote it.
    TooNew(String),
    /// It makes no sense.
    Broken(String),
}

impl From<snapshot::SnapshotError> for Unreadable {
    fn from(error: snapshot::SnapshotError) -> Unreadable {
        match error {
            snapshot::SnapshotError::TooNew { .. } => Unreadable::TooNew(error.to_string()),
            other => Unreadable::Broken(other.to_string()),
        }
    }
}

/// One write to the log, whole or absent after a crash.
#[derive(Debug, Clone)]
enum Write {
    Batch(Persist),
    Snapshot(Snapshot),
    /// Entries below this index go.
    Drop(u64),
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
    /// Bytes that may still be written; all there may be, if unset.
    pub(super) room: Option<u64>,
    /// Until then every write takes long, virtual ms.
    pub(super) slow_until: u64,
    /// Payloads by hash.
    pub(super) blobs: Blobs,
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
    /// How much longer a write and its fsync take than they should, ms.
    pub(super) fn drag_ms(&self, cx: &mut Cx) -> u64 {
        if cx.now >= self.slow_until {
            return 0;
        }
        cx.fault("write on a slow disk");
        cx.rng.between(300, 1_500)
    }

    pub(super) fn take_room(&mut self, bytes: u64) -> Result<(), Full> {
        let Some(room) = &mut self.room else {
            return Ok(());
        };
        *room = room.checked_sub(bytes).ok_or(Full)?;
        Ok(())
    }

    /// Appends to the log, unsynced.
    pub(super) fn write(&mut self, persist: Persist) -> Result<(), Full> {
        let entries: usize = persist.entries.iter().map(|e| e.data.len()).sum();
        self.take_room(RECORD + entries as u64)?;
        self.cache.push(Write::Batch(persist));
        Ok(())
    }

    /// Takes an own snapshot for the log's beginning, durably; what it makes needless goes later.
    pub(super) fn compact(&mut self, snapshot: Snapshot, keep_from: u64) -> Result<(), Full> {
        self.take_room(RECORD)?;
        self.cache.push(Write::Snapshot(snapshot));
        self.sync();
        self.cache.push(Write::Drop(keep_from));
        Ok(())
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
            Write::Snapshot(snapshot) => self.snapshot = Some(snapshot),
            Write::Drop(keep_from) => self.entries.retain(|e| e.index >= keep_from),
        }
    }

    /// Stores a state, durably and whole.
    pub(super) fn put(&mut self, manifest: SnapshotManifest, bytes: Vec<u8>) -> Result<(), Full> {
        self.take_room(bytes.len() as u64)?;
        self.files.insert(manifest.index, (manifest, bytes));
        Ok(())
    }

    /// Forgets all states before `index` but the newest of them.
    pub(super) fn forget_before(&mut self, index: u64) {
        let older: Vec<u64> = self.files.range(..index).map(|(at, _)| *at).collect();
        for old in older.iter().rev().skip(1) {
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

    /// The state behind the manifest that a raft snapshot carries, as a program reads it that knows
    /// log versions up to `known`.
    pub(super) fn state_of(&self, snapshot: &Snapshot, known: u32) -> Result<State, Unreadable> {
        let manifest = snapshot::manifest_up_to(snapshot.get_data(), known)?;
        let bytes = self
            .get(&manifest)
            .ok_or_else(|| Unreadable::Broken(format!("no file of snapshot {}", manifest.index)))?;
        Ok(snapshot::decode_up_to(&manifest, bytes, known)?)
    }

    /// What a starting process finds.
    pub(super) fn open(&self, known: u32) -> Result<(Restored, State), Unreadable> {
        let mut restored = Restored {
            hard_state: self.hard_state.clone(),
            entries: self.entries.clone(),
            ..Restored::default()
        };
        let mut state = State::new();
        if let Some(snapshot) = &self.snapshot {
            state = self.state_of(snapshot, known)?;
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
        let index = manifest.index;
        self.files.insert(index, (manifest, bytes));
        self.hard_state = restored.hard_state;
        self.snapshot = restored.snapshot;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(index: u64) -> Persist {
        let entry = Entry {
            index,
            term: 1,
            data: vec![7; 100].into(),
            ..Entry::default()
        };
        Persist {
            entries: vec![entry],
            must_sync: true,
            ..Persist::default()
        }
    }

    fn last(disk: &Disk) -> Option<u64> {
        let (restored, _) = disk.open(1).expect("it is readable");
        restored.entries.last().map(|e| e.index)
    }

    #[test]
    fn what_was_synced_outlives_a_crash_and_the_rest_may_not() {
        let mut lost = 0;
        for seed in 0..32 {
            let mut disk = Disk::default();
            disk.genesis(1);
            disk.write(batch(2)).expect("room");
            disk.sync();
            disk.write(batch(3)).expect("room");
            lost += disk.crash(&mut Rng::new(seed)).lost;
            assert!(last(&disk) >= Some(2));
        }
        assert!(lost > 0 && lost < 32, "{lost} of 32");
    }

    #[test]
    fn a_full_disk_refuses_and_keeps_what_it_has() {
        let mut disk = Disk::default();
        disk.genesis(1);
        disk.room = Some(200);
        disk.write(batch(2)).expect("room for one");
        disk.sync();
        assert_eq!(disk.write(batch(3)), Err(Full));
        assert_eq!(last(&disk), Some(2));
        disk.room = None;
        assert_eq!(disk.write(batch(3)), Ok(()));
    }
}
