//! What is done to a data folder while no coordinator runs on it: a snapshot is
//! restored into an empty one, or the member of a cluster that lost its quorum
//! goes on alone.
//!
//! Both begin a *new* cluster, with an id of its own: whatever is left of the
//! old one is refused by it, and cannot disturb it. How that is recorded, and
//! what it means for workers, stands in [`conclave_coordinator_core::refound`].

pub mod recover;
pub mod restore;

use conclave_coordinator_core::{
    State,
    node::{Restored, snapshot_of},
    snapshot,
};
use raft::eraftpb::{ConfState, HardState};
use uuid::Uuid;

use crate::disk::{
    log_store::{Batch, LogError, LogStore},
    snapshots::{SnapshotError, Snapshots},
};

/// Why a folder could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// A new cluster's id.
fn mint_cluster() -> String {
    Uuid::now_v7().to_string()
}

/// Makes `state` all that the folder's log holds, with `node_id` as the only
/// voter. Durable, and whole or not at all, when it returns.
fn write_founding(
    log: &LogStore,
    snapshots: &Snapshots,
    node_id: u64,
    state: &State,
) -> Result<(), WriteError> {
    let (manifest, bytes) = snapshot::encode(state);
    snapshots.put(&manifest, &bytes)?;
    let conf = ConfState {
        voters: vec![node_id],
        ..ConfState::default()
    };
    log.append(&Batch {
        snapshot: Some(snapshot_of(&manifest, conf)),
        hard_state: Some(HardState {
            term: manifest.term,
            commit: manifest.index,
            ..HardState::default()
        }),
        ..Batch::default()
    })?;
    Ok(())
}

/// The folder's log as a node would start from it.
fn restored_of(recovered: crate::disk::log_store::Recovered) -> Restored {
    let mut restored = Restored {
        hard_state: recovered.hard_state,
        entries: recovered.entries,
        ..Restored::default()
    };
    if let Some(snapshot) = recovered.snapshot {
        restored.conf_state = snapshot.get_metadata().get_conf_state().clone();
        restored.applied = snapshot.get_metadata().index;
        restored.snapshot = Some(snapshot);
    }
    restored
}
