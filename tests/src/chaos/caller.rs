//! A client that does what the service config says, and no more: round robin
//! over the endpoints, waiting for a connection, retries on UNAVAILABLE.
//!
//! A transport that breaks under a call is UNAVAILABLE, as gRPC's libraries
//! report it. A dial that failed sent nothing, so it counts as no attempt
//! (`waitForReady`); an endpoint that broke is left alone for gRPC's first
//! reconnect pause while another is there, and one whose health says that it
//! does not serve (`healthCheckConfig`) for as long as it says so.

use std::error::Error as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use conclave_proto::v1::contemplation_client::ContemplationClient;
use conclave_proto::v1::{
    CancelJobRequest, GetJobRequest, Job, JobSpec, SubmitJobRequest, WatchJobRequest,
    WatchJobResponse,
};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{History, RetryPolicy};
use crate::linear::job::Call;

/// Keepalive of the channel: how soon a silent coordinator counts as gone.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// gRPC's first reconnect pause.
const RECONNECT: Duration = Duration::from_secs(1);
/// Pause of a call that waits for any connection at all.
const NOT_READY: Duration = Duration::from_millis(50);
/// Longest wait for the headers of a stream, which has no deadline of its own.
const OPENING: Duration = Duration::from_secs(30);
/// The longest reply: a job with its drafts.
const REPLY: usize = 64 << 20;

type Jobs = ContemplationClient<Channel>;

struct Subchannel {
    channel: Channel,
    broken: Mutex<Option<Instant>>,
    /// Its health said that it does not serve, and nothing else since.
    ill: Arc<AtomicBool>,
}

impl Subchannel {
    fn ready(&self) -> bool {
        let broken = self.broken.lock().expect("no holder panics");
        !self.ill.load(Ordering::Relaxed) && broken.is_none_or(|since| since.elapsed() >= RECONNECT)
    }
}

/// Hears how a coordinator feels, as gRPC's client-side health checking does: while nothing is heard, whether
/// the connection holds decides.
async fn watch_health(channel: Channel, ill: Arc<AtomicBool>) {
    let all = HealthCheckRequest::default();
    loop {
        if let Ok(words) = HealthClient::new(channel.clone()).watch(all.clone()).await {
            let mut words = words.into_inner();
            while let Ok(Some(word)) = words.message().await {
                ill.store(word.status() != ServingStatus::Serving, Ordering::Relaxed);
            }
        }
        ill.store(false, Ordering::Relaxed);
        sleep(RECONNECT).await;
    }
}

/// The clients' channel to all coordinators, and what went over it.
pub struct Caller {
    subchannels: Vec<Subchannel>,
    turn: AtomicUsize,
    history: Arc<History>,
    failed: Mutex<Vec<String>>,
    again: AtomicUsize,
    /// Ends with the caller.
    _health: JoinSet<()>,
}

/// How one attempt ended.
enum Attempt<T> {
    Answered(T),
    /// It went out; what came of it may be unknown.
    Failed(Status),
    /// Nothing was sent.
    NotSent(Status),
}

impl Caller {
    /// `endpoints`: `host:port` of every coordinator; their health is watched from now on.
    pub fn new(endpoints: &[String], history: Arc<History>) -> Caller {
        let dial = |endpoint: &String| Subchannel {
            channel: Endpoint::from_shared(format!("http://{endpoint}"))
                .expect("an address")
                .connect_timeout(KEEPALIVE)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .connect_lazy(),
            broken: Mutex::default(),
            ill: Arc::default(),
        };
        let subchannels: Vec<Subchannel> = endpoints.iter().map(dial).collect();
        let watch = |one: &Subchannel| watch_health(one.channel.clone(), one.ill.clone());
        Caller {
            _health: subchannels.iter().map(watch).collect(),
            subchannels,
            turn: AtomicUsize::new(0),
            history,
            failed: Mutex::default(),
            again: AtomicUsize::new(0),
        }
    }

    /// Calls that failed although they were retried as the config says.
    pub fn failed(&self) -> Vec<String> {
        self.failed.lock().expect("no holder panics").clone()
    }

    /// Attempts that were made again.
    pub fn retries(&self) -> usize {
        self.again.load(Ordering::Relaxed)
    }

