//! One child process: started, signalled, ended with its owner.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longest wait for a process to say that it is ready; the model loads in it.
const READY: Duration = Duration::from_secs(60);

/// The `conclave` binary of this build: beside this program, or above its
/// `deps` folder when this is a test.
pub fn conclave_binary() -> PathBuf {
    binary("conclave")
}

fn binary(name: &str) -> PathBuf {
    let program = std::env::current_exe().expect("the path of this program");
    let folders = program.ancestors().skip(1).take(2);
    let candidates: Vec<PathBuf> = folders.map(|folder| folder.join(name)).collect();
    let found = candidates.iter().find(|path| path.is_file());
    found
        .unwrap_or_else(|| {
            panic!("none of {candidates:?} is there: run `make test`, or `cargo build -p conclave -p conclave-tests` first")
        })
        .clone()
}

/// Peak resident memory of the largest child that has ended, bytes.
pub fn peak_memory_of_children() -> u64 {
    // SAFETY: `rusage` is plain integers, for which zeros are valid; the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    u64::try_from(usage.ru_maxrss).unwrap_or_default() * 1024
}

/// The test model's file.
pub fn model_path() -> PathBuf {
    if let Some(path) = std::env::var_os("CONCLAVE_TEST_MODEL") {
        return path.into();
    }
    let cache = std::env::var_os("CONCLAVE_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("XDG_CACHE_HOME").map(|c| PathBuf::from(c).join("conclave")))
        .or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/conclave")))
        .expect("a home folder");
    let path = cache.join("models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        path.exists(),
        "{} is missing: run `make test`, or `conclave model pull smollm2-135m` first",
        path.display()
    );
    path
}

/// A loopback port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a free port")
        .port()
}

/// How a process is started, beside its arguments.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// A command that executes it in its own place, e.g. `ip netns exec NAME`.
    pub wrap: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
}

impl Launch {
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let binary = binary(program);
        let mut command = match self.wrap.split_first() {
            Some((program, rest)) => {
                let mut command = Command::new(program);
                command.args(rest).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command.args(args).envs(self.env.iter().cloned());
        command
    }
}

/// A running `conclave`; killed when dropped.
pub struct Process {
    child: Child,
    /// Where it serves `/metrics`, as it said when it was ready.
    pub http: String,
}

impl Process {
    /// Starts `conclave <args>` and waits for its ready line, a JSON document.
    /// Standard error goes to `log`.
    pub async fn start(args: &[&str], log: &Path) -> Process {
        let started = Process::launch(&Launch::default(), args, log).await;
        started.unwrap_or_else(|code| panic!("conclave {args:?} ended with {code:?}; see its log"))
    }

    /// As [`Process::start`], in another place.
    ///
    /// # Errors
    /// Its exit code, if it ended before it was ready; a signal has none.
    pub async fn launch(launch: &Launch, args: &[&str], log: &Path) -> Result<Self, Option<i32>> {
        Process::launch_program("conclave", launch, args, log).await
    }

    /// Starts a mock worker as its own process and waits until a leader has welcomed it.
    /// `args` as `mock-worker --help` lists them.
    pub async fn mock_worker(launch: &Launch, args: &[&str], log: &Path) -> Process {
        let started = Process::launch_program("mock-worker", launch, args, log).await;
        started.unwrap_or_else(|code| panic!("mock-worker {args:?} ended with {code:?}"))
    }

    async fn launch_program(
        program: &str,
        launch: &Launch,
        args: &[&str],
        log: &Path,
    ) -> Result<Process, Option<i32>> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log file");
        let mut child = launch
            .command(program, args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        let stdout = child.stdout.take().expect("a pipe");
        let mut line = String::new();
        timeout(READY, BufReader::new(stdout).read_line(&mut line))
            .await
            .unwrap_or_else(|_| panic!("{program} {args:?} was not ready in {READY:?}"))
            .expect("its output");
        if line.is_empty() {
            return Err(child.wait().await.expect("its status").code());
        }
        let ready: serde_json::Value = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("{program} {args:?} said {line:?} ({e}); see its log"));
        Ok(Process {
            child,
            http: ready["http"].as_str().unwrap_or_default().to_owned(),
        })
    }

    /// How the process ended by itself; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Its process id; 0 once it has been waited for.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Sends a signal, without waiting.
    pub fn signal(&self, signal: i32) {
        let pid = self.child.id().expect("still running");
        // SAFETY: `kill` takes two integers; the child has not been reaped, so the id is its own.
        let sent = unsafe { libc::kill(pid.cast_signed(), signal) };
        assert_eq!(sent, 0, "signal {signal} to {pid}");
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM, and waits for a graceful end; returns whether it exited with 0.
    pub async fn terminate(&mut self, within: Duration) -> bool {
        self.signal(libc::SIGTERM);
        timeout(within, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("still running {within:?} after SIGTERM"))
            .expect("its status")
            .success()
    }
}
