//! `load`: many clients at once against three coordinators, undisturbed and disturbed.

#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::Parser;
use conclave_tests::load::{Bench, Plan, SETTLED, Wave};

/// Many clients at once against three coordinators, undisturbed and disturbed.
///
/// Three coordinators as processes, mock workers, clients at once that submit a job and watch it to its end.
/// Says what calls took, jobs a second, refusals, and the coordinators' memory once ended jobs are forgotten;
/// then the same with a hung worker, and with watchers that read nothing. Fails if a call hung, was refused
/// without a hint, or a job came to no answer, if memory grew, or if the disturbances slowed others.
#[derive(Parser)]
#[command(name = "load", after_help = EXAMPLE)]
struct Asked {
    /// Clients at once; three quarters of them fit at a time, the others are refused and come again.
    #[arg(long, default_value = "2000")]
    clients: NonZeroUsize,
    /// Undisturbed waves, two at least; memory is judged once it has settled.
    #[arg(long, default_value = "20")]
    waves: NonZeroUsize,
    /// Mock workers, two at least: one of them hangs.
    #[arg(long, default_value = "8")]
    workers: NonZeroUsize,
    /// Connections to each coordinator.
    #[arg(long, default_value = "8")]
    connections: NonZeroUsize,
}

const EXAMPLE: &str = "Example:
  cargo build --release -p conclave -p conclave-tests && $CARGO_TARGET_DIR/release/load --clients 500";

#[tokio::main]
async fn main() -> ExitCode {
    let asked = Asked::parse();
    let workers = asked.workers.get().max(2);
    let plan = Plan::crowd(asked.clients.get(), workers, asked.connections.get());
    let mut bench = Bench::start(plan).await;
    let mut waves = Vec::new();
    for number in 1..=asked.waves.get().max(2) {
        let mut wave = bench.wave().await;
        bench.until_forgotten().await;
        wave.memory = bench.memory().await;
        println!("wave {number}: {}", wave.summary());
        waves.push(wave);
    }
    let grown = bench.growth(&waves);
    println!(
        "memory in the last waves is {grown:.2} of that from wave {} on, apart from keys",
        SETTLED + 1
    );
    let undisturbed = waves.pop().expect("two at least");

    bench.mocks[0].hang(true);
    let hung = bench.wave().await;
    bench.mocks[0].hang(false);
    println!("with one worker hung: {}", hung.summary());

    let deaf = bench.deaf_watchers(32).await;
    let deafened = bench.wave().await;
    println!("with 32 watchers that read nothing: {}", deafened.summary());
    let mut faults: Vec<String> = deaf.err().map(|f| f.to_string()).into_iter().collect();
    for wave in waves.iter().chain([&undisturbed, &hung, &deafened]) {
        faults.extend(wave.failures.iter().map(ToString::to_string));
    }
    faults.extend(slowed("a hung worker", &undisturbed, &hung));
    faults.extend(slowed("deaf watchers", &undisturbed, &deafened));
    if grown > conclave_tests::load::GROWTH {
        faults.push(format!("memory grew to {grown:.2} of what it was"));
    }
    faults.iter().for_each(|fault| println!("FAULT: {fault}"));
    ExitCode::from(u8::from(!faults.is_empty()))
}

fn slowed(by: &str, undisturbed: &Wave, disturbed: &Wave) -> Option<String> {
    let slowed = disturbed.slowed(undisturbed)?;
    Some(format!("{by} slowed others: {slowed}"))
}
