//! `/metrics`, `/healthz` and `/readyz`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
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

/// What runs once the models are loaded.
pub struct Running {
    /// The engine's thread.
    pub engine: Arc<EngineStatus>,
    /// The session.
    pub session: Arc<SessionStatus>,
}

/// What the endpoints look at.
#[derive(Clone)]
pub struct Views {
    /// Rendered by `/metrics`.
    pub metrics: PrometheusHandle,
    /// Empty while the models are loaded.
    pub running: Arc<OnceLock<Running>>,
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

/// Alive, and stepping if there is work. A supervisor restarts what is not; loading takes its time.
async fn healthz(State(views): State<Views>) -> (StatusCode, String) {
    let Some(Running { engine, .. }) = views.running.get() else {
        return (StatusCode::OK, "loading the model\n".into());
    };
    let stuck = engine.stuck_for();
    if !engine.alive() {
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

/// The models are loaded, a leader has welcomed us, and new attempts are taken.
async fn readyz(State(views): State<Views>) -> (StatusCode, &'static str) {
    let not = |why| (StatusCode::SERVICE_UNAVAILABLE, why);
    match views.running.get() {
        None => not("loading the model\n"),
        Some(running) if !running.engine.alive() => not("the engine is gone\n"),
        Some(running) if running.session.draining() => not("draining\n"),
        Some(running) if !running.session.up() => not("no session with a leader\n"),
        Some(_) => (StatusCode::OK, "ready\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;

    #[tokio::test]
    async fn a_worker_that_loads_is_alive_and_not_ready() {
        let views = Views {
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            running: Arc::default(),
            healthy_step: Duration::from_secs(1),
        };
        let (status, _) = healthz(State(views.clone())).await;
        assert_eq!(status, StatusCode::OK);
        let refused = (StatusCode::SERVICE_UNAVAILABLE, "loading the model\n");
        assert_eq!(readyz(State(views)).await, refused);
    }
}
