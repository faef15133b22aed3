//! `/metrics`, `/healthz` and `/readyz`.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use conclave_probes::Probed;
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

/// What the port says of a worker.
pub struct View {
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

impl Probed for View {
    /// Alive, and stepping if there is work. A supervisor restarts what is not; loading takes its time.
    fn healthy(&self) -> Result<String, String> {
        let Some(Running { engine, .. }) = self.running.get() else {
            return Ok("loading the model".to_owned());
        };
        let stuck = engine.stuck_for();
        if !engine.alive() {
            Err("the engine is gone".to_owned())
        } else if stuck > self.healthy_step {
            let seconds = stuck.as_secs();
            Err(format!(
                "the engine has work and made no step for {seconds} s"
            ))
        } else {
            Ok("ok".to_owned())
        }
    }

    /// The models are loaded, a leader has welcomed us, and new attempts are taken.
    fn ready(&self) -> Result<String, String> {
        let not = |why: &str| Err(why.to_owned());
        match self.running.get() {
            None => not("loading the model"),
            Some(running) if !running.engine.alive() => not("the engine is gone"),
            Some(running) if running.session.draining() => not("draining"),
            Some(running) if !running.session.up() => not("no session with a leader"),
            Some(_) => Ok("ready".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_loads_is_alive_and_not_ready() {
        let view = View {
            running: Arc::default(),
            healthy_step: Duration::from_secs(1),
        };
        view.healthy().unwrap();
        assert_eq!(view.ready(), Err("loading the model".to_owned()));
    }
}
