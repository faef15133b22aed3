//! Payloads between coordinators (law 9): on a majority before their hash is
//! proposed, fetched by hash where missing.

use std::time::Duration;

use conclave_proto::{
    INLINE_LIMIT,
    v1::{BlobRef, GetBlobRequest, Payload, PutBlobRequest, payload::Body},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{sync::watch, task::spawn_blocking};
use tonic::Status;

use super::Network;
use crate::{
    disk::blobs::{BlobError, Blobs, Hash},
    node::NodeStatus,
};

/// This node's blobs and the way to those of its peers.
#[derive(Clone)]
pub struct BlobNet {
    /// This node's own.
    pub local: Blobs,
    network: Network,
    status: watch::Receiver<NodeStatus>,
}

impl BlobNet {
    /// Joins the local store with the network.
    pub fn new(local: Blobs, network: Network, status: watch::Receiver<NodeStatus>) -> Self {
        Self {
            local,
            network,
            status,
        }
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
        let hash = self.spread(bytes, wait).await?;
        Ok(Payload {
            body: Some(Body::Blob(BlobRef {
                hash: hash.to_vec(),
                length,
            })),
        })
    }

    async fn spread(&self, bytes: Vec<u8>, wait: Duration) -> Result<Hash, Status> {
        let (cluster_id, me, voters) = {
            let status = self.status.borrow();
            let voters: Vec<_> = status
                .members
                .iter()
                .filter(|(_, m)| !m.learner)
                .map(|(id, m)| (*id, m.address.clone()))
                .collect();
            (
                status.cluster_id.clone().unwrap_or_default(),
                status.node_id,
                voters,
            )
        };
        let (local, data) = (self.local.clone(), bytes.clone());
        let hash = spawn_blocking(move || local.put(&data))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::internal(format!("cannot store the payload: {e}")))?;
        let mut have = usize::from(voters.iter().any(|(id, _)| *id == me));
        let need = voters.len() / 2 + 1;
        let mut calls: FuturesUnordered<_> = voters
            .iter()
            .filter(|(id, _)| *id != me)
            .map(|(id, address)| {
                let address = self.network.address(*id).unwrap_or_else(|| address.clone());
                self.put(address, cluster_id.clone(), bytes.clone(), wait)
            })
            .collect();
        while have < need {
            match calls.next().await {
                Some(Ok(())) => have += 1,
                Some(Err(status)) => tracing::debug!(%status, "a peer did not take a payload"),
                None => {
                    return Err(Status::unavailable(format!(
                        "the payload is on {have} of {need} members that must hold it"
                    )));
                }
            }
        }
        Ok(hash)
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

    /// Gets a blob from whichever member has it and stores it here.
    ///
    /// # Errors
    /// UNAVAILABLE if no member that answers has it.
    pub async fn fetch(&self, hash: Hash, wait: Duration) -> Result<(), Status> {
        if self.local.has(&hash) {
            return Ok(());
        }
        let (cluster_id, me) = {
            let status = self.status.borrow();
            (
                status.cluster_id.clone().unwrap_or_default(),
                status.node_id,
            )
        };
        for (_, address) in self
            .network
            .addresses()
            .into_iter()
            .filter(|(id, _)| *id != me)
        {
            let Ok(mut peer) = self.network.peer(&address) else {
                continue;
            };
            let wanted = GetBlobRequest {
                cluster_id: cluster_id.clone(),
                hash: hash.to_vec(),
            };
            let mut request = self.network.request(wanted);
            request.set_timeout(wait);
            let Ok(answer) = peer.get_blob(request).await else {
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
                .map_err(|e| Status::internal(format!("cannot store the payload: {e}")));
        }
        Err(Status::unavailable(format!(
            "no member gave blob {}",
            hex::encode(hash)
        )))
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
