//! The way to a collector that works, is away, is slow, says no.

use std::{net::SocketAddr, time::Instant};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Response;

use super::*;
use crate::{ids::SpanId, span::Kind};

/// What a collector took, call by call: names of spans, and the token shown.
type Calls = mpsc::UnboundedReceiver<(Vec<String>, Option<String>)>;

struct Collector {
    calls: mpsc::UnboundedSender<(Vec<String>, Option<String>)>,
    /// Never answers.
    hangs: bool,
    rejects: i64,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let token = request.metadata().get("authorization");
        let token = token.map(|token| token.to_str().unwrap().to_owned());
        let spans = request.into_inner().resource_spans.into_iter();
        let spans = spans.flat_map(|r| r.scope_spans).flat_map(|s| s.spans);
        let _ = self
            .calls
            .send((spans.map(|span| span.name).collect(), token));
        if self.hangs {
            std::future::pending::<()>().await;
        }
        let partial_success = Some(ExportTracePartialSuccess {
            rejected_spans: self.rejects,
            ..ExportTracePartialSuccess::default()
        });
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success,
        }))
    }
}

async fn collector(hangs: bool) -> (SocketAddr, Calls) {
    let (calls, taken) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = TraceServiceServer::new(Collector {
        calls,
        hangs,
        rejects: 0,
    });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, taken)
}

fn settings(address: SocketAddr) -> Settings {
    Settings {
        endpoint: format!("http://{address}"),
        timeout_ms: 1_000,
        ..Settings::default()
    }
}

fn identity() -> Identity {
    Identity {
        service: "test",
        instance: "t1".to_owned(),
        version: "0",
    }
}

fn span(name: &str) -> Span {
    let trace = TraceId::random().unwrap();
    Span::new(trace, SpanId::job(trace), Kind::Internal, name, 1, 2)
}

#[tokio::test]
async fn spans_go_out_in_one_call_with_the_headers_and_the_end_sends_what_waits() {
    let (address, mut calls) = collector(false).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "authorization: Bearer t").unwrap();
    let settings = Settings {
        headers_file: Some(file.path().to_owned()),
        ..settings(address)
    };
    let (traces, exporter) = begin(&settings, identity()).unwrap();
    traces.say(span("a"));
    traces.say_later(|| span("b"));
    exporter.close(Duration::from_secs(5)).await;
    let (names, token) = calls.recv().await.unwrap();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(token.as_deref(), Some("Bearer t"));
    // Nobody is there any more: dropped, not waited for.
    traces.say(span("late"));
    assert!(calls.try_recv().is_err());
}

#[tokio::test]
async fn a_queue_that_is_full_drops_at_once_and_a_collector_that_hangs_holds_up_nobody() {
    let (address, mut calls) = collector(true).await;
    let settings = Settings {
        queue_spans: 4,
        ..settings(address)
    };
    let (traces, exporter) = begin(&settings, identity()).unwrap();
    traces.say(span("first"));
    calls.recv().await.unwrap();
    let began = Instant::now();
    for _ in 0..1_000 {
        traces.say(span("more"));
    }
    assert!(began.elapsed() < Duration::from_millis(200));
    assert_eq!(traces.queue.capacity(), 0);
    let began = Instant::now();
    exporter.close(Duration::from_millis(100)).await;
    assert!(
        began.elapsed() < Duration::from_millis(900),
        "the deadline holds"
    );
}

#[tokio::test]
async fn nothing_is_dialled_before_there_is_a_span() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (traces, exporter) = begin(&settings(address), identity()).unwrap();
    let accepted = tokio::time::timeout(Duration::from_millis(200), listener.accept());
    assert!(accepted.await.is_err());
    traces.say(span("a"));
    let accepted = tokio::time::timeout(Duration::from_secs(5), listener.accept());
    accepted.await.unwrap().unwrap();
    exporter.close(Duration::from_millis(10)).await;
}

#[tokio::test]
async fn a_collector_that_comes_late_gets_what_waited() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (traces, exporter) = begin(&settings(address), identity()).unwrap();
    traces.say(span("patient"));
    // The first try meets nobody: the batch lingers half a second before it.
    tokio::time::sleep(LINGER + Duration::from_millis(100)).await;
    let (calls, mut taken) = mpsc::unbounded_channel();
    let listener = TcpListener::bind(address).await.unwrap();
    let service = TraceServiceServer::new(Collector {
        calls,
        hangs: false,
        rejects: 1,
    });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let came = tokio::time::timeout(Duration::from_secs(10), taken.recv());
    assert_eq!(came.await.unwrap().unwrap().0, ["patient"]);
    exporter.close(Duration::from_secs(1)).await;
}

/// A port that ends TLS before `plain`, and the authority that its certificate is of.
async fn behind_tls(plain: SocketAddr) -> (SocketAddr, String) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
    let params = rcgen::CertificateParams::new(vec!["collector".to_owned()]).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let files = [authority.pem(), certificate.pem(), key.serialize_pem()];
    let material = conclave_credentials::Material::parse(&files.map(String::into_bytes)).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(material.server.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not believe it goes away.
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let mut inner = tokio::net::TcpStream::connect(plain).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut inner).await;
            }
        }
    });
    (address, authority.pem())
}

#[tokio::test]
async fn over_tls_the_collector_must_be_believed() {
    let (plain, mut calls) = collector(false).await;
    let (address, authority) = behind_tls(plain).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), authority).unwrap();
    let named = |name: &str| Settings {
        endpoint: format!("https://{address}"),
        ca_file: Some(file.path().to_owned()),
        server_name: name.to_owned(),
        ..settings(address)
    };
    for (name, comes) in [("another", false), ("collector", true)] {
        let (traces, exporter) = begin(&named(name), identity()).unwrap();
        traces.say(span(name));
        exporter.close(Duration::from_secs(5)).await;
        let came = calls.try_recv().map(|(names, _)| names);
        assert_eq!(came.ok(), comes.then(|| vec![name.to_owned()]), "{name}");
    }
}
