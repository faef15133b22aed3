//! A cluster in this process, on loopback, with real sockets and disks; and a
//! mock worker that answers with canned drafts.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod pki;
pub mod worker;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use conclave_coordinator::{Config, Coordinator, StartError, node::NodeStatus};
use conclave_credentials::Dial;
use conclave_proto::v1::{
    AnswerKind, Budget, ContemplationPolicy, ExportJobRequest, GetJobRequest, InitRequest, Job,
    JobSpec, JobState, Message, Mode, SubmitJobRequest, SubmitJobResponse, WatchJobRequest,
    audit_client::AuditClient, cluster_client::ClusterClient,
    contemplation_client::ContemplationClient, export_job_response::Item,
    watch_job_response::Update,
};
use metrics_exporter_prometheus::PrometheusBuilder;
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

/// No wait of a test is longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One member: its folder and address outlive the process that it stands for.
pub struct Member {
    pub folder: PathBuf,
    pub address: String,
    pub running: Option<Coordinator>,
}

/// What a member's settings have of their own.
pub type Extra = Box<dyn Fn(&mut Config) + Send + Sync>;

/// Members with folders of their own.
pub struct Cluster {
    pub members: Vec<Member>,
    pub extra: Extra,
    /// How clients dial the members.
    pub dial: Dial,
    _root: TempDir,
}

/// A port that stays free while its member is down: below the range that the
/// system hands out, and never the same one twice in a process.
pub fn free_address() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (u64::from(std::process::id()) * 97 + turn) % 12_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

pub fn config(folder: &Path, address: &str) -> Config {
    Config {
        data_dir: folder.to_owned(),
        listen: address.to_owned(),
        http_listen: String::new(),
        open: true,
        heartbeat_ms: 50,
        election_ms: 600,
        request_timeout_ms: 5_000,
        ..Config::default()
    }
}

pub async fn start(config: Config) -> Result<Coordinator, StartError> {
    // `RUST_LOG=conclave_coordinator=debug` shows what the members do.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .try_init();
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    Coordinator::start(config, metrics).await
}

impl Cluster {
    /// Starts blank members.
    pub async fn blank(
        count: usize,
        extra: impl Fn(&mut Config) + Send + Sync + 'static,
    ) -> Cluster {
        let root = tempfile::tempdir().unwrap();
        let member = |i: usize| Member {
            folder: root.path().join(format!("node-{i}")),
            address: free_address(),
            running: None,
        };
        let members = (0..count).map(member).collect();
        let mut cluster = Cluster {
            members,
            extra: Box::new(extra),
            dial: Dial::plain(),
            _root: root,
        };
        for i in 0..count {
            cluster.start(i).await;
        }
        cluster
    }

    /// Starts members and makes them one cluster.
    pub async fn new(count: usize) -> Cluster {
        let cluster = Cluster::blank(count, |_| {}).await;
        cluster.init().await;
        cluster
    }

    /// Makes member 0 a cluster and adds the others.
    pub async fn init(&self) {
        let join = self.members[1..]
            .iter()
            .map(|m| m.address.clone())
            .collect();
        let created = self
            .admin(0)
            .await
            .init(InitRequest { join })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(created.members.len(), self.members.len(), "{created:?}");
        assert!(created.members.iter().all(|m| !m.learner), "{created:?}");
    }

    pub async fn start(&mut self, i: usize) {
        let mut config = config(&self.members[i].folder, &self.members[i].address);
        (self.extra)(&mut config);
        self.members[i].running = Some(start(config).await.unwrap());
    }

    /// Stops a member without any goodbye.
    pub async fn crash(&mut self, i: usize) {
        drop(self.members[i].running.take());
        self.folder_free(i).await;
    }

    /// Stops a member as an operator does.
    pub async fn stop(&mut self, i: usize) {
        self.members[i]
            .running
            .take()
            .unwrap()
            .shutdown(Duration::from_secs(5))
            .await;
        self.folder_free(i).await;
    }

    /// The node's thread lets go of the folder when its last write is done.
    async fn folder_free(&self, i: usize) {
        let lock = std::fs::File::open(self.members[i].folder.join("LOCK")).unwrap();
        tokio::task::spawn_blocking(move || lock.lock())
            .await
            .unwrap()
            .unwrap();
    }

    pub fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|m| m.address.clone()).collect()
    }

    /// Waits until some running member leads, and returns which.
    pub async fn leader(&self) -> usize {
        let wait = async {
            loop {
                let leads = |m: &Member| {
                    m.running
                        .as_ref()
                        .is_some_and(|c| c.status().borrow().serving)
                };
                if let Some(i) = self.members.iter().position(leads) {
                    return i;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("no leader")
    }

    /// A running member that does not lead.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        let runs = |i: &usize| self.members[*i].running.is_some();
        (0..self.members.len())
            .filter(runs)
            .find(|i| *i != leader)
            .unwrap()
    }

    pub async fn channel(&self, i: usize) -> Channel {
        let endpoint = self.dial.endpoint(&self.members[i].address).unwrap();
        self.dial.lazily(&endpoint)
    }

    pub async fn client(&self, i: usize) -> ContemplationClient<Channel> {
        ContemplationClient::new(self.channel(i).await)
    }

    pub async fn admin(&self, i: usize) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel(i).await)
    }
}

