//! Snapshots: the manifest in a raft snapshot, and the state behind it. The digest of a manifest binds
//! the state to whoever made it, so what must hold is tried behind a digest that fits.

use conclave_coordinator_core::{State, snapshot};
use conclave_proto::v1::SnapshotManifest;
use prost::Message as _;

use super::history;
use crate::{Limits, Target};

/// Bytes of a state.
pub const TARGET: Target = Target {
    name: "snapshot",
    run,
    seeds,
    words: &["job-1", "w1", "i1", "t", "k"],
    inputs: 20_000,
    limits: Limits::SMALL,
};

fn run(input: &[u8]) {
    if let Ok(manifest) = snapshot::manifest(input) {
        // The bytes are not those that it names.
        let _ = snapshot::decode(&manifest, input);
    }
    let manifest = SnapshotManifest {
        log_version: 1,
        index: 7,
        term: 1,
        digest: blake3::hash(input).as_bytes().to_vec(),
        length: input.len() as u64,
        ..SnapshotManifest::default()
    };
    let Ok(mut state) = snapshot::decode(&manifest, input) else {
        return;
    };
    let (again, bytes) = snapshot::encode(&state);
    assert_eq!(
        snapshot::decode(&SnapshotManifest { term: 1, ..again }, &bytes).as_ref(),
        Ok(&state),
        "a state that was read can be written"
    );
    if state.applied_index() < u64::MAX / 2 {
        history::lead(&mut state);
    }
    let _ = state.outstanding();
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut state = State::new();
    for (index, command) in (1..).zip(history::golden()) {
        state.apply(index, 1, &command);
        seeds.push(snapshot::encode(&state).1);
    }
    seeds.push(snapshot::encode(&state).0.encode_to_vec());
    seeds
}
