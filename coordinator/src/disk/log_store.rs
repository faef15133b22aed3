//! The raft log, hard state and snapshot metadata, on raft-engine.
//!
//! Why raft-engine: `docs/adr/0001-log-store.md`.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use raft::eraftpb::{Entry, HardState, Snapshot};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize};

/// The only raft group of a folder.
const GROUP: u64 = 1;
const HARD_STATE: &[u8] = b"hard_state";
const SNAPSHOT: &[u8] = b"snapshot";

/// Why the log cannot be read or written. After a failed write the node ends:
/// what reached the disk is unknown, and only a restart reads it anew.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// raft-engine refuses.
    #[error("raft log: {0}")]
    Engine(#[from] raft_engine::Error),
    /// The folder's log cannot be opened.
    #[error(
        "raft log {folder}: {source}; if it is damaged, move the data folder away, start on an \
         empty one, and replace the member (`conclave cluster remove`, then `cluster add`)"
    )]
    Open {
        /// The folder of the log.
        folder: PathBuf,
        /// What raft-engine says.
        source: raft_engine::Error,
    },
    /// Entries are missing between the snapshot and the end of the log.
    #[error("raft log: entry {wanted} is missing behind the snapshot at {snapshot}")]
    Gap {
        /// First entry that is not there.
        wanted: u64,
        /// Index of the snapshot.
        snapshot: u64,
    },
}

struct EntryExt;

impl MessageExt for EntryExt {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// What the folder held when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Term, vote and commit index; default when blank.
    pub hard_state: HardState,
    /// Metadata and manifest; the state itself lies in `snapshots/`.
    pub snapshot: Option<Snapshot>,
    /// Everything behind the snapshot, in order, without gaps.
    pub entries: Vec<Entry>,
}

impl Recovered {
    /// Nothing was ever written.
    pub fn is_blank(&self) -> bool {
        self.snapshot.is_none()
            && self.entries.is_empty()
            && self.hard_state == HardState::default()
    }
}

/// What one turn of the node made durable, written with one fsync.
#[derive(Debug, Default)]
pub struct Batch {
    /// Replaces the log: everything older is dropped first.
    pub snapshot: Option<Snapshot>,
    /// Appended; entries at or behind the first one's index are replaced.
    pub entries: Vec<Entry>,
    /// Replaces the hard state.
    pub hard_state: Option<HardState>,
    /// Written without waiting for the disk: only the commit index moved, and
    /// what is lost of that is found again.
    pub lazy: bool,
}

impl Batch {
    /// True if there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.snapshot.is_none() && self.entries.is_empty() && self.hard_state.is_none()
    }
}

/// The log of one node.
pub struct LogStore {
    engine: Engine,
}

impl LogStore {
    /// Opens `data_dir/raft` and reads what it holds. A torn last record, as a
    /// crash leaves it, is dropped; it was never acknowledged.
    ///
    /// # Errors
    /// [`LogError`]: damaged, or entries missing.
    pub fn open(data_dir: &Path) -> Result<(Self, Recovered), LogError> {
        let config = Config {
            dir: data_dir.join("raft").to_string_lossy().into_owned(),
            target_file_size: ReadableSize::mb(16),
            purge_threshold: ReadableSize::mb(128),
            recovery_threads: 2,
            // Our entries are small and often compressed text already.
            batch_compression_threshold: ReadableSize::kb(64),
            ..Config::default()
        };
        let engine = Engine::open(config).map_err(|source| LogError::Open {
            folder: data_dir.join("raft"),
            source,
        })?;
        let hard_state = engine.get_message(GROUP, HARD_STATE)?.unwrap_or_default();
        let snapshot: Option<Snapshot> = engine.get_message(GROUP, SNAPSHOT)?;
        let behind = snapshot.as_ref().map_or(0, |s| s.get_metadata().index);
        let mut entries = Vec::new();
        if let (Some(first), Some(last)) = (engine.first_index(GROUP), engine.last_index(GROUP)) {
            if first > behind + 1 {
                return Err(LogError::Gap {
                    wanted: behind + 1,
                    snapshot: behind,
                });
            }
            let begin = first.max(behind + 1);
            engine.fetch_entries_to::<EntryExt>(GROUP, begin, last + 1, None, &mut entries)?;
        }
        Ok((
            Self { engine },
            Recovered {
                hard_state,
                snapshot,
                entries,
            },
        ))
    }

