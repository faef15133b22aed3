//! The log in memory, as raft-rs reads it; the shell keeps it on disk.

use raft::{
    Error, GetEntriesContext, RaftState, Result, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
    util::limit_size,
};

use super::{Keep, LogSize, Persist, Restored};

/// Entries since the last compaction, and the snapshot that stands for what came before.
pub(super) struct Log {
    hard_state: HardState,
    conf_state: ConfState,
    /// What a member too far behind gets.
    snapshot: Snapshot,
    /// Index and term of the entry before the first one held.
    before: (u64, u64),
    entries: Vec<Entry>,
    /// Bytes of all entries held.
    bytes: u64,
    /// Bytes of those that the snapshot stands for, too.
    covered: u64,
}

/// What an entry takes in memory, bytes.
fn size(entry: &Entry) -> u64 {
    (size_of::<Entry>() + entry.data.len() + entry.context.len()) as u64
}

fn sum(entries: &[Entry]) -> u64 {
    entries.iter().map(size).sum()
}

impl Log {
    /// The log as it was read from disk.
    pub(super) fn new(restored: Restored) -> std::result::Result<Log, String> {
        let snapshot = restored.snapshot.unwrap_or_default();
        let meta = snapshot.get_metadata();
        let mut before = (meta.index, meta.term);
        let mut entries = restored.entries;
        // Entries kept for members that lag: the log then begins before the snapshot.
        match entries.first() {
            Some(first) if first.index > before.0 + 1 => {
                return Err(format!(
                    "entries {} to {} are missing",
                    before.0 + 1,
                    first.index - 1
                ));
            }
            Some(first) if first.index <= before.0 => {
                let at = (before.0 - first.index) as usize;
                match entries.get(at) {
                    Some(entry) if entry.term == before.1 => {
                        before = (first.index, first.term);
                        entries.remove(0);
                    }
                    _ => entries.retain(|e| e.index > before.0),
                }
            }
            _ => {}
        }
        if entries.windows(2).any(|w| w[1].index != w[0].index + 1) {
            return Err("the log has a gap".into());
        }
        let last = entries.last().map_or(before.0, |e| e.index);
        if restored.hard_state.commit > last {
            return Err(format!(
                "{} was committed, but the log ends at {last}",
                restored.hard_state.commit
            ));
        }
        let covered = entries.partition_point(|e| e.index <= snapshot.get_metadata().index);
        Ok(Log {
            bytes: sum(&entries),
            covered: sum(&entries[..covered]),
            hard_state: restored.hard_state,
            conf_state: restored.conf_state,
            snapshot,
            before,
            entries,
        })
    }

    pub(super) fn first(&self) -> u64 {
        self.before.0 + 1
    }

    pub(super) fn last(&self) -> u64 {
        self.entries.last().map_or(self.before.0, |e| e.index)
    }

    pub(super) fn size(&self) -> LogSize {
        LogSize {
            entries: self.entries.len() as u64,
            bytes: self.bytes,
            bytes_since_snapshot: self.bytes - self.covered,
        }
    }

    /// The first of the last entries up to `index` that are no more than `keep`.
    pub(super) fn last_before(&self, index: u64, keep: Keep) -> u64 {
        let held = (index + 1).saturating_sub(self.first()) as usize;
        let held = &self.entries[..held.min(self.entries.len())];
        let most = usize::try_from(keep.entries).unwrap_or(usize::MAX);
        let mut bytes = 0_u64;
        let fits = |entry: &&Entry| {
            bytes += size(entry);
            bytes <= keep.bytes
        };
        let kept = held.iter().rev().take(most).take_while(fits).count();
        index + 1 - kept as u64
    }

    pub(super) fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// Takes what raft wants written; readable at once, durable when the shell says so.
    pub(super) fn take(&mut self, persist: &Persist) {
        if let Some(snapshot) = &persist.snapshot {
            let meta = snapshot.get_metadata();
            self.before = (meta.index, meta.term);
            self.conf_state = meta.get_conf_state().clone();
            self.snapshot = snapshot.clone();
            self.entries.clear();
            (self.bytes, self.covered) = (0, 0);
        }
        if let Some(first) = persist.entries.first() {
            let kept = first.index.saturating_sub(self.first()) as usize;
            // What the snapshot stands for is committed, and never replaced.
            let replaced = self.entries.get(kept..).unwrap_or_default();
            self.bytes = self.bytes - sum(replaced) + sum(&persist.entries);
            self.entries.truncate(kept);
            self.entries.extend_from_slice(&persist.entries);
        }
        if let Some(hard_state) = &persist.hard_state {
            self.hard_state = hard_state.clone();
        }
    }

    /// Replaces the snapshot by a newer one and drops entries below `keep_from`.
    pub(super) fn compact(&mut self, snapshot: Snapshot, keep_from: u64) {
        let index = snapshot.get_metadata().index;
        if index < self.snapshot.get_metadata().index || index > self.last() {
            return;
        }
        self.snapshot = snapshot;
        let keep_from = keep_from.min(index + 1);
        let covered = (index + 1 - self.first()) as usize;
        let drop = keep_from.saturating_sub(self.first()) as usize;
        self.covered = sum(&self.entries[drop..covered]);
        let Some(last) = drop.checked_sub(1).map(|last| &self.entries[last]) else {
            return;
        };
        self.before = (last.index, last.term);
        self.bytes -= sum(&self.entries[..drop]);
        self.entries.drain(..drop);
        // What a burst needed is given back.
        self.entries.shrink_to(self.entries.len().max(1024) * 2);
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.conf_state.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 || low > high {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let from = (low - self.first()) as usize;
        let to = (high - self.first()) as usize;
        let mut entries = self.entries[from..to].to_vec();
        limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index < self.before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.entries
            .get((index - self.first()) as usize)
            .map(|e| e.term)
            .ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// A snapshot taken before `to` was added does not name it, and raft-rs ignores snapshots that do
    /// not name their reader. So `to` gets it with itself as a learner: that touches no quorum, and
    /// the log behind the snapshot says the same (and promotes it, if it was promoted).
    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        let index = self.snapshot.get_metadata().index;
        if index == 0 || index < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = self.snapshot.clone();
        let conf = snapshot.mut_metadata().mut_conf_state();
        if !conf.voters.contains(&to) && !conf.learners.contains(&to) {
            conf.learners.push(to);
        }
        Ok(snapshot)
    }
}
