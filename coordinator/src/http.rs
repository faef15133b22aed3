//! `/metrics`, `/healthz` and `/readyz`.

use std::{io, net::SocketAddr};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::node::NodeStatus;

#[derive(Clone)]
struct App {
    metrics: PrometheusHandle,
    status: watch::Receiver<NodeStatus>,
}

/// Serves on `listener` until `stop`.
///
/// # Errors
/// What the socket says.
pub async fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    status: watch::Receiver<NodeStatus>,
    stop: CancellationToken,
) -> io::Result<()> {
    let routes = Router::new()
        .route(
            "/metrics",
            get(|State(app): State<App>| async move { app.metrics.render() }),
        )
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .with_state(App { metrics, status });
    axum::serve(listener, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// Binds the socket.
///
/// # Errors
/// What the system says, with the address.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))
}

/// Alive as long as the node's loop runs.
async fn healthy(State(app): State<App>) -> impl IntoResponse {
    if app.status.has_changed().is_err() {
        // The disk failed under the loop (law 11): its thread is gone.
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "the node's thread ended\n".to_owned(),
        );
    }
    match &app.status.borrow().stopped {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the node stopped: {why}\n"),
        ),
    }
}

/// Ready once this replica has caught up with a leader that it knows.
async fn ready(State(app): State<App>) -> impl IntoResponse {
    let status = app.status.borrow();
    let why = match status.unready() {
        None => return (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => why,
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}
