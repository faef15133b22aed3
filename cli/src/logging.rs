//! Where log lines go: standard error, filtered, as text or JSON.
use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::{args::LogFormat, error::CliError};

/// Whether nobody asked for plain text (the convention of the variable NO_COLOR).
fn wants_color() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Installs the process's log. `fallback` is the filter when none was given.
pub fn init(filter: Option<&str>, fallback: &str, format: LogFormat) -> Result<(), CliError> {
    let directives = filter.unwrap_or(fallback);
    let filter = EnvFilter::try_new(directives).map_err(|error| {
        CliError::usage(format!(
            "--log `{directives}`: {error}; try `info` or `warn,conclave_worker=debug`"
        ))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal() && wants_color())
        .with_writer(std::io::stderr);
    // A second call (tests) keeps the first log.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}
