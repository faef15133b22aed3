//! `load`: many clients at once against three coordinators, undisturbed and disturbed.

#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use std::num::{NonZeroU32, NonZeroUsize};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use conclave_tests::load::{Bench, Plan, SETTLED, Tenants, TenantsPlan, Wave};

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
    #[command(subcommand)]
    instead: Option<Instead>,
}

#[derive(Subcommand)]
enum Instead {
    /// Two tenants: one asks steadily, alone and then while the other floods.
    ///
    /// Fails if the steady tenant's answers take more than one and a half times as long beside the flood, if the
    /// flood is refused otherwise than by its quota and with a hint, or if memory grows.
    Tenants {
        /// Clients that flood; a refused one comes again after a second, when it is told to.
        #[arg(long, default_value = "400")]
        clients: NonZeroUsize,
        /// Seconds alone, and twice as many beside the flood.
        #[arg(long, default_value = "30")]
        seconds: NonZeroU32,
    },
}

const EXAMPLE: &str = "Example:
  cargo build --release -p conclave -p conclave-tests && $CARGO_TARGET_DIR/release/load --clients 500";

#[tokio::main]
async fn main() -> ExitCode {
    let asked = Asked::parse();
    if let Some(Instead::Tenants { clients, seconds }) = asked.instead {
        let alone = Duration::from_secs(u64::from(seconds.get()));
        return two_tenants(TenantsPlan::flood(clients.get()), alone).await;
    }
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
        "memory in the last waves is {grown:.2} of that from wave {} on, apart from keys and log",
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
    end(&faults)
}

fn end(faults: &[String]) -> ExitCode {
    faults.iter().for_each(|fault| println!("FAULT: {fault}"));
    ExitCode::from(u8::from(!faults.is_empty()))
}

/// How long answers may take beside a flood, as a share of what they took without.
const SLOWER: f64 = 1.5;

async fn two_tenants(plan: TenantsPlan, lasting: Duration) -> ExitCode {
    let mut tenants = Tenants::start(plan).await;
    // Connections, caches.
    tenants.steady(lasting / 4).await;
    let alone = tenants.steady(lasting).await;
    let (beside, flood) = tenants.flooded(lasting * 2).await;
    tenants.ebbed().await;
    println!("| the steady tenant | jobs | p50 ms | p99 ms |\n|---|---|---|---|");
    for (name, met) in [("alone", &alone), ("beside the flood", &beside)] {
        let [p50, p99] = [50, 99].map(|p| met.answer.percentile(p).as_millis());
        println!("| {name} | {} | {p50} | {p99} |", met.answer.len());
    }
    println!(
        "\n| the flood, a second | offered | its room | accepted | refused | refusals p50 ms | p99 ms |\n|---|---|---|---|---|---|---|"
    );
    let seconds = flood.took.as_secs_f64();
    let [p50, p99] = [50, 99].map(|p| flood.refused.percentile(p).as_millis());
    println!(
        "| | {:.0} | {:.0} | {:.0} | {:.0} | {p50} | {p99} |\n",
        flood.offered(),
        plan.room(),
        flood.accepted.len() as f64 / seconds,
        flood.refused.len() as f64 / seconds,
    );
    for (index, series) in flood.memory.iter().enumerate() {
        if let [first, .., last] = &series[..] {
            println!(
                "coordinator {index}: {}, then {}",
                first.summary(),
                last.summary()
            );
        }
    }
    let mut faults: Vec<String> = Vec::new();
    for met in [&alone, &beside] {
        faults.extend(met.failures.iter().map(ToString::to_string));
        if met.refused > 0 {
            faults.push(format!(
                "{} of the steady tenant's jobs were refused",
                met.refused
            ));
        }
    }
    faults.extend(flood.failures.iter().map(ToString::to_string));
    if flood.refused.is_empty() {
        faults.push("the flood was never refused".to_owned());
    }
    for percent in [50, 99] {
        let [before, now] = [&alone, &beside].map(|met| met.answer.percentile(percent));
        if now > before.mul_f64(SLOWER) {
            faults.push(format!(
                "the flood slowed the other: p{percent} {now:?}, and was {before:?}"
            ));
        }
    }
    let grown = flood.growth();
    println!(
        "allocated memory at the end of the flood is {grown:.2} of what it was after a third, apart from keys"
    );
    if grown > conclave_tests::load::GROWTH {
        faults.push(format!("memory grew to {grown:.2} of what it was"));
    }
    end(&faults)
}

fn slowed(by: &str, undisturbed: &Wave, disturbed: &Wave) -> Option<String> {
    let slowed = disturbed.slowed(undisturbed)?;
    Some(format!("{by} slowed others: {slowed}"))
}
