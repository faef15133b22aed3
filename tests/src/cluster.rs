//! Three coordinators and some workers as processes on loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use conclave_proto::v1::cluster_client::ClusterClient;
use conclave_proto::v1::{
    InitRequest, ListWorkersRequest, StatusRequest, StatusResponse, WorkerStatus,
};
use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::bearer::{Bearer, Shown};
use crate::{Client, Launch, Process, free_port, model_path};

/// The name under which the workers serve the test model.
pub const MODEL: &str = "smollm2-135m";
const PATIENCE: Duration = Duration::from_secs(60);

/// Where one process runs, and with what.
#[derive(Debug, Clone)]
pub struct Place {
    /// The address that it listens on.
    pub host: String,
    /// How it is started.
    pub launch: Launch,
    /// Its data folder; unset: one below the cluster's.
    pub data_dir: Option<PathBuf>,
    /// Lines of TOML for its settings; a table would end a worker's.
    pub settings: String,
}

impl Default for Place {
    fn default() -> Place {
        Place {
            host: "127.0.0.1".into(),
            launch: Launch::default(),
            data_dir: None,
            settings: String::new(),
        }
    }
}

/// The places of a cluster's processes.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Of the coordinators.
    pub coordinators: Vec<Place>,
    /// Of the workers.
    pub workers: Vec<Place>,
    /// The coordinators' tokens file, and an operator's token in it; unset: everybody may call.
    pub tokens: Option<(String, String)>,
}

impl Places {
    /// All on loopback, with nothing of their own.
    pub fn loopback(coordinators: usize, workers: usize) -> Places {
        Places {
            coordinators: vec![Place::default(); coordinators],
            workers: vec![Place::default(); workers],
            tokens: None,
        }
    }
}

/// Coordinator `i` listens on `ports[i]`, also after a restart.
pub struct Cluster {
    folder: TempDir,
    ports: Vec<u16>,
    places: Places,
    /// `None` while it is down.
    pub coordinators: Vec<Option<Process>>,
    /// `None` while it is down; named `worker-0`, `worker-1`, ...
    pub workers: Vec<Option<Process>>,
}

impl Cluster {
    /// Starts, initialises and waits until every worker holds a lease.
    pub async fn start(coordinators: usize, workers: usize) -> Cluster {
        Cluster::start_at(Places::loopback(coordinators, workers)).await
    }

    /// As [`Cluster::start`], each process in its place.
    pub async fn start_at(places: Places) -> Cluster {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (coordinators, workers) = (places.coordinators.len(), places.workers.len());
        let mut cluster = Cluster {
            folder,
            ports: (0..coordinators).map(|_| free_port()).collect(),
            places,
            coordinators: Vec::new(),
            workers: Vec::new(),
        };
        for index in 0..coordinators {
            cluster.coordinators.push(None);
            cluster.start_coordinator(index).await;
        }
        cluster.init().await;
        for index in 0..workers {
            cluster.workers.push(None);
            cluster.start_worker(index).await;
        }
        cluster.until_workers(workers).await;
        cluster
    }

    /// `host:port` of every coordinator.
    pub fn endpoints(&self) -> Vec<String> {
        let places = self.places.coordinators.iter().zip(&self.ports);
        places
            .map(|(place, port)| format!("{}:{port}", place.host))
            .collect()
    }

