//! `chaos`: real processes under load, real faults, and a table of what held.

#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use conclave_tests::chaos::{Outcome, Reference, Row, SCENARIOS, Scenario, machine, run};

/// Real processes under load, real faults, and a table of what held.
///
/// Starts three coordinators and three workers for each scenario, loads them, does what the scenario says,
/// and asks afterwards: is every accepted job answered, the same as undisturbed, once; does the clients'
/// history have an order; do the audit chains hold.
#[derive(Parser)]
#[command(
    name = "chaos",
    after_help = "Example: chaos pause-leader isolate-leader --seed 7"
)]
struct Asked {
    /// Those to run; all, if none is named.
    #[arg(value_name = "SCENARIO", value_parser = scenario)]
    scenarios: Vec<&'static Scenario>,
    /// Chance: which jobs, whom a fault hits.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A scenario that cannot run on this machine is a failure.
    #[arg(long)]
    require_all: bool,
    /// Name the scenarios.
    #[arg(long)]
    list: bool,
}

fn scenario(name: &str) -> Result<&'static Scenario, String> {
    let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
    found.ok_or_else(|| format!("there is none of this name; there are\n{}", list()))
}

fn list() -> String {
    let line = |s: &Scenario| format!("{:16} {}", s.name, s.about);
    SCENARIOS.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn main() -> ExitCode {
    let mut asked = Asked::parse();
    if asked.list {
        println!("{}", list());
        return ExitCode::SUCCESS;
    }
    if asked.scenarios.is_empty() {
        asked.scenarios = SCENARIOS.iter().collect();
    }
    if let Err(why) = machine::enter() {
        println!("{why}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if runtime.block_on(all(&asked)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs what was asked for; true if all of it held.
async fn all(asked: &Asked) -> bool {
    let reference = Reference::take().await;
    let (mut rows, mut good) = (Vec::new(), true);
    for scenario in &asked.scenarios {
        machine::note(&format!("{}: {}", scenario.name, scenario.about));
        let outcome = run(scenario, &reference, asked.seed).await;
        match &outcome {
            Outcome::Ran(_, wrong) => {
                good &= wrong.is_empty();
                for line in wrong {
                    machine::note(&format!("    WRONG: {line}"));
                }
            }
            Outcome::Skipped(why) => {
                good &= !asked.require_all;
                machine::note(&format!("    SKIPPED: {why}"));
            }
        }
        rows.push((scenario, outcome));
    }
    table(&rows);
    if !good {
        println!(
            "some of it does not hold; again: chaos NAME --seed {}",
            asked.seed
        );
    }
    good
}

fn table(rows: &[(&&Scenario, Outcome)]) {
    println!(
        "{:16} {:>6} {:>8} {:>8} {:>9} {:>7} {:>6} {:>7} {:>7} {:>16} {:>6}",
        "scenario",
        "faults",
        "accepted",
        "answered",
        "different",
        "doubled",
        "failed",
        "retries",
        "history",
        "accepts, answers",
        "took"
    );
    let mut sum = Row::default();
    for (scenario, outcome) in rows {
        match outcome {
            Outcome::Ran(row, wrong) => {
                let verdict = if wrong.is_empty() { "" } else { "  WRONG" };
                println!("{:16} {}{verdict}", scenario.name, figures(row));
                add(&mut sum, row);
            }
            Outcome::Skipped(why) => println!("{:16} SKIPPED: {why}", scenario.name),
        }
    }
    println!("{:16} {}", "all", figures(&sum));
}

fn figures(row: &Row) -> String {
    let recovered = row.recovered.map_or("-".into(), |(ack, answer)| {
        format!("{:.2} s, {:.2} s", ack.as_secs_f64(), answer.as_secs_f64())
    });
    format!(
        "{:6} {:8} {:8} {:9} {:7} {:6} {:7} {:7} {:>16} {:4} s",
        row.faults,
        row.accepted,
        row.answered,
        row.different,
        row.doubled,
        row.failed_calls,
        row.retries,
        row.history,
        recovered,
        row.took.as_secs()
    )
}

fn add(sum: &mut Row, row: &Row) {
    sum.faults += row.faults;
    sum.accepted += row.accepted;
    sum.answered += row.answered;
    sum.different += row.different;
    sum.doubled += row.doubled;
    sum.failed_calls += row.failed_calls;
    sum.retries += row.retries;
    sum.history += row.history;
    sum.took += row.took;
    let none = (Duration::ZERO, Duration::ZERO);
    let (a, b) = (sum.recovered.unwrap_or(none), row.recovered.unwrap_or(none));
    sum.recovered = Some((a.0.max(b.0), a.1.max(b.1)));
}
