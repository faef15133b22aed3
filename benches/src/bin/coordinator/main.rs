//! `make bench-coordinator`: what the coordinator costs, its commits beside those of a 3-node etcd.

#![allow(clippy::print_stdout, reason = "a bench prints what it found")]

mod commits;
mod jobs;
mod placement;

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// What the coordinator costs, its commits beside those of a 3-node etcd.
///
/// Prints tables: commands committed a second and their latency at 1, 16 and 256 clients, three coordinator
/// processes with fsync on beside three members of etcd, turn by turn in one run; jobs a second with mock
/// workers; memory of a finished and of a running job; time to place an agent among up to 10,000 workers.
#[derive(Parser)]
#[command(name = "coordinator", after_help = "Example: make bench-coordinator")]
struct Asked {
    /// etcd 3.4's binary; without it, ours is measured alone.
    #[arg(long, value_name = "PROGRAM")]
    etcd: Option<PathBuf>,
    /// Length of one turn.
    #[arg(long, default_value = "3")]
    seconds: NonZeroU64,
    /// Turns of each side.
    #[arg(long, default_value = "3")]
    rounds: NonZeroUsize,
    /// Only this part.
    #[arg(long)]
    only: Option<Part>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    Placement,
    Commits,
    Jobs,
}

#[tokio::main]
async fn main() {
    let asked = Asked::parse();
    let wanted = |part| asked.only.is_none_or(|only| only == part);
    if wanted(Part::Placement) {
        placement::print();
    }
    if wanted(Part::Commits) {
        let plan = commits::Plan {
            turn: std::time::Duration::from_secs(asked.seconds.get()),
            rounds: asked.rounds.get(),
        };
        commits::print(plan, asked.etcd.as_deref()).await;
    }
    if wanted(Part::Jobs) {
        jobs::print().await;
    }
}
