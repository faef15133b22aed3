//! The peer service: what other coordinators send and ask.

use std::{pin::Pin, time::Duration};

use conclave_proto::v1::{
    FetchSnapshotRequest, GetBlobRequest, GetBlobResponse, IdentifyRequest, IdentifyResponse,
    LackedBlobsRequest, LackedBlobsResponse, PutBlobRequest, PutBlobResponse, RaftBatch,
    RaftLaneClosed, SnapshotChunk, SnapshotManifest, raft_server::Raft,
};
use futures::Stream;
use prost::Message as _;
use protobuf::Message as _;
use raft::{
    eraftpb::{Message as RaftMessage, MessageType},
    raw_node::is_local_msg,
};
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::{AsciiMetadataValue, MetadataMap},
};

use super::{Network, blobs, estranged, snapshot, turns::Turns};
use crate::{
    auth::{Auth, Role},
    disk::{blobs::Blobs, reserve::Reserve, snapshots::Snapshots},
    node::{Handle, Input, NodeStatus},
};

/// Who asks a leader for a sign of life: its cluster and node id.
pub(super) const ASKS: &str = "conclave-asks";
/// Marks the refusal of a node that was removed.
const REMOVED: &str = "conclave-removed";

/// How long binding a blank node may take.
const BIND: Duration = Duration::from_secs(5);

/// Serves `conclave.v1.Raft`.
#[derive(Clone)]
pub struct PeerService {
    /// Who may call.
    pub auth: Auth,
    /// The node.
    pub node: Handle,
    /// Addresses and channels.
    pub network: Network,
    /// This node's payloads.
    pub blobs: Blobs,
    /// This node's snapshots.
    pub snapshots: Snapshots,
    /// Where this node listens, as others dial it.
    pub address: String,
    /// Set when this node goes: lanes end, so that peers dial whoever comes next.
    pub closing: CancellationToken,
    /// Raft snapshots whose state is being fetched.
    pub fetching: Turns<(SnapshotManifest, RaftMessage)>,
    /// The newest log version that this node speaks.
    pub max_log_version: u32,
    /// Room on this node's disk.
    pub reserve: Reserve,
}

