//! The gRPC services, and what they share: who calls, and who carries it out.

pub mod audit;
pub mod cluster;
pub mod contemplation;
pub mod convert;
mod hand_over;
mod hop;
pub mod members;
pub mod save;
mod stranger;
pub mod submit;
pub mod told;
pub mod upgrade;
pub mod watch;
pub mod workers;

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use conclave_coordinator_core::State;
use conclave_credentials::{Material, Watched};
use conclave_traces::Traces;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, metadata::MetadataMap, transport::Channel};

use hop::look_again;
use told::Told;

use crate::{
    auth::Auth,
    config::Config,
    disk::reserve::Reserve,
    door::deadline,
    feed::Feeds,
    metrics,
    node::{Handle, NodeError, NodeRole, NodeStatus},
    transport::{Network, blobs::BlobNet, estranged},
};

/// Marks a call that a coordinator passed on: it is not passed on again.
const PROXIED: &str = "conclave-proxied";
/// Marks the refusal of a call that reached a node which does not lead.
const NOT_LEADER: &str = "conclave-not-leader";
/// Longest reply that is passed on, bytes: a job with all its drafts.
pub const REPLY: usize = 64 << 20;
/// How long a known leader may fail to answer before it is looked up again.
const LOOK_UP: Duration = Duration::from_millis(250);
/// How long a member is given to say that it is there.
pub(crate) const PROBE: Duration = Duration::from_millis(500);

/// What every service holds.
pub struct Api {
    /// Who may call.
    pub auth: Auth,
    /// The node.
    pub node: Handle,
    /// Channels and addresses.
    pub network: Network,
    /// Payloads.
    pub blobs: BlobNet,
    /// Watchers' feeds.
    pub feeds: Arc<Feeds>,
    /// Settings.
    pub config: Config,
    /// Where this node listens, as others dial it.
    pub address: String,
    /// Submissions under way: they count as live jobs, or many at once would pass the bound together.
    pub submitting: AtomicUsize,
    /// Set when this node goes: streams end.
    pub closing: CancellationToken,
    /// Room on the disk that submissions leave alone.
    pub reserve: Reserve,
    /// Snapshots that may be saved at a time.
    pub saves: Arc<Semaphore>,
    /// The change of members or versions that is under way here, if one is.
    pub changing: Arc<Mutex<Option<String>>>,
    /// What callers are shown of TLS; `None`: nothing.
    pub certificate: Option<Arc<Watched<Material>>>,
    /// Where spans of calls go; `None`: nothing is traced.
    pub traces: Option<Traces>,
    /// What workers of sessions here tell of their files.
    pub told: Told,
}

/// A change's turn; the next one's when it is dropped.
pub struct Turn(Arc<Mutex<Option<String>>>);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// True for a call that another coordinator passed on: it is counted where the caller made it.
pub fn passed_on(metadata: &MetadataMap) -> bool {
    metadata.contains_key(PROXIED)
}

/// Who carries a call out.
pub enum Route {
    /// This node leads.
    Here,
    /// Another node leads.
    Leader {
        /// Who was found to lead: what is asked through `channel` ends with it.
        id: u64,
        /// The way there.
        channel: Channel,
    },
}

impl Api {
    /// How long a call may wait: the caller's deadline, less what the way back
    /// takes, and at most what is configured.
    pub fn patience(&self, metadata: &MetadataMap) -> Duration {
        patience(metadata, self.config.request_timeout())
    }

    /// Takes the turn of `change`: what it checked must still hold when it is
    /// made, so there is one at a time.
    ///
    /// # Errors
    /// FAILED_PRECONDITION, naming the change that is under way.
    pub fn turn(&self, change: String) -> Result<Turn, Status> {
        let mut under_way = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = under_way.as_ref() {
            return Err(Status::failed_precondition(format!(
                "{other} is under way: wait for its end, then try again"
            )));
        }
        *under_way = Some(change);
        Ok(Turn(self.changing.clone()))
    }

