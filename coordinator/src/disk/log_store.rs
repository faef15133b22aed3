//! The raft log, hard state and snapshot metadata, on raft-engine.
//!
//! Why raft-engine: `docs/adr/0001-log-store.md`.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use raft::eraftpb::{Entry, HardState, Snapshot};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use super::{
    REPLACE,
    log_files::LogFiles,
    log_scan::{self, Damage, MARK, Mark, ScanError},
};

/// The only raft group of a folder.
const GROUP: u64 = 1;
const HARD_STATE: &[u8] = b"hard_state";
const SNAPSHOT: &[u8] = b"snapshot";
/// The member that the log is of: 8 bytes, little-endian. Logs of before have none, and programs of
/// before leave it alone.
const OWNER: &[u8] = b"owner";

/// Why the log cannot be read or written. After a failed write the node ends:
/// what reached the disk is unknown, and only a restart reads it anew.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A batch does not encode.
    #[error("raft log: {0}")]
    Encode(raft_engine::Error),
    /// What was synced is damaged.
    #[error(
        "raft log {}: the record at byte {} is damaged, and whole records behind it say that it \
         was on the disk: {}, and perhaps votes, are lost here. Nothing was changed; {REPLACE}",
        .0.file.display(), .0.offset, lost_behind(.0.entry)
    )]
    Damaged(Damage),
    /// A member's log holds nothing: its first start alone left a record.
    #[error(
        "raft log {0}: not one record is left of it, and this node is a member of a cluster: its \
         entries, and perhaps votes, are lost here; {REPLACE}"
    )]
    Gone(PathBuf),
    /// `identity.json` is another member's of the same cluster: under its name this node would vote again in
    /// terms in which that member voted.
    #[error(
        "identity.json is of member {identity:016x}, raft log {folder} of member {log:016x}: put the folder's \
         own identity.json back; or {REPLACE}"
    )]
    OtherMember {
        /// The folder of the log.
        folder: PathBuf,
        /// The member that the identity names.
        identity: u64,
        /// The member that wrote the log.
        log: u64,
    },
    /// The folder's log cannot be opened.
    #[error("raft log {folder}: {why}; if it is damaged: {REPLACE}")]
    Open {
        /// The folder of the log.
        folder: PathBuf,
        /// What raft-engine or the file system says.
        why: String,
    },
    /// Entries are missing between the snapshot and the end of the log.
    #[error(
        "raft log {folder}: entry {wanted} is missing (the snapshot ends at {snapshot}); {REPLACE}"
    )]
    Gap {
        /// The folder of the log.
        folder: PathBuf,
        /// First entry that is not there.
        wanted: u64,
        /// Index of the snapshot.
        snapshot: u64,
    },
    /// The log was not made durable.
    #[error(
        "raft log {folder}: not written ({why}). Nothing that was acknowledged is lost. Mend the \
         disk, or make room on it, and start this node again"
    )]
    Write {
        /// The folder of the log.
        folder: PathBuf,
        /// What the file system says.
        why: String,
    },
}

/// Which entries a damaged log has lost.
fn lost_behind(entry: u64) -> String {
    match entry {
        0 => "all entries of this log".to_owned(),
        last => format!("the entries behind {last}, the last one that reads"),
    }
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
    engine: Engine<LogFiles>,
    files: LogFiles,
    folder: PathBuf,
    /// Number of the last batch, and of the last one that is on the disk.
    last: AtomicU64,
    synced: AtomicU64,
    /// The member that the log is of, 0 while nobody said so.
    owner: AtomicU64,
}

impl LogStore {
    /// Opens `data_dir/raft` and reads what it holds. A torn last record, as a
    /// crash leaves it, is dropped; it was never acknowledged. The log of a
    /// `member` of a cluster cannot be empty: each start leaves a record.
    ///
    /// # Errors
    /// [`LogError`]: gone, damaged, or entries missing.
    pub fn open(data_dir: &Path, member: bool) -> Result<(Self, Recovered), LogError> {
        Self::open_with(data_dir, member, LogFiles::default())
    }

