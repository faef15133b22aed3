//! When a hosted part should end: a signal from outside.
use tokio::signal::unix::{SignalKind, signal};

use crate::error::CliError;

/// Waits for SIGINT or SIGTERM.
pub async fn asked_to_end() -> Result<(), CliError> {
    let failed = |source| CliError::Hosting(format!("signals cannot be heard: {source}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let signal = tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    };
    tracing::info!(signal, "asked to end");
    Ok(())
}

/// Runs `drain`, unless a second signal says that it takes too long.
pub async fn unless_asked_again(drain: impl Future<Output = ()>) -> Result<(), CliError> {
    tokio::select! {
        () = drain => {
            tracing::info!("ended");
            Ok(())
        }
        again = asked_to_end() => again.and(Err(CliError::Interrupted)),
    }
}

/// Runs `work`; Ctrl-C or SIGTERM drops it.
pub async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    tokio::select! {
        result = work => result,
        asked = asked_to_end() => asked.and(Err(CliError::Interrupted)),
    }
}
