//! The way to the collector: a bounded queue, and a task that sends what is in it, a batch at a time. Whoever
//! hands a span over never waits; what the collector cannot take is dropped, and counted.

mod headers;

use std::{mem, sync::Arc, time::Duration};

use conclave_credentials::{Dial, Files, TlsError, Watched, dial::BadName, watched::FirstError};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_client::TraceServiceClient,
    },
    common::v1::{InstrumentationScope, KeyValue},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as Wire},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Channel};

use crate::{
    ids::TraceId,
    metrics::{self, Dropped},
    settings::{Settings, SettingsError},
    span::{Span, Value},
};
use headers::{Headers, HeadersError};

/// Most spans of one call.
const BATCH: usize = 512;
/// How long a batch waits for more.
const LINGER: Duration = Duration::from_millis(500);
/// Pauses between the tries of one batch.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// Who says the spans.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `service.name`.
    pub service: &'static str,
    /// `service.instance.id`, unless the settings name another.
    pub instance: String,
    /// `service.version`.
    pub version: &'static str,
}

/// Why nothing can be exported.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The file with the headers. The message shows none of it.
    #[error("traces.headers_file: {0}")]
    Headers(#[from] FirstError<HeadersError>),
    /// The files for TLS.
    #[error("[traces]: {0}")]
    Tls(#[from] FirstError<TlsError>),
    /// The name in the certificate.
    #[error("traces.server_name: {0}")]
    Name(#[from] BadName),
    /// The endpoint.
    #[error("traces.endpoint: {0}")]
    Endpoint(#[from] tonic::transport::Error),
}

/// Where spans are handed over. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Traces {
    queue: mpsc::Sender<Made>,
    share: f64,
}

/// A span, or how it is made where that may take a look at the disk.
enum Made {
    Now(Box<Span>),
    Later(Box<dyn FnOnce() -> Span + Send>),
}

/// The task behind [`Traces`].
#[derive(Debug)]
pub struct Exporter {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Begins to export to where `settings` say. Nothing is dialled before there is a span.
///
/// # Errors
/// [`StartError`] names the setting.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn begin(settings: &Settings, identity: Identity) -> Result<(Traces, Exporter), StartError> {
    settings.check()?;
    metrics::describe();
    let timeout = Duration::from_millis(settings.timeout_ms);
    let dial = dial(settings, &identity)?;
    let endpoint = dial
        .endpoint(&settings.endpoint)?
        .connect_timeout(timeout)
        .timeout(timeout);
    let headers = match &settings.headers_file {
        None => Watched::fixed(Headers::default()),
        Some(path) => {
            let parse = |contents: &[Vec<u8>]| Headers::parse(&contents[0]);
            Watched::follow("trace_headers", vec![path.clone()], parse)?
        }
    };
    let (sender, queue) = mpsc::channel(settings.queue_spans);
    let stop = CancellationToken::new();
    let sending = Sending {
        queue,
        client: TraceServiceClient::new(dial.lazily(&endpoint)),
        headers,
        timeout,
        resource: resource(settings, identity),
        stop: stop.clone(),
        in_flight: 0,
        failures: 0,
        lost: 0,
    };
    let task = tokio::spawn(sending.run());
    let traces = Traces {
        queue: sender,
        share: settings.sampling_ratio,
    };
    Ok((traces, Exporter { stop, task }))
}

fn dial(settings: &Settings, identity: &Identity) -> Result<Dial, StartError> {
    let Some(ca_file) = settings.ca_file.clone().filter(|_| settings.is_tls()) else {
        return Ok(Dial::plain());
    };
    let files = Files {
        cert_file: settings.cert_file.clone(),
        key_file: settings.key_file.clone(),
        ca_file,
    };
    let name = Some(settings.server_name.as_str()).filter(|name| !name.is_empty());
    let of = format!("{} traces", identity.instance);
    Ok(Dial::tls(files.follow(of)?, name)?)
}

fn resource(settings: &Settings, identity: Identity) -> Resource {
    let instance = match settings.instance.as_str() {
        "" => identity.instance,
        configured => configured.to_owned(),
    };
    let attributes = [
        ("service.namespace", "conclave".to_owned()),
        ("service.name", identity.service.to_owned()),
        ("service.instance.id", instance),
        ("service.version", identity.version.to_owned()),
    ];
    let attribute = |(key, value): (&str, String)| KeyValue {
        key: key.to_owned(),
        value: Some(Value::from(value).0),
        ..KeyValue::default()
    };
    Resource {
        attributes: attributes.map(attribute).to_vec(),
        ..Resource::default()
    }
}

impl Traces {
    /// Whether this trace is kept. What is not is not worth making a span of.
    pub fn keeps(&self, trace: TraceId) -> bool {
        trace.within(self.share)
    }

    /// The job's trace, if it has one and it is kept.
    pub fn of_job(&self, job_id: &str) -> Option<TraceId> {
        TraceId::of_job(job_id).filter(|trace| self.keeps(*trace))
    }

    /// Hands a span over; never waits.
    pub fn say(&self, span: Span) {
        self.hand_over(Made::Now(Box::new(span)));
    }

    /// Hands a span over that is made off this thread, for it may take a look at the disk; never waits.
    pub fn say_later(&self, make: impl FnOnce() -> Span + Send + 'static) {
        self.hand_over(Made::Later(Box::new(make)));
    }

    fn hand_over(&self, made: Made) {
        match self.queue.try_send(made) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => metrics::dropped(Dropped::QueueFull, 1),
            Err(mpsc::error::TrySendError::Closed(_)) => metrics::dropped(Dropped::Shutdown, 1),
        }
    }
}

impl Exporter {
    /// Sends what waits, within `deadline`; what is left then is dropped, and counted. Spans handed over from
    /// here on are dropped, too.
    pub async fn close(mut self, deadline: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(deadline, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
            // It counts what it drops.
            let _aborted = self.task.await;
        }
    }
}

/// The state of the task.
struct Sending {
    queue: mpsc::Receiver<Made>,
    client: TraceServiceClient<Channel>,
    headers: Arc<Watched<Headers>>,
    timeout: Duration,
    resource: Resource,
    stop: CancellationToken,
    /// Spans of the batch under way.
    in_flight: usize,
    /// Batches in a row that were not taken.
    failures: u32,
    /// Spans of them.
    lost: usize,
}

impl Drop for Sending {
    fn drop(&mut self) {
        let left = self.in_flight + self.queue.len();
        if left > 0 {
            metrics::dropped(Dropped::Shutdown, left);
        }
    }
}

impl Sending {
    /// Until told to stop, or until nobody can hand over any more; what waits then goes out before.
    async fn run(mut self) {
        while let Some(batch) = self.gather().await {
            self.in_flight = batch.len();
            let spans = made(batch).await;
            self.send(spans).await;
            self.in_flight = 0;
        }
    }

    /// The next batch. One that is not full waits a little for more, unless this is the end.
    async fn gather(&mut self) -> Option<Vec<Made>> {
        let mut batch = Vec::new();
        tokio::select! {
            () = self.stop.cancelled() => self.queue.close(),
            _ = self.queue.recv_many(&mut batch, BATCH) => {}
        }
        let until = tokio::time::Instant::now() + LINGER;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            tokio::select! {
                biased;
                more = self.queue.recv_many(&mut batch, room) => if more == 0 { break },
                () = tokio::time::sleep_until(until) => break,
                () = self.stop.cancelled(), if !self.queue.is_closed() => self.queue.close(),
            }
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Sends a batch; again, if the collector may take it later. At the end of the program once only.
    async fn send(&mut self, spans: Vec<Wire>) {
        let count = spans.len();
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope {
                        name: "conclave".to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let mut pauses = PAUSES.into_iter();
        let refused = loop {
            let refused = match self.call(request.clone()).await {
                Ok(response) => return self.taken(count, response),
                Err(refused) => refused,
            };
            let Some(pause) = pauses.next().filter(|_| may_be_taken_later(refused.code())) else {
                break refused;
            };
            let rest = tokio::time::sleep(pause);
            if self.stop.run_until_cancelled(rest).await.is_none() {
                break refused;
            }
        };
        self.not_taken(count, &refused);
    }

    async fn call(
        &mut self,
        message: ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, Status> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.now().metadata();
        let call = self.client.export(request);
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_late) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    fn taken(&mut self, count: usize, response: ExportTraceServiceResponse) {
        let partial = response.partial_success.unwrap_or_default();
        let rejected = usize::try_from(partial.rejected_spans)
            .unwrap_or(0)
            .min(count);
        if rejected > 0 {
            metrics::dropped(Dropped::Rejected, rejected);
            tracing::warn!(
                rejected,
                count,
                "the collector of traces took a batch only in part"
            );
        }
        metrics::exported(count - rejected);
        if mem::take(&mut self.failures) > 0 {
            let lost = mem::take(&mut self.lost);
            tracing::info!(lost, "the collector of traces takes spans again");
        }
    }

    /// Told at the first, second, fourth, ... in a row.
    fn not_taken(&mut self, count: usize, refused: &Status) {
        metrics::dropped(Dropped::ExportFailed, count);
        self.failures = self.failures.saturating_add(1);
        self.lost += count;
        if self.failures.is_power_of_two() {
            tracing::warn!(
                code = ?refused.code(),
                why = reason(refused),
                lost = self.lost,
                "the collector of traces takes no spans: look at traces.endpoint; jobs go on without"
            );
        }
    }
}

/// The innermost cause that the transport gives; else what the collector says.
fn reason(refused: &Status) -> String {
    let source = std::error::Error::source(refused);
    let mut chain = std::iter::successors(source, |&error| error.source());
    let inner = chain.by_ref().last();
    inner.map_or_else(|| refused.message().to_owned(), ToString::to_string)
}

/// What OTLP has a client try again.
fn may_be_taken_later(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// Makes what is to be made, off the runtime's threads.
async fn made(batch: Vec<Made>) -> Vec<Wire> {
    let make = |batch: Vec<Made>| {
        let span = |made| match made {
            Made::Now(span) => span.into_wire(),
            Made::Later(make) => make().into_wire(),
        };
        batch.into_iter().map(span).collect()
    };
    if batch.iter().all(|made| matches!(made, Made::Now(_))) {
        return make(batch);
    }
    tokio::task::spawn_blocking(move || make(batch))
        .await
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
