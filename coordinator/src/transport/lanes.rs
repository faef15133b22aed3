//! One lane a peer: a bounded queue and a task that dials, streams, and dials
//! again. What does not fit is dropped; raft sends it anew.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    time::{Duration, Instant},
};

use conclave_proto::v1::RaftBatch;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{Network, estranged, service};
use crate::node::{Handle, Input};

/// Messages that wait for one peer.
const LANE: usize = 1024;
/// Messages in one batch.
const BATCH: usize = 64;
/// Wait before a lost lane is dialled again.
const REDIAL: Duration = Duration::from_millis(100);
/// Pauses, ms, before each look whether a lost peer's process has ended.
const PROBES_MS: [u64; 5] = [0, 2, 8, 20, 60];

/// How often the same refusal of a peer is logged.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Who sends.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The cluster of both ends.
    pub cluster_id: String,
    /// This node.
    pub node_id: u64,
    /// Where it listens.
    pub address: String,
    /// The address is the operator's own word, not what the system bound.
    pub advertised: bool,
    /// Bytes of messages in one batch, unless a single one is longer.
    pub most: usize,
}

/// The lanes of one node, owned by its loop.
pub struct Lanes {
    network: Network,
    sender: Sender,
    node: Handle,
    lanes: BTreeMap<u64, mpsc::Sender<Vec<u8>>>,
    stop: CancellationToken,
    runtime: tokio::runtime::Handle,
}

impl Lanes {
    /// No lane yet; their tasks run on `runtime` until `stop`, and tell `node`
    /// of members that they lost.
    pub fn new(
        network: Network,
        sender: Sender,
        node: Handle,
        runtime: tokio::runtime::Handle,
        stop: CancellationToken,
    ) -> Self {
        Self {
            network,
            sender,
            node,
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
                node: self.node.clone(),
                to,
                batch: Batch::new(self.sender.most),
                refusal: None,
                removed: false,
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

/// Messages that go together.
struct Batch {
    messages: Vec<Vec<u8>>,
    /// Did not fit into the last batch.
    next: Option<Vec<u8>>,
    most: usize,
}

impl Batch {
    fn new(most: usize) -> Self {
        Self {
            messages: Vec::with_capacity(BATCH),
            next: None,
            most,
        }
    }

    /// Waits for a message and takes what fits beside it; false once the queue
    /// is closed. A member far behind gets messages of many entries: together
    /// they may be longer than a gRPC message can be.
    async fn fill(&mut self, queue: &mut mpsc::Receiver<Vec<u8>>) -> bool {
        if self.messages.is_empty() {
            let first = match self.next.take() {
                Some(message) => Some(message),
                None => queue.recv().await,
            };
            let Some(first) = first else { return false };
            self.messages.push(first);
        }
        let mut bytes: usize = self.messages.iter().map(Vec::len).sum();
        while self.messages.len() < BATCH && self.next.is_none() {
            let Ok(message) = queue.try_recv() else { break };
            bytes += message.len();
            if bytes <= self.most {
                self.messages.push(message);
            } else {
                self.next = Some(message);
            }
        }
        true
    }

    /// Forgets everything: raft sends it anew.
    fn clear(&mut self) {
        self.messages.clear();
        self.next = None;
    }
}

struct Lane {
    network: Network,
    sender: Sender,
    node: Handle,
    to: u64,
    batch: Batch,
    /// What the peer was last heard to refuse, and when that was logged.
    refusal: Option<(String, Instant)>,
    /// The peer said that this node is no member any more.
    removed: bool,
}

impl Lane {
    async fn run(mut self, mut queue: mpsc::Receiver<Vec<u8>>) {
        // Ends when the owner drops its half.
        while self.batch.fill(&mut queue).await {
            let address = self.network.address(self.to);
            if let Some(address) = &address {
                self.stream(address, &mut queue).await;
            }
            if std::mem::take(&mut self.removed) {
                self.tell(Input::Removed).await;
            }
            self.batch.clear();
            // What was on its way is lost: raft goes back to what is known to
            // have arrived. A busy node learns it by the member's answers.
            self.tell(Input::Unreachable(self.to)).await;
            if let Some(address) = &address
                && process_ended(address).await
            {
                self.tell(Input::Gone(self.to)).await;
            }
            tokio::time::sleep(REDIAL).await;
        }
    }

    async fn tell(&self, input: Input) {
        let _ = self.node.send(input, Instant::now() + REDIAL).await;
    }

    /// Streams until the connection or the queue ends.
    async fn stream(&mut self, address: &str, queue: &mut mpsc::Receiver<Vec<u8>>) {
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
                messages: std::mem::take(&mut self.batch.messages),
                from_address: self.sender.address.clone(),
                advertised: self.sender.advertised,
            };
            tokio::select! {
                ended = &mut call => return self.ended(address, ended),
                sent = batches.send(batch) => if sent.is_err() { return },
            }
            tokio::select! {
                ended = &mut call => return self.ended(address, ended),
                open = self.batch.fill(queue) => if !open { return },
            }
        }
    }

    fn ended<T>(&mut self, address: &str, result: Result<T, tonic::Status>) {
        let Err(status) = result else { return };
        self.removed |= service::removed(&status);
        let to = format!("{:016x}", self.to);
        let refused = matches!(
            status.code(),
            Code::FailedPrecondition | Code::Unauthenticated | Code::PermissionDenied
        );
        let said =
            |(text, at): &(String, Instant)| text == status.message() && at.elapsed() < SAY_AGAIN;
        if !refused || self.refusal.as_ref().is_some_and(said) {
            tracing::debug!(to, address, %status, "lane lost");
            return;
        }
        let why = estranged::refused(&status).unwrap_or(status.message());
        tracing::warn!(to, address, why, "a member refuses this node's messages");
        self.refusal = Some((status.message().to_owned(), Instant::now()));
    }
}

/// Whether the machine answers that nothing listens there. Silence says nothing: a machine, or the way to
/// it, may be slow. Asked more than once, for a process that ends may close its lanes before its listener.
async fn process_ended(address: &str) -> bool {
    for pause in PROBES_MS {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let dial = tokio::time::timeout(REDIAL, TcpStream::connect(address)).await;
        match dial {
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return true,
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_refuses_means_that_the_process_ended() {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        assert!(!process_ended(&address).await);
        drop(socket);
        assert!(process_ended(&address).await);
    }

    #[tokio::test]
    async fn a_batch_is_bounded_by_bytes_and_loses_nothing() {
        let (send, mut queue) = mpsc::channel(16);
        for length in [4, 4, 4, 30, 1] {
            send.send(vec![0; length]).await.unwrap();
        }
        drop(send);
        let mut batch = Batch::new(10);
        let mut lengths = Vec::new();
        while batch.fill(&mut queue).await {
            let messages = std::mem::take(&mut batch.messages);
            lengths.push(messages.iter().map(Vec::len).collect::<Vec<_>>());
        }
        let expected: [&[usize]; 4] = [&[4, 4], &[4], &[30], &[1]];
        assert_eq!(lengths, expected);
    }
}
