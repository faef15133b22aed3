//! What a node does beside raft, off its loop: payloads that are missing,
//! snapshots of its own, payloads that nothing names.

use std::time::{Duration, Instant};

use conclave_coordinator_core::node::Keep;
use tokio::runtime::Handle as Runtime;
use tokio_util::sync::CancellationToken;

use super::{
    Handle, Input,
    storage::{self, Fatal},
    task::Task,
};
use crate::{config::Config, disk::blobs::Hash, transport::blobs::BlobNet};

/// How long a missing payload is looked for before it is looked for again.
const FETCH: Duration = Duration::from_secs(5);
/// Longest pause between two looks for a missing payload.
const FETCH_PAUSE: Duration = Duration::from_secs(30);
/// Pause after a snapshot that could not be saved (a full disk).
const SAVE_AGAIN: Duration = Duration::from_secs(30);
/// Entries that stay behind a snapshot for members that lag a little.
const KEPT: u64 = 1_000;
/// The log keeps entries of so many snapshots for a member that fetches one.
const MOST_KEPT: u64 = 4;
/// Bytes of entries applied between two snapshots, however few entries they are: the log lies in memory.
const SNAPSHOT_BYTES: u64 = 64 << 20;
/// A state that is longer than the log behind it by more than this is not written again for it: with many jobs
/// in the state, snapshots would take more of disk and processors than all else.
const SHORT_STATE: u64 = 4 << 20;
/// Age below which an unnamed blob may be on its way into the log.
const BLOB_AGE: Duration = Duration::from_secs(3600);

impl Task {
    /// Fetches payloads that are named in the log and not here, off the loop.
    pub(super) fn fetch(&self, hashes: Vec<[u8; 32]>) {
        for hash in hashes {
            fetch(&self.runtime, &self.blobs, &self.handle, &self.stop, hash);
        }
    }

    /// Fetches what the state names and is not here, after a start and after each
    /// snapshot: the entries that named it may lie behind the snapshot, and are not
    /// applied again. The disk is asked off the loop.
    pub(super) fn fetch_missing(&self) {
        let named = self.state.live_blobs();
        let (blobs, handle, stop) = (self.blobs.clone(), self.handle.clone(), self.stop.clone());
        let runtime = self.runtime.clone();
        self.runtime.spawn_blocking(move || {
            for hash in named.into_keys().filter(|hash| !blobs.local.has(hash)) {
                fetch(&runtime, &blobs, &handle, &stop, hash);
            }
        });
    }

    /// Starts a snapshot off the loop once enough was applied since the last.
    pub(super) fn save_when_due(&mut self) {
        let behind = self
            .state
            .applied_index()
            .saturating_sub(self.storage.snapshot_index);
        let bytes = self.node.log_size().bytes_since_snapshot;
        let worth = bytes + SHORT_STATE >= self.storage.snapshot_bytes;
        let due = (behind >= self.config.snapshot_every && worth)
            || (behind > 0 && bytes >= SNAPSHOT_BYTES);
        if self.saving || !due || self.save_after.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.saving = true;
        let (state, conf_state) = (self.state.to_save(), self.node.conf_state());
        let (snapshots, handle) = (self.storage.snapshots.clone(), self.handle.clone());
        let stop = self.stop.clone();
        self.runtime.spawn(async move {
            let work = move || storage::save(&snapshots, &state, conf_state);
            // The loop waits for word, whatever became of it.
            let saved = tokio::task::spawn_blocking(work).await.unwrap_or_default();
            stop.run_until_cancelled(handle.tell(Input::SnapshotSaved(saved)))
                .await;
        });
    }

    /// Takes an own snapshot over, or waits a while before the next try.
    pub(super) fn snapshot_saved(&mut self, saved: storage::Saved) -> Result<(), Fatal> {
        self.saving = false;
        self.save_after = saved
            .manifest
            .is_none()
            .then(|| Instant::now() + SAVE_AGAIN);
        let Config { snapshot_every, .. } = self.config;
        let keep = Keep {
            entries: snapshot_every.min(KEPT),
            bytes: SNAPSHOT_BYTES / MOST_KEPT,
        };
        let most = Keep {
            entries: snapshot_every.saturating_mul(MOST_KEPT),
            bytes: SNAPSHOT_BYTES * MOST_KEPT,
        };
        self.storage.compact(&mut self.node, saved, keep, most)?;
        self.drop_old_snapshots();
        self.sweep_due = true;
        // What was given up or went is looked for again.
        self.fetch_missing();
        Ok(())
    }

    /// Removes states older than the one that the log begins at, off the loop:
    /// not before it begins there, or a crash would leave it without one.
    fn drop_old_snapshots(&self) {
        let snapshots = self.storage.snapshots.clone();
        let index = self.storage.snapshot_index;
        self.runtime.spawn_blocking(move || {
            if let Err(error) = snapshots.remove_before(index, 1) {
                tracing::warn!(%error, "old snapshots were not removed");
            }
        });
    }

    /// Removes payloads that nothing names, off the loop, once after each snapshot:
    /// when all that is known to be committed is applied. Entries ahead of a
    /// replica that catches up may name what its state does not.
    pub(super) fn drop_dead_blobs_when_due(&mut self) {
        let current = self.leadership.leader_id != 0
            && self.state.applied_index() >= self.node.commit_index();
        if !self.sweep_due || !current {
            return;
        }
        self.sweep_due = false;
        let (blobs, live) = (self.blobs.local.clone(), self.state.live_blobs());
        self.runtime.spawn_blocking(move || {
            if let Err(error) = blobs.retain(BLOB_AGE, &|hash| live.contains_key(hash)) {
                tracing::warn!(%error, "dead payloads were not removed");
            }
        });
    }
}

/// Begins to look for a payload, unless that is under way already.
fn fetch(
    runtime: &Runtime,
    blobs: &BlobNet,
    handle: &Handle,
    stop: &CancellationToken,
    hash: Hash,
) {
    let Some(under_way) = blobs.begin(hash) else {
        return;
    };
    let (blobs, handle, stop) = (blobs.clone(), handle.clone(), stop.clone());
    runtime.spawn(async move {
        let work = fetch_while_named(&blobs, &handle, hash);
        let fetched = stop.run_until_cancelled(work).await == Some(true);
        drop(under_way);
        if fetched {
            stop.run_until_cancelled(handle.tell(Input::BlobArrived))
                .await;
        }
    });
}

/// Looks for a payload, less and less often, until it is here or nothing in
/// the state names it any more; true if it is here.
async fn fetch_while_named(blobs: &BlobNet, handle: &Handle, hash: Hash) -> bool {
    let mut pause = FETCH / 10;
    while let Err(status) = blobs.fetch_in_turn(hash, FETCH).await {
        tracing::warn!(%status, "a payload is missing");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(FETCH_PAUSE);
        let named = handle
            .read(false, FETCH, move |state| state.names_blob(&hash))
            .await;
        if named == Ok(false) {
            return false;
        }
    }
    true
}
