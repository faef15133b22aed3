//! The `conclave` command: parses, runs one command, reports its end.
//!
//! All of it is private but what reads bytes of others ([`audit`]), so that it can be put to the test
//! by itself.
use std::process::ExitCode;

use clap::Parser as _;

mod args;
pub mod audit;
mod cache;
mod client;
mod commands;
#[cfg(test)]
mod documents;
mod duration;
mod ending;
mod error;
mod follow;
mod host;
mod logging;
mod metrics;
mod model_source;
mod out;
mod refusal;
mod settings;
mod spec;
mod tls;
mod view;
mod watching;

/// What the binary does with its arguments.
pub fn main() -> ExitCode {
    match run(args::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_silent() {
                out::note(format!("conclave: {}", error::chain(&error)));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: args::Cli) -> Result<(), error::CliError> {
    logging::init(
        cli.global.log.as_deref(),
        cli.command.default_log(),
        cli.global.log_format,
    )?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| {
            error::CliError::Hosting(format!("the runtime did not start: {source}"))
        })?;
    let result = runtime.block_on(commands::run(cli));
    // Blocking work that outlives its command (a read of standard input) must not hold the exit.
    runtime.shutdown_background();
    result
}
