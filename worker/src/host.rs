//! One worker, hosted in this process: started, watched, shut down.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use conclave_traces::{Exporter, Traces};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::backend::Backend;
use crate::config::Config;
use crate::engine_thread;
use crate::error::StartError;
use crate::http;
use crate::load;
use crate::metrics;
use crate::secrets;
use crate::session::link::Dialer;
use crate::session::{Control, Session, SessionParts, SessionStatus};

/// Attempts and kept results together, for each sequence that runs side by side: room for results to
/// pile up while no coordinator leads.
const CAPACITY_PER_SEQUENCE: usize = 32;

/// File in the data folder that keeps the worker's name.
const ID_FILE: &str = "worker_id";

/// What may remain after a drain: the last bytes of streams and scrapes, and one step of the engine.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// A running worker. Dropping it ends it without a goodbye: the coordinators find out by its lease.
pub struct Worker {
    worker_id: String,
    http_addr: SocketAddr,
    control: mpsc::Sender<Control>,
    /// Cancelled when the session has ended.
    ended: CancellationToken,
    /// The session and the HTTP server; aborted when dropped.
    tasks: JoinSet<()>,
    /// Closes the HTTP server.
    stop: DropGuard,
    exporter: Option<Exporter>,
}

impl Worker {
    /// Loads the models and runs a worker on them. Returns once the models are loaded; the HTTP server is
    /// there from the beginning, and says so. The session with the coordinators is made meanwhile and again
    /// whenever it is lost.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(
        config: Config,
        metrics_handle: PrometheusHandle,
    ) -> Result<Self, StartError> {
        let opened = Opened::new(&config, metrics_handle).await?;
        let (settings, capacity) = (config.clone(), capacity(&config));
        let loading = tokio::task::spawn_blocking(move || load::backends(&settings, capacity));
        let backends = match loading.await {
            Ok(backends) => backends?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        opened.run(config, backends)
    }

    /// Runs a worker on these backends, one for each model. `config.models` is not looked at.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start_with<B: Backend>(
        config: Config,
        backends: Vec<Arc<B>>,
        metrics_handle: PrometheusHandle,
    ) -> Result<Self, StartError> {
        let opened = Opened::new(&config, metrics_handle).await?;
        opened.run(config, backends)
    }

    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// The name that the coordinators know.
    pub fn worker_id(&self) -> &str {
        &self.worker_id
    }

    /// Takes nothing new, finishes what runs and delivers its results, within `deadline`; what is not
    /// done by then is given back to the coordinators, and does not count against the agents.
    pub async fn shutdown(mut self, deadline: Duration) {
        // The channel is full only if a drain was asked for already.
        let _asked = self.control.try_send(Control::Drain { within: deadline });
        let left = tokio::time::timeout(deadline + CLOSE_WITHIN, self.ended.cancelled()).await;
        if left.is_err() {
            tracing::warn!(worker = self.worker_id, "the session did not end in time");
        }
        drop(self.stop);
        drop(self.control);
        let close = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_WITHIN, close).await.is_err() {
            tracing::warn!(worker = self.worker_id, "the worker did not close in time");
        }
        if let Some(exporter) = self.exporter {
            exporter.close(CLOSE_WITHIN).await;
        }
    }

    /// Waits until the worker has ended by itself: its engine is gone. A supervisor starts a new one.
    pub async fn wait(&self) {
        self.ended.cancelled().await;
    }
}

/// A worker that serves HTTP and nothing else yet.
struct Opened {
    http_addr: SocketAddr,
    running: Arc<OnceLock<http::Running>>,
    tasks: JoinSet<()>,
    stop: DropGuard,
}

impl Opened {
    /// Takes the port, before anything that takes long.
    async fn new(config: &Config, metrics_handle: PrometheusHandle) -> Result<Self, StartError> {
        config.check()?;
        metrics::describe();
        let listener = http::listen(config.http_listen).await?;
        let listened = listener.local_addr();
        let http_addr = listened.map_err(|source| StartError::Listen {
            address: config.http_listen,
            source,
        })?;
        let running = Arc::new(OnceLock::new());
        let view = http::View {
            running: Arc::clone(&running),
            healthy_step: config.healthy_step(),
        };
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(conclave_probes::serve(
            listener,
            metrics_handle,
            view,
            stop.clone(),
        ));
        Ok(Self {
            http_addr,
            running,
            tasks,
            stop: stop.drop_guard(),
        })
    }

