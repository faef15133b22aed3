//! Three members of etcd on loopback, spoken to by gRPC. The messages are shapes of our own: of etcd's
//! fields, those that are read here.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use conclave_tests::free_port;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

const PATIENCE: Duration = Duration::from_secs(60);

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
}

/// A running cluster; killed when dropped.
pub struct Etcd {
    _members: Vec<Child>,
    _folder: TempDir,
    ports: Vec<u16>,
}

impl Etcd {
    /// Three members with these periods, their data beside that of our own clusters.
    pub async fn start(program: &Path, heartbeat_ms: u64, election_ms: u64) -> Etcd {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> = (0..3)
            .map(|i| format!("m{i}={}", url(ports[i].1)))
            .collect();
        let spawn = |index: usize| {
            let (client, peer) = ports[index];
            let log = std::fs::File::create(folder.path().join(format!("m{index}.log")));
            Command::new(program)
                .args(["--name", &format!("m{index}")])
                .arg("--data-dir")
                .arg(folder.path().join(format!("m{index}")))
                .args(["--listen-client-urls", &url(client)])
                .args(["--advertise-client-urls", &url(client)])
                .args(["--listen-peer-urls", &url(peer)])
                .args(["--initial-advertise-peer-urls", &url(peer)])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--heartbeat-interval", &heartbeat_ms.to_string()])
                .args(["--election-timeout", &election_ms.to_string()])
                .args(["--logger", "zap"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log.expect("a log file"))
                .kill_on_drop(true)
                .spawn()
                .unwrap_or_else(|e| panic!("{}: {e}", program.display()))
        };
        Etcd {
            _members: (0..3).map(spawn).collect(),
            ports: ports.iter().map(|(client, _)| *client).collect(),
            _folder: folder,
        }
    }

    /// `host:port` of the member that leads, once there is one.
    pub async fn leader(&self) -> String {
        let started = Instant::now();
        loop {
            for port in &self.ports {
                let address = format!("127.0.0.1:{port}");
                let status: Result<StatusResponse, Status> = call(
                    &channel(&address),
                    "/etcdserverpb.Maintenance/Status",
                    StatusRequest {},
                )
                .await;
                if let Ok(StatusResponse {
                    header: Some(header),
                    leader,
                }) = status
                    && leader == header.member_id
                {
                    return address;
                }
            }
            assert!(started.elapsed() < PATIENCE, "etcd has no leader");
            // A process that starts sends no event.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A connection that lasts.
pub fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.tcp_nodelay(true).connect_lazy()
}

/// Puts a value; returns when it is committed.
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
