//! `/metrics`, `/healthz` and `/readyz`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::engine_thread::EngineStatus;
use crate::error::StartError;
use crate::session::SessionStatus;

/// What the endpoints look at.
#[derive(Clone)]
pub struct Views {
    /// Rendered by `/metrics`.
    pub metrics: PrometheusHandle,
    /// The engine's thread.
    pub engine: Arc<EngineStatus>,
    /// The session.
    pub session: Arc<SessionStatus>,
    /// Work without a finished step for so long is no health.
    pub healthy_step: Duration,
}

/// Takes the port.
///
/// # Errors
/// [`StartError::PortInUse`] or [`StartError::Listen`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => StartError::PortInUse { address },
            _ => StartError::Listen { address, source },
        })
}

/// Serves until `stop` is done.
///
/// # Errors
/// What accepting connections says.
pub async fn serve(
    listener: TcpListener,
    views: Views,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(views);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
}

async fn render(State(views): State<Views>) -> impl IntoResponse {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, views.metrics.render())
}

/// Alive, and stepping if there is work. A supervisor restarts what is not.
async fn healthz(State(views): State<Views>) -> (StatusCode, String) {
    let stuck = views.engine.stuck_for();
    if !views.engine.alive() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the engine is gone\n".into(),
        )
    } else if stuck > views.healthy_step {
        let seconds = stuck.as_secs();
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the engine has work and made no step for {seconds} s\n"),
        )
    } else {
        (StatusCode::OK, "ok\n".into())
    }
}

/// The models are loaded (else there is no server yet) and a leader has welcomed us.
async fn readyz(State(views): State<Views>) -> (StatusCode, &'static str) {
    if !views.engine.alive() {
        (StatusCode::SERVICE_UNAVAILABLE, "the engine is gone\n")
    } else if !views.session.up() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "no session with a leader\n",
        )
    } else {
        (StatusCode::OK, "ready\n")
    }
}