impl PeerService {
    fn peer<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.auth
            .require(request.metadata(), &[Role::Peer])
            .map(|_| ())
    }

    fn same_cluster(&self, cluster_id: &str) -> Result<(), Status> {
        self.no_past(cluster_id)?;
        match &self.node.status().borrow().cluster_id {
            Some(mine) if mine == cluster_id => Ok(()),
            Some(mine) => Err(Status::failed_precondition(format!(
                "this node belongs to cluster {mine}, not to {cluster_id}"
            ))),
            None => Err(Status::failed_precondition(
                "this node belongs to no cluster yet",
            )),
        }
    }

    /// Tells a member of the cluster that this node's own came out of what is left for it to do.
    fn no_past(&self, cluster_id: &str) -> Result<(), Status> {
        let status = self.node.status();
        let status = status.borrow();
        match &status.cluster_id {
            Some(mine) if came_from(&status).any(|past| past == cluster_id) => Err(
                Status::failed_precondition(estranged::begun_anew(cluster_id, mine)),
            ),
            _ => Ok(()),
        }
    }

    async fn next(&self, batches: &mut Streaming<RaftBatch>) -> Result<Option<RaftBatch>, Status> {
        match self.closing.run_until_cancelled(batches.message()).await {
            Some(batch) => batch,
            None => Err(Status::unavailable("this node is going")),
        }
    }

    /// Checks a batch's ends. A blank node is bound by the first batch that an
    /// authenticated member sends to its own id: ids are random and known only
    /// to whoever asked `Identify` with a peer's token, and only a leader that
    /// was told to add this node has messages for it.
    async fn admit(&self, batch: &RaftBatch) -> Result<(), Status> {
        let (me, blank) = {
            let status = self.node.status();
            let status = status.borrow();
            (status.node_id, status.cluster_id.is_none())
        };
        self.no_past(&batch.cluster_id)?;
        if batch.to != me {
            let mine = self.node.now().cluster_id.unwrap_or_default();
            let whose = match mine.as_str() {
                "" => "of no cluster".to_owned(),
                same if same == batch.cluster_id => "of the same cluster".to_owned(),
                other => format!("of cluster {other}, not {}", batch.cluster_id),
            };
            return Err(Status::failed_precondition(format!(
                "this is node {me:016x} {whose}, where node {:016x} is expected: its data folder is another",
                batch.to
            )));
        }
        if blank && !batch.cluster_id.is_empty() && !batch.messages.is_empty() {
            let cluster_id = batch.cluster_id.clone();
            self.node
                .ask(BIND, |_, done| Input::Bind { cluster_id, done })
                .await
                .map_err(|e| Status::failed_precondition(e.to_string()))?;
        }
        self.same_cluster(&batch.cluster_id)
    }

    fn take(&self, batch: RaftBatch) -> Result<(), Status> {
        // What a node says of itself may be an address of its own network only:
        // unless its operator said so, it does not replace a known one.
        if batch.advertised || self.network.address(batch.from).is_none() {
            self.network.learn(batch.from, &batch.from_address);
        }
        let mut dropped = 0;
        for bytes in batch.messages {
            let message = RaftMessage::parse_from_bytes(&bytes)
                .map_err(|e| Status::invalid_argument(format!("not a raft message: {e}")))?;
            let asks = matches!(
                message.get_msg_type(),
                MessageType::MsgRequestPreVote | MessageType::MsgRequestVote
            );
            if asks {
                self.still_member(message.from)?;
            }
            if is_local_msg(message.get_msg_type()) {
                return Err(Status::invalid_argument(format!(
                    "{:?} is no message between members",
                    message.get_msg_type()
                )));
            }
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.fetch_then_step(message);
            } else if !self.node.step(message) {
                dropped += 1;
            }
        }
        if dropped > 0 {
            crate::metrics::messages_dropped(dropped);
        }
        Ok(())
    }

    /// A member that was removed hears nothing more of its cluster, and asks for
    /// votes or a sign of life: a leader tells it why nobody answers.
    fn still_member(&self, from: u64) -> Result<(), Status> {
        let status = self.node.status();
        let status = status.borrow();
        if !status.serving || status.members.contains_key(&from) {
            return Ok(());
        }
        let mut refusal = Status::failed_precondition(format!(
            "node {:016x} is no member of cluster {}: it was removed; stop it, or add it again",
            from,
            status.cluster_id.as_deref().unwrap_or_default()
        ));
        let yes = AsciiMetadataValue::from_static("true");
        refusal.metadata_mut().insert(REMOVED, yes);
        Err(refusal)
    }

    /// The raft snapshot is a manifest: the state behind it comes first.
    fn fetch_then_step(&self, message: RaftMessage) {
        let Ok(manifest) = SnapshotManifest::decode(message.get_snapshot().get_data()) else {
            tracing::warn!(
                from = format!("{:016x}", message.from),
                "a snapshot without manifest was dropped"
            );
            return;
        };
        let Some((turn, first)) = self.fetching.begin(manifest.index, (manifest, message)) else {
            return;
        };
        let this = self.clone();
        tokio::spawn(async move {
            let mut wanted = Some(first);
            while let Some((manifest, message)) = wanted {
                match this.fetch_state(message.from, &manifest).await {
                    Ok(()) => {
                        this.node.step(message);
                    }
                    // Dropped like any message: the leader sends it again.
                    Err(status) => {
                        tracing::warn!(index = manifest.index, %status, "a snapshot was not fetched");
                    }
                }
                wanted = turn.next();
            }
        });
    }

    async fn fetch_state(&self, from: u64, manifest: &SnapshotManifest) -> Result<(), Status> {
        if self.snapshots.get(manifest).is_ok() {
            return Ok(());
        }
        let address = self
            .network
            .address(from)
            .ok_or_else(|| Status::unavailable("the sender's address is unknown"))?;
        let cluster = self.node.now().cluster_id.unwrap_or_default();
        snapshot::fetch(&self.network, &address, &cluster, manifest, &self.snapshots).await
    }
}

/// The clusters that this node's came out of, oldest first.
fn came_from(status: &NodeStatus) -> impl Iterator<Item = &str> {
    status
        .lineage
        .iter()
        .map(|from| from.from_cluster_id.as_str())
}

