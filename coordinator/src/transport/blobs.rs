//! Payloads between coordinators (law 9): on a majority before their hash is
//! proposed, fetched by hash where missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use conclave_proto::{
    INLINE_LIMIT,
    v1::{BlobRef, GetBlobRequest, Payload, PutBlobRequest, payload::Body},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::timeout,
};
use tonic::Status;

use super::Network;
use crate::{
    api::convert,
    disk::blobs::{BlobError, Blobs, Hash},
    node::NodeStatus,
};

/// Payloads that are fetched at a time because the log names them.
const FETCHES: usize = 8;
/// How long the own disk may take beside the wait for others.
const DISK: Duration = Duration::from_secs(5);
/// When a submission that met a full disk may come again.
const FULL: Duration = Duration::from_secs(10);

/// This node's blobs and the way to those of its peers.
#[derive(Clone)]
pub struct BlobNet {
    /// This node's own.
    pub local: Blobs,
    network: Network,
    status: watch::Receiver<NodeStatus>,
    under_way: Arc<Mutex<BTreeSet<Hash>>>,
    turns: Arc<Semaphore>,
}

/// A fetch that goes on until the payload is here; one a hash.
pub struct UnderWay {
    hash: Hash,
    all: Arc<Mutex<BTreeSet<Hash>>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.hash);
    }
}

impl BlobNet {
    /// Joins the local store with the network.
    pub fn new(local: Blobs, network: Network, status: watch::Receiver<NodeStatus>) -> Self {
        Self {
            local,
            network,
            status,
            under_way: Arc::default(),
            turns: Arc::new(Semaphore::new(FETCHES)),
        }
    }

    /// Marks a fetch as under way; `None` if one is already.
    pub fn begin(&self, hash: Hash) -> Option<UnderWay> {
        let all = self.under_way.clone();
        let fresh = all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(hash);
        fresh.then_some(UnderWay { hash, all })
    }

    /// [`BlobNet::fetch`], when it is this one's turn.
    ///
    /// # Errors
    /// As [`BlobNet::fetch`].
    pub async fn fetch_in_turn(&self, hash: Hash, wait: Duration) -> Result<(), Status> {
        let _turn = self
            .turns
            .acquire()
            .await
            .map_err(|e| Status::internal(e.to_string()))?;
        self.fetch(hash, wait).await
    }

    /// A payload of `bytes`: inline when small, else stored on a majority of
    /// the voters and named by its hash.
    ///
    /// # Errors
    /// UNAVAILABLE if no majority has it within `wait`; INTERNAL if the own
    /// disk refuses.
    pub async fn payload(&self, bytes: Vec<u8>, wait: Duration) -> Result<Payload, Status> {
        if bytes.len() <= INLINE_LIMIT {
            return Ok(Payload {
                body: Some(Body::Inline(bytes)),
            });
        }
        let length = bytes.len() as u64;
        let spread = Box::pin(self.spread(bytes, wait));
        let hash = timeout(wait, spread).await.map_err(|_| {
            Status::unavailable("no majority of the members stored the payload in time")
        })??;
        Ok(Payload {
            body: Some(Body::Blob(BlobRef {
                hash: hash.to_vec(),
                length,
            })),
        })
    }

