//! A new member gets every payload before it votes.

use std::time::{Duration, Instant};

use conclave_coordinator_core::State;
use conclave_proto::v1::{LackedBlobsRequest, PutBlobRequest};
use futures::{StreamExt as _, stream};
use tonic::{Code, Status};

use super::{Api, convert};
use crate::{disk::blobs::Hash, transport::blobs};

/// Payloads that are given at a time.
const AT_ONCE: usize = 8;
/// Hashes in one question.
const QUESTION: usize = 4_096;

impl Api {
    /// A voter counts for the majority that must hold a payload: it gets all
    /// of them first (law 9). What it has is not sent, so that an addition that
    /// ran out of time goes on where it was.
    pub(super) async fn hand_over_blobs(&self, node_id: u64, until: Instant) -> Result<(), Status> {
        let wait = self.config.request_timeout();
        let live = self
            .node
            .read(false, wait, State::live_blobs)
            .await
            .map_err(convert::node_error)?;
        let address = self.network.address(node_id).unwrap_or_default();
        let live: Vec<Hash> = live.into_keys().collect();
        let lacked = self.lacked(&address, &live, wait).await?;
        let (held, count) = (live.len() - lacked.len(), live.len());
        let gifts = lacked
            .into_iter()
            .map(|hash| self.give(&address, hash, wait));
        let mut gifts = stream::iter(gifts).buffer_unordered(AT_ONCE);
        let mut given = held;
        while let Some(gift) = tokio::time::timeout_at(until.into(), gifts.next())
            .await
            .map_err(|_| {
                Status::deadline_exceeded(format!(
                    "{node_id:016x} stays a learner: it holds {given} of {count} payloads; add it \
                     again to go on"
                ))
            })?
        {
            gift?;
            given += 1;
        }
        Ok(())
    }

    /// Which of these the member says that it lacks.
    async fn lacked(
        &self,
        address: &str,
        hashes: &[Hash],
        wait: Duration,
    ) -> Result<Vec<Hash>, Status> {
        let mut lacked = Vec::new();
        for some in hashes.chunks(QUESTION) {
            let mut peer = self
                .network
                .peer(address)
                .map_err(|e| Status::invalid_argument(e.to_string()))?;
            let mut request = self.network.request(LackedBlobsRequest {
                cluster_id: self.node.now().cluster_id.unwrap_or_default(),
                hashes: some.iter().map(|hash| hash.to_vec()).collect(),
            });
            request.set_timeout(wait);
            match peer.lacked_blobs(request).await {
                Ok(answer) => {
                    let named = answer.into_inner().hashes;
                    lacked.extend(
                        named
                            .iter()
                            .filter_map(|h| Hash::try_from(h.as_slice()).ok()),
                    );
                }
                // An older program: it is sent everything.
                Err(status) if status.code() == Code::Unimplemented => lacked.extend(some),
                Err(status) => return Err(status),
            }
        }
        Ok(lacked)
    }

    /// Sends one payload; one that is not here is fetched first, and one that
    /// nothing names any more is left out.
    async fn give(&self, address: &str, hash: Hash, wait: Duration) -> Result<(), Status> {
        if let Err(status) = self.blobs.fetch(hash, wait).await {
            let named = self
                .node
                .read(false, wait, move |state| state.names_blob(&hash))
                .await
                .map_err(convert::node_error)?;
            return if named { Err(status) } else { Ok(()) };
        }
        let local = self.blobs.local.clone();
        let data = tokio::task::spawn_blocking(move || local.get(&hash))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| blobs::status_of(&e))?;
        let mut peer = self
            .network
            .peer(address)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let mut request = self.network.request(PutBlobRequest {
            cluster_id: self.node.now().cluster_id.unwrap_or_default(),
            data,
        });
        request.set_timeout(wait);
        peer.put_blob(request).await.map(|_| ())
    }
}
