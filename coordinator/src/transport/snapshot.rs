//! The state behind a raft snapshot, in checksummed chunks.

use std::time::Duration;

use conclave_proto::v1::{FetchSnapshotRequest, SnapshotChunk, SnapshotManifest};
use tonic::Status;

use super::Network;
use crate::disk::snapshots::Snapshots;

/// Bytes of state in one chunk.
pub const CHUNK: usize = 256 << 10;
/// How long the sender may be silent before a chunk, and the fetcher leave one untaken.
pub const SILENCE: Duration = Duration::from_secs(10);

/// Cuts a state into chunks, each with its own digest.
pub fn chunks(state: &[u8]) -> impl Iterator<Item = SnapshotChunk> + '_ {
    state
        .chunks(CHUNK)
        .enumerate()
        .map(|(i, data)| SnapshotChunk {
            offset: (i * CHUNK) as u64,
            data: data.to_vec(),
            digest: blake3::hash(data).as_bytes().to_vec(),
        })
}

/// Fetches the state behind `manifest` from `address` and stores it. Nothing
/// is stored unless the whole state is what the manifest says.
///
/// # Errors
/// DATA_LOSS for a wrong chunk, DEADLINE_EXCEEDED for a silent sender, or what
/// the call or the disk says.
pub async fn fetch(
    network: &Network,
    address: &str,
    cluster_id: &str,
    manifest: &SnapshotManifest,
    snapshots: &Snapshots,
) -> Result<(), Status> {
    fetch_within(SILENCE, network, address, cluster_id, manifest, snapshots).await
}

/// [`fetch`] from a sender that may be silent for so long.
async fn fetch_within(
    silence: Duration,
    network: &Network,
    address: &str,
    cluster_id: &str,
    manifest: &SnapshotManifest,
    snapshots: &Snapshots,
) -> Result<(), Status> {
    let mut peer = network
        .peer(address)
        .map_err(|e| Status::invalid_argument(e.to_string()))?;
    let request = network.request(FetchSnapshotRequest {
        // Not the manifest's: a cluster's first snapshot is older than its name.
        cluster_id: cluster_id.to_owned(),
        index: manifest.index,
        digest: manifest.digest.clone(),
    });
    let silent = |_| Status::deadline_exceeded("the sender of a snapshot fell silent");
    let begun = tokio::time::timeout(silence, peer.fetch_snapshot(request)).await;
    let mut stream = begun.map_err(silent)??.into_inner();
    let mut state = Vec::new();
    loop {
        let next = tokio::time::timeout(silence, stream.message())
            .await
            .map_err(silent)?;
        let Some(chunk) = next? else { break };
        let whole = chunk.offset == state.len() as u64
            && blake3::hash(&chunk.data).as_bytes().as_slice() == chunk.digest
            && state.len() as u64 + chunk.data.len() as u64 <= manifest.length;
        if !whole {
            return Err(Status::data_loss(format!(
                "snapshot chunk at {} is damaged",
                chunk.offset
            )));
        }
        state.extend_from_slice(&chunk.data);
    }
    let (snapshots, manifest) = (snapshots.clone(), manifest.clone());
    tokio::task::spawn_blocking(move || snapshots.put(&manifest, &state))
        .await
        .map_err(|e| Status::internal(e.to_string()))?
        .map_err(|e| Status::data_loss(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member whose disk hangs: it takes the call, and says nothing.
    #[tokio::test]
    async fn a_sender_that_never_begins_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let hangs = tower::service_fn(|_: tonic::codegen::http::Request<_>| {
            std::future::pending::<
                Result<tonic::codegen::http::Response<tonic::body::Body>, std::convert::Infallible>,
            >()
        });
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().serve_with_incoming(hangs, incoming);
        let server = tokio::spawn(server);
        let (auth, dial) = (
            crate::auth::Auth::open(),
            conclave_credentials::Dial::plain(),
        );
        let network = Network::new(auth, dial, 1 << 20);
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(folder.path()).unwrap();
        let manifest = SnapshotManifest::default();
        let soon = Duration::from_millis(50);
        let fetched = fetch_within(soon, &network, &address, "c", &manifest, &snapshots);
        let refusal = tokio::time::timeout(SILENCE, fetched).await.unwrap();
        assert_eq!(refusal.unwrap_err().code(), tonic::Code::DeadlineExceeded);
        server.abort();
    }

    #[test]
    fn chunks_cover_the_state_once_and_in_order() {
        let state: Vec<u8> = (0..CHUNK * 2 + 7).map(|i| (i % 251) as u8).collect();
        let mut joined = Vec::new();
        for chunk in chunks(&state) {
            assert_eq!(chunk.offset, joined.len() as u64);
            assert_eq!(chunk.digest, blake3::hash(&chunk.data).as_bytes());
            joined.extend_from_slice(&chunk.data);
        }
        assert_eq!(joined, state);
        assert_eq!(chunks(&[]).count(), 0);
    }
}