    /// Writes a batch and waits until it is on the disk; returns how long that
    /// took.
    ///
    /// # Errors
    /// [`LogError`] from the write.
    ///
    /// # Panics
    /// raft-engine panics when fsync fails; the node's thread ends with it.
    pub fn append(&self, batch: &Batch) -> Result<Duration, LogError> {
        let started = Instant::now();
        let mut writes = LogBatch::with_capacity(batch.entries.len() + 4);
        if let Some(snapshot) = &batch.snapshot {
            // Clean also forgets the keys, so the hard state goes in again.
            let kept: Option<HardState> = self.engine.get_message(GROUP, HARD_STATE)?;
            writes.add_command(GROUP, Command::Clean);
            writes.put_message(GROUP, SNAPSHOT.to_vec(), snapshot)?;
            if let (Some(kept), None) = (kept, &batch.hard_state) {
                writes.put_message(GROUP, HARD_STATE.to_vec(), &kept)?;
            }
        }
        if !batch.entries.is_empty() {
            writes.add_entries::<EntryExt>(GROUP, &batch.entries)?;
        }
        if let Some(hard_state) = &batch.hard_state {
            writes.put_message(GROUP, HARD_STATE.to_vec(), hard_state)?;
        }
        self.engine.write(&mut writes, !batch.lazy)?;
        Ok(started.elapsed())
    }

    /// Removes everything, durably.
    ///
    /// # Errors
    /// [`LogError`] from the write.
    pub fn clear(&self) -> Result<(), LogError> {
        let mut writes = LogBatch::with_capacity(1);
        writes.add_command(GROUP, Command::Clean);
        self.engine.write(&mut writes, true)?;
        Ok(())
    }

    /// Records the node's own `snapshot` and drops entries up to and including
    /// `keep_from - 1`. Later entries stay.
    ///
    /// # Errors
    /// [`LogError`] from the write.
    pub fn compact(&self, snapshot: &Snapshot, keep_from: u64) -> Result<(), LogError> {
        let mut writes = LogBatch::with_capacity(2);
        writes.put_message(GROUP, SNAPSHOT.to_vec(), snapshot)?;
        self.engine.write(&mut writes, true)?;
        self.engine.compact_to(GROUP, keep_from);
        self.engine.purge_expired_files()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
        Entry {
            index,
            term,
            data: data.to_vec().into(),
            ..Entry::default()
        }
    }

    fn snapshot(index: u64) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = 1;
        snapshot.data = vec![9].into();
        snapshot
    }

    fn indices(recovered: &Recovered) -> Vec<(u64, u64)> {
        recovered
            .entries
            .iter()
            .map(|e| (e.index, e.term))
            .collect()
    }

    #[test]
    fn what_was_appended_is_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let (store, blank) = LogStore::open(folder.path()).unwrap();
        assert!(blank.entries.is_empty() && blank.snapshot.is_none());
        let hard_state = HardState {
            term: 3,
            vote: 7,
            commit: 2,
            ..HardState::default()
        };
        let entries = (1..=5).map(|i| entry(i, 1, b"x")).collect();
        let batch = Batch {
            entries,
            hard_state: Some(hard_state.clone()),
            ..Batch::default()
        };
        store.append(&batch).unwrap();
        // A new leader replaces the tail.
        let entries = vec![entry(4, 3, b"y")];
        store
            .append(&Batch {
                entries,
                ..Batch::default()
            })
            .unwrap();
        drop(store);
        let (_, recovered) = LogStore::open(folder.path()).unwrap();
        assert_eq!(recovered.hard_state, hard_state);
        assert_eq!(indices(&recovered), [(1, 1), (2, 1), (3, 1), (4, 3)]);
    }

    #[test]
    fn an_own_snapshot_keeps_the_tail_and_a_received_one_replaces_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = LogStore::open(folder.path()).unwrap();
        let hard_state = HardState {
            term: 1,
            commit: 9,
            ..HardState::default()
        };
        let entries = (1..=10).map(|i| entry(i, 1, b"x")).collect();
        let batch = Batch {
            entries,
            hard_state: Some(hard_state.clone()),
            ..Batch::default()
        };
        store.append(&batch).unwrap();
        store.compact(&snapshot(8), 7).unwrap();
        drop(store);
        let (store, recovered) = LogStore::open(folder.path()).unwrap();
        assert_eq!(
            recovered.snapshot.as_ref().map(|s| s.get_metadata().index),
            Some(8)
        );
        assert_eq!(indices(&recovered), [(9, 1), (10, 1)]);

        let batch = Batch {
            snapshot: Some(snapshot(50)),
            ..Batch::default()
        };
        store.append(&batch).unwrap();
        store
            .append(&Batch {
                entries: vec![entry(51, 2, b"z")],
                ..Batch::default()
            })
            .unwrap();
        drop(store);
        let (_, recovered) = LogStore::open(folder.path()).unwrap();
        assert_eq!(recovered.hard_state, hard_state);
        assert_eq!(
            recovered.snapshot.as_ref().map(|s| s.get_metadata().index),
            Some(50)
        );
        assert_eq!(indices(&recovered), [(51, 2)]);
    }
}
