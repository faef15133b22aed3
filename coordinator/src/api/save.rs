//! `SaveSnapshot`: the whole state and its payloads, streamed by any member.

use std::{pin::Pin, sync::Arc, time::Duration};

use conclave_coordinator_core::{State, job::Job, snapshot};
use conclave_proto::v1::{SnapshotFrame, SnapshotHeader, SnapshotPayload, snapshot_item::Item};
use futures::Stream;
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Api, convert};
use crate::{
    disk::blobs::Hash,
    snapshot_file::{CHUNK, Chain, FORMAT_VERSION},
};

/// Frames that wait for the caller.
const AHEAD: usize = 4;
/// How long the caller may leave a frame untaken.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a payload is looked for at other members.
const FETCH: Duration = Duration::from_secs(10);

/// A snapshot on its way to the caller.
pub type Frames = Pin<Box<dyn Stream<Item = Result<SnapshotFrame, Status>> + Send>>;

impl Api {
    /// Begins a snapshot as of a linearizable read. One at a time.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED while another one is under way here,
    /// UNAVAILABLE where there is nothing to save yet, or what the read says.
    pub(super) async fn save(self: &Arc<Self>, wait: Duration) -> Result<Frames, Status> {
        let turn = self.saves.clone().try_acquire_owned().map_err(|_| {
            convert::exhausted(
                "this member is saving a snapshot already".to_owned(),
                Duration::from_secs(5),
            )
        })?;
        let state = self.read(wait, State::clone).await?;
        if state.cluster_id().is_empty() {
            return Err(convert::later(
                Status::unavailable("the cluster has just been created and has no keys yet"),
                Duration::from_secs(1),
            ));
        }
        let (queue, frames) = mpsc::channel(AHEAD);
        let saving = Saving {
            api: self.clone(),
            chain: Chain::default(),
            queue,
        };
        tokio::spawn(async move {
            saving.run(state).await;
            drop(turn);
        });
        Ok(Box::pin(ReceiverStream::new(frames)))
    }
}

/// Why no more is sent.
enum Stop {
    /// The caller is gone, or takes nothing.
    Gone,
    /// To be told.
    Failed(Status),
}

struct Saving {
    api: Arc<Api>,
    chain: Chain,
    queue: mpsc::Sender<Result<SnapshotFrame, Status>>,
}

impl Saving {
    async fn run(mut self, state: State) {
        let closing = self.api.closing.clone();
        let ended = closing.run_until_cancelled(self.all(state)).await;
        let status = match ended {
            Some(Ok(()) | Err(Stop::Gone)) => return,
            Some(Err(Stop::Failed(status))) => status,
            None => Status::unavailable("this member is going: save at another one"),
        };
        tracing::warn!(%status, "a snapshot was not saved to its end");
        let _ = tokio::time::timeout(SILENCE, self.queue.send(Err(status))).await;
    }

    async fn all(&mut self, state: State) -> Result<(), Stop> {
        let live = state.live_blobs();
        let header = SnapshotHeader {
            format_version: FORMAT_VERSION,
            jobs: state.all_jobs().count() as u64,
            live_jobs: state.all_jobs().filter(|job| !Job::is_final(job)).count() as u64,
            payloads: live.len() as u64,
            payload_bytes: live.values().sum(),
            unix_ms: crate::node::task::unix_ms(),
            node_id: self.api.node.now().node_id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            public_key: super::audit::public_key(state.signing_seed()),
            manifest: None,
        };
        let encoded = spawn_blocking(move || snapshot::encode(&state)).await;
        let (manifest, bytes) = encoded.map_err(internal)?;
        self.item(Item::Header(SnapshotHeader {
            manifest: Some(manifest),
            ..header
        }))
        .await?;
        for chunk in bytes.chunks(CHUNK) {
            self.item(Item::State(chunk.to_vec())).await?;
        }
        drop(bytes);
        for hash in live.into_keys() {
            self.payload(hash).await?;
        }
        let end = self.chain.end();
        self.send(end).await
    }

    async fn payload(&mut self, hash: Hash) -> Result<(), Stop> {
        let data = match self.local(hash).await? {
            Some(data) => data,
            None => {
                let fetched = self.api.blobs.fetch(hash, FETCH).await;
                fetched.map_err(|e| {
                    Stop::Failed(Status::unavailable(format!(
                        "the state names a payload that no member gave ({}); if its job has \
                         expired meanwhile, another snapshot will do without it",
                        e.message()
                    )))
                })?;
                self.local(hash).await?.ok_or_else(|| {
                    Stop::Failed(Status::data_loss("a payload went while it was saved"))
                })?
            }
        };
        let count = data.len().div_ceil(CHUNK).max(1);
        for at in 0..count {
            let part = &data[at * CHUNK..data.len().min((at + 1) * CHUNK)];
            self.item(Item::Payload(SnapshotPayload {
                hash: hash.to_vec(),
                data: part.to_vec(),
                last: at + 1 == count,
            }))
            .await?;
        }
        Ok(())
    }

    async fn local(&self, hash: Hash) -> Result<Option<Vec<u8>>, Stop> {
        let local = self.api.blobs.local.clone();
        let read = spawn_blocking(move || local.get(&hash).ok()).await;
        read.map_err(internal)
    }

    async fn item(&mut self, item: Item) -> Result<(), Stop> {
        let frame = self.chain.frame(item);
        self.send(frame).await
    }

    async fn send(&self, frame: SnapshotFrame) -> Result<(), Stop> {
        match tokio::time::timeout(SILENCE, self.queue.send(Ok(frame))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Stop::Gone),
        }
    }
}

fn internal(error: tokio::task::JoinError) -> Stop {
    Stop::Failed(Status::internal(error.to_string()))
}
