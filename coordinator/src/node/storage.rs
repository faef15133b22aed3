//! The node's folder, opened and read: what the loop starts from.

use std::time::{Duration, Instant};

use conclave_coordinator_core::{
    State, codec,
    node::{Keep, Node, NodeConfig, NodeError as CoreError, Persist, Restored, snapshot_of},
    snapshot,
};
use conclave_proto::{
    LOG_VERSION,
    v1::{SnapshotManifest, command::Command as Body},
};
use raft::eraftpb::{ConfState, EntryType};

use crate::disk::{
    KEEP, REPLACE,
    log_files::LogFiles,
    log_store::{Batch, LogError, LogStore, Recovered},
    snapshots::{SnapshotError, Snapshots},
};

/// Why the node's loop ends, or does not begin. Nothing of it can be mended
/// while running: what reached the disk is known again after a restart.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A snapshot file.
    #[error("{0}; {REPLACE}")]
    Snapshot(#[from] SnapshotError),
    /// A snapshot's content.
    #[error("the newest snapshot: {0}; {REPLACE}")]
    State(#[from] snapshot::SnapshotError),
    /// raft-rs.
    #[error("{}; {}", .0, way_out(.0))]
    Raft(#[from] CoreError),
    /// An entry of the log.
    #[error("an entry of the log: {0}")]
    Entry(#[from] codec::CodecError),
    /// The cluster uses a log version that this node does not speak.
    #[error(
        "the cluster uses log version {needs}, this node speaks up to {speaks} (the program up to \
         {LOG_VERSION}): {}",
        if *needs > LOG_VERSION { "run the newer program again" } else { "take `max_log_version` out of its settings" }
    )]
    TooOld {
        /// What the cluster uses.
        needs: u32,
        /// What this node speaks.
        speaks: u32,
    },
    /// A recovery did not come to its end.
    #[error(
        "the folder is cluster {identity}'s and its state cluster {state}'s: a recovery did not \
         come to its end; run `conclave recover --force-single` on it again"
    )]
    HalfRecovered {
        /// The folder's cluster.
        identity: String,
        /// The state's.
        state: String,
    },
    /// `identity.json` is another folder's.
    #[error(
        "identity.json is of cluster {identity}, log and snapshots of cluster {state}: put the \
         folder's own identity.json back; or {REPLACE}"
    )]
    OtherIdentity {
        /// The cluster that the identity names.
        identity: String,
        /// The state's.
        state: String,
    },
    /// The identity file.
    #[error(transparent)]
    Identity(#[from] crate::disk::identity::IdentityError),
}

/// What to do about what raft refuses to run on.
fn way_out(error: &CoreError) -> &'static str {
    match error {
        CoreError::Diverged { .. } => KEEP,
        _ => REPLACE,
    }
}

/// A snapshot of this node's own, on disk.
#[derive(Default)]
pub struct Saved {
    /// What it is; `None` if saving it failed (said why in the log).
    pub manifest: Option<SnapshotManifest>,
    /// Members as of its index.
    pub conf_state: ConfState,
    /// How long it took.
    pub took: Duration,
}

/// Log and snapshots of one folder.
pub struct Storage {
    log: LogStore,
    /// The snapshot files.
    pub snapshots: Snapshots,
    /// Index of the newest snapshot in the log.
    pub snapshot_index: u64,
    /// How long its state is, bytes.
    pub snapshot_bytes: u64,
}

impl Storage {
    /// [`Storage::open_with`] on real files.
    ///
    /// # Errors
    /// As there.
    pub fn open(
        data_dir: &std::path::Path,
        snapshots: Snapshots,
        bound: bool,
    ) -> Result<(Self, Restored, State), Fatal> {
        Self::open_with(data_dir, snapshots, bound, LogFiles::default())
    }

