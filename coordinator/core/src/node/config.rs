//! How a node behaves, and what it finds on its disk.

use conclave_proto::v1::SnapshotManifest;
use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};

/// How a node behaves. Ticks are the shell's timer periods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Minted per data folder, never 0.
    pub id: u64,
    /// Election timeouts are derived from it (law 11).
    pub seed: u64,
    /// A follower campaigns after this to twice this many ticks of silence.
    pub election_ticks: usize,
    /// A leader beats every so many ticks.
    pub heartbeat_ticks: usize,
    /// Most bytes of entries in one message.
    pub max_message_bytes: u64,
    /// Most append messages in flight to one member.
    pub max_inflight: usize,
    /// Most bytes of entries that are proposed but not committed; further proposals are dropped.
    pub max_uncommitted_bytes: u64,
}

impl NodeConfig {
    /// The defaults for a node.
    pub fn new(id: u64, seed: u64) -> NodeConfig {
        NodeConfig {
            id,
            seed,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_message_bytes: 1 << 20,
            max_inflight: 128,
            max_uncommitted_bytes: 64 << 20,
        }
    }
}

/// What a node finds on its disk.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Restored {
    /// The last one written.
    pub hard_state: HardState,
    /// The members as of the last applied entry (the snapshot's, if none was applied since).
    pub conf_state: ConfState,
    /// The last snapshot, its data the manifest; `None` on a blank node.
    pub snapshot: Option<Snapshot>,
    /// The log behind it (older entries that are still there are fine).
    pub entries: Vec<Entry>,
    /// Last index that the restored [`crate::State`] has applied.
    pub applied: u64,
}

impl Restored {
    /// The beginning of a cluster, with this node as its only voter. The state behind `manifest` is
    /// [`crate::snapshot::genesis`]'s. Persist it before [`Node::new`](super::Node::new).
    pub fn genesis(id: u64, manifest: &SnapshotManifest) -> Restored {
        let conf_state = ConfState {
            voters: vec![id],
            ..ConfState::default()
        };
        let snapshot = snapshot_of(manifest, conf_state.clone());
        let hard_state = HardState {
            term: manifest.term,
            commit: manifest.index,
            ..HardState::default()
        };
        Restored {
            hard_state,
            conf_state,
            snapshot: Some(snapshot),
            entries: Vec::new(),
            applied: manifest.index,
        }
    }

    /// The node has never been a member: it waits to be added.
    pub fn is_blank(&self) -> bool {
        self.snapshot.is_none() && self.entries.is_empty()
    }
}

/// A raft snapshot that carries this manifest.
pub fn snapshot_of(manifest: &SnapshotManifest, conf_state: ConfState) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_data(manifest.encode_to_vec().into());
    let metadata = snapshot.mut_metadata();
    metadata.index = manifest.index;
    metadata.term = manifest.term;
    metadata.set_conf_state(conf_state);
    snapshot
}
