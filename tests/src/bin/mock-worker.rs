//! `mock-worker`: a mock worker as its own process, so that it can be killed, stopped and drained.

#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use clap::Parser;
use conclave_tests::{MockOptions, run_mock_worker};

/// A mock worker as its own process, so that it can be killed, stopped and drained.
///
/// A worker that speaks the real protocol and says what a mock model says. Prints one line of JSON once a
/// leader has welcomed it. SIGTERM drains, SIGUSR1 hangs it (heartbeats without steps), SIGUSR2 ends that.
#[derive(Parser)]
#[command(name = "mock-worker", after_help = EXAMPLE)]
struct Asked {
    /// Coordinators to dial.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    coordinators: Vec<String>,
    /// Its stable name.
    #[arg(long)]
    name: String,
    /// Tokens a second of each attempt (200).
    #[arg(long)]
    rate: Option<f64>,
    /// Attempts at a time (64).
    #[arg(long)]
    sequences: Option<u32>,
    /// Name of the model that it serves (mock).
    #[arg(long)]
    model: Option<String>,
    /// A token of role `worker`.
    #[arg(long)]
    token: Option<String>,
}

const EXAMPLE: &str = "Example:
  cargo run -p conclave-tests --bin mock-worker -- --coordinators 127.0.0.1:7400 --name mock-0";

impl From<Asked> for MockOptions {
    fn from(asked: Asked) -> MockOptions {
        let usual = MockOptions::new(&asked.name, asked.coordinators);
        MockOptions {
            token: asked.token,
            rate: asked.rate.unwrap_or(usual.rate),
            max_sequences: asked.sequences.unwrap_or(usual.max_sequences),
            model: asked.model.unwrap_or(usual.model.clone()),
            ..usual
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    run_mock_worker(Asked::parse().into(), |line| println!("{line}")).await;
}
