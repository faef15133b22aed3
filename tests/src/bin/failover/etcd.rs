//! Three members of etcd, to be killed beside ours: spoken to over its JSON gateway by kept connections.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use conclave_tests::free_port;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{PAUSE, TRY};

const PATIENCE: Duration = Duration::from_secs(60);

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
    /// Three members on loopback, their data beside that of our own clusters.
    pub async fn start(program: &Path, heartbeat_ms: u64, election_ms: u64) -> Etcd {
        let mut etcd = Etcd {
            program: program.to_owned(),
            folder: tempfile::tempdir().expect("a temporary folder"),
            ports: (0..3).map(|_| (free_port(), free_port())).collect(),
            members: Vec::new(),
            heartbeat_ms,
            election_ms,
        };
        for index in 0..3 {
            let member = etcd.spawn(index);
            etcd.members.push(Some(member));
        }
        etcd.until_whole().await;
        etcd
    }

    fn spawn(&self, index: usize) -> Child {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (client, peer) = self.ports[index];
        let cluster: Vec<String> = (0..3)
            .map(|i| format!("m{i}={}", url(self.ports[i].1)))
            .collect();
        let log = std::fs::File::create(self.folder.path().join(format!("m{index}.log")));
        Command::new(&self.program)
            .arg("--name")
            .arg(format!("m{index}"))
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

    /// Waits until all three follow one leader and have applied the same entries.
    pub async fn until_whole(&self) {
        let started = Instant::now();
        loop {
            let mut said = Vec::new();
            for index in 0..3 {
                said.extend(self.status(index).await);
            }
            let first = said.first().filter(|(_, leader, _)| leader != "0");
            let same = |(_, leader, applied): &(String, String, String)| {
                first.is_some_and(|f| (&f.1, &f.2) == (leader, applied))
            };
            if said.len() == 3 && said.iter().all(same) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "etcd is not whole: {said:?}");
            // A process that starts sends no event.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Its id, its leader's, and the index that it has applied.
    async fn status(&self, index: usize) -> Option<(String, String, String)> {
        let mut connection = Connection::new(self.ports[index].0);
        let nothing = json!({});
        let call = connection.call("/v3/maintenance/status", &nothing);
        let status = timeout(Duration::from_secs(2), call).await.ok()??;
        let text = |value: &Value| value.as_str().unwrap_or("0").to_owned();
        Some((
            text(&status["header"]["member_id"]),
            text(&status["leader"]),
            text(&status["raftAppliedIndex"]),
        ))
    }

    /// SIGKILL to the leader; returns the time from there to the next put that a client gets answered
    /// which tries the other two in turn, over connections that it had before.
    pub async fn kill_leader(&mut self, round: usize) -> Duration {
        let mut leader = None;
        for index in 0..3 {
            let (id, leads, _) = self.status(index).await.expect("a whole cluster");
            leader = leader.or((id == leads).then_some(index));
        }
        let leader = leader.expect("a leader");
        let mut others: Vec<Connection> = (0..3)
            .filter(|index| *index != leader)
            .map(|index| Connection::new(self.ports[index].0))
            .collect();
        for other in &mut others {
            put(other, "d2FybQ==").await.expect("a put before the kill");
        }
        let key = format!("{round:04}");
        let mut killed = self.members[leader].take().expect("runs");
        let started = Instant::now();
        killed.start_kill().expect("killed");
        for turn in 0.. {
            assert!(started.elapsed() < PATIENCE, "etcd takes no puts");
            let put = put(&mut others[turn % 2], &key);
            if let Ok(Some(())) = timeout(TRY, put).await {
                break;
            }
            others[turn % 2].stream = None;
            tokio::time::sleep(PAUSE).await;
        }
        let took = started.elapsed();
        killed.wait().await.expect("its status");
        self.members[leader] = Some(self.spawn(leader));
        self.until_whole().await;
        took
    }
}

async fn put(connection: &mut Connection, key: &str) -> Option<()> {
    // `key` is base64, as the gateway wants it; "bw==" is one byte.
    let body = json!({ "key": key, "value": "bw==" });
    let answer = connection.call("/v3/kv/put", &body).await?;
    answer["header"]["revision"].as_str().map(|_| ())
}

/// HTTP/1.1 over one kept connection.
struct Connection {
    port: u16,
    stream: Option<TcpStream>,
}

impl Connection {
    fn new(port: u16) -> Connection {
        Connection { port, stream: None }
    }

    async fn call(&mut self, path: &str, body: &Value) -> Option<Value> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
                stream.set_nodelay(true).ok()?;
                stream
            }
        };
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: etcd\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let (mut answer, mut part) = (Vec::new(), [0; 4096]);
        loop {
            let read = stream.read(&mut part).await.ok().filter(|n| *n > 0)?;
            answer.extend_from_slice(&part[..read]);
            let text = std::str::from_utf8(&answer).ok()?;
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let named = name.eq_ignore_ascii_case("content-length");
                named.then(|| value.trim().parse::<usize>().ok())?
            })?;
            if body.len() >= length {
                let ok = head.starts_with("HTTP/1.1 200");
                let answer = serde_json::from_str(body).ok();
                self.stream = Some(stream);
                return answer.filter(|_| ok);
            }
        }
    }
}