    /// Reads the folder: state from the newest snapshot, entries behind it. In
    /// one that is not `bound` to a cluster, a log was left by a cluster's
    /// creation that did not come to its end: it goes, or a cluster that the
    /// node is invited to later would find it.
    ///
    /// # Errors
    /// [`Fatal`]: damaged, of a newer version, or IO.
    pub fn open_with(
        data_dir: &std::path::Path,
        snapshots: Snapshots,
        bound: bool,
        files: LogFiles,
    ) -> Result<(Self, Restored, State), Fatal> {
        let (log, mut recovered) = LogStore::open_with(data_dir, bound, files)?;
        if !bound && !recovered.is_blank() {
            tracing::warn!("the log of a cluster that was never created is removed");
            log.clear()?;
            recovered = Recovered::default();
        }
        let mut restored = Restored {
            hard_state: recovered.hard_state,
            entries: recovered.entries,
            ..Restored::default()
        };
        let mut state = State::new();
        let mut snapshot_bytes = 0;
        if let Some(snapshot) = recovered.snapshot {
            let manifest = snapshot::manifest(snapshot.get_data())?;
            snapshot_bytes = manifest.length;
            state = snapshot::decode(&manifest, &snapshots.get(&manifest)?)?;
            restored.conf_state = snapshot.get_metadata().get_conf_state().clone();
            restored.applied = snapshot.get_metadata().index;
            restored.snapshot = Some(snapshot);
        }
        let snapshot_index = restored.applied;
        Ok((
            Self {
                log,
                snapshots,
                snapshot_index,
                snapshot_bytes,
            },
            restored,
            state,
        ))
    }

    /// Says which member runs on the folder; to be called before anything is written for it.
    ///
    /// # Errors
    /// [`LogError::OtherMember`], or the disk's.
    pub fn claim(&self, node_id: u64) -> Result<(), Fatal> {
        Ok(self.log.claim(node_id)?)
    }

    /// Makes a new cluster's beginning durable and returns the node on it.
    ///
    /// # Errors
    /// [`Fatal`] from the disk.
    pub fn genesis(&mut self, config: &NodeConfig) -> Result<(Node, State), Fatal> {
        let (manifest, bytes) = snapshot::genesis();
        self.snapshots.put(&manifest, &bytes)?;
        let restored = Restored::genesis(config.id, &manifest);
        self.log.append(&Batch {
            snapshot: restored.snapshot.clone(),
            hard_state: Some(restored.hard_state.clone()),
            ..Batch::default()
        })?;
        (self.snapshot_index, self.snapshot_bytes) = (manifest.index, manifest.length);
        let state = snapshot::decode(&manifest, &bytes)?;
        Ok((Node::new(config, restored)?, state))
    }

    /// Writes what a turn asks for, with one fsync. Returns the state behind a
    /// received snapshot, which replaces the node's.
    ///
    /// # Errors
    /// [`Fatal`]: the node must end.
    pub fn persist(&mut self, persist: Persist) -> Result<Option<State>, Fatal> {
        if persist.is_empty() {
            return Ok(None);
        }
        let mut state = None;
        if let Some(snapshot) = &persist.snapshot {
            let manifest = snapshot::manifest(snapshot.get_data())?;
            state = Some(snapshot::decode(
                &manifest,
                &self.snapshots.get(&manifest)?,
            )?);
            (self.snapshot_index, self.snapshot_bytes) = (manifest.index, manifest.length);
        }
        let took = self.log.append(&Batch {
            lazy: !persist.must_sync && state.is_none(),
            snapshot: persist.snapshot,
            entries: persist.entries,
            hard_state: persist.hard_state,
        })?;
        crate::metrics::fsync(took);
        Ok(state)
    }

    /// Lets an idle log say that what it holds is on the disk; call it now and then.
    ///
    /// # Errors
    /// [`Fatal`] from the disk.
    pub fn settle(&self) -> Result<(), Fatal> {
        Ok(self.log.settle()?)
    }

    /// Takes an own snapshot as the log's beginning, for disk and raft alike.
    /// `keep` entries before it stay for members that lag a little, up to `most` for
    /// ones that are being sent a snapshot ([`Node::keep_from`]).
    ///
    /// # Errors
    /// [`Fatal`] from the disk.
    pub fn compact(
        &mut self,
        node: &mut Node,
        saved: Saved,
        keep: Keep,
        most: Keep,
    ) -> Result<(), Fatal> {
        let Some(manifest) = saved.manifest.filter(|m| m.index > self.snapshot_index) else {
            return Ok(());
        };
        let snapshot = snapshot_of(&manifest, saved.conf_state);
        let keep_from = node.keep_from(manifest.index, keep, most);
        self.log.compact(&snapshot, keep_from)?;
        node.compact(snapshot, keep_from);
        (self.snapshot_index, self.snapshot_bytes) = (manifest.index, manifest.length);
        crate::metrics::snapshot_saved(saved.took);
        Ok(())
    }
}

