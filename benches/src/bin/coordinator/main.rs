//! `make bench-coordinator`: what the coordinator costs, its commits beside those of a 3-node etcd.

#![allow(clippy::print_stdout, reason = "a bench prints what it found")]

mod commits;
mod etcd;
mod jobs;
mod placement;

use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "coordinator [--etcd PROGRAM] [--seconds N] [--rounds N] [--only PART]

Prints tables: commands committed a second and their latency at 1, 16 and 256 clients, three coordinator
processes with fsync on beside three members of etcd, turn by turn in one run; jobs a second with mock
workers; memory of a finished and of a running job; time to place an agent among up to 10,000 workers.

  --etcd PROGRAM  etcd 3.4's binary; without it, ours is measured alone
  --seconds N     length of one turn (3)
  --rounds N      turns of each side (3)
  --only PART     commits, jobs, or placement

Example:
  make bench-coordinator";

struct Asked {
    etcd: Option<PathBuf>,
    seconds: u64,
    rounds: usize,
    only: Option<String>,
}

fn asked() -> Result<Asked, String> {
    let mut asked = Asked {
        etcd: None,
        seconds: 3,
        rounds: 3,
        only: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
        match word.as_str() {
            "--etcd" => asked.etcd = Some(value()?.into()),
            "--seconds" => asked.seconds = number(value()?)?.max(1),
            "--rounds" => asked.rounds = number(value()?)?.max(1) as usize,
            "--only" => asked.only = Some(value()?),
            "--help" | "-h" => return Err(HELP.into()),
            other => return Err(format!("`{other}` is unknown\n\n{HELP}")),
        }
    }
    Ok(asked)
}

#[tokio::main]
async fn main() -> ExitCode {
    let asked = match asked() {
        Ok(asked) => asked,
        Err(text) => {
            println!("{text}");
            return ExitCode::from(2);
        }
    };
    let wanted = |part: &str| asked.only.as_deref().is_none_or(|only| only == part);
    if wanted("placement") {
        placement::print();
    }
    if wanted("commits") {
        let plan = commits::Plan {
            turn: std::time::Duration::from_secs(asked.seconds),
            rounds: asked.rounds,
        };
        commits::print(plan, asked.etcd.as_deref()).await;
    }
    if wanted("jobs") {
        jobs::print().await;
    }
    ExitCode::SUCCESS
}
