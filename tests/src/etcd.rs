//! Three members of etcd on loopback, to be measured beside ours: spoken to by gRPC, as ours are. The
//! messages are shapes of our own: of etcd's fields, those that are read here.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::free_port;

const MEMBERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a member is given to say how it is.
const ASK: Duration = Duration::from_secs(2);
/// A process that starts sends no event: it is asked this often.
const AGAIN: Duration = Duration::from_millis(50);

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
    #[prost(uint64, tag = "7")]
    raft_applied_index: u64,
}

/// A running cluster; killed when dropped.
pub struct Etcd {
    program: PathBuf,
    folder: TempDir,
    /// Client and peer ports.
    ports: Vec<(u16, u16)>,
    members: Vec<Option<Child>>,
    heartbeat_ms: u64,
    election_ms: u64,
}

impl Etcd {
    /// Three members with these periods, their data beside that of our own clusters; returns once
    /// they are whole.
    pub async fn start(program: &Path, heartbeat_ms: u64, election_ms: u64) -> Etcd {
        let mut etcd = Etcd {
            program: program.to_owned(),
            folder: tempfile::tempdir().expect("a temporary folder"),
            ports: (0..MEMBERS).map(|_| (free_port(), free_port())).collect(),
            members: Vec::new(),
            heartbeat_ms,
            election_ms,
        };
        etcd.members = (0..MEMBERS).map(|index| Some(etcd.spawn(index))).collect();
        etcd.until_whole().await;
        etcd
    }

    /// Where a member listens for clients.
    pub fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index].0)
    }

    /// The member that leads, and the others, of a whole cluster.
    pub async fn leader(&self) -> (usize, Vec<usize>) {
        let mut leader = None;
        for index in 0..MEMBERS {
            let said = self.status(index).await.expect("a whole cluster");
            leader = leader.or((said.member == said.leader).then_some(index));
        }
        let leader = leader.expect("a leader");
        let others = (0..MEMBERS).filter(|index| *index != leader).collect();
        (leader, others)
    }

    /// SIGKILL to a member: returns as soon as it is sent.
    pub fn kill(&mut self, index: usize) {
        let member = self.members[index].as_mut().expect("it runs");
        member.start_kill().expect("killed");
    }

    /// Starts a killed member again; returns once the cluster is whole.
    pub async fn start_again(&mut self, index: usize) {
        let mut killed = self.members[index].take().expect("it was killed");
        killed.wait().await.expect("its status");
        self.members[index] = Some(self.spawn(index));
        self.until_whole().await;
    }

    fn spawn(&self, index: usize) -> Child {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (client, peer) = self.ports[index];
        let cluster: Vec<String> = (0..MEMBERS)
            .map(|i| format!("m{i}={}", url(self.ports[i].1)))
            .collect();
        let log = std::fs::File::create(self.folder.path().join(format!("m{index}.log")));
        Command::new(&self.program)
            .args(["--name", &format!("m{index}")])
            .arg("--data-dir")
            .arg(self.folder.path().join(format!("m{index}")))
            .args(["--listen-client-urls", &url(client)])
            .args(["--advertise-client-urls", &url(client)])
            .args(["--listen-peer-urls", &url(peer)])
            .args(["--initial-advertise-peer-urls", &url(peer)])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--heartbeat-interval", &self.heartbeat_ms.to_string()])
            .args(["--election-timeout", &self.election_ms.to_string()])
            .args(["--logger", "zap"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log file"))
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", self.program.display()))
    }

    /// Waits until all follow one leader and have applied the same entries.
    async fn until_whole(&self) {
        let started = Instant::now();
        loop {
            let mut said = Vec::new();
            for index in 0..MEMBERS {
                said.extend(self.status(index).await);
            }
            let first = said.first().filter(|first| first.leader != 0);
            let same = |other: &Said| {
                first.is_some_and(|f| (f.leader, f.applied) == (other.leader, other.applied))
            };
            if said.len() == MEMBERS && said.iter().all(same) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "etcd is not whole: {said:?}");
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn status(&self, index: usize) -> Option<Said> {
        let channel = channel(&self.address(index));
        let path = "/etcdserverpb.Maintenance/Status";
        let asked = call(&channel, path, StatusRequest {});
        let status: StatusResponse = timeout(ASK, asked).await.ok()?.ok()?;
        Some(Said {
            member: status.header?.member_id,
            leader: status.leader,
            applied: status.raft_applied_index,
        })
    }
}

/// What a member says of itself.
#[derive(Debug)]
struct Said {
    member: u64,
    leader: u64,
    applied: u64,
}

/// A connection that lasts.
pub fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.tcp_nodelay(true).connect_lazy()
}

/// Puts a value; returns when it is committed.
///
/// # Errors
/// What etcd says; UNAVAILABLE without a connection.
pub async fn put(channel: &Channel, key: String, value: Vec<u8>) -> Result<(), Status> {
    let key = key.into_bytes();
    let put = PutRequest { key, value };
    let _: PutResponse = call(channel, "/etcdserverpb.KV/Put", put).await?;
    Ok(())
}

async fn call<A, B>(channel: &Channel, path: &'static str, request: A) -> Result<B, Status>
where
    A: prost::Message + 'static,
    B: prost::Message + Default + 'static,
{
    let mut client = tonic::client::Grpc::new(channel.clone());
    let ready = client.ready().await;
    ready.map_err(|e| Status::unavailable(e.to_string()))?;
    let path = PathAndQuery::from_static(path);
    let codec: ProstCodec<A, B> = ProstCodec::default();
    let answer = client.unary(Request::new(request), path, codec).await?;
    Ok(answer.into_inner())
}