    /// Opens it on `files`.
    ///
    /// # Errors
    /// As [`LogStore::open`].
    pub fn open_with(
        data_dir: &Path,
        member: bool,
        files: LogFiles,
    ) -> Result<(Self, Recovered), LogError> {
        let folder = data_dir.join("raft");
        let failed = |why: String| LogError::Open {
            folder: folder.clone(),
            why,
        };
        let scanned = log_scan::scan(&folder).map_err(|error| match error {
            ScanError::Io(error) => failed(error.to_string()),
            ScanError::Damaged(damage) => LogError::Damaged(damage),
        })?;
        if member && !scanned.records {
            return Err(LogError::Gone(folder));
        }
        if scanned.torn > 0 {
            tracing::info!(
                folder = %folder.display(),
                bytes = scanned.torn,
                "the last write was cut short, as a crash does, and is dropped; it was not acknowledged"
            );
        }
        let config = Config {
            dir: folder.to_string_lossy().into_owned(),
            // What a crash leaves is gone by now.
            recovery_mode: RecoveryMode::AbsoluteConsistency,
            target_file_size: ReadableSize::mb(16),
            purge_threshold: ReadableSize::mb(128),
            recovery_threads: 2,
            // Our entries are small and often compressed text already.
            batch_compression_threshold: ReadableSize::kb(64),
            ..Config::default()
        };
        let engine = Engine::open_with_file_system(config, files.clone().into())
            .map_err(|error| failed(error.to_string()))?;
        let store = Self {
            engine,
            files,
            folder: folder.clone(),
            last: AtomicU64::new(scanned.last.number),
            synced: AtomicU64::new(0),
            owner: AtomicU64::new(0),
        };
        let recovered = store.read()?;
        // What a killed process had written may be in memory only. The node takes
        // all that it reads for durable, so now it is.
        store.write(LogBatch::with_capacity(2), true, None)?;
        Ok((store, recovered))
    }

    fn read(&self) -> Result<Recovered, LogError> {
        let unreadable = |error: raft_engine::Error| LogError::Open {
            folder: self.folder.clone(),
            why: error.to_string(),
        };
        if let Some(owner) = self.engine.get(GROUP, OWNER) {
            let owner = <[u8; 8]>::try_from(owner.as_slice()).map_err(|_| LogError::Open {
                folder: self.folder.clone(),
                why: "the record of its member does not read".to_owned(),
            })?;
            self.owner
                .store(u64::from_le_bytes(owner), Ordering::Relaxed);
        }
        let hard_state = self.hard_state().map_err(unreadable)?.unwrap_or_default();
        let snapshot: Option<Snapshot> = self
            .engine
            .get_message(GROUP, SNAPSHOT)
            .map_err(unreadable)?;
        let behind = snapshot.as_ref().map_or(0, |s| s.get_metadata().index);
        let (first, last) = (
            self.engine.first_index(GROUP).unwrap_or(behind + 1),
            self.engine.last_index(GROUP).unwrap_or(behind),
        );
        let end = last.max(behind);
        if first > behind + 1 || hard_state.commit > end {
            return Err(LogError::Gap {
                folder: self.folder.clone(),
                wanted: if first > behind + 1 {
                    behind + 1
                } else {
                    end + 1
                },
                snapshot: behind,
            });
        }
        let mut entries = Vec::new();
        let begin = first.max(behind + 1);
        if last >= begin {
            self.engine
                .fetch_entries_to::<EntryExt>(GROUP, begin, last + 1, None, &mut entries)
                .map_err(unreadable)?;
        }
        Ok(Recovered {
            hard_state,
            snapshot,
            entries,
        })
    }

    /// Says whose log this is; to be called before anything is written for that member. A log that names
    /// nobody, as those of earlier programs do, is this one's from here on: each batch says so.
    ///
    /// # Errors
    /// [`LogError::OtherMember`].
    pub fn claim(&self, node_id: u64) -> Result<(), LogError> {
        match self.owner.load(Ordering::Relaxed) {
            0 => {
                self.owner.store(node_id, Ordering::Relaxed);
                // Lost with a crash, it is said again by the next start.
                self.write(LogBatch::with_capacity(3), false, None)
            }
            log if log == node_id => Ok(()),
            log => Err(LogError::OtherMember {
                folder: self.folder.clone(),
                identity: node_id,
                log,
            }),
        }
    }

