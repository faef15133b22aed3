//! A test a bound: who takes more is let go, and a probe is answered all the while.

use std::{net::SocketAddr, time::Instant};

use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

use super::*;

/// No wait of a test is longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any bound of a test but the one it is about.
const LONG: Duration = Duration::from_secs(60);
/// So long that a `/metrics` of it does not fit into what the system keeps of a connection.
const MANY: usize = 200_000;

struct Works;

impl Probed for Works {
    fn healthy(&self) -> Result<String, String> {
        Ok("ok".to_owned())
    }

    fn ready(&self) -> Result<String, String> {
        Err("not yet".to_owned())
    }
}

/// A port with these bounds; it closes when the token is cancelled.
async fn port(bounds: Bounds, metrics: PrometheusHandle) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let port = Port {
        metrics,
        probed: Works,
        bounds,
    };
    let stop = CancellationToken::new();
    tokio::spawn(Arc::new(port).serve(listener, stop.clone()));
    (address, stop)
}

fn bounds() -> Bounds {
    Bounds {
        connections: CONNECTIONS,
        request: LONG,
        whole: LONG,
    }
}

fn no_metrics() -> PrometheusHandle {
    PrometheusBuilder::new().build_recorder().handle()
}

async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// What comes until the other end closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // One that is let go in the middle may be reset.
    let _ = read.expect("the port lets go of it");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> String {
    let text = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    rest(&mut send(address, &text).await).await
}

#[tokio::test]
async fn it_answers_what_it_is_asked_and_nothing_else() {
    let (address, stop) = port(bounds(), no_metrics()).await;
    for (method, path, first, last) in [
        ("GET", "/healthz", "HTTP/1.1 200", "ok\n"),
        ("HEAD", "/healthz", "HTTP/1.1 200", "\r\n\r\n"),
        ("GET", "/readyz", "HTTP/1.1 503", "not yet\n"),
        ("GET", "/metrics", "HTTP/1.1 200", "\r\n\r\n"),
        ("GET", "/", "HTTP/1.1 404", "\r\n\r\n"),
        ("POST", "/healthz", "HTTP/1.1 405", "\r\n\r\n"),
    ] {
        let said = ask(address, method, path).await;
        assert!(said.starts_with(first) && said.ends_with(last), "{said}");
    }
    let metrics = ask(address, "GET", "/metrics").await;
    assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    stop.cancel();
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(PATIENCE, closed).await.expect("the port closes");
}

#[tokio::test]
async fn a_request_that_does_not_end_is_let_go() {
    let short = Bounds {
        request: Duration::from_millis(50),
        ..bounds()
    };
    let (address, _stop) = port(short, no_metrics()).await;
    for text in ["", "GET /healthz HTTP/1.1\r\nhost: "] {
        let said = rest(&mut send(address, text).await).await;
        assert!(!said.contains("200"), "{said}");
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_is_let_go() {
    let (address, _stop) = port(bounds(), no_metrics()).await;
    let mut stream = send(address, "GET /healthz HTTP/1.1\r\nx: ").await;
    let piece = [b'y'; 4096];
    let endless = async { while stream.write_all(&piece).await.is_ok() {} };
    let ended = timeout(PATIENCE, endless).await;
    ended.expect("nobody reads for ever");
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_let_go() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        for number in 0..MANY {
            metrics::gauge!("conclave_test", "number" => number.to_string()).set(1.0);
        }
    });
    let short = Bounds {
        whole: Duration::from_secs(1),
        ..bounds()
    };
    let (address, _stop) = port(short, metrics).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow = socket.connect(address).await.unwrap();
    let text = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    slow.write_all(text).await.unwrap();
    // The first bytes say that the answer is under way.
    slow.read_u8().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let said = rest(&mut slow).await;
    let whole = MANY * "conclave_test{number=\"0\"} 1\n".len();
    assert!(said.len() < whole, "{} bytes", said.len());
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out() {
    let few = Bounds {
        connections: 4,
        ..bounds()
    };
    let (address, _stop) = port(few, no_metrics()).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(send(address, "GET").await);
        let began = Instant::now();
        let said = ask(address, "GET", "/healthz").await;
        assert!(said.contains("200"), "{said}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    // The oldest of them was ended for the others.
    assert_eq!(rest(&mut silent[0]).await, "");
}

#[tokio::test]
async fn a_connection_carries_one_request() {
    let (address, _stop) = port(bounds(), no_metrics()).await;
    let one = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: keep-alive\r\n\r\n";
    let said = rest(&mut send(address, &one.repeat(2)).await).await;
    assert_eq!(said.matches("HTTP/1.1").count(), 1, "{said}");
}

#[tokio::test]
async fn who_asks_nothing_does_not_hold_up_the_end() {
    let (address, stop) = port(bounds(), no_metrics()).await;
    let mut silent = send(address, "GET").await;
    // It is accepted once another behind it is answered.
    ask(address, "GET", "/healthz").await;
    stop.cancel();
    assert_eq!(rest(&mut silent).await, "");
}
