//! `load`: many clients at once against three coordinators, undisturbed and disturbed.

#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use std::process::ExitCode;

use conclave_tests::load::{Bench, Plan, SETTLED, Wave};

const HELP: &str = "load [--clients N] [--waves N] [--workers N] [--connections N]

Three coordinators as processes, mock workers, N clients at once that submit a job and watch it to its
end. Says what calls took, jobs a second, refusals, and the coordinators' memory once ended jobs are forgotten; then
the same with a hung worker, and with watchers that read nothing. Fails if a call hung, was refused
without a hint, or a job came to no answer, if memory grew, or if the disturbances slowed others.

  --clients N      clients at once (2000); three quarters of them fit at a time, the others are refused
                   and come again
  --waves N        undisturbed waves (20); memory is judged from the fourth on
  --workers N      mock workers (8)
  --connections N  connections to each coordinator (8)

Example:
  cargo build --release -p conclave -p conclave-tests && $CARGO_TARGET_DIR/release/load --clients 500";

struct Asked {
    plan: Plan,
    waves: usize,
}

fn asked() -> Result<Asked, String> {
    let plan = Plan::crowd(2000, 8, 8);
    let mut asked = Asked { plan, waves: 20 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<usize, String> {
            let value = words.next().ok_or(format!("{word} needs a number"))?;
            value.parse().map_err(|e| format!("{word} {value}: {e}"))
        };
        match word.as_str() {
            "--clients" => asked.plan.clients = number()?.max(1),
            "--waves" => asked.waves = number()?.max(2),
            "--workers" => asked.plan.workers = number()?.max(2),
            "--connections" => asked.plan.connections = number()?.max(1),
            "--help" | "-h" => return Err(HELP.into()),
            other => return Err(format!("`{other}` is unknown\n\n{HELP}")),
        }
    }
    let Plan {
        clients,
        workers,
        connections,
        ..
    } = asked.plan;
    asked.plan = Plan::crowd(clients, workers, connections);
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
    let mut bench = Bench::start(asked.plan).await;
    let mut waves = Vec::new();
    for number in 1..=asked.waves {
        let mut wave = bench.wave().await;
        bench.until_forgotten().await;
        wave.memory = bench.memory().await;
        println!("wave {number}: {}", wave.summary());
        waves.push(wave);
    }
    let grown = bench.growth(&waves);
    println!(
        "memory after wave {} is {grown:.2} of that after wave {}, apart from {} keys",
        waves.len(),
        SETTLED.min(waves.len()),
        waves
            .last()
            .map_or(0, keys)
            .saturating_sub(waves.get(SETTLED - 1).map_or(0, keys)),
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

fn keys(wave: &Wave) -> u64 {
    wave.memory.first().map_or(0, |memory| memory.keys)
}

fn slowed(by: &str, undisturbed: &Wave, disturbed: &Wave) -> Option<String> {
    let slowed = disturbed.slowed(undisturbed)?;
    Some(format!("{by} slowed others: {slowed}"))
}
