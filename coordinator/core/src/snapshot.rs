//! State to bytes and back: a manifest that travels in the raft snapshot, and the state itself,
//! which streams apart (law 9).

use std::iter;

use conclave_proto::{
    LOG_VERSION,
    v1::{KeyRecord, MemberRecord, SnapshotManifest, SnapshotState},
};
use prost::Message;

use crate::{job::Job, keys::Keys, state::State, worker::Worker};

/// Why a snapshot was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A newer program wrote it.
    #[error("the snapshot needs log version {needs}, this program knows up to {known}: upgrade it")]
    TooNew {
        /// The version that it asks for.
        needs: u32,
        /// The newest that this program knows.
        known: u32,
    },
    /// The bytes are not those of the manifest.
    #[error("the snapshot's bytes do not match its manifest")]
    Mismatch,
    /// The bytes do not decode.
    #[error("the snapshot does not decode: {why}")]
    Broken {
        /// What is wrong.
        why: String,
    },
}

/// Encodes the state. Replicas at equal index give equal bytes.
pub fn encode(state: &State) -> (SnapshotManifest, Vec<u8>) {
    let bytes = bytes(state);
    let manifest = SnapshotManifest {
        log_version: state.log_version,
        cluster_id: state.cluster_id.clone(),
        index: state.applied_index,
        term: state.applied_term,
        digest: blake3::hash(&bytes).as_bytes().to_vec(),
        length: bytes.len() as u64,
    };
    (manifest, bytes)
}

/// The snapshot that a new cluster starts from (index 1, term 1): members that join later find no
/// entry before it, so that each begins with a snapshot that names the first voter.
pub fn genesis() -> (SnapshotManifest, Vec<u8>) {
    let mut state = State::new();
    state.skip(1, 1);
    encode(&state)
}

/// The manifest inside a raft snapshot's data.
///
/// # Errors
/// The bytes do not decode, or need a newer program.
pub fn manifest(data: &[u8]) -> Result<SnapshotManifest, SnapshotError> {
    manifest_up_to(data, LOG_VERSION)
}

/// [`manifest`] as a program reads it that knows log versions up to `known`.
///
/// # Errors
/// As [`manifest`].
pub fn manifest_up_to(data: &[u8], known: u32) -> Result<SnapshotManifest, SnapshotError> {
    let manifest =
        SnapshotManifest::decode(data).map_err(|e| SnapshotError::Broken { why: e.to_string() })?;
    gate(manifest.log_version, known)?;
    Ok(manifest)
}

fn gate(needs: u32, known: u32) -> Result<(), SnapshotError> {
    if needs > known {
        return Err(SnapshotError::TooNew { needs, known });
    }
    Ok(())
}

/// Checks the bytes against their manifest and decodes them.
///
/// # Errors
/// Other bytes than the manifest names, bytes that do not decode, or a newer program's.
pub fn decode(manifest: &SnapshotManifest, bytes: &[u8]) -> Result<State, SnapshotError> {
    decode_up_to(manifest, bytes, LOG_VERSION)
}

/// [`decode`] as a program does that knows log versions up to `known`.
///
/// # Errors
/// As [`decode`].
pub fn decode_up_to(
    manifest: &SnapshotManifest,
    bytes: &[u8],
    known: u32,
) -> Result<State, SnapshotError> {
    gate(manifest.log_version, known)?;
    let digest = blake3::hash(bytes);
    if manifest.length != bytes.len() as u64 || manifest.digest != digest.as_bytes() {
        return Err(SnapshotError::Mismatch);
    }
    let state =
        SnapshotState::decode(bytes).map_err(|e| SnapshotError::Broken { why: e.to_string() })?;
    gate(state.log_version, known)?;
    from_proto(state, manifest.term)
}

