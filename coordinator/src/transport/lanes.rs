//! One lane a peer: a bounded queue and a task that dials, streams, and dials
//! again. What does not fit is dropped; raft sends it anew.

use std::{collections::BTreeMap, time::Duration};

use conclave_proto::v1::RaftBatch;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::Network;

/// Messages that wait for one peer.
const LANE: usize = 1024;
/// Messages in one batch.
const BATCH: usize = 64;
/// Wait before a lost lane is dialled again.
const REDIAL: Duration = Duration::from_millis(100);

/// Who sends.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The cluster of both ends.
    pub cluster_id: String,
    /// This node.
    pub node_id: u64,
    /// Where it listens.
    pub address: String,
}

/// The lanes of one node, owned by its loop.
pub struct Lanes {
    network: Network,
    sender: Sender,
    lanes: BTreeMap<u64, mpsc::Sender<Vec<u8>>>,
    stop: CancellationToken,
    runtime: tokio::runtime::Handle,
}

impl Lanes {
    /// No lane yet; their tasks run on `runtime` until `stop`.
    pub fn new(
        network: Network,
        sender: Sender,
        runtime: tokio::runtime::Handle,
        stop: CancellationToken,
    ) -> Self {
        Self {
            network,
            sender,
            lanes: BTreeMap::new(),
            stop,
            runtime,
        }
    }

    /// Queues an encoded raft message. False if the lane is full: the message
    /// is dropped.
    pub fn send(&mut self, to: u64, message: Vec<u8>) -> bool {
        let lane = self.lanes.entry(to).or_insert_with(|| {
            let (queue, messages) = mpsc::channel(LANE);
            let lane = Lane {
                network: self.network.clone(),
                sender: self.sender.clone(),
                to,
            };
            let stop = self.stop.clone();
            self.runtime.spawn(async move {
                let _ = stop.run_until_cancelled(lane.run(messages)).await;
            });
            queue
        });
        lane.try_send(message).is_ok()
    }

    /// Closes the lanes of members that left.
    pub fn retain(&mut self, members: &dyn Fn(u64) -> bool) {
        self.lanes.retain(|id, _| members(*id));
    }
}

struct Lane {
    network: Network,
    sender: Sender,
    to: u64,
}

impl Lane {
    async fn run(self, mut messages: mpsc::Receiver<Vec<u8>>) {
        let mut waiting = Vec::with_capacity(BATCH);
        // Ends when the owner drops its half.
        while messages.recv_many(&mut waiting, BATCH).await > 0 {
            if let Some(address) = self.network.address(self.to) {
                self.stream(&address, &mut waiting, &mut messages).await;
            }
            waiting.clear();
            tokio::time::sleep(REDIAL).await;
        }
    }

    /// Streams until the connection or the queue ends.
    async fn stream(
        &self,
        address: &str,
        waiting: &mut Vec<Vec<u8>>,
        messages: &mut mpsc::Receiver<Vec<u8>>,
    ) {
        let Ok(mut peer) = self.network.peer(address) else {
            return;
        };
        let (batches, stream) = mpsc::channel::<RaftBatch>(8);
        let request = self.network.request(ReceiverStream::new(stream));
        let call = peer.messages(request);
        tokio::pin!(call);
        loop {
            let batch = RaftBatch {
                cluster_id: self.sender.cluster_id.clone(),
                from: self.sender.node_id,
                to: self.to,
                messages: std::mem::take(waiting),
                from_address: self.sender.address.clone(),
            };
            tokio::select! {
                ended = &mut call => return self.ended(address, ended),
                sent = batches.send(batch) => if sent.is_err() { return },
            }
            tokio::select! {
                ended = &mut call => return self.ended(address, ended),
                count = messages.recv_many(waiting, BATCH) => if count == 0 { return },
            }
        }
    }

    fn ended<T>(&self, address: &str, result: Result<T, tonic::Status>) {
        if let Err(status) = result {
            tracing::debug!(to = self.to, address, %status, "lane lost");
        }
    }
}
