//! `failover`: what a death costs, beside etcd where the same can be asked of it.

#![allow(clippy::print_stdout, reason = "it is what the program is for")]

mod etcd;
mod leader;
mod worker;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use conclave_tests::{Tally, Times};

const EXAMPLE: &str = "Example:
  cargo build --release -p conclave -p conclave-tests
  $CARGO_TARGET_DIR/release/failover --etcd \"$(tests/scripts/fetch-etcd.sh)\"";

/// Both sides' heartbeat and election timeout: the defaults of both.
const HEARTBEAT_MS: u64 = 100;
const ELECTION_MS: u64 = 1000;
/// A client's deadline for one try, and its pause before the next: the same on both sides.
const TRY: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(10);

/// What a death costs, beside etcd.
///
/// Prints how long the next placement takes after the leader's SIGKILL, in turn with how long the next put
/// takes after the SIGKILL of an etcd leader with the same election settings; then how many of the requests
/// in flight fail when one of two workers is killed. Fails if a job was lost, doubled or answered otherwise
/// than where nothing fails.
#[derive(Parser)]
#[command(name = "failover", after_help = EXAMPLE)]
struct Asked {
    /// Kills of a leader, each.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// The etcd program; without it only our side is measured.
    #[arg(long, value_name = "PATH")]
    etcd: Option<PathBuf>,
    /// Requests in flight when a worker dies.
    #[arg(long, default_value_t = 100)]
    requests: usize,
    /// The workers run the test model, with short answers.
    #[arg(long)]
    real: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let asked = Asked::parse();
    let mut tally = Tally::default();
    if asked.rounds > 0 {
        leaders(&asked, &mut tally).await;
    }
    if asked.requests > 0 {
        let failed = worker::kill_one_of_two(asked.requests, asked.real, &mut tally).await;
        println!(
            "SIGKILL of one of two workers: {failed} of {} requests in flight failed",
            asked.requests
        );
        tally.lost += failed;
    }
    println!("over all: {}", tally.summary());
    if tally.clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn leaders(asked: &Asked, tally: &mut Tally) {
    let mut ours = leader::Ours::start().await;
    let mut theirs = match &asked.etcd {
        Some(program) => Some(etcd::Etcd::start(program, HEARTBEAT_MS, ELECTION_MS).await),
        None => None,
    };
    let [mut placements, mut submits, mut puts] = [(); 3].map(|()| Times::default());
    for round in 0..asked.rounds {
        let (placement, submit) = ours.kill_leader(round, tally).await;
        placements.add(placement);
        submits.add(submit);
        let mut line = format!(
            "round {round}: placement {} ms, submit {} ms",
            placement.as_millis(),
            submit.as_millis()
        );
        if let Some(etcd) = &mut theirs {
            let put = etcd::kill_leader(etcd, round).await;
            puts.add(put);
            line += &format!(", etcd put {} ms", put.as_millis());
        }
        println!("{line}");
    }
    ours.audit(tally).await;
    println!(
        "SIGKILL of the leader, {HEARTBEAT_MS}/{ELECTION_MS} ms heartbeat/election, to the next"
    );
    println!("  placement that a worker sees    {}", placements.summary());
    println!("  SubmitJob that is acknowledged  {}", submits.summary());
    if !puts.is_empty() {
        println!("  put of etcd                     {}", puts.summary());
    }
}
