//! A collector of traces: takes OTLP over gRPC on loopback and keeps what comes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Longest wait for a span.
const PATIENCE: Duration = Duration::from_secs(30);

/// One span as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `service.name`.
    pub service: String,
    /// `service.instance.id`.
    pub instance: String,
    /// The span.
    pub span: Span,
}

/// Hexadecimal, as ids are shown.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn value(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref()?.value.clone()
}

impl Seen {
    /// A text among its attributes; empty if there is none.
    pub fn text(&self, key: &str) -> String {
        match value(&self.span.attributes, key) {
            Some(Value::StringValue(text)) => text,
            _ => String::new(),
        }
    }

    /// A number among its attributes.
    pub fn number(&self, key: &str) -> Option<i64> {
        match value(&self.span.attributes, key) {
            Some(Value::IntValue(number)) => Some(number),
            _ => None,
        }
    }

    /// Whether this attribute is there.
    pub fn has(&self, key: &str) -> bool {
        value(&self.span.attributes, key).is_some()
    }

    /// Its id, hexadecimal.
    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// Its parent's id; empty for the root.
    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    fn millis(&self) -> f64 {
        (self.span.end_time_unix_nano - self.span.start_time_unix_nano) as f64 / 1e6
    }
}

/// All spans of one trace, each id once.
#[derive(Debug, Clone)]
pub struct Trace(pub Vec<Seen>);

impl Trace {
    /// The spans of this name.
    pub fn named(&self, name: &str) -> Vec<&Seen> {
        self.0
            .iter()
            .filter(|seen| seen.span.name == name)
            .collect()
    }

    /// The span that is this one's parent.
    pub fn parent_of(&self, seen: &Seen) -> Option<&Seen> {
        let parent = seen.parent();
        self.0.iter().find(|other| other.id() == parent)
    }

    /// Programs that said something of it, by instance.
    pub fn instances(&self) -> BTreeSet<&str> {
        self.0.iter().map(|seen| seen.instance.as_str()).collect()
    }

    /// The tree, a span a line: name, duration, who said it, what it counts.
    pub fn tree(&self) -> String {
        let mut below: BTreeMap<String, Vec<&Seen>> = BTreeMap::new();
        for seen in &self.0 {
            let known = self.parent_of(seen).is_some();
            let parent = if known { seen.parent() } else { String::new() };
            below.entry(parent).or_default().push(seen);
        }
        let mut text = String::new();
        branch(&below, "", 0, &mut text);
        text
    }
}

fn branch(below: &BTreeMap<String, Vec<&Seen>>, of: &str, depth: usize, text: &mut String) {
    let mut spans = below.get(of).cloned().unwrap_or_default();
    spans.sort_by_key(|seen| (seen.span.start_time_unix_nano, seen.id()));
    for seen in spans {
        let tokens = |key| seen.number(key).map_or(String::new(), |n| n.to_string());
        let (input, output) = (
            tokens("gen_ai.usage.input_tokens"),
            tokens("gen_ai.usage.output_tokens"),
        );
        let used = if input.is_empty() {
            String::new()
        } else {
            format!("  {input} in, {output} out")
        };
        let name = format!("{:indent$}{}", "", seen.span.name, indent = 2 * depth);
        let _ = writeln!(
            text,
            "{name:<52} {:>9.1} ms  {:<12} {used}  {}",
            seen.millis(),
            seen.instance,
            seen.text("conclave.outcome"),
        );
        branch(below, &seen.id(), depth + 1, text);
    }
}

struct Service {
    seen: Arc<Mutex<Vec<Seen>>>,
    tokens: Arc<Mutex<BTreeSet<String>>>,
    count: watch::Sender<usize>,
    hangs: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if let Some(token) = request.metadata().get("authorization") {
            let token = token.to_str().unwrap_or_default().to_owned();
            let mut tokens = self.tokens.lock().expect("no panic while it is held");
            tokens.insert(token);
        }
        let mut all = self.seen.lock().expect("no panic while it is held");
        for resource_spans in request.into_inner().resource_spans {
            let resource = resource_spans.resource.unwrap_or_default().attributes;
            let text = |key| match value(&resource, key) {
                Some(Value::StringValue(text)) => text,
                _ => String::new(),
            };
            let (service, instance) = (text("service.name"), text("service.instance.id"));
            let spans = resource_spans.scope_spans.into_iter().flat_map(|s| s.spans);
            all.extend(spans.map(|span| Seen {
                service: service.clone(),
                instance: instance.clone(),
                span,
            }));
        }
        self.count.send_replace(all.len());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A running collector; it ends with the runtime.
pub struct Collector {
    /// Its URL.
    pub endpoint: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    tokens: Arc<Mutex<BTreeSet<String>>>,
    count: watch::Receiver<usize>,
    hangs: Arc<AtomicBool>,
}

impl Collector {
    /// On a free port of loopback.
    pub async fn start() -> Self {
        Self::start_on("127.0.0.1:0").await
    }

    /// On this address.
    pub async fn start_on(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (count, counted) = watch::channel(0);
        let (seen, tokens, hangs) = (Arc::default(), Arc::default(), Arc::default());
        let service = Service {
            seen: Arc::clone(&seen),
            tokens: Arc::clone(&tokens),
            count,
            hangs: Arc::clone(&hangs),
        };
        let server =
            tonic::transport::Server::builder().add_service(TraceServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self {
            endpoint: format!("http://{address}"),
            seen,
            tokens,
            count: counted,
            hangs,
        }
    }

    /// From here on it takes calls and answers none; or answers again.
    pub fn hang(&self, yes: bool) {
        self.hangs.store(yes, Ordering::Relaxed);
    }

    /// Spans that came, those that came twice included.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// What callers showed as `authorization`, each once.
    pub fn tokens(&self) -> Vec<String> {
        let tokens = self.tokens.lock().expect("no panic while it is held");
        tokens.iter().cloned().collect()
    }

    /// What came of this trace, each span once.
    pub fn trace(&self, id: &str) -> Trace {
        let all = self.seen.lock().expect("no panic while it is held");
        let mut known = BTreeSet::new();
        let of = all.iter().filter(|seen| hex(&seen.span.trace_id) == id);
        Trace(of.filter(|seen| known.insert(seen.id())).cloned().collect())
    }

    /// What came of a job's trace, once `enough` says so.
    pub async fn job(&self, job_id: &str, enough: impl Fn(&Trace) -> bool) -> Trace {
        let id = job_id.replace('-', "");
        self.until(&id, enough).await
    }

    /// What came of a trace, once `enough` says so.
    pub async fn until(&self, id: &str, enough: impl Fn(&Trace) -> bool) -> Trace {
        let mut count = self.count.clone();
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                count.mark_unchanged();
                let trace = self.trace(id);
                if enough(&trace) {
                    return trace;
                }
                count.changed().await.expect("the collector runs");
            }
        });
        waited
            .await
            .unwrap_or_else(|_| panic!("not all came in {PATIENCE:?}:\n{}", self.trace(id).tree()))
    }
}
