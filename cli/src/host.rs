//! A whole cluster in this process, on loopback: for `ask` and `up`.
//!
//! Nothing is faked: the parts talk gRPC over sockets and write real logs.
mod repair;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use conclave_coordinator::{
    Config as CoordinatorConfig, Coordinator, StartError as CoordinatorError,
};
use conclave_proto::v1::{StatusRequest, StatusResponse};
use conclave_traces::Settings as TraceSettings;
use conclave_worker::{
    Config as WorkerConfig, ModelConfig, StartError as WorkerError, Worker, config::ActivationKind,
    device::DeviceKind,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tempfile::TempDir;
use tokio::time::Instant;

use self::repair::{Repair, refuse_too_few, repair};
use crate::{
    args::Global,
    client::{Client, Link},
    commands::{cluster, worker},
    error::{CliError, chain},
};

/// Longest wait for a cluster to elect and for workers to register.
const SETTLE: Duration = Duration::from_secs(60);
/// How long calls may take to end when a whole cluster goes.
const LAST_CALLS: Duration = Duration::from_secs(1);
/// How often a settling cluster is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What to host.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Coordinators, at least one.
    pub coordinators: u16,
    /// Workers.
    pub workers: u16,
    /// Kept across restarts; `None` is a temporary folder.
    pub data_dir: Option<PathBuf>,
    /// First port: gRPC takes it and the next ones, HTTP those from ten on.
    /// `None` takes free ports.
    pub port_base: Option<u16>,
    /// The model's file or folder.
    pub model: PathBuf,
    /// The name that jobs ask for; empty: from the file.
    pub model_name: String,
    /// Rounding of activations.
    pub activation: ActivationKind,
    /// What workers compute on.
    pub device: DeviceKind,
    /// Where spans go: a collector's OTLP/gRPC port, as a URL.
    pub traces: Option<String>,
}

impl Plan {
    fn traces(&self) -> Option<TraceSettings> {
        let endpoint = self.traces.clone()?;
        Some(TraceSettings {
            endpoint,
            ..TraceSettings::default()
        })
    }
}

/// A folder that is removed at the end, or one that stays.
enum Folder {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(path) => path,
        }
    }
}

/// A running cluster. Dropping it ends it without a drain.
pub struct LocalCluster {
    // Workers before coordinators, and the folder last: the order of the end.
    workers: Vec<Worker>,
    coordinators: Vec<Coordinator>,
    folder: Folder,
}

impl LocalCluster {
    /// Starts the parts, creates the cluster if its folder holds none yet, and
    /// waits until every worker has registered.
    pub async fn start(
        plan: &Plan,
        global: &Global,
        metrics: &PrometheusHandle,
    ) -> Result<(Self, Client), CliError> {
        let folder = open_folder(plan.data_dir.as_deref())?;
        let mut this = Self {
            workers: Vec::new(),
            coordinators: Vec::new(),
            folder,
        };
        this.start_coordinators(plan, metrics).await?;
        let client = global.local_client(&this.endpoints())?;
        let found = this.found(&client);
        // The weights load while the cluster elects.
        let ((), workers) = tokio::try_join!(found, this.start_workers(plan, metrics))?;
        this.workers = workers;
        this.settle(&client).await?;
        Ok((this, client))
    }

    async fn start_coordinators(
        &mut self,
        plan: &Plan,
        metrics: &PrometheusHandle,
    ) -> Result<(), CliError> {
        refuse_too_few(self.folder.path(), plan.coordinators)?;
        // Ports may have changed since the folder was written: members find each other here.
        let seeds: Vec<String> = match plan.port_base {
            Some(_) => (0..plan.coordinators)
                .map(|index| address(plan.port_base, index))
                .collect(),
            None => Vec::new(),
        };
        for index in 0..plan.coordinators {
            let mut seeds = seeds.clone();
            if !seeds.is_empty() {
                seeds.remove(usize::from(index));
            }
            let config = CoordinatorConfig {
                seeds,
                data_dir: self.folder.path().join(format!("coordinator-{index}")),
                listen: address(plan.port_base, index),
                http_listen: address(plan.port_base.map(|base| base + 10), index),
                open: true,
                traces: plan.traces(),
                hosted: plan.coordinators,
                ..CoordinatorConfig::default()
            };
            let coordinator =
                Coordinator::start(config, metrics.clone())
                    .await
                    .map_err(|error| {
                        let taken = matches!(&error, CoordinatorError::Listen(source)
                        if source.kind() == io::ErrorKind::AddrInUse);
                        hosting(&error, taken && plan.port_base.is_some())
                    })?;
            self.coordinators.push(coordinator);
        }
        Ok(())
    }

    async fn start_workers(
        &self,
        plan: &Plan,
        metrics: &PrometheusHandle,
    ) -> Result<Vec<Worker>, CliError> {
        let starts = (0..plan.workers).map(|index| {
            let port = plan.port_base.map(|base| base + 20 + index).unwrap_or(0);
            let config = WorkerConfig {
                worker_id: format!("worker-{index}"),
                data_dir: Some(self.folder.path().join(format!("worker-{index}"))),
                coordinators: self.endpoints(),
                http_listen: ([127, 0, 0, 1], port).into(),
                models: vec![ModelConfig {
                    name: plan.model_name.clone(),
                    path: plan.model.clone(),
                }],
                activation: plan.activation,
                device: plan.device,
                traces: plan.traces(),
                ..WorkerConfig::default()
            };
            Worker::start(config, metrics.clone())
        });
        futures::future::try_join_all(starts)
            .await
            .map_err(|error| {
                if worker::is_request_wrong(&error) {
                    return CliError::usage(chain(&error));
                }
                let taken = matches!(error, WorkerError::PortInUse { .. });
                hosting(&error, taken && plan.port_base.is_some())
            })
    }

