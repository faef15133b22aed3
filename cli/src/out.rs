//! The two streams of a command: results on standard output, all else on
//! standard error.
use std::io::{self, IsTerminal as _, Write as _};

use serde_json::Value;

use crate::error::CliError;

/// Writes one line of the result.
pub fn line(text: impl AsRef<str>) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.as_ref())
        .and_then(|()| out.flush())
        .map_err(CliError::Output)
}

/// Writes one JSON document over several lines.
pub fn document(value: &Value) -> Result<(), CliError> {
    line(format!("{value:#}"))
}

/// Writes one JSON document on one line, for streams of them.
pub fn json_line(value: &Value) -> Result<(), CliError> {
    line(value.to_string())
}

/// Tells the user something that is not the result. A closed standard error is
/// no reason to stop.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// Whether a person watches both streams, so that lines may be redrawn.
pub fn is_interactive() -> bool {
    io::stdout().is_terminal() && io::stderr().is_terminal()
}