    /// Writes a batch and waits until it is on the disk; returns how long that
    /// took.
    ///
    /// # Errors
    /// [`LogError::Write`]: what reached the disk is unknown, and nothing is
    /// written any more.
    pub fn append(&self, batch: &Batch) -> Result<Duration, LogError> {
        let started = Instant::now();
        let mut writes = LogBatch::with_capacity(batch.entries.len() + 5);
        if let Some(snapshot) = &batch.snapshot {
            // Clean also forgets the keys, so the hard state goes in again.
            writes.add_command(GROUP, Command::Clean);
            writes
                .put_message(GROUP, SNAPSHOT.to_vec(), snapshot)
                .map_err(LogError::Encode)?;
        }
        if !batch.entries.is_empty() {
            writes
                .add_entries::<EntryExt>(GROUP, &batch.entries)
                .map_err(LogError::Encode)?;
        }
        self.write(writes, !batch.lazy, batch.hard_state.as_ref())?;
        Ok(started.elapsed())
    }

    /// Writes a mark, unsynced, if the last batch has none behind it: while
    /// nothing else is written, it is what proves that the batch was synced.
    ///
    /// # Errors
    /// [`LogError::Write`].
    pub fn settle(&self) -> Result<(), LogError> {
        if self.synced.load(Ordering::Relaxed) != self.last.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.write(LogBatch::with_capacity(2), false, None)
    }

    /// Removes everything, durably.
    ///
    /// # Errors
    /// [`LogError::Write`].
    pub fn clear(&self) -> Result<(), LogError> {
        let mut writes = LogBatch::with_capacity(3);
        writes.add_command(GROUP, Command::Clean);
        self.write(writes, true, Some(&HardState::default()))
    }

    /// Records the node's own `snapshot` and drops entries up to and including
    /// `keep_from - 1`. Later entries stay.
    ///
    /// # Errors
    /// [`LogError::Write`].
    pub fn compact(&self, snapshot: &Snapshot, keep_from: u64) -> Result<(), LogError> {
        let mut writes = LogBatch::with_capacity(3);
        writes
            .put_message(GROUP, SNAPSHOT.to_vec(), snapshot)
            .map_err(LogError::Encode)?;
        self.write(writes, true, None)?;
        let mut writes = LogBatch::with_capacity(3);
        writes.add_command(GROUP, Command::Compact { index: keep_from });
        self.write(writes, false, None)?;
        if let Err(error) = self.engine.purge_expired_files() {
            // Their time comes again with the next snapshot.
            tracing::warn!(%error, "old files of the log were not removed");
        }
        self.whole()
    }

    /// Writes a batch with its mark. The hard state goes into every batch, so
    /// that it is never left in an old file.
    fn write(
        &self,
        mut writes: LogBatch,
        sync: bool,
        hard_state: Option<&HardState>,
    ) -> Result<(), LogError> {
        self.whole()?;
        let kept = match hard_state {
            Some(hard_state) => Some(hard_state.clone()),
            None => self.hard_state().map_err(LogError::Encode)?,
        };
        if let Some(hard_state) = kept {
            writes
                .put_message(GROUP, HARD_STATE.to_vec(), &hard_state)
                .map_err(LogError::Encode)?;
        }
        // As the hard state does: a snapshot that replaces the log forgets every key.
        let owner = self.owner.load(Ordering::Relaxed);
        if owner != 0 {
            writes
                .put(GROUP, OWNER.to_vec(), owner.to_le_bytes().to_vec())
                .map_err(LogError::Encode)?;
        }
        let mark = Mark {
            number: self.last.load(Ordering::Relaxed) + 1,
            synced: self.synced.load(Ordering::Relaxed),
        };
        writes
            .put(GROUP, MARK.to_vec(), mark.encode())
            .map_err(LogError::Encode)?;
        if let Err(error) = self.engine.write(&mut writes, sync) {
            self.files.fail(describe(&error));
        }
        self.whole()?;
        self.last.store(mark.number, Ordering::Relaxed);
        if sync {
            self.synced.store(mark.number, Ordering::Relaxed);
        }
        Ok(())
    }

    fn hard_state(&self) -> Result<Option<HardState>, raft_engine::Error> {
        self.engine.get_message(GROUP, HARD_STATE)
    }

    /// Nothing has failed so far.
    fn whole(&self) -> Result<(), LogError> {
        match self.files.failed() {
            None => Ok(()),
            Some(why) => Err(LogError::Write {
                folder: self.folder.clone(),
                why: why.to_owned(),
            }),
        }
    }
}

impl Drop for LogStore {
    /// A log that is closed proves all that it holds.
    fn drop(&mut self) {
        let _ = self.settle();
    }
}

fn describe(error: &raft_engine::Error) -> String {
    match error {
        raft_engine::Error::Io(error) => format!("{error}: {}", error.kind()),
        raft_engine::Error::TryAgain(why) if why.contains("nospace") => "no space left".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