    /// Creates the cluster, unless the folder already holds one; then adds the nodes that it
    /// lacks: those of a larger `--coordinators`, or of a start that was cut short.
    async fn found(&self, client: &Client) -> Result<(), CliError> {
        let nodes = futures::future::try_join_all(client.links().iter().map(status)).await?;
        match repair(&nodes)? {
            Repair::Create => {
                cluster::init(&client.links()[0], self.endpoints().split_off(1), SETTLE)
                    .await
                    .map(drop)
            }
            Repair::Add { through, nodes } => {
                let member = &client.links()[through];
                for node in nodes {
                    cluster::add(member, client.links()[node].address(), SETTLE).await?;
                }
                Ok(())
            }
        }
    }

    /// Waits until as many workers as were started hold a lease.
    async fn settle(&self, client: &Client) -> Result<(), CliError> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let workers = cluster::workers(client).await?;
            let live = workers
                .iter()
                .filter(|worker| worker.lease_remaining_ms > 0)
                .count();
            if live >= self.workers.len() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(CliError::Unavailable(format!(
                    "{live} of {} workers registered within {} s; --log info shows why",
                    self.workers.len(),
                    SETTLE.as_secs()
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// gRPC addresses of the coordinators.
    pub fn endpoints(&self) -> Vec<String> {
        self.coordinators
            .iter()
            .map(|coordinator| coordinator.grpc_addr().to_string())
            .collect()
    }

    /// HTTP addresses with what serves there.
    pub fn http(&self) -> Vec<(String, String)> {
        let coordinators =
            self.coordinators
                .iter()
                .enumerate()
                .filter_map(|(index, coordinator)| {
                    coordinator
                        .http_addr()
                        .map(|address| (format!("coordinator-{index}"), address.to_string()))
                });
        let workers = self.workers.iter().map(|worker| {
            (
                worker.worker_id().to_owned(),
                worker.http_addr().to_string(),
            )
        });
        coordinators.chain(workers).collect()
    }

    /// Where logs and identities lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until any part has ended by itself, and says which.
    pub async fn lost(&self) -> String {
        let workers = self.workers.iter().map(|worker| {
            Box::pin(async move {
                worker.wait().await;
                format!("{} ended", worker.worker_id())
            }) as futures::future::BoxFuture<'_, String>
        });
        let coordinators = self.coordinators.iter().map(|coordinator| {
            Box::pin(async move {
                let why = coordinator.wait().await;
                format!(
                    "the coordinator on {} ended: {why}",
                    coordinator.grpc_addr()
                )
            }) as futures::future::BoxFuture<'_, String>
        });
        futures::future::select_all(workers.chain(coordinators))
            .await
            .0
    }

    /// Drains the workers within `deadline`, stops the coordinators, and removes
    /// a temporary folder.
    pub async fn shutdown(self, deadline: Duration) {
        futures::future::join_all(
            self.workers
                .into_iter()
                .map(|worker| worker.shutdown(deadline)),
        )
        .await;
        // All of them go: there is nobody to hand leadership to, only calls to end.
        let within = deadline.min(LAST_CALLS);
        let coordinators = self
            .coordinators
            .into_iter()
            .map(|coordinator| coordinator.shutdown(within));
        futures::future::join_all(coordinators).await;
    }
}

fn open_folder(kept: Option<&Path>) -> Result<Folder, CliError> {
    match kept {
        Some(path) => {
            if path.join("identity.json").exists() {
                return Err(CliError::usage(format!(
                    "{} is the data folder of one coordinator: `conclave coordinator --data-dir` starts it; `up` needs a folder of its own",
                    path.display()
                )));
            }
            std::fs::create_dir_all(path).map_err(|source| CliError::file(path, source))?;
            Ok(Folder::Kept(path.to_owned()))
        }
        None => tempfile::Builder::new()
            .prefix("conclave-")
            .tempdir()
            .map(Folder::Temporary)
            .map_err(|source| CliError::file(std::env::temp_dir(), source)),
    }
}

/// The `index`-th address from a base port on, or a free one.
fn address(base: Option<u16>, index: u16) -> String {
    format!("127.0.0.1:{}", base.map_or(0, |base| base + index))
}

fn hosting(error: &dyn std::error::Error, port_taken: bool) -> CliError {
    let hint = if port_taken {
        "\n  Another `conclave up`? --port-base takes other ports."
    } else {
        ""
    };
    CliError::Start(format!("{}{hint}", chain(error)))
}

/// What a coordinator is.
async fn status(link: &Link) -> Result<StatusResponse, CliError> {
    let mut request = tonic::Request::new(StatusRequest {});
    request.set_timeout(SETTLE);
    link.cluster()
        .status(request)
        .await
        .map(tonic::Response::into_inner)
        .map_err(|status| CliError::Refused {
            call: "Status",
            status: Box::new(status),
        })
}

/// `1 worker`, `2 workers`.
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
