//! `mock-worker`: a mock worker as its own process, so that it can be killed, stopped and drained.

#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use std::process::ExitCode;

use conclave_tests::{MockOptions, run_mock_worker};

const HELP: &str =
    "mock-worker --coordinators HOST:PORT,... --name NAME [--rate R] [--sequences N] [--model NAME] [--token TOKEN]

A worker that speaks the real protocol and says what a mock model says.
Prints one line of JSON once a leader has welcomed it.
SIGTERM drains, SIGUSR1 hangs it (heartbeats without steps), SIGUSR2 ends that.

  --coordinators  coordinators to dial
  --name          its stable name
  --rate          tokens a second of each attempt (200)
  --sequences     attempts at a time (64)
  --model         name of the model that it serves (mock)
  --token         a token of role `worker`

Example:
  cargo run -p conclave-tests --bin mock-worker -- --coordinators 127.0.0.1:7400 --name mock-0";

fn asked() -> Result<MockOptions, String> {
    let mut options = MockOptions::new("", Vec::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--help" || word == "-h" {
            return Err(HELP.into());
        }
        let value = words
            .next()
            .ok_or_else(|| format!("{word} needs a value\n\n{HELP}"))?;
        let wrong = |e: &dyn std::fmt::Display| format!("{word} {value}: {e}");
        match word.as_str() {
            "--coordinators" => options
                .coordinators
                .extend(value.split(',').map(str::to_owned)),
            "--name" => options.name = value,
            "--rate" => options.rate = value.parse().map_err(|e| wrong(&e))?,
            "--sequences" => options.max_sequences = value.parse().map_err(|e| wrong(&e))?,
            "--model" => options.model = value,
            "--token" => options.token = Some(value),
            other => return Err(format!("`{other}` is unknown\n\n{HELP}")),
        }
    }
    if options.name.is_empty() || options.coordinators.is_empty() {
        return Err(format!("--coordinators and --name are needed\n\n{HELP}"));
    }
    Ok(options)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match asked() {
        Ok(options) => {
            run_mock_worker(options, |line| println!("{line}")).await;
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("{text}");
            ExitCode::from(2)
        }
    }
}
