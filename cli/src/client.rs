//! The cluster as a client sees it: several endpoints, one service.
//!
//! Every coordinator serves every call, so a call goes to any endpoint that
//! answers; one that does not is passed over at once. Every call has a
//! deadline, and every retry is one that the API calls safe (reads, calls with
//! an idempotency key, calls whose repetition changes nothing); the others are
//! sent [once](Client::once).
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use conclave_credentials::Dial;
use conclave_proto::v1::{
    StatusRequest, audit_client::AuditClient, cluster_client::ClusterClient,
    contemplation_client::ContemplationClient,
};
use tokio::time::Instant;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

pub use crate::refusal::{may_retry, reason};
use crate::{
    error::CliError,
    out,
    refusal::{BLANK, hint, is_blank, is_misfit, is_outcome, retry_after, was_never_sent, weight},
};

/// Where `conclave up` listens unless told otherwise.
pub const DEFAULT_ENDPOINTS: [&str; 3] = ["127.0.0.1:7400", "127.0.0.1:7401", "127.0.0.1:7402"];

/// Longest message accepted: a finished job carries all of its drafts.
const MESSAGE_LIMIT: usize = 64 << 20;
/// Longest wait for one endpoint's answer before another is tried.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(15);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long an endpoint may say nothing before it is asked whether it is there, and may take to
/// answer that.
pub const QUIET: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Puts the caller's token on every request.
#[derive(Clone)]
pub struct Auth(Option<MetadataValue<Ascii>>);

impl Interceptor for Auth {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

type Transport = InterceptedService<Channel, Auth>;

/// One endpoint, ready for calls. Cheap to clone; connects on first use.
#[derive(Clone)]
pub struct Link {
    address: String,
    channel: Channel,
    auth: Auth,
    tls: bool,
}

impl Link {
    /// The address as the user gave it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    fn transport(&self) -> Transport {
        InterceptedService::new(self.channel.clone(), self.auth.clone())
    }