    /// Finds who leads, waiting for an election if there is one.
    ///
    /// # Errors
    /// UNAVAILABLE on a blank node, if no leader is found by `deadline`, on a node
    /// that is cut off, or for a call that was passed on to a node that does not
    /// lead.
    pub async fn route(&self, metadata: &MetadataMap, deadline: Instant) -> Result<Route, Status> {
        // Whoever passed a call on looks for the leader itself.
        let passed_on = passed_on(metadata);
        tokio::select! {
            biased;
            refusal = self.cut_off(), if !passed_on => Err(refusal),
            route = self.leader_or_here(metadata, deadline) => route,
        }
    }

    async fn leader_or_here(
        &self,
        metadata: &MetadataMap,
        deadline: Instant,
    ) -> Result<Route, Status> {
        let mut status = self.node.status();
        let passed_on = passed_on(metadata);
        let now = Instant::now();
        let deadline = now + less_probe(deadline.saturating_duration_since(now));
        loop {
            {
                let now = status.borrow_and_update();
                if let Some(why) = &now.stopped {
                    return Err(Status::unavailable(format!("this node has stopped: {why}")));
                }
                let blank = now.cluster_id.is_none();
                if blank && !passed_on {
                    return Err(convert::node_error(NodeError::Blank));
                }
                if now.serving {
                    return Ok(Route::Here);
                }
                if (blank || !now.leads() || now.stuck) && passed_on {
                    let mut refusal = Status::unavailable("this node does not lead");
                    refusal
                        .metadata_mut()
                        .insert(NOT_LEADER, convert::ascii("true"));
                    return Err(refusal);
                }
                if now.leader_id != 0
                    && !now.leads()
                    && let Some(address) = self.network.address(now.leader_id)
                {
                    // The leader asks again; but strangers do not come so far, and it sees this node's
                    // certificate, not the caller's.
                    self.auth.caller(metadata)?;
                    let id = now.leader_id;
                    let channel = self.network.calls(&address);
                    return channel
                        .map(|channel| Route::Leader { id, channel })
                        .map_err(|e| Status::internal(e.to_string()));
                }
            }
            match tokio::time::timeout_at(deadline.into(), status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Status::unavailable("this node has stopped")),
                Err(_) => return Err(self.no_leader().await),
            }
        }
    }

    /// Reads the state linearizably.
    ///
    /// # Errors
    /// What the node says; without a quorum, the members that do not answer.
    pub async fn read<T: Send + 'static>(
        &self,
        wait: Duration,
        read: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let result = tokio::select! {
            biased;
            refusal = self.cut_off() => return Err(refusal),
            result = self.node.read(true, less_probe(wait), read) => result,
        };
        match result {
            Err(NodeError::NoQuorum(_)) => Err(self.no_leader().await),
            result => result.map_err(convert::node_error),
        }
    }

    /// Ends once this node is cut off, or removed: whoever waits here had better ask another member.
    /// Later calls need not wait for that anew.
    async fn cut_off(&self) -> Status {
        let mut status = self.node.status();
        let why = |s: &NodeStatus| match s.role {
            NodeRole::Removed if s.leader_id == 0 => s.unready(),
            _ => s.cut_off.clone(),
        };
        let found = status.wait_for(|s| why(s).is_some()).await;
        let Some(why) = found.ok().and_then(|status| why(&status)) else {
            // The node has stopped: whoever waits for it hears so.
            return std::future::pending().await;
        };
        let text = format!("this node is cut off: {why}; ask another member");
        convert::later(Status::unavailable(text), self.config.election())
    }

    /// Ends once another than `leader` leads.
    async fn succeeded(&self, leader: u64) {
        let mut status = self.node.status();
        let other = |s: &NodeStatus| s.leader_id != 0 && s.leader_id != leader;
        if status.wait_for(other).await.is_err() {
            std::future::pending().await
        }
    }

    /// UNAVAILABLE, with the members that do not answer.
    async fn no_leader(&self) -> Status {
        let missing = silent_members(&self.network, &self.node.now()).await;
        let why = if missing.is_empty() {
            "every member answers: try again".to_owned()
        } else {
            format!("members that do not answer: {}", missing.join(", "))
        };
        let text = format!("no leader with a quorum was found in time; {why}");
        convert::later(Status::unavailable(text), self.config.election())
    }

    /// A request to pass on, with the caller's own authorization.
    pub fn pass_on<T>(&self, metadata: &MetadataMap, message: T, wait: Duration) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = metadata.get("authorization") {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        request
            .metadata_mut()
            .insert(PROXIED, convert::ascii("true"));
        request.set_timeout(wait);
        request
    }
}

