//! The cluster as a client sees it: several endpoints, one service.
//!
//! Every coordinator serves every call, so a call goes to any endpoint that
//! answers; one that does not is passed over at once. Every call has a
//! deadline, and every retry is one that the API calls safe (reads, calls with
//! an idempotency key, calls whose repetition changes nothing); the others are
//! sent [once](Client::once).
use std::{
    error::Error as _,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use conclave_proto::v1::{
    audit_client::AuditClient, cluster_client::ClusterClient,
    contemplation_client::ContemplationClient,
};
use tokio::time::Instant;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{
    error::{CliError, causes, with_causes},
    out,
};

/// Where `conclave up` listens unless told otherwise.
pub const DEFAULT_ENDPOINTS: [&str; 3] = ["127.0.0.1:7400", "127.0.0.1:7401", "127.0.0.1:7402"];

/// Longest message accepted: a finished job carries all of its drafts.
const MESSAGE_LIMIT: usize = 64 << 20;
/// Longest wait for one endpoint's answer before another is tried.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(15);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
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
}

impl Link {
    /// The address as the user gave it.
    pub fn address(&self) -> &str {
        &self.address
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
}

impl Client {
    /// A client of these endpoints (`host:port` or `http://host:port`).
    /// Nothing is dialled before the first call, but a malformed address or
    /// token is refused here.
    pub fn new(
        endpoints: &[String],
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
                    channel: dial(address)?,
                    auth: auth.clone(),
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
        let deadline = Instant::now() + self.timeout;
        let mut pause = Pause::new(self.links.len());
        let mut told: Option<(Link, Status)> = None;
        let mut blank = 0;
        loop {
            let link = self.preferred().clone();
            let left = deadline
                .saturating_duration_since(Instant::now())
                .min(ATTEMPT_LIMIT);
            let mut request = Request::new(message.clone());
            request.set_timeout(left);
            let status = match tokio::time::timeout(left, send(link.clone(), request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => {
                    Status::deadline_exceeded(format!("no answer within {} ms", left.as_millis()))
                }
            };
            blank = if is_blank(&status) { blank + 1 } else { 0 };
            // A blank node knows of no cluster; another endpoint may be a member of one.
            if !may_retry(&status) && (blank == 0 || blank >= self.links.len()) {
                return Err(CliError::Refused {
                    call,
                    status: Box::new(status),
                });
            }
            tracing::debug!(endpoint = link.address(), call, %status, "passing over");
            self.pass_over();
            let wait = pause.next(&status);
            // Once, when every endpoint was tried in vain: silence would look like a hang.
            if wait == FIRST_PAUSE {
                out::note(format!(
                    "{}: {}; trying on for {} s.",
                    link.address(),
                    reason(&status),
                    left_of(deadline)
                ));
            }
            keep_most_telling(&mut told, &link, &status);
            if Instant::now() + wait >= deadline {
                let (link, status) = told.unwrap_or((link, status));
                return Err(self.unreachable(call, &link, &status));
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// One unary call that must not be made twice. Endpoints that nobody listens on are passed
    /// over; once a request went out, an unclear end is told with `look`: the command that shows
    /// whether it took effect.
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
        let deadline = Instant::now() + self.timeout;
        let mut untried = self.links.len();
        let mut told: Option<(Link, Status)> = None;
        let mut blank = 0;
        loop {
            let link = self.preferred().clone();
            let left = deadline.saturating_duration_since(Instant::now());
            let mut request = Request::new(message.clone());
            request.set_timeout(left);
            let status = match tokio::time::timeout(left, send(link.clone(), request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => {
                    Status::deadline_exceeded(format!("no answer within {} ms", left.as_millis()))
                }
            };
            blank += usize::from(is_blank(&status));
            if !may_retry(&status) && (!is_blank(&status) || blank >= self.links.len()) {
                return Err(CliError::Refused {
                    call,
                    status: Box::new(status),
                });
            }
            untried -= 1;
            keep_most_telling(&mut told, &link, &status);
            match (was_never_sent(&status) || is_blank(&status), untried) {
                (true, 0) => {
                    let (link, status) = told.unwrap_or((link, status));
                    return Err(self.unreachable(call, &link, &status));
                }
                (true, _) => self.pass_over(),
                (false, _) => {
                    return Err(CliError::Unavailable(format!(
                        "{call}: {}: {}\n  Whether it took effect is not known, and it is not sent twice: `{look}` shows.",
                        link.address(),
                        reason(&status),
                    )));
                }
            }
        }
    }

    /// The error for a call that no endpoint served in time.
    pub fn unreachable(&self, call: &'static str, last: &Link, status: &Status) -> CliError {
        let tried: Vec<&str> = self.links.iter().map(Link::address).collect();
        let address = last.address();
        let why = reason(status);
        // The cluster is there and said no: which endpoints were tried does not matter.
        if status.code() == Code::ResourceExhausted {
            return CliError::Unavailable(format!("{call}: {address}: {why}\n  {}", hint(status)));
        }
        CliError::Unavailable(format!(
            "{call}: no endpoint could serve it within {} s (tried {}; {address}: {})\n  {}",
            self.timeout.as_secs(),
            tried.join(", "),
            // Its advice to create a cluster holds only if every endpoint is blank.
            if is_blank(status) { BLANK } else { &why },
            hint(status),
        ))
    }
}

/// A lazily connected channel that notices a silent peer.
fn dial(address: &str) -> Result<Channel, CliError> {
    if address.starts_with("https://") {
        return Err(CliError::usage(format!(
            "endpoint `{address}`: TLS is not spoken here; end it in front of the cluster and use http://"
        )));
    }
    let uri = if address.starts_with("http://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let endpoint = Endpoint::from_shared(uri)
        .ok()
        .filter(|endpoint| endpoint.uri().port().is_some())
        .ok_or_else(|| {
            CliError::usage(format!(
                "endpoint `{address}` is not HOST:PORT, e.g. 127.0.0.1:7400"
            ))
        })?;
    Ok(endpoint
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(false)
        .connect_lazy())
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

    /// The wait after this refusal.
    pub fn next(&mut self, status: &Status) -> Duration {
        let asked = retry_after(status).unwrap_or(Duration::ZERO);
        if self.untried > 0 {
            self.untried -= 1;
            return asked;
        }
        let wait = self.next.max(asked);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        wait
    }
}

/// Whether another endpoint, or the same one later, may serve the call.
pub fn may_retry(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => true,
        Code::ResourceExhausted => retry_after(status).is_some(),
        // A connection that broke under the call; the peer said nothing.
        Code::Unknown | Code::Cancelled | Code::Internal => status.source().is_some(),
        _ => false,
    }
}

/// How a coordinator without a cluster begins its refusal.
const BLANK: &str = "this node belongs to no cluster yet";

/// Whether the node that answered is a member of no cluster.
fn is_blank(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().starts_with(BLANK)
}

/// How much an endpoint's answer tells of why the cluster does not serve a call: a leader's
/// refusal more than that there is no leader, that more than a blank node's, and any answer more
/// than none.
fn weight(status: &Status) -> u8 {
    match status.code() {
        _ if is_outcome_unknown(status) => 4,
        Code::ResourceExhausted => 3,
        _ if is_blank(status) => 1,
        Code::DeadlineExceeded => 0,
        _ if status.source().is_some() => 0,
        _ => 2,
    }
}

/// Keeps the more telling of two answers; of two alike, the newer.
fn keep_most_telling(told: &mut Option<(Link, Status)>, link: &Link, status: &Status) {
    if told
        .as_ref()
        .is_none_or(|(_, known)| weight(known) <= weight(status))
    {
        *told = Some((link.clone(), status.clone()));
    }
}

/// What to do about it.
fn hint(status: &Status) -> &'static str {
    match weight(status) {
        4 => "It may yet take effect: repeat it with the same --key.",
        3 if status.message().contains("disk_reserve_bytes") => {
            "Free space there, or hand leadership to a member with room: `conclave cluster transfer`."
        }
        3 => "Try again later.",
        2 => {
            "The cluster needs a majority of its members: `conclave cluster status` shows who answers. If a majority is lost for good, see docs/OPERATIONS.md, \"A lost quorum\"."
        }
        1 => "No other endpoint answered: start the members, or name one with --endpoint.",
        _ if was_never_sent(status) => {
            "Is a cluster running there? `conclave up` starts a local one; --endpoint names another."
        }
        _ => "`conclave cluster status` shows who answers; --endpoint names another.",
    }
}

/// Whether the call failed before any of it left: nobody listens there.
fn was_never_sent(status: &Status) -> bool {
    causes(status.source()).any(|error| error.is::<tonic::ConnectError>())
}

/// The wait that the server asked for.
fn retry_after(status: &Status) -> Option<Duration> {
    let value = status.metadata().get("retry-after-ms")?.to_str().ok()?;
    value.parse().ok().map(Duration::from_millis)
}

fn is_outcome_unknown(status: &Status) -> bool {
    status
        .metadata()
        .get("outcome")
        .is_some_and(|value| value == "unknown")
}

/// Whole seconds until `deadline`, rounded up.
fn left_of(deadline: Instant) -> u64 {
    deadline
        .saturating_duration_since(Instant::now())
        .as_millis()
        .div_ceil(1000) as u64
}

/// A status with the causes that tonic hides behind "transport error".
pub fn reason(status: &Status) -> String {
    with_causes(status.message(), status.source())
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