    /// The next subchannel in turn that is not known to be broken or ill. Where all are broken, one is dialled
    /// again; where one is ill, a call waits for word that it serves.
    fn pick(&self) -> Option<&Subchannel> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.subchannels.len();
        let mut in_turn = (0..count).map(|step| &self.subchannels[(turn + step) % count]);
        let ready = in_turn.find(|one| one.ready());
        let ill = |one: &Subchannel| one.ill.load(Ordering::Relaxed);
        let dialled = || Some(&self.subchannels[turn % count]);
        ready.or_else(|| (!self.subchannels.iter().any(ill)).then(dialled).flatten())
    }

    async fn attempt<T, F: Future<Output = Result<T, Status>>>(
        &self,
        call: &impl Fn(Jobs) -> F,
        left: Duration,
    ) -> Attempt<T> {
        let Some(one) = self.pick() else {
            return Attempt::NotSent(Status::unavailable("no coordinator says that it serves"));
        };
        let client = ContemplationClient::new(one.channel.clone()).max_decoding_message_size(REPLY);
        let status = match tokio::time::timeout(left, call(client)).await {
            Ok(Ok(answer)) => return Attempt::Answered(answer),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded(format!("no answer in {left:?}")),
        };
        if status.source().is_none() {
            return Attempt::Failed(status);
        }
        *one.broken.lock().expect("no holder panics") = Some(Instant::now());
        let told = Status::unavailable(with_causes(&status));
        match never_sent(&status) {
            true => Attempt::NotSent(told),
            false => Attempt::Failed(told),
        }
    }

    /// One call of `method` with the config's retries; the answer, and when the
    /// attempt that got it began. `failed` hears of every attempt that went out
    /// and did not succeed.
    async fn call<T, F: Future<Output = Result<T, Status>>>(
        &self,
        method: &str,
        call: impl Fn(Jobs) -> F,
        mut failed: impl FnMut(u64, &Status),
    ) -> Result<(u64, T), Status> {
        let policy = RetryPolicy::of(method);
        let deadline = Instant::now() + policy.timeout.unwrap_or(OPENING);
        let mut attempts = 0;
        let status = loop {
            let invoked = self.history.now();
            let left = deadline.saturating_duration_since(Instant::now());
            let status = match self.attempt(&call, left).await {
                Attempt::Answered(answer) => return Ok((invoked, answer)),
                Attempt::NotSent(_) if policy.wait_for_ready && !left.is_zero() => {
                    sleep(NOT_READY).await;
                    continue;
                }
                Attempt::Failed(status) | Attempt::NotSent(status) => status,
            };
            attempts += 1;
            failed(invoked, &status);
            if attempts >= policy.max_attempts || !policy.retries(status.code()) {
                break status;
            }
            self.again.fetch_add(1, Ordering::Relaxed);
            let jitter = f64::from((invoked % 1_000) as u32) / 1_000.0;
            sleep(policy.pause(attempts + 1, jitter)).await;
        };
        Err(status)
    }

    fn note_failure(&self, method: &str, key: &str, status: &Status) {
        let line = format!("{method} {key}: {:?}: {}", status.code(), status.message());
        self.failed.lock().expect("no holder panics").push(line);
    }

    /// Submits; returns the job's id.
    ///
    /// # Errors
    /// What the last attempt said.
    pub async fn submit(&self, key: &str, spec: &JobSpec) -> Result<String, Status> {
        let request = SubmitJobRequest {
            idempotency_key: key.into(),
            spec: Some(spec.clone()),
        };
        let submit = |mut client: Jobs| {
            let request = request.clone();
            async move { Ok(client.submit_job(request).await?.into_inner()) }
        };
        let unknown = |at, status: &Status| {
            if !is_refusal(status) {
                self.history.unknown(key, at, Call::SubmitUnknown);
            }
        };
        let result = self.call("SubmitJob", submit, unknown).await;
        let (invoked, reply) = result.inspect_err(|status| {
            // A refusal with a wait is an answer: nothing was accepted.
            if status.code() != Code::ResourceExhausted {
                self.note_failure("SubmitJob", key, status);
            }
        })?;
        let call = Call::Submitted {
            job: reply.job_id.clone(),
            existing: reply.existing,
        };
        self.history.returned(key, invoked, call);
        Ok(reply.job_id)
    }

    /// Reads.
    ///
    /// # Errors
    /// What the last attempt said.
    pub async fn job(&self, key: &str, id: &str) -> Result<Job, Status> {
        let get = |mut client: Jobs| {
            let request = GetJobRequest {
                job_id: id.into(),
                ..GetJobRequest::default()
            };
            async move { Ok(client.get_job(request).await?.into_inner()) }
        };
        let not_found = |at, status: &Status| {
            if status.code() == Code::NotFound {
                self.history.returned(key, at, Call::NotFound);
            }
        };
        match self.call("GetJob", get, not_found).await {
            Ok((invoked, job)) => {
                let call = Call::Read {
                    job: job.job_id.clone(),
                    state: job.state(),
                    round: job.round,
                };
                self.history.returned(key, invoked, call);
                Ok(job)
            }
            Err(status) => {
                self.note_failure("GetJob", key, &status);
                Err(status)
            }
        }
    }

    /// Cancels.
    ///
    /// # Errors
    /// What the last attempt said.
    pub async fn cancel(&self, key: &str, id: &str) -> Result<Job, Status> {
        let cancel = |mut client: Jobs| {
            let request = CancelJobRequest {
                job_id: id.into(),
                reason: "chaos".into(),
            };
            async move { Ok(client.cancel_job(request).await?.into_inner()) }
        };
        let unknown = |at, _: &Status| self.history.unknown(key, at, Call::CancelUnknown);
        let result = self.call("CancelJob", cancel, unknown).await;
        let (invoked, job) =
            result.inspect_err(|status| self.note_failure("CancelJob", key, status))?;
        let call = Call::Cancelled {
            job: job.job_id.clone(),
            state: job.state(),
        };
        self.history.returned(key, invoked, call);
        Ok(job)
    }

    /// Opens a stream of the job's events behind `cursor`.
    ///
    /// # Errors
    /// What the last attempt said.
    pub async fn watch(
        &self,
        key: &str,
        id: &str,
        cursor: &[u8],
    ) -> Result<Streaming<WatchJobResponse>, Status> {
        let open = |mut client: Jobs| {
            let request = WatchJobRequest {
                job_id: id.into(),
                cursor: cursor.to_vec(),
                tokens: false,
            };
            async move { Ok(client.watch_job(request).await?.into_inner()) }
        };
        let result = self.call("WatchJob", open, |_, _| {}).await;
        let opened = result.inspect_err(|status| self.note_failure("WatchJob", key, status));
        opened.map(|(_, stream)| stream)
    }
}

/// The server's word that nothing was accepted.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::ResourceExhausted | Code::InvalidArgument | Code::FailedPrecondition
    )
}

/// Whether the dial failed, so that the server never saw the call.
fn never_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn with_causes(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