/// Asks every other member who it is; those that do not answer, by name, and those that answer as no members of
/// one cluster do, with what to compare.
pub(crate) async fn silent_members(network: &Network, status: &NodeStatus) -> Vec<String> {
    let others = status
        .members
        .iter()
        .filter(|(id, _)| **id != status.node_id);
    let probes = others.map(|(id, member)| async move {
        let why = match network.identify(&member.address, PROBE).await {
            Ok(found) => {
                let mine = status.cluster_id.as_deref().unwrap_or_default();
                Some(estranged::other_cluster(&found, mine)?)
            }
            Err(refusal) => network.estranged(&member.address, &refusal).await,
        };
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        Some(format!("{id:016x} at {}{why}", member.address))
    });
    let asked = futures::future::join_all(probes).await;
    asked.into_iter().flatten().collect()
}

/// What is left to wait once asking the members who is there has its share.
fn less_probe(wait: Duration) -> Duration {
    wait.saturating_sub(PROBE.min(wait / 2))
}

/// The caller's deadline, less what the way back takes, and at most `most`.
pub fn patience(metadata: &MetadataMap, most: Duration) -> Duration {
    let asked = metadata
        .get("grpc-timeout")
        .and_then(|v| v.to_str().ok())
        .and_then(deadline::parse);
    asked.map_or(most, |asked| most.min(asked.mul_f32(0.9)))
}

/// Counts and times a unary call; a refusal that a later try may not meet says when to come again.
///
/// # Errors
/// What the call says.
pub async fn timed<T>(
    method: &'static str,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let started = Instant::now();
    let result = call.await.map_err(|status| match status.code() {
        Code::Unavailable => convert::later(status, LOOK_UP),
        _ => status,
    });
    let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
    metrics::grpc(method, code, started.elapsed());
    result
}

#[cfg(test)]
pub(crate) mod tests {
    use tempfile::TempDir;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::{
        disk::blobs::Blobs,
        node::{Input, NodeRole, NodeStatus},
    };

    /// Node 1, a follower of 2.
    pub fn status() -> NodeStatus {
        NodeStatus {
            node_id: 1,
            cluster_id: Some("c".to_owned()),
            leader_id: 2,
            role: NodeRole::Follower,
            ..NodeStatus::default()
        }
    }

    /// What the services of a node hold whose loop the test plays.
    pub fn api(inputs: mpsc::Sender<Input>, status: &watch::Sender<NodeStatus>) -> (Api, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: folder.path().to_owned(),
            ..Config::default()
        };
        let network = Network::new(
            Auth::open(),
            conclave_credentials::Dial::plain(),
            config.max_message_bytes,
        );
        let local = Blobs::open(folder.path()).unwrap();
        let api = Api {
            auth: Auth::open(),
            node: Handle::new(inputs, mpsc::channel(1).0, status.subscribe()),
            blobs: BlobNet::new(local, network.clone(), status.subscribe()),
            network,
            feeds: Feeds::new(8, metrics::label(1)),
            address: String::new(),
            submitting: AtomicUsize::new(0),
            closing: CancellationToken::new(),
            reserve: Reserve::new(folder.path().to_owned(), 0),
            saves: Arc::new(Semaphore::new(1)),
            changing: Arc::default(),
            certificate: None,
            traces: None,
            told: Told::default(),
            config,
        };
        (api, folder)
    }
}