/// The encoded `SnapshotState`. Records are copied one at a time: all at once they would take the
/// state's memory again. Encoded parts in the order of their fields are the encoded whole.
fn bytes(state: &State) -> Vec<u8> {
    let head = SnapshotState {
        log_version: state.log_version,
        cluster_id: state.cluster_id.clone(),
        signing_seed: state.signing_seed.clone(),
        salt_key: state.salt_key.clone(),
        applied_index: state.applied_index,
        lease_clock_ms: state.lease_clock_ms,
        unix_ms: state.unix_ms,
        ..SnapshotState::default()
    };
    let jobs = state.jobs.values().map(|job| SnapshotState {
        jobs: vec![job.to_record()],
        ..SnapshotState::default()
    });
    let workers = SnapshotState {
        workers: state.workers.values().map(Worker::to_record).collect(),
        ..SnapshotState::default()
    };
    let keys = state.keys.records().map(|key| SnapshotState {
        keys: vec![key],
        ..SnapshotState::default()
    });
    let member = |(node_id, address): (&u64, &String)| MemberRecord {
        node_id: *node_id,
        address: address.clone(),
    };
    let tail = SnapshotState {
        members: state.members.iter().map(member).collect(),
        lineage: state.lineage.clone(),
        ..SnapshotState::default()
    };
    let parts = iter::once(head)
        .chain(jobs)
        .chain([workers])
        .chain(keys)
        .chain([tail]);
    let mut bytes = Vec::new();
    parts.for_each(|part| bytes.extend(part.encode_to_vec()));
    bytes
}

/// A state is written in the order of its names: bytes with another order, or with a name twice, are not
/// a state's.
fn in_order(snapshot: &SnapshotState) -> Result<(), SnapshotError> {
    let ascend = |a: &KeyRecord, b: &KeyRecord| (&a.tenant, &a.key) < (&b.tenant, &b.key);
    let parts = [
        (
            "jobs",
            snapshot.jobs.is_sorted_by(|a, b| a.job_id < b.job_id),
        ),
        (
            "workers",
            snapshot
                .workers
                .is_sorted_by(|a, b| a.worker_id < b.worker_id),
        ),
        ("keys", snapshot.keys.is_sorted_by(ascend)),
        (
            "members",
            snapshot.members.is_sorted_by(|a, b| a.node_id < b.node_id),
        ),
    ];
    match parts.into_iter().find(|(_, sorted)| !sorted) {
        None => Ok(()),
        Some((part, _)) => Err(SnapshotError::Broken {
            why: format!("{part} are out of order, or there twice"),
        }),
    }
}

fn from_proto(snapshot: SnapshotState, term: u64) -> Result<State, SnapshotError> {
    in_order(&snapshot)?;
    let mut state = State {
        log_version: snapshot.log_version,
        cluster_id: snapshot.cluster_id,
        signing_seed: snapshot.signing_seed,
        salt_key: snapshot.salt_key,
        applied_index: snapshot.applied_index,
        applied_term: term,
        lease_clock_ms: snapshot.lease_clock_ms,
        unix_ms: snapshot.unix_ms,
        lineage: snapshot.lineage,
        ..State::default()
    };
    for record in snapshot.jobs {
        let id = record.job_id.clone();
        let broken = || SnapshotError::Broken {
            why: format!("job {id} is incomplete"),
        };
        let job = Job::from_record(record).ok_or_else(broken)?;
        state.jobs.insert(id.clone(), job);
        state.reindex(&id);
    }
    for worker in snapshot.workers.into_iter().map(Worker::from_record) {
        let id = worker.worker_id.clone();
        state.workers.insert(id.clone(), worker);
        state.reorder(&id);
    }
    let jobs = &state.jobs;
    state.keys = Keys::from_records(snapshot.keys, |job_id| jobs.contains_key(job_id));
    state.members = snapshot
        .members
        .into_iter()
        .map(|m| (m.node_id, m.address))
        .collect();
    Ok(state)
}

#[cfg(test)]
mod tests;