    /// Stores a payload here and on peers until a majority of the voters has it: of those that vote
    /// by then, for members may come and go meanwhile.
    async fn spread(&self, bytes: Vec<u8>, wait: Duration) -> Result<Hash, Status> {
        let (me, cluster_id) = {
            let status = self.status.borrow();
            (
                status.node_id,
                status.cluster_id.clone().unwrap_or_default(),
            )
        };
        let (local, data) = (self.local.clone(), bytes.clone());
        let hash = spawn_blocking(move || local.put(&data))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| not_stored(&e))?;
        let (mut have, mut asked) = (BTreeSet::from([me]), BTreeSet::from([me]));
        let mut calls = FuturesUnordered::new();
        loop {
            let voters = self.voters();
            let held = voters.keys().filter(|id| have.contains(id)).count();
            let need = voters.len() / 2 + 1;
            if held >= need {
                return Ok(hash);
            }
            for (id, address) in voters.into_iter().filter(|(id, _)| asked.insert(*id)) {
                let call = self.put(address, cluster_id.clone(), bytes.clone(), wait);
                calls.push(async move { (id, call.await) });
            }
            match calls.next().await {
                Some((id, Ok(()))) => {
                    have.insert(id);
                }
                Some((_, Err(status))) => tracing::debug!(%status, "a peer did not take a payload"),
                None => {
                    return Err(Status::unavailable(format!(
                        "the payload is on {held} of {need} members that must hold it"
                    )));
                }
            }
        }
    }

    /// Who votes now, and where they listen.
    fn voters(&self) -> BTreeMap<u64, String> {
        let status = self.status.borrow();
        let voters = status.members.iter().filter(|(_, m)| !m.learner);
        let address = |id: u64, known: &str| {
            let learned = self.network.address(id);
            learned.unwrap_or_else(|| known.to_owned())
        };
        voters
            .map(|(id, m)| (*id, address(*id, &m.address)))
            .collect()
    }

    async fn put(
        &self,
        address: String,
        cluster_id: String,
        data: Vec<u8>,
        wait: Duration,
    ) -> Result<(), Status> {
        let mut peer = self
            .network
            .peer(&address)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let mut request = self.network.request(PutBlobRequest { cluster_id, data });
        request.set_timeout(wait);
        peer.put_blob(request).await.map(|_| ())
    }

    /// Gets a blob from whichever member has it and stores it here, unless a
    /// whole one is here already: that one becomes as young as a new one.
    ///
    /// # Errors
    /// UNAVAILABLE if no member that answers within `wait` has it, or if this one's disk does not answer.
    pub async fn fetch(&self, hash: Hash, wait: Duration) -> Result<(), Status> {
        let found = timeout(wait + DISK, self.find(hash, wait)).await;
        found.map_err(|_| Status::unavailable("this node's disk takes too long"))?
    }

    async fn find(&self, hash: Hash, wait: Duration) -> Result<(), Status> {
        let until = Instant::now() + wait;
        let local = self.local.clone();
        let whole = spawn_blocking(move || local.renew(&hash)).await;
        if whole.is_ok_and(|whole| whole) {
            return Ok(());
        }
        let (cluster_id, me) = {
            let status = self.status.borrow();
            (
                status.cluster_id.clone().unwrap_or_default(),
                status.node_id,
            )
        };
        let mut peers = self.network.addresses();
        peers.remove(&me);
        // One that does not answer leaves time for the others.
        let share = wait / u32::try_from(peers.len().max(1)).unwrap_or(u32::MAX);
        for address in peers.into_values() {
            let Ok(mut peer) = self.network.peer(&address) else {
                continue;
            };
            let wanted = GetBlobRequest {
                cluster_id: cluster_id.clone(),
                hash: hash.to_vec(),
            };
            let request = self.network.request(wanted);
            let left = until.saturating_duration_since(Instant::now());
            let call = timeout(share.min(left), peer.get_blob(request));
            let Ok(Ok(answer)) = call.await else {
                continue;
            };
            let data = answer.into_inner().data;
            if blake3::hash(&data).as_bytes() != &hash {
                continue;
            }
            let local = self.local.clone();
            return spawn_blocking(move || local.put(&data))
                .await
                .map_err(|e| Status::internal(e.to_string()))?
                .map(|_| ())
                .map_err(|e| not_stored(&e));
        }
        Err(Status::unavailable(format!(
            "no member gave blob {}",
            hex::encode(hash)
        )))
    }
}

/// What a payload that the disk does not take is called on the wire.
pub fn not_stored(error: &io::Error) -> Status {
    let text = format!("cannot store the payload: {error}");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            convert::exhausted(format!("the disk is full: {text}"), FULL)
        }
        _ => Status::internal(text),
    }
}

/// What a blob's absence is called on the wire.
pub fn status_of(error: &BlobError) -> Status {
    match error {
        BlobError::Missing(_) => Status::not_found(error.to_string()),
        BlobError::Damaged(_) => Status::data_loss(error.to_string()),
        BlobError::Io(_) => Status::internal(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::SystemTime};

    use super::*;

    /// What the log has just named may be here since long ago, on the point of being
    /// removed by whoever looked at the state before.
    #[tokio::test]
    async fn a_payload_that_is_asked_for_and_here_is_young_again() {
        let folder = tempfile::tempdir().unwrap();
        let local = Blobs::open(folder.path()).unwrap();
        let hash = local.put(b"named again").unwrap();
        let name = hex::encode(hash);
        let path = folder.path().join("blobs").join(&name[..2]).join(&name);
        let hour = Duration::from_secs(3600);
        let file = File::open(path).unwrap();
        file.set_modified(SystemTime::now() - 2 * hour).unwrap();
        let (_status, status) = watch::channel(NodeStatus::default());
        let blobs = BlobNet::new(
            local,
            Network::new(
                crate::auth::Auth::open(),
                conclave_credentials::Dial::plain(),
                1 << 20,
            ),
            status,
        );
        blobs.fetch(hash, Duration::from_secs(5)).await.unwrap();
        let age = file.metadata().unwrap().modified().unwrap().elapsed();
        assert!(age.is_ok_and(|age| age < hour));
    }
}
