//! `sim`: runs seeded worlds of coordinators, workers and clients, and says which law did not hold.

#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use std::{process::ExitCode, time::Instant};

use conclave_tests::sim::{Coverage, Options, Outcome, run};

const HELP: &str = "sim --seed N [--seeds K] [--steps M] [--twice] [--trace]

  --seed N    the first seed (0)
  --seeds K   how many seeds, one after the other (1)
  --steps M   events until faults stop
  --twice     run each seed twice and compare the stories' bytes
  --trace     print the story";

struct Asked {
    options: Options,
    seeds: u64,
}

fn asked() -> Result<Asked, String> {
    let mut asked = Asked {
        options: Options::new(0),
        seeds: 1,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let value = words
                .next()
                .ok_or_else(|| format!("{word} needs a number"))?;
            value.parse().map_err(|e| format!("{word} {value}: {e}"))
        };
        match word.as_str() {
            "--seed" => asked.options.seed = number()?,
            "--seeds" => asked.seeds = number()?,
            "--steps" => asked.options.steps = number()?,
            "--twice" => asked.options.twice = true,
            "--trace" => asked.options.trace = true,
            "--help" | "-h" => return Err(HELP.into()),
            other => return Err(format!("`{other}` is unknown\n\n{HELP}")),
        }
    }
    Ok(asked)
}

/// Why the seed failed, with the command that shows it.
fn fault(options: &Options, outcome: &Outcome) -> Option<String> {
    if let Some(violation) = &outcome.violation {
        return Some(format!(
            "seed {} breaks \"{}\": {}\nagain: {}",
            options.seed,
            violation.law,
            violation.what,
            options.rerun()
        ));
    }
    if !options.twice {
        return None;
    }
    let again = run(&Options {
        trace: false,
        ..*options
    });
    (again.digest != outcome.digest).then(|| {
        format!(
            "seed {} ran otherwise the second time: {} lines {}, then {} lines {}",
            options.seed, outcome.lines, outcome.digest, again.lines, again.digest
        )
    })
}

fn main() -> ExitCode {
    let Asked { options, seeds } = match asked() {
        Ok(asked) => asked,
        Err(why) => {
            println!("{why}");
            return ExitCode::from(2);
        }
    };
    let began = Instant::now();
    let mut coverage = Coverage::default();
    let (mut steps, mut virtual_ms, mut commands, mut jobs, mut faults) = (0, 0, 0, 0, 0_u64);
    for seed in options.seed..options.seed.saturating_add(seeds) {
        let options = Options { seed, ..options };
        let outcome = run(&options);
        coverage.merge(&outcome.coverage);
        steps += outcome.steps;
        virtual_ms += outcome.virtual_ms;
        commands += outcome.commands;
        jobs += outcome.jobs;
        if let Some(fault) = fault(&options, &outcome) {
            faults += 1;
            println!("{fault}");
        } else if options.twice {
            println!(
                "seed {seed}: twice {} lines, {}",
                outcome.lines, outcome.digest
            );
        }
    }
    let took = began.elapsed().as_secs_f64().max(1e-9);
    println!("{coverage}");
    println!(
        "{seeds} seeds, {steps} events, {:.1} virtual hours in {took:.1} s ({:.0} virtual s a second), \
         {commands} entries, {jobs} jobs, {faults} seeds failed",
        virtual_ms as f64 / 3_600_000.0,
        virtual_ms as f64 / 1_000.0 / took,
    );
    if faults == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