/// Refuses, before anything is served, what this node could not follow: a log
/// version that it does not speak, the folder of an unfinished recovery.
///
/// # Errors
/// [`Fatal::TooOld`], [`Fatal::HalfRecovered`], [`Fatal::OtherIdentity`], [`Fatal::Entry`].
pub fn fit(
    restored: &Restored,
    state: &State,
    cluster_id: Option<&str>,
    speaks: u32,
) -> Result<(), Fatal> {
    let mut needs = state.log_version();
    let mut of = state.cluster_id().to_owned();
    let committed = restored.hard_state.commit;
    for entry in restored.entries.iter().filter(|e| e.index <= committed) {
        let normal = entry.get_entry_type() == EntryType::EntryNormal;
        if normal && !entry.data.is_empty() && entry.index > state.applied_index() {
            let command = codec::decode(&entry.data)?;
            needs = needs.max(codec::needs(&command));
            if let Some(Body::CreateCluster(created)) = command.command {
                of = created.cluster_id;
            }
        }
    }
    speakable(needs, speaks)?;
    let Some(identity) = cluster_id.filter(|id| !of.is_empty() && *id != of) else {
        return Ok(());
    };
    let (identity, recovery) = (identity.to_owned(), !state.lineage().is_empty());
    Err(match recovery {
        true => Fatal::HalfRecovered {
            identity,
            state: of,
        },
        false => Fatal::OtherIdentity {
            identity,
            state: of,
        },
    })
}

/// Refuses a log version that this node does not speak.
///
/// # Errors
/// [`Fatal::TooOld`].
pub fn speakable(needs: u32, speaks: u32) -> Result<(), Fatal> {
    if needs > speaks {
        return Err(Fatal::TooOld { needs, speaks });
    }
    Ok(())
}

/// Encodes `state` and stores it: the part of a snapshot that runs off the loop.
pub fn save(snapshots: &Snapshots, state: &State, conf_state: ConfState) -> Saved {
    let started = Instant::now();
    let (manifest, bytes) = snapshot::encode(state);
    let manifest = match snapshots.put(&manifest, &bytes) {
        Ok(()) => Some(manifest),
        Err(error) => {
            tracing::error!(%error, "a snapshot was not saved");
            None
        }
    };
    Saved {
        manifest,
        conf_state,
        took: started.elapsed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_the_log_begins_at_stays_until_the_log_begins_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(folder.path()).unwrap();
        let (mut storage, ..) = Storage::open(folder.path(), snapshots, false).unwrap();
        let (_, mut state) = storage.genesis(&NodeConfig::new(1, 1)).unwrap();
        // Two crashes, each between saving a state and compacting the log.
        for index in 2..=3 {
            state.skip(index, 1);
            let saved = save(&storage.snapshots, &state, ConfState::default());
            assert!(saved.manifest.is_some());
        }
        drop(storage);
        let snapshots = Snapshots::open(folder.path()).unwrap();
        let (_, restored, _) = Storage::open(folder.path(), snapshots, true).unwrap();
        assert_eq!(restored.applied, 1);
    }

    #[test]
    fn what_a_creation_that_failed_left_is_gone_when_the_node_is_invited() {
        let folder = tempfile::tempdir().unwrap();
        let open = |bound| {
            let snapshots = Snapshots::open(folder.path()).unwrap();
            Storage::open(folder.path(), snapshots, bound).unwrap()
        };
        let (mut storage, blank, _) = open(false);
        assert!(blank.is_blank());
        storage.genesis(&NodeConfig::new(1, 1)).unwrap();
        drop(storage);
        let (storage, restored, _) = open(true);
        assert!(!restored.is_blank(), "a bound node keeps its log");
        drop(storage);
        for bound in [false, true] {
            let (_, restored, state) = open(bound);
            assert!(restored.is_blank());
            assert_eq!(restored.hard_state.commit, 0);
            assert_eq!(state.applied_index(), 0);
        }
    }
}