    /// A client of all coordinators.
    pub fn client(&self) -> Client {
        Client::new(self.endpoints())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn run(
        &self,
        role: &str,
        name: &str,
        config: String,
        place: &Place,
    ) -> Result<Process, Option<i32>> {
        let file = self.path(&format!("{name}.toml"));
        fs::write(&file, config).expect("a config file");
        let file = file.display().to_string();
        let args = [role, "--config", &file, "--json"];
        Process::launch(&place.launch, &args, &self.log(name)).await
    }

    fn log(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.log"))
    }

    /// What coordinator `index` has logged.
    pub fn coordinator_log(&self, index: usize) -> String {
        fs::read_to_string(self.log(&format!("coordinator-{index}"))).unwrap_or_default()
    }

    /// The data folder of coordinator `index`.
    pub fn data_dir(&self, index: usize) -> PathBuf {
        let own = self.places.coordinators[index].data_dir.clone();
        own.unwrap_or_else(|| self.path(&format!("coordinator-{index}")))
    }

    /// What coordinator `index` is started with from now on: lines of TOML.
    pub fn set_coordinator(&mut self, index: usize, settings: &str) {
        settings.clone_into(&mut self.places.coordinators[index].settings);
    }

    /// Starts coordinator `index` on its folder and port.
    pub async fn start_coordinator(&mut self, index: usize) {
        let started = self.try_start_coordinator(index).await;
        started.unwrap_or_else(|code| {
            panic!("coordinator {index} ended with {code:?}\n{}", self.logs())
        });
    }

    /// Starts coordinator `index`.
    ///
    /// # Errors
    /// Its exit code, if it refuses to start.
    pub async fn try_start_coordinator(&mut self, index: usize) -> Result<(), Option<i32>> {
        let name = format!("coordinator-{index}");
        let place = &self.places.coordinators[index];
        let callers = match &self.places.tokens {
            Some((text, _)) => {
                let file = self.path("tokens.jsonl");
                fs::write(&file, text).expect("a tokens file");
                format!("tokens_file = {file:?}")
            }
            None => "open = true\nopen_beyond_loopback = true".to_owned(),
        };
        let config = format!(
            "data_dir = {:?}\nlisten = \"{host}:{}\"\nhttp_listen = \"{host}:0\"\n{callers}\n{}\n",
            self.data_dir(index),
            self.ports[index],
            place.settings,
            host = place.host,
        );
        let process = self.run("coordinator", &name, config, place).await?;
        self.coordinators[index] = Some(process);
        Ok(())
    }

    /// Starts worker `index`, a new incarnation if it ran before.
    pub async fn start_worker(&mut self, index: usize) {
        let name = format!("worker-{index}");
        let coordinators: Vec<String> = self.endpoints();
        let config = format!(
            "worker_id = {name:?}\ndata_dir = {:?}\ncoordinators = {coordinators:?}\n\
             http_listen = \"127.0.0.1:0\"\nthreads = 2\n{}\n\n[[models]]\nname = {MODEL:?}\npath = {:?}\n",
            self.path(&name),
            self.places.workers[index].settings,
            model_path()
        );
        let place = &self.places.workers[index];
        let process = self.run("worker", &name, config, place).await;
        self.workers[index] =
            Some(process.unwrap_or_else(|code| {
                panic!("worker {index} ended with {code:?}\n{}", self.logs())
            }));
    }

    async fn admin(&self, endpoint: &str) -> Option<ClusterClient<Shown>> {
        let channel = Endpoint::from_shared(format!("http://{endpoint}"))
            .ok()?
            .connect_timeout(Duration::from_secs(1))
            .timeout(Duration::from_secs(10))
            .connect()
            .await
            .ok()?;
        let tokens = self.places.tokens.as_ref();
        let bearer = tokens.map_or_else(Bearer::default, |(_, operator)| Bearer::of(operator));
        Some(ClusterClient::with_interceptor(channel, bearer))
    }

    async fn init(&self) {
        let endpoints = self.endpoints();
        let client = self.admin(&endpoints[0]).await;
        let mut client = client.expect("coordinator 0");
        client
            .init(InitRequest {
                join: endpoints[1..].to_vec(),
            })
            .await
            .unwrap_or_else(|e| panic!("cluster init: {e}\n{}", self.logs()));
    }

    /// What coordinator `index` says of itself, if it answers.
    pub async fn status(&self, index: usize) -> Option<StatusResponse> {
        let mut client = self.admin(&self.endpoints()[index]).await?;
        Some(client.status(StatusRequest {}).await.ok()?.into_inner())
    }

    /// Index of the coordinator that leads.
    pub async fn leader(&self) -> usize {
        let started = Instant::now();
        loop {
            for index in 0..self.coordinators.len() {
                if self.coordinators[index].is_some()
                    && let Some(status) = self.status(index).await
                    && status.role == "leader"
                {
                    return index;
                }
            }
            assert!(
                started.elapsed() < PATIENCE,
                "no leader in {PATIENCE:?}\n{}",
                self.logs()
            );
            // Leadership is polled: a process that is down sends no event.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The registered workers, as some coordinator knows them.
    pub async fn worker_status(&self) -> Vec<WorkerStatus> {
        for endpoint in self.endpoints() {
            if let Some(mut client) = self.admin(&endpoint).await
                && let Ok(response) = client.list_workers(ListWorkersRequest {}).await
            {
                return response.into_inner().workers;
            }
        }
        Vec::new()
    }

    /// Waits until `count` workers hold a lease.
    pub async fn until_workers(&self, count: usize) {
        let started = Instant::now();
        while self
            .worker_status()
            .await
            .iter()
            .filter(|w| w.lease_remaining_ms > 0)
            .count()
            < count
        {
            assert!(
                started.elapsed() < PATIENCE,
                "{count} workers did not register in {PATIENCE:?}\n{}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGKILL to coordinator `index`.
    pub async fn kill_coordinator(&mut self, index: usize) {
        if let Some(mut process) = self.coordinators[index].take() {
            process.kill().await;
        }
    }

    /// SIGKILL to worker `index`.
    pub async fn kill_worker(&mut self, index: usize) {
        if let Some(mut process) = self.workers[index].take() {
            process.kill().await;
        }
    }

    /// The end of every log, for a failed test's message.
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        for entry in fs::read_dir(self.folder.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.path().extension().is_some_and(|e| e == "log") {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(15)..];
                logs.push_str(&format!(
                    "--- {}\n{}\n",
                    entry.path().display(),
                    tail.join("\n")
                ));
            }
        }
        logs
    }

    /// Keeps the cluster's files; where they are.
    pub fn keep(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// Where the cluster keeps its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