/// The cluster and the member of it that asks for a sign of life, if one does.
fn asks(metadata: &MetadataMap) -> Option<(&str, u64)> {
    let (cluster_id, node_id) = metadata.get(ASKS)?.to_str().ok()?.split_once(' ')?;
    Some((cluster_id, u64::from_str_radix(node_id, 16).ok()?))
}

/// True of a leader's refusal of a node that was removed.
pub(crate) fn removed(refusal: &Status) -> bool {
    refusal.metadata().contains_key(REMOVED)
}

type Chunks = Pin<Box<dyn Stream<Item = Result<SnapshotChunk, Status>> + Send>>;

#[tonic::async_trait]
impl Raft for PeerService {
    async fn messages(
        &self,
        request: Request<Streaming<RaftBatch>>,
    ) -> Result<Response<RaftLaneClosed>, Status> {
        self.peer(&request)?;
        let mut batches = request.into_inner();
        while let Some(batch) = self.next(&mut batches).await? {
            self.admit(&batch).await?;
            self.take(batch)?;
        }
        Ok(Response::new(RaftLaneClosed {}))
    }

    type FetchSnapshotStream = Chunks;

    async fn fetch_snapshot(
        &self,
        request: Request<FetchSnapshotRequest>,
    ) -> Result<Response<Chunks>, Status> {
        self.peer(&request)?;
        let wanted = request.into_inner();
        self.same_cluster(&wanted.cluster_id)?;
        let snapshots = self.snapshots.clone();
        let state = spawn_blocking(move || snapshots.find(wanted.index, &wanted.digest))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::not_found(e.to_string()))?;
        let (queue, chunks) = mpsc::channel(4);
        tokio::spawn(async move {
            for chunk in snapshot::chunks(&state) {
                // The fetcher went away, or takes nothing: it will ask again.
                let taken = timeout(snapshot::SILENCE, queue.send(Ok(chunk))).await;
                if !matches!(taken, Ok(Ok(()))) {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn put_blob(
        &self,
        request: Request<PutBlobRequest>,
    ) -> Result<Response<PutBlobResponse>, Status> {
        self.peer(&request)?;
        let put = request.into_inner();
        self.same_cluster(&put.cluster_id)?;
        let blobs = self.blobs.clone();
        let hash = spawn_blocking(move || blobs.put(&put.data))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| blobs::not_stored(&e))?;
        Ok(Response::new(PutBlobResponse {
            hash: hash.to_vec(),
        }))
    }

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<GetBlobResponse>, Status> {
        self.peer(&request)?;
        let get = request.into_inner();
        self.same_cluster(&get.cluster_id)?;
        let hash = get
            .hash
            .as_slice()
            .try_into()
            .map_err(|_| Status::invalid_argument("a hash has 32 bytes"))?;
        let blobs = self.blobs.clone();
        let data = spawn_blocking(move || blobs.get(&hash))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| blobs::status_of(&e))?;
        Ok(Response::new(GetBlobResponse { data }))
    }

    async fn lacked_blobs(
        &self,
        request: Request<LackedBlobsRequest>,
    ) -> Result<Response<LackedBlobsResponse>, Status> {
        self.peer(&request)?;
        let mut asked = request.into_inner();
        self.same_cluster(&asked.cluster_id)?;
        let blobs = self.blobs.clone();
        let absent = move || {
            let here = |hash: &Vec<u8>| hash.as_slice().try_into().is_ok_and(|h| blobs.has(&h));
            asked.hashes.retain(|hash| !here(hash));
            asked.hashes
        };
        let hashes = spawn_blocking(absent)
            .await
            .map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(LackedBlobsResponse { hashes }))
    }

    async fn identify(
        &self,
        request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyResponse>, Status> {
        self.peer(&request)?;
        let status = self.node.now();
        let came_from = came_from(&status).map(str::to_owned).collect();
        let mine = status.cluster_id.as_deref();
        if let Some((_, from)) = asks(request.metadata()).filter(|(theirs, _)| mine == Some(theirs))
        {
            self.still_member(from)?;
        }
        Ok(Response::new(IdentifyResponse {
            node_id: status.node_id,
            cluster_id: status.cluster_id.unwrap_or_default(),
            address: self.address.clone(),
            max_log_version: self.max_log_version,
            disk_short: self.reserve.check().is_err(),
            unix_ms: crate::node::task::unix_ms(),
            came_from,
        }))
    }
}
