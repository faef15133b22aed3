//! Between coordinators: channels, lanes of raft messages, snapshots, payloads.

pub mod blobs;
pub mod estranged;
pub mod lanes;
pub mod service;
pub mod snapshot;
pub mod turns;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use conclave_credentials::Dial;
use conclave_proto::v1::{IdentifyRequest, IdentifyResponse, raft_client::RaftClient};
use dashmap::DashMap;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::auth::Auth;

/// How long a dial may take.
const DIAL: Duration = Duration::from_secs(2);
/// How long a peer may leave a keepalive unanswered.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// What one stream of a call passed on may hold that is not read yet, bytes. A watcher that reads nothing
/// fills its own.
const STREAM_WINDOW: u32 = 256 << 10;
/// Above what all streams of a connection may hold: none waits for another's watcher. HTTP/2's largest.
const CALLS_WINDOW: u32 = (1 << 31) - 1;

/// An address that cannot be dialled.
#[derive(Debug, thiserror::Error)]
#[error("`{address}` is not HOST:PORT, e.g. 10.0.0.6:7400")]
pub struct BadAddress {
    /// What was given.
    pub address: String,
}

/// Connections to other coordinators, two an address, dialled when used and
/// again when lost; and the book of members' addresses.
///
/// Raft has a connection of its own: what callers do, or do not read, never
/// holds it up.
#[derive(Clone)]
pub struct Network {
    peers: Arc<DashMap<String, Channel>>,
    calls: Arc<DashMap<String, Channel>>,
    book: Arc<RwLock<BTreeMap<u64, String>>>,
    auth: Auth,
    dial: Dial,
    max_message: usize,
}

impl Network {
    /// Nothing dialled yet. `auth` has the token that is shown to peers; `max_message` bounds
    /// what is read from them, bytes.
    pub fn new(auth: Auth, dial: Dial, max_message: usize) -> Self {
        Self {
            peers: Arc::default(),
            calls: Arc::default(),
            book: Arc::default(),
            auth,
            dial,
            max_message,
        }
    }

    /// The address of a member, as last heard.
    pub fn address(&self, node_id: u64) -> Option<String> {
        self.book
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&node_id)
            .cloned()
    }

    /// Every address in the book, by node id.
    pub fn addresses(&self) -> BTreeMap<u64, String> {
        self.book
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Learns where a member listens.
    pub fn learn(&self, node_id: u64, address: &str) {
        if node_id == 0 || address.is_empty() {
            return;
        }
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        if book.get(&node_id).is_none_or(|known| known != address) {
            book.insert(node_id, address.to_owned());
        }
    }

    /// Forgets a member that left.
    pub fn forget(&self, node_id: u64) {
        self.book
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&node_id);
    }

    /// A channel to `address` (`host:port`) for callers' calls that are passed on; connects when first used.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub fn calls(&self, address: &str) -> Result<Channel, BadAddress> {
        self.channel(&self.calls, address, |endpoint| {
            endpoint
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CALLS_WINDOW)
        })
    }

    fn channel(
        &self,
        known: &DashMap<String, Channel>,
        address: &str,
        windows: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Channel, BadAddress> {
        if let Some(channel) = known.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = self.dial.endpoint(address).ok();
        let endpoint = endpoint
            .filter(|endpoint| endpoint.uri().port().is_some())
            .ok_or_else(|| BadAddress {
                address: address.to_owned(),
            })?
            .connect_timeout(DIAL)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let channel = self.dial.lazily(&windows(endpoint));
        known.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// A client of the peer service at `address`.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub fn peer(&self, address: &str) -> Result<RaftClient<Channel>, BadAddress> {
        Ok(
            RaftClient::new(self.channel(&self.peers, address, |endpoint| endpoint)?)
                .max_decoding_message_size(self.max_message)
                .max_encoding_message_size(self.max_message),
        )
    }

    /// A request that shows this node's peer token.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = self.auth.peer() {
            request.metadata_mut().insert("authorization", token);
        }
        request
    }

    /// Asks a node what it is; within `wait`, the dial included.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a bad address, DEADLINE_EXCEEDED, else what the call says.
    pub async fn identify(
        &self,
        address: &str,
        wait: Duration,
    ) -> Result<IdentifyResponse, Status> {
        self.ask(address, self.request(IdentifyRequest {}), wait)
            .await
    }

    /// Asks the leader for a sign of life, as the member `me` of `cluster_id`.
    ///
    /// # Errors
    /// As [`Network::identify`]; of a leader, FAILED_PRECONDITION if `me` is no member any more.
    pub async fn sign_of_life(
        &self,
        leader: &str,
        (cluster_id, me): (&str, u64),
        wait: Duration,
    ) -> Result<(), Status> {
        let mut request = self.request(IdentifyRequest {});
        if let Ok(asks) = format!("{cluster_id} {me:x}").parse() {
            request.metadata_mut().insert(service::ASKS, asks);
        }
        self.ask(leader, request, wait).await.map(drop)
    }

    async fn ask(
        &self,
        address: &str,
        mut request: Request<IdentifyRequest>,
        wait: Duration,
    ) -> Result<IdentifyResponse, Status> {
        let mut peer = self
            .peer(address)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        request.set_timeout(wait);
        // A call's own timeout begins once there is a connection.
        match tokio::time::timeout(wait, peer.identify(request)).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }
}
