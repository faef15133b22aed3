//! One coordinator: opened, served, drained.

mod grpc;
mod secrets;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicUsize},
    thread,
    time::{Duration, Instant},
};

use conclave_coordinator_core::{
    node::{Node, NodeConfig},
    quota::Quotas,
};
use conclave_credentials::{TlsError, dial::BadName, watched::FirstError};
use conclave_traces::{Exporter, Traces};
use metrics_exporter_prometheus::PrometheusHandle;
use raft::eraftpb::Message as RaftMessage;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use secrets::Secrets;

use crate::{
    api::{Api, told::Told},
    auth::{TokensError, jwt::JwksError},
    config::{Config, ConfigError},
    disk::{
        blobs::Blobs,
        identity::{Identity, IdentityError},
        log_files::LogFiles,
        reserve::Reserve,
        snapshots::Snapshots,
    },
    feed::Feeds,
    http, metrics,
    node::{
        Handle, Input, NodeError, NodeStatus, contact, lookout,
        storage::{Fatal, Storage, fit},
        task::{Parts, Task},
        watchdog::{self, Pulse},
    },
    quotas::{self, QuotasError},
    traces::JobTraces,
    transport::{Network, blobs::BlobNet, service::PeerService, turns::Turns},
};

/// Inputs that wait for the loop.
const INPUTS: usize = 4096;
/// Raft messages that wait for the loop; more are dropped, and sent anew.
const MESSAGES: usize = 4096;
/// How long the last write to the disk may take, if the drain took all of its time.
const LAST_WRITE: Duration = Duration::from_secs(2);
/// How long the last spans may take to leave, if the drain took all of its time.
const LAST_SPANS: Duration = Duration::from_secs(1);
/// Room in one message for what goes round a payload, bytes.
const ENVELOPE: usize = 1 << 20;