    /// Starts the engine and the session.
    fn run<B: Backend>(self, config: Config, backends: Vec<Arc<B>>) -> Result<Worker, StartError> {
        let Self {
            http_addr,
            running,
            mut tasks,
            stop,
        } = self;
        no_name_twice(&backends)?;
        let token = secrets::token(&config)?;
        let worker_id = worker_id(&config)?;
        let (traces, exporter) = traces(&config, &worker_id)?;
        let capacity = capacity(&config);
        let engine = engine_thread::spawn(backends.clone(), capacity, &worker_id)
            .map_err(StartError::Thread)?;
        let status = Arc::new(SessionStatus::default());
        running.get_or_init(|| http::Running {
            engine: Arc::clone(&engine.status),
            session: Arc::clone(&status),
        });
        let (control, controls) = mpsc::channel(1);
        let session = Session::new(SessionParts {
            worker_id: worker_id.clone(),
            incarnation: Uuid::now_v7().to_string(),
            backends,
            engine,
            dialer: Dialer {
                dial: secrets::dial(config.tls.as_ref(), &worker_id)?,
                token,
                timeout: config.dial_timeout(),
                keepalive: config.keepalive(),
                silence: config.silence(),
            },
            coordinators: config.coordinators,
            max_sequences: config.max_sequences,
            capacity,
            traces,
            status,
            control: controls,
        });
        let ended = CancellationToken::new();
        // Ends also if the session panics.
        let end = ended.clone().drop_guard();
        tasks.spawn(async move {
            let _end = end;
            session.run().await;
        });
        tracing::info!(worker = worker_id, %http_addr, device = %config.device, "worker started");
        Ok(Worker {
            worker_id,
            http_addr,
            control,
            ended,
            tasks,
            stop,
            exporter,
        })
    }
}

/// Where this worker's spans go, if anywhere.
fn traces(
    config: &Config,
    worker_id: &str,
) -> Result<(Option<Traces>, Option<Exporter>), conclave_traces::StartError> {
    let Some(settings) = &config.traces else {
        return Ok((None, None));
    };
    let identity = conclave_traces::Identity {
        service: "conclave-worker",
        instance: worker_id.to_owned(),
        version: env!("CARGO_PKG_VERSION"),
    };
    let (traces, exporter) = conclave_traces::begin(settings, identity)?;
    Ok((Some(traces), Some(exporter)))
}

/// Attempts and kept results together.
fn capacity(config: &Config) -> usize {
    CAPACITY_PER_SEQUENCE * config.max_sequences as usize
}

fn no_name_twice<B: Backend>(backends: &[Arc<B>]) -> Result<(), StartError> {
    let mut names = BTreeSet::new();
    for name in backends.iter().map(|backend| backend.model().name) {
        if !names.insert(name.clone()) {
            return Err(StartError::ModelTwice { name });
        }
    }
    Ok(())
}

/// The configured name, or the one in the data folder, minted at its first start.
fn worker_id(config: &Config) -> Result<String, StartError> {
    if !config.worker_id.is_empty() {
        return Ok(config.worker_id.clone());
    }
    // The tail of the identifier is random; its head is the time.
    let minted = || format!("worker-{}", &Uuid::now_v7().simple().to_string()[20..]);
    let Some(folder) = &config.data_dir else {
        return Ok(minted());
    };
    kept_id(folder, minted).map_err(|source| StartError::DataDir {
        path: folder.clone(),
        source,
    })
}

fn kept_id(folder: &Path, mint: impl FnOnce() -> String) -> std::io::Result<String> {
    let path = folder.join(ID_FILE);
    match std::fs::read_to_string(&path) {
        Ok(kept) if !kept.trim().is_empty() => return Ok(kept.trim().to_owned()),
        Ok(_empty) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    std::fs::create_dir_all(folder)?;
    let id = mint();
    // Whole or not at all: a torn name would be another worker.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut file, id.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_name_is_kept_in_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: Some(folder.path().join("new")),
            ..Config::default()
        };
        let first = worker_id(&config).unwrap();
        assert_eq!(worker_id(&config).unwrap(), first);
        let other = Config::default();
        assert_ne!(worker_id(&other).unwrap(), worker_id(&other).unwrap());
    }
}