    /// Jobs.
    pub fn contemplation(&self) -> ContemplationClient<Transport> {
        ContemplationClient::new(self.transport()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Membership and health.
    pub fn cluster(&self) -> ClusterClient<Transport> {
        ClusterClient::new(self.transport()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Audit chains.
    pub fn audit(&self) -> AuditClient<Transport> {
        AuditClient::new(self.transport()).max_decoding_message_size(MESSAGE_LIMIT)
    }
}

/// Calls that fail over.
pub struct Client {
    links: Vec<Link>,
    /// The endpoint that answered last.
    preferred: AtomicUsize,
    /// Longest time a unary call takes, all retries included.
    timeout: Duration,
    /// Connections are encrypted.
    tls: bool,
}

impl Client {
    /// A client of these endpoints (`host:port`, with or without a scheme).
    /// Nothing is dialled before the first call, but a malformed address or
    /// token is refused here.
    pub fn new(
        endpoints: &[String],
        dial: &Dial,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<Self, CliError> {
        let token = token
            .map(|token| format!("Bearer {token}").parse::<MetadataValue<Ascii>>())
            .transpose()
            .map_err(|_| {
                CliError::usage(
                    "the token holds characters that no header may carry: check --token-file",
                )
            })?;
        let auth = Auth(token);
        let links = endpoints
            .iter()
            .map(|address| {
                Ok(Link {
                    address: address.clone(),
                    channel: connect(dial, address)?,
                    auth: auth.clone(),
                    tls: dial.is_tls(),
                })
            })
            .collect::<Result<Vec<_>, CliError>>()?;
        if links.is_empty() {
            return Err(CliError::usage(
                "no endpoint given: use --endpoint HOST:PORT",
            ));
        }
        Ok(Self {
            links,
            preferred: AtomicUsize::new(0),
            timeout,
            tls: dial.is_tls(),
        })
    }

    /// The endpoint to try first.
    pub fn preferred(&self) -> &Link {
        &self.links[self.preferred.load(Ordering::Relaxed) % self.links.len()]
    }

    /// All endpoints, in the order given.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Whether connections are encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// How long a call may take in all.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Makes the next endpoint the preferred one.
    pub fn pass_over(&self) {
        self.preferred.fetch_add(1, Ordering::Relaxed);
    }

    /// One unary call, repeated on other endpoints while they are unavailable
    /// and time is left. `message` must be safe to send twice.
    pub async fn unary<M, R, F>(
        &self,
        call: &'static str,
        message: M,
        send: F,
    ) -> Result<R, CliError>
    where
        M: Clone,
        F: AsyncFn(Link, Request<M>) -> Result<Response<R>, Status>,
    {
        // Boxed: it holds a whole call, in the futures of all who wait for one.
        Box::pin(self.pass_over_until_served(call, message, Repeat::Safe, send)).await
    }

    /// One unary call that must not be made twice. Endpoints that do not answer, or that say that
    /// they did nothing, are passed over; once a request went out, an unclear end is told with
    /// `look`: the command that shows whether it took effect.
    pub async fn once<M, R, F>(
        &self,
        call: &'static str,
        message: M,
        look: &str,
        send: F,
    ) -> Result<R, CliError>
    where
        M: Clone,
        F: AsyncFn(Link, Request<M>) -> Result<Response<R>, Status>,
    {
        let repeat = Repeat::Never { look };
        Box::pin(self.pass_over_until_served(call, message, repeat, send)).await
    }

    async fn pass_over_until_served<M, R, F>(
        &self,
        call: &'static str,
        message: M,
        repeat: Repeat<'_>,
        send: F,
    ) -> Result<R, CliError>
    where
        M: Clone,
        F: AsyncFn(Link, Request<M>) -> Result<Response<R>, Status>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut pause = Pause::new(self.links.len());
        let mut told: Option<(Link, Status)> = None;
        let (mut blank, mut misfits) = (0, 0);
        loop {
            let link = self.preferred().clone();
            let Failure { status, sent } =
                match attempt(&link, message.clone(), deadline, repeat, &send).await {
                    Ok(response) => return Ok(response.into_inner()),
                    Err(failure) => failure,
                };
            blank = if is_blank(&status) { blank + 1 } else { 0 };
            // A blank node knows of no cluster; another endpoint may be a member of one. Where none is, nobody
            // creates one while we wait.
            let over = match blank {
                0 => !may_retry(&status),
                in_a_row => in_a_row >= self.links.len(),
            };
            if over {
                return Err(CliError::Refused {
                    call,
                    status: Box::new(status),
                });
            }
            misfits = if is_misfit(&status) { misfits + 1 } else { 0 };
            if misfits >= self.links.len() {
                return Err(self.misfit(call, &link, &status));
            }
            if let (Repeat::Never { look }, true) = (repeat, sent) {
                return Err(CliError::Unavailable(format!(
                    "{call}: {}: {}\n  Whether it took effect is not known, and it is not sent twice: `{look}` shows.",
                    link.address(),
                    reason(&status),
                )));
            }
            tracing::debug!(endpoint = link.address(), call, %status, "passing over");
            self.pass_over();
            let tried_all = pause.tried_all();
            let wait = pause.next(&status);
            keep_most_telling(&mut told, &link, &status);
            let gives_up = matches!(repeat, Repeat::Never { .. }) && tried_all;
            if gives_up || Instant::now() + wait >= deadline {
                let (link, status) = told.unwrap_or((link, status));
                return Err(self.unreachable(call, &link, &status));
            }
            // Once, when every endpoint was tried in vain: silence would look like a hang.
            if wait == FIRST_PAUSE {
                out::note(format!(
                    "{}: {}; trying on for {} s.",
                    link.address(),
                    reason(&status),
                    left_of(deadline)
                ));
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// The error for a call that no endpoint will serve, however often it is tried: the two ends do not fit.
    pub fn misfit(&self, call: &'static str, last: &Link, status: &Status) -> CliError {
        CliError::usage(format!(
            "{call}: {}: {}\n  {}",
            last.address(),
            reason(status),
            hint(status, self.tls)
        ))
    }

    /// The error for a call that no endpoint served in time.
    pub fn unreachable(&self, call: &'static str, last: &Link, status: &Status) -> CliError {
        let tried: Vec<&str> = self.links.iter().map(Link::address).collect();
        let address = last.address();
        let why = reason(status);
        // The cluster is there and said no: which endpoints were tried does not matter.
        if status.code() == Code::ResourceExhausted {
            return CliError::Unavailable(format!(
                "{call}: {address}: {why}\n  {}",
                hint(status, self.tls)
            ));
        }
        CliError::Unavailable(format!(
            "{call}: no endpoint could serve it within {} s (tried {}; {address}: {})\n  {}",
            self.timeout.as_secs(),
            tried.join(", "),
            // Its advice to create a cluster holds only if every endpoint is blank.
            if is_blank(status) { BLANK } else { &why },
            hint(status, self.tls),
        ))
    }
}

/// Whether a call may be sent again.
#[derive(Clone, Copy)]
enum Repeat<'a> {
    /// Its repetition changes nothing.
    Safe,
    /// It may go out once; `look` shows whether it took effect.
    Never {
        /// A command.
        look: &'a str,
    },
}

/// One endpoint did not serve a call.
struct Failure {
    status: Status,
    /// It may have been carried out all the same.
    sent: bool,
}

/// One try at one endpoint. One that says nothing is asked what it is, which each answers at once by
/// itself: a process that hangs is found out in two seconds, and a slow call is left alone.
async fn attempt<M, R, F>(
    link: &Link,
    message: M,
    deadline: Instant,
    repeat: Repeat<'_>,
    send: &F,
) -> Result<Response<R>, Failure>
where
    F: AsyncFn(Link, Request<M>) -> Result<Response<R>, Status>,
{
    let left = deadline.saturating_duration_since(Instant::now());
    let left = match repeat {
        Repeat::Safe => left.min(ATTEMPT_LIMIT),
        // Asked before: what reached the socket of a process that hangs is carried out when it wakes.
        Repeat::Never { .. } if is_silent(link).await => {
            let (status, sent) = (silent(), false);
            return Err(Failure { status, sent });
        }
        Repeat::Never { .. } => left,
    };
    let mut request = Request::new(message);
    request.set_timeout(left);
    let status = tokio::select! {
        answer = tokio::time::timeout(left, send(link.clone(), request)) => match answer {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(status)) => status,
            Err(_) => {
                Status::deadline_exceeded(format!("no answer within {} ms", left.as_millis()))
            }
        },
        () = falls_silent(link) => silent(),
    };
    let sent = !was_never_sent(&status) && !is_blank(&status) && !is_outcome(&status, "none");
    Err(Failure { status, sent })
}

fn silent() -> Status {
    Status::deadline_exceeded(format!(
        "no answer within {} ms, not even what it is: its process or machine hangs",
        QUIET.as_millis()
    ))
}

/// Whether the endpoint leaves the simplest question unanswered; a refusal is an answer.
async fn is_silent(link: &Link) -> bool {
    let mut service = link.cluster();
    let question = service.status(Request::new(StatusRequest {}));
    tokio::time::timeout(QUIET, question).await.is_err()
}

/// Ends once the endpoint is silent.
async fn falls_silent(link: &Link) {
    loop {
        tokio::time::sleep(QUIET).await;
        if is_silent(link).await {
            return;
        }
    }
}

/// A lazily connected channel that notices a silent peer.
fn connect(dial: &Dial, address: &str) -> Result<Channel, CliError> {
    let endpoint = dial
        .endpoint(address)
        .ok()
        .filter(|endpoint| endpoint.uri().port().is_some())
        .ok_or_else(|| {
            CliError::usage(format!(
                "endpoint `{address}` is not HOST:PORT, e.g. 127.0.0.1:7400"
            ))
        })?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true)
        // A watch that waits for its job's text tells a silent peer by this alone.
        .http2_keep_alive_interval(2 * QUIET)
        .keep_alive_timeout(2 * QUIET)
        .keep_alive_while_idle(false);
    Ok(dial.lazily(&endpoint))
}

/// How long to wait before the next attempt: not at all until each endpoint
/// was tried once, then doubling, and never less than the server asked for.
pub struct Pause {
    untried: usize,
    next: Duration,
}

impl Pause {
    /// For a client of `endpoints` endpoints.
    pub fn new(endpoints: usize) -> Self {
        Self {
            untried: endpoints.saturating_sub(1),
            next: FIRST_PAUSE,
        }
    }

    /// Whether no endpoint is left that was not tried.
    pub fn tried_all(&self) -> bool {
        self.untried == 0
    }

    /// The wait after this refusal.
    pub fn next(&mut self, status: &Status) -> Duration {
        let asked = retry_after(status).unwrap_or(Duration::ZERO);
        if self.untried > 0 {
            self.untried -= 1;
            // One that is not available speaks for itself; a leader that has no room, for all.
            return match status.code() {
                Code::Unavailable => Duration::ZERO,
                _ => asked,
            };
        }
        let wait = self.next.max(asked);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        wait
    }
}

/// Keeps the more telling of two answers; of two alike, the newer, unless that is no answer at all.
fn keep_most_telling(told: &mut Option<(Link, Status)>, link: &Link, status: &Status) {
    let silent = status.code() == Code::DeadlineExceeded;
    if told.as_ref().is_none_or(|(_, known)| {
        weight(known) < weight(status) || weight(known) == weight(status) && !silent
    }) {
        *told = Some((link.clone(), status.clone()));
    }
}

/// Whole seconds until `deadline`, rounded up.
fn left_of(deadline: Instant) -> u64 {
    deadline
        .saturating_duration_since(Instant::now())
        .as_millis()
        .div_ceil(1000) as u64
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