/// Why a coordinator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokens file.
    #[error("tokens_file: {0}")]
    Tokens(#[from] FirstError<TokensError>),
    /// The quotas file.
    #[error("quotas_file {path}: {source}", path = .path.display())]
    Quotas {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        source: QuotasError,
    },
    /// The file of `[jwt]`.
    #[error("jwt.jwks_file: {0}")]
    Jwks(#[from] FirstError<JwksError>),
    /// The files of `[tls]`.
    #[error("[tls]: {0}")]
    Tls(#[from] FirstError<TlsError>),
    /// A name in `[tls]`.
    #[error("setting `tls.server_name`: {0}")]
    Name(#[from] BadName),
    /// The data folder.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What lies in it.
    #[error("the data folder cannot be used: {0}")]
    Storage(#[from] Fatal),
    /// A socket.
    #[error("{0}")]
    Listen(io::Error),
    /// The file system or the system's limits.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
    /// Where traces go.
    #[error(transparent)]
    Traces(#[from] conclave_traces::StartError),
    /// No randomness.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

/// A running coordinator. Dropping it stops it at once, as a crash would;
/// [`Coordinator::shutdown`] hands over first.
pub struct Coordinator {
    grpc_addr: SocketAddr,
    http_addr: Option<SocketAddr>,
    node: Handle,
    network: Network,
    /// Stops sockets.
    serve: CancellationToken,
    /// Stops the node's loop and its helpers.
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    /// Resolves once the node's thread has let go of everything.
    ended: oneshot::Receiver<()>,
    exporter: Option<Exporter>,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.serve.cancel();
        self.stop.cancel();
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Coordinator {
    /// Opens the data folder, starts the node and serves. A node of no cluster
    /// starts too: it waits to be invited, or for `cluster init`.
    ///
    /// # Errors
    /// [`StartError`] names the setting, file or socket.
    pub async fn start(config: Config, metrics: PrometheusHandle) -> Result<Self, StartError> {
        Self::start_on(config, metrics, LogFiles::default()).await
    }

    /// [`Coordinator::start`] with the log on `files`: tests let them fail.
    ///
    /// # Errors
    /// As there.
    pub async fn start_on(
        config: Config,
        metrics: PrometheusHandle,
        files: LogFiles,
    ) -> Result<Self, StartError> {
        config.check()?;
        metrics::describe();
        let listener = listen(config.listen_addr()?).await?;
        let http_listener = match config.http_addr()? {
            Some(address) => Some(http::bind(address).await.map_err(StartError::Listen)?),
            None => None,
        };
        let grpc_addr = listener.local_addr()?;
        let http_addr = http_listener.as_ref().map(TcpListener::local_addr);
        let http_addr = http_addr.transpose()?;
        let address = advertised(&config, grpc_addr);
        let (stop, serve) = (CancellationToken::new(), CancellationToken::new());
        let Secrets { auth, dial, tls } = Secrets::read(&config, &address)?;
        let network = Network::new(auth.clone(), dial, config.max_message_bytes + ENVELOPE);
        let opened = Opened::open(&config, address.clone(), &network, &stop, files)?;
        let (node, ended) = (opened.handle.clone(), opened.ended);
        let reserve = Reserve::new(config.data_dir.clone(), config.disk_reserve_bytes);
        let api = Arc::new(Api {
            auth: auth.clone(),
            node: node.clone(),
            network: network.clone(),
            blobs: opened.blobs.clone(),
            feeds: opened.feeds,
            config: config.clone(),
            address: address.clone(),
            submitting: AtomicUsize::new(0),
            closing: serve.clone(),
            reserve: reserve.clone(),
            saves: Arc::new(Semaphore::new(1)),
            changing: Arc::default(),
            traces: opened.traces,
            told: Told::default(),
            certificate: tls.clone(),
        });
        let peers = PeerService {
            auth,
            node: node.clone(),
            network: network.clone(),
            blobs: opened.blobs.local,
            snapshots: opened.snapshots,
            address,
            closing: serve.clone(),
            fetching: Turns::default(),
            max_log_version: config.max_log_version,
            reserve: reserve.clone(),
        };
        let served = grpc::serve(listener, tls, api, peers, serve.clone());
        let mut tasks = vec![tokio::spawn(served)];
        tasks.extend(lookout::begin(&config, &network, &node, reserve, &stop));
        if let Some(listener) = http_listener {
            let served = http::serve(listener, metrics, node.status(), serve.clone());
            tasks.push(tokio::spawn(served));
        }
        Ok(Self {
            grpc_addr,
            http_addr,
            node,
            network,
            serve,
            stop,
            tasks,
            ended,
            exporter: opened.exporter,
        })
    }

    /// Where gRPC listens.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where HTTP listens, if it does.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http_addr
    }

    /// What the node says of itself, and changes of it.
    pub fn status(&self) -> watch::Receiver<NodeStatus> {
        self.node.status()
    }

    /// Waits until the node stops by itself (a failed disk); returns why.
    pub async fn wait(&self) -> String {
        let mut status = self.node.status();
        match status.wait_for(|s| s.stopped.is_some()).await {
            Ok(status) => status.stopped.clone().unwrap_or_default(),
            Err(_) => "the node's thread ended".to_owned(),
        }
    }

    /// Hands leadership over, lets calls end (GOAWAY), stops; all within
    /// `deadline`, then at once. A loop that hangs in its disk is left behind.
    pub async fn shutdown(mut self, deadline: Duration) {
        let until = Instant::now() + deadline;
        let half = Instant::now() + deadline / 2;
        // First of all: balancers look elsewhere while calls end.
        let _ = self.node.send(Input::Leaving, half).await;
        let mut status = self.node.status();
        let said = status.wait_for(|s| s.leaving || s.stopped.is_some());
        let _ = tokio::time::timeout_at(half.into(), said).await;
        self.hand_over(half).await;
        self.serve.cancel();
        for task in &mut self.tasks[..1] {
            let _ = tokio::time::timeout_at(until.into(), task).await;
        }
        self.stop.cancel();
        // It ends with the disk write that it is in, which a disk that hangs never does.
        let last = until.max(Instant::now() + LAST_WRITE);
        let ended = tokio::time::timeout_at(last.into(), &mut self.ended).await;
        if ended.is_err() {
            tracing::error!("the node's loop hangs in its disk: it is left behind");
        }
        if let Some(exporter) = self.exporter.take() {
            let left = until.saturating_duration_since(Instant::now());
            exporter.close(left.max(LAST_SPANS)).await;
        }
    }

    async fn hand_over(&self, until: Instant) {
        let mut status = self.node.status();
        let me = status.borrow().node_id;
        if !status.borrow().leads() || status.borrow().members.len() < 2 {
            return;
        }
        // One that can take submissions, unless it lags; else whoever can lead.
        let roomy = lookout::roomy_successor(&self.node, &self.network).await;
        let mut asked = Err(NodeError::Busy);
        for (node_id, force) in roomy.map(|id| (id, false)).into_iter().chain([(0, true)]) {
            let wait = until.saturating_duration_since(Instant::now());
            asked = self
                .node
                .ask(wait, |_, done| Input::Transfer {
                    node_id,
                    force,
                    done,
                })
                .await;
            if asked.is_ok() {
                break;
            }
        }
        if let Err(error) = asked {
            tracing::warn!(%error, "leadership was not handed over");
            return;
        }
        let other = |s: &NodeStatus| s.leader_id != 0 && s.leader_id != me;
        let _ = tokio::time::timeout_at(until.into(), status.wait_for(other)).await;
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|e| {
        StartError::Listen(io::Error::new(
            e.kind(),
            format!("cannot listen on {address}: {e}"),
        ))
    })
}

/// The data folder, opened, with the loop running on it.
struct Opened {
    handle: Handle,
    feeds: Arc<Feeds>,
    blobs: BlobNet,
    snapshots: Snapshots,
    traces: Option<Traces>,
    exporter: Option<Exporter>,
    ended: oneshot::Receiver<()>,
}

impl Opened {
    fn open(
        config: &Config,
        address: String,
        network: &Network,
        stop: &CancellationToken,
        files: LogFiles,
    ) -> Result<Self, StartError> {
        let identity = Identity::open(&config.data_dir)?;
        let snapshots = Snapshots::open(&config.data_dir)?;
        let bound = identity.cluster_id().is_some();
        let (storage, restored, state) =
            Storage::open_with(&config.data_dir, snapshots.clone(), bound, files)?;
        let cluster_id = identity.cluster_id();
        fit(&restored, &state, cluster_id, config.max_log_version)?;
        storage.claim(identity.node_id())?;
        let raft_config = raft_config(config, identity.node_id());
        let node = Node::new(&raft_config, restored).map_err(Fatal::from)?;
        let status = first_status(&identity);
        let (inputs, input_queue) = mpsc::channel(INPUTS);
        let (messages, message_queue) = mpsc::channel(MESSAGES);
        let handle = Handle::new(inputs, messages, status.subscribe());
        let local = Blobs::open(&config.data_dir)?;
        let blobs = BlobNet::new(local, network.clone(), status.subscribe());
        let feeds = Feeds::new(config.max_watchers, metrics::label(identity.node_id()));
        let pulse = Pulse::default();
        let watchdog = watchdog::watch(pulse.clone(), status.clone(), config.election() * 2);
        let contact = contact::watch(
            handle.clone(),
            network.clone(),
            status.clone(),
            config.election(),
        );
        let contact = stop.clone().run_until_cancelled_owned(contact);
        let (traces, exporter) = traces(config, identity.node_id())?;
        let quotas = quotas(config, &handle, stop)?;
        let task = Task::new(Parts {
            config: config.clone(),
            address,
            identity,
            storage: (storage, node, state),
            raft_config,
            quotas,
            boot: getrandom::u64()?,
            feeds: feeds.clone(),
            blobs: blobs.clone(),
            network: network.clone(),
            handle: handle.clone(),
            traces: traces
                .clone()
                .map(|traces| JobTraces::new(traces, blobs.local.clone())),
            status,
            pulse,
            runtime: tokio::runtime::Handle::current(),
            stop: stop.clone(),
        });
        let ended = start(task, input_queue, message_queue)?;
        tokio::spawn(watchdog);
        tokio::spawn(contact);
        Ok(Self {
            handle,
            feeds,
            blobs,
            snapshots,
            traces,
            exporter,
            ended,
        })
    }
}

/// A thread and a small runtime of its own: an fsync blocks nothing else. What is returned resolves with its end.
fn start(
    task: Task,
    inputs: mpsc::Receiver<Input>,
    messages: mpsc::Receiver<RaftMessage>,
) -> io::Result<oneshot::Receiver<()>> {
    let own = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let (alive, ended) = oneshot::channel();
    thread::Builder::new()
        .name("conclave-node".to_owned())
        .spawn(move || {
            // Dropped last, by a panic too.
            let _alive = alive;
            own.block_on(task.run(inputs, messages));
        })?;
    Ok(ended)
}

/// What tenants may have, followed until `stop`.
fn quotas(config: &Config, node: &Handle, stop: &CancellationToken) -> Result<Quotas, StartError> {
    let path = config.quotas_file.as_deref();
    quotas::begin(path, node, stop).map_err(|source| StartError::Quotas {
        path: path.unwrap_or(Path::new("")).to_owned(),
        source,
    })
}

/// Where this node's spans go, if anywhere.
fn traces(
    config: &Config,
    node_id: u64,
) -> Result<(Option<Traces>, Option<Exporter>), conclave_traces::StartError> {
    let Some(settings) = &config.traces else {
        return Ok((None, None));
    };
    let identity = conclave_traces::Identity {
        service: "conclave-coordinator",
        instance: format!("{node_id:016x}"),
        version: env!("CARGO_PKG_VERSION"),
    };
    let (traces, exporter) = conclave_traces::begin(settings, identity)?;
    Ok((Some(traces), Some(exporter)))
}

/// What a node says of itself before its loop runs.
fn first_status(identity: &Identity) -> watch::Sender<NodeStatus> {
    watch::Sender::new(NodeStatus {
        node_id: identity.node_id(),
        cluster_id: identity.cluster_id().map(str::to_owned),
        ..NodeStatus::default()
    })
}

fn raft_config(config: &Config, node_id: u64) -> NodeConfig {
    let ticks = config.election_ms / config.heartbeat_ms;
    NodeConfig {
        election_ticks: usize::try_from(ticks).unwrap_or(usize::MAX),
        heartbeat_ticks: 1,
        max_message_bytes: (config.max_message_bytes / 2) as u64,
        ..NodeConfig::new(node_id, node_id)
    }
}

/// Where others dial this node.
fn advertised(config: &Config, bound: SocketAddr) -> String {
    match config.advertise.as_str() {
        "" => bound.to_string(),
        advertise => advertise.to_owned(),
    }
}