/// A key that no other test uses.
pub fn key() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("key-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Three proposers and a majority vote on one of two words.
pub fn spec(question: &str) -> JobSpec {
    JobSpec {
        model: "mock".to_owned(),
        mode: Mode::Contemplating as i32,
        messages: vec![Message {
            role: "user".to_owned(),
            content: question.to_owned(),
        }],
        policy: Some(ContemplationPolicy {
            width: Some(3),
            aggregator: conclave_proto::v1::Aggregator::Majority as i32,
            ..ContemplationPolicy::default()
        }),
        budget: Some(Budget {
            thought_tokens: Some(16),
            answer_tokens: Some(16),
            ..Budget::default()
        }),
        answer: Some(AnswerKind {
            kind: Some(conclave_proto::v1::answer_kind::Kind::FreeText(true)),
        }),
        ..JobSpec::default()
    }
}

pub fn request(question: &str) -> SubmitJobRequest {
    SubmitJobRequest {
        idempotency_key: key(),
        spec: Some(spec(question)),
    }
}

pub async fn submit(
    client: &mut ContemplationClient<Channel>,
    question: &str,
) -> SubmitJobResponse {
    client
        .submit_job(request(question))
        .await
        .unwrap()
        .into_inner()
}

/// Watches until `done`, and checks that events have no gaps.
pub async fn done(client: &mut ContemplationClient<Channel>, job_id: &str) -> Job {
    let request = WatchJobRequest {
        job_id: job_id.to_owned(),
        cursor: Vec::new(),
        tokens: true,
    };
    let wait = async {
        let mut updates = client.watch_job(request).await.unwrap().into_inner();
        let mut last = 0;
        while let Some(message) = updates.message().await.unwrap() {
            match message.update.unwrap() {
                Update::Event(event) => {
                    assert_eq!(event.index, last + 1, "events have no gaps");
                    last = event.index;
                }
                Update::Done(job) => return job,
                Update::Tokens(_) | Update::Reset(_) => {}
            }
        }
        panic!("the watch ended without `done`");
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("the job did not end")
}

pub async fn get(client: &mut ContemplationClient<Channel>, job_id: &str) -> Job {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = GetJobRequest {
            job_id: job_id.to_owned(),
            ..GetJobRequest::default()
        };
        match client.get_job(request).await {
            Ok(job) => return job.into_inner(),
            // A member that has just started may know of no leader yet.
            Err(status) if status.code() == Code::Unavailable && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(status) => panic!("{status:?}"),
        }
    }
}

pub fn assert_done(job: &Job) {
    assert_eq!(job.state(), JobState::Done, "{}", job.message);
    assert_eq!(
        job.answer.as_ref().unwrap().canonical,
        "blue",
        "{:?}",
        job.answer
    );
}

/// What member `i`, which runs, says of itself.
pub fn status(cluster: &Cluster, i: usize) -> NodeStatus {
    let running = cluster.members[i].running.as_ref().unwrap();
    running.status().borrow().clone()
}

/// Checks that this was refused for good, in these words.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, words: &[&str]) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    for word in words {
        assert!(status.message().contains(word), "{word}: {status:?}");
    }
}

/// What replays and audits rest on: records and head, the attempts' ends aside.
pub async fn export(cluster: &Cluster, i: usize, job_id: &str) -> Vec<Item> {
    let request = ExportJobRequest {
        job_id: job_id.to_owned(),
    };
    let mut client = AuditClient::new(cluster.channel(i).await);
    let mut items = client.export_job(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(item) = items.message().await.unwrap() {
        all.extend(item.item);
    }
    all
}

/// Two tenants, an operator, a worker and a peer.
pub fn with_tokens(config: &mut Config) {
    let path = config.data_dir.with_extension("tokens");
    let lines = [
        ("alice-token", "alice", "submitter"),
        ("bobby-token", "bob", "submitter"),
        ("admin-token", "ops", "operator"),
        ("labor-token", "", "worker"),
        ("peers-token", "", "peer"),
    ];
    let line = |(token, tenant, role): (&str, &str, &str)| {
        format!("{{\"token\": \"{token}\", \"tenant\": \"{tenant}\", \"role\": \"{role}\"}}\n")
    };
    std::fs::write(&path, lines.map(line).concat()).unwrap();
    config.open = false;
    config.tokens_file = Some(path);
}

/// The message with a bearer token.
pub fn with<T>(token: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}
