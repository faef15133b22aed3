//! The HTTP port that supervisors and Prometheus ask: `/metrics`, `/healthz` and `/readyz`.
//!
//! Nobody shows a token here. So whoever reaches the port is bounded: in connections, in the bytes and the time
//! of a request, and in the time of the whole. A connection carries one request; where there are too many, the
//! oldest ends, so that a probe that speaks at once is served however many others say nothing.

use std::{collections::VecDeque, convert::Infallible, io, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Connections at once.
const CONNECTIONS: usize = 64;
/// How long a client may take until its request is here.
const REQUEST: Duration = Duration::from_secs(5);
/// Bytes of a request's line and headers: the fewest that the parser allows.
const REQUEST_BYTES: usize = 8 << 10;
/// How long a connection may last. Prometheus gives up after 10 s, unless told otherwise.
const WHOLE: Duration = Duration::from_secs(20);
/// How long answers under way may take once the port closes.
const LAST: Duration = Duration::from_secs(1);
/// The wait after the system gave no connection: it has no more descriptors, as a rule.
const NO_DESCRIPTORS: Duration = Duration::from_millis(100);

/// What the format of `/metrics` is called.
const EXPOSITION: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What a program says of itself, a line each; quick to say.
pub trait Probed: Send + Sync + 'static {
    /// `/healthz`: whether it is alive. A supervisor restarts what is not.
    ///
    /// # Errors
    /// Why it is not.
    fn healthy(&self) -> Result<String, String>;

    /// `/readyz`: whether it is to be sent work.
    ///
    /// # Errors
    /// Why it is not.
    fn ready(&self) -> Result<String, String>;
}

/// Serves on `listener` until `stop`.
pub async fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    probed: impl Probed,
    stop: CancellationToken,
) {
    let port = Port {
        metrics,
        probed,
        bounds: Bounds {
            connections: CONNECTIONS,
            request: REQUEST,
            whole: WHOLE,
        },
    };
    Arc::new(port).serve(listener, stop).await;
}

/// What a client may take.
struct Bounds {
    connections: usize,
    request: Duration,
    whole: Duration,
}

struct Port<P> {
    metrics: PrometheusHandle,
    probed: P,
    bounds: Bounds,
}

/// Connections under way.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    /// The oldest first; those that ended stay until there is need of room.
    ages: VecDeque<AbortHandle>,
}

impl Open {
    /// Makes room for one more.
    fn make_room(&mut self, most: usize) {
        if self.ages.len() >= most {
            self.ages.retain(|task| !task.is_finished());
        }
        if self.ages.len() >= most
            && let Some(oldest) = self.ages.pop_front()
        {
            oldest.abort();
            tracing::debug!("the oldest of too many HTTP connections is ended");
        }
    }
}

impl<P: Probed> Port<P> {
    async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let mut open = Open::default();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = open.tasks.join_next() => continue,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    open.make_room(self.bounds.connections);
                    let task = open.tasks.spawn(self.clone().converse(stream));
                    open.ages.push_back(task);
                }
                // The client went before it was its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "no HTTP connection could be accepted");
                    tokio::time::sleep(NO_DESCRIPTORS).await;
                }
            }
        }
        drop(listener);
        let ended = async { while open.tasks.join_next().await.is_some() {} };
        // Those that are left end with the set.
        let _ = timeout(LAST, ended).await;
    }

    /// One connection, from its request to its end.
    async fn converse(self: Arc<Self>, stream: TcpStream) {
        let port = self.clone();
        let service = service_fn(move |request: Request<_>| {
            let answer = port.answer(request.method(), request.uri().path());
            async { Ok::<_, Infallible>(answer) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.request)
            .max_buf_size(REQUEST_BYTES)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        match timeout(self.bounds.whole, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection ended early"),
            Err(_) => tracing::debug!("an HTTP client took too long"),
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, String::new());
        }
        match path {
            "/metrics" => response(StatusCode::OK, EXPOSITION, self.metrics.render()),
            "/healthz" => said(self.probed.healthy()),
            "/readyz" => said(self.probed.ready()),
            _ => response(StatusCode::NOT_FOUND, TEXT, String::new()),
        }
    }
}

fn said(word: Result<String, String>) -> Response<Full<Bytes>> {
    match word {
        Ok(word) => response(StatusCode::OK, TEXT, word + "\n"),
        Err(why) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n"),
    }
}

fn response(status: StatusCode, kind: HeaderValue, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests;
