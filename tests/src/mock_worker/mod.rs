//! Mock workers: the real worker protocol over real connections, a mock model behind it.
//!
//! A mock dials coordinators as a worker does, holds a lease, prepares jobs, decodes attempts at a rate
//! that the test sets, streams their text, and keeps results until they are acknowledged. What it says is
//! a function of the `Start` message (the simulator's mock model), so an exact job has one answer
//! whichever mock runs it and however often it starts anew. No model file, no compute: hundreds run in one
//! process.
//!
//! ```no_run
//! # use conclave_tests::{MockOptions, MockWorker};
//! # async fn f(coordinators: Vec<String>) {
//! let mock = MockWorker::spawn(MockOptions::new("mock-0", coordinators));
//! mock.until(|seen| seen.connected).await;
//! mock.hang(true); // heartbeats go on, no token comes
//! mock.hang(false);
//! mock.set_rate(2.0); // slow: tokens a second of each attempt
//! mock.freeze(true); // neither reads nor writes, as under SIGSTOP
//! mock.freeze(false);
//! mock.drain(std::time::Duration::from_secs(5)).await; // or `crash`, or drop
//! # }
//! ```
//!
//! As a process, which can be killed: `cargo run -p conclave-tests --bin mock-worker -- --help`, or
//! [`crate::Process::mock_worker`] from a test.

mod desk;
mod link;
mod script;
mod session;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use session::Session;

/// The numeric class of every mock: any may repeat another's attempt.
const CLASS: &str = "mock/1";
const MODEL_DIGEST: [u8; 32] = [7; 32];
/// Tokens of the longest sequence.
const CONTEXT: u32 = 1 << 20;
/// Longest wait for something to be seen.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a mock process drains.
const DRAIN: Duration = Duration::from_secs(10);

/// How a mock is made.
#[derive(Clone, Debug)]
pub struct MockOptions {
    /// Stable name; a new mock of the same name is a new incarnation of that worker.
    pub name: String,
    /// `host:port` of coordinators; the others are learned.
    pub coordinators: Vec<String>,
    /// A token of role `worker`, where coordinators ask for one.
    pub token: Option<String>,
    /// The model that it serves ("mock").
    pub model: String,
    /// Attempts placed on it at a time (64).
    pub max_sequences: u32,
    /// Tokens a second of each attempt (200).
    pub rate: f64,
}

impl MockOptions {
    /// A mock of this name with the defaults that the fields state.
    pub fn new(name: &str, coordinators: Vec<String>) -> MockOptions {
        MockOptions {
            name: name.to_owned(),
            coordinators,
            token: None,
            model: "mock".to_owned(),
            max_sequences: 64,
            rate: 200.0,
        }
    }
}

/// What the test may turn while the mock runs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Levers {
    rate: f64,
    hung: bool,
    frozen: bool,
}

/// What a mock has seen and done since it started. Counts of this incarnation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// A leader has welcomed it, and the session stands.
    pub connected: bool,
    /// Sessions that a leader welcomed.
    pub welcomes: u64,
    /// The highest Raft term heard of the cluster that it belongs to.
    pub term: u64,
    /// Attempts that it took on.
    pub started: u64,
    /// Attempts that it decoded to their end.
    pub finished: u64,
    /// Results whose commit was acknowledged.
    pub acknowledged: u64,
    /// Attempts that run.
    pub running: u64,
    /// Results that are kept.
    pub kept: u64,
    /// The first new attempt of the newest term in which there was one, and when it came.
    pub placed: Option<(u64, Instant)>,
}

/// A mock worker on the current runtime; crashes when dropped.
pub struct MockWorker {
    options: MockOptions,
    levers: watch::Sender<Levers>,
    drain: mpsc::Sender<Duration>,
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Drop for MockWorker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl MockWorker {
    /// Starts it; it dials at once.
    pub fn spawn(options: MockOptions) -> MockWorker {
        let levers = watch::Sender::new(Levers {
            rate: options.rate,
            hung: false,
            frozen: false,
        });
        let (drain, asked) = mpsc::channel(1);
        let (says, seen) = watch::channel(Seen::default());
        let session = Session::new(&options, incarnation(), levers.subscribe(), asked, says);
        let task = tokio::spawn(session.run());
        MockWorker {
            options,
            levers,
            drain,
            seen,
            task,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Heartbeats go on, but the engine makes no step, though it has work: what a stuck device looks like.
    pub fn hang(&self, hung: bool) {
        self.levers.send_modify(|levers| levers.hung = hung);
    }

    /// Tokens a second of each attempt; steps go on however slow it is.
    pub fn set_rate(&self, tokens_per_second: f64) {
        self.levers
            .send_modify(|levers| levers.rate = tokens_per_second);
    }

    /// It neither reads nor writes, and its connection stays open: a stopped process. (The transport
    /// still answers pings; for silence on the wire too, stop a mock that is its own process.)
    pub fn freeze(&self, frozen: bool) {
        self.levers.send_modify(|levers| levers.frozen = frozen);
    }

    /// What it has seen by now.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits, a minute at most, until it has seen what the test wants.
    ///
    /// # Panics
    /// After a minute, with what it has seen.
    pub async fn until(&self, wanted: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        match timeout(PATIENCE, seen.wait_for(wanted)).await {
            Ok(Ok(seen)) => seen.clone(),
            Ok(Err(_)) => panic!("{} is gone: {:?}", self.name(), self.seen()),
            Err(_) => panic!("{} saw in {PATIENCE:?} only {:?}", self.name(), self.seen()),
        }
    }

    /// Ends without a word: what runs and what is kept is lost. Returns how to make it anew.
    pub async fn crash(mut self) -> MockOptions {
        self.task.abort();
        // Until its connection is closed. Its end is a cancellation: what we asked for.
        let _ = (&mut self.task).await;
        self.options.clone()
    }

    /// Takes nothing new, finishes what runs, gives back what does not end `within`, and leaves. Returns
    /// whether every result was acknowledged.
    pub async fn drain(mut self, within: Duration) -> bool {
        // Full or closed: it drains already, or is gone.
        let _ = self.drain.try_send(within);
        let _ = timeout(within + PATIENCE, &mut self.task).await;
        self.seen().kept == 0
    }
}

/// The program `mock-worker`: runs until SIGTERM, then drains. `say` gets one line of JSON once a leader has
/// welcomed it.
///
/// # Panics
/// Where the system takes no signal handler.
pub async fn run_mock_worker(options: MockOptions, say: impl FnOnce(&str)) {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).expect("a signal handler");
    let mut term = listen(SignalKind::terminate());
    let mut hang = listen(SignalKind::user_defined1());
    let mut resume = listen(SignalKind::user_defined2());
    let name = options.name.clone();
    let mock = MockWorker::spawn(options);
    let mut seen = mock.seen.clone();
    let mut say = Some(say);
    loop {
        tokio::select! {
            Ok(_) = seen.wait_for(|seen| seen.connected), if say.is_some() => {
                if let Some(say) = say.take() {
                    say(&serde_json::json!({ "worker_id": name }).to_string());
                }
            }
            _ = hang.recv() => mock.hang(true),
            _ = resume.recv() => mock.hang(false),
            _ = term.recv() => break,
        }
    }
    mock.drain(DRAIN).await;
}

/// Unlike any other start's.
fn incarnation() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let start = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("mock-{}-{nanos}-{start}", std::process::id())
}
