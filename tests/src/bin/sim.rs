//! `sim`: runs seeded worlds of coordinators, workers and clients, and says which law did not hold.

#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use std::{process::ExitCode, time::Instant};

use conclave_tests::sim::{Coverage, Options, Outcome, run};

const HELP: &str = "sim --seed N [--seeds K] [--steps M] [--twice] [--trace]

  --seed N    the first seed (0)
  --seeds K   how many seeds, one after the other (1); with 1000 or more, what they met is held
              against the floors
  --steps M   events until faults stop (6000)
  --twice     run each seed twice and compare the stories' bytes
  --trace     print the story

example: sim --seed 5000 --seeds 1000";

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
            "--help" | "-h" => {
                println!("{HELP}");
                std::process::exit(0);
            }
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

/// What all runs came to.
#[derive(Default)]
struct Sum {
    coverage: Coverage,
    steps: u64,
    virtual_ms: u64,
    commands: u64,
    jobs: u64,
    failed: u64,
}

impl Sum {
    fn add(&mut self, options: &Options, outcome: &Outcome) {
        let fault = fault(options, outcome);
        self.coverage.merge(&outcome.coverage, fault.is_none());
        self.steps += outcome.steps;
        self.virtual_ms += outcome.virtual_ms;
        self.commands += outcome.commands;
        self.jobs += outcome.jobs;
        if let Some(fault) = fault {
            self.failed += 1;
            println!("{fault}");
        } else if options.twice {
            let (lines, digest) = (outcome.lines, &outcome.digest);
            println!("seed {}: twice {lines} lines, {digest}", options.seed);
        }
    }

    /// Prints what the runs met; false if a law did not hold, or too little was met.
    fn tell(&self, seeds: u64, took: f64) -> bool {
        println!("{}", self.coverage.table(seeds));
        let hours = self.virtual_ms as f64 / 3_600_000.0;
        println!(
            "{seeds} seeds, {} events, {} entries, {} jobs, {hours:.1} simulated hours in {took:.1} s: \
             {:.0} seeds and {:.1} simulated hours a minute; {} seeds failed",
            self.steps,
            self.commands,
            self.jobs,
            seeds as f64 / took * 60.0,
            hours / took * 60.0,
            self.failed,
        );
        // Fewer seeds may well not meet what is rare.
        let missed = if seeds >= ENOUGH {
            self.coverage.missed(seeds)
        } else {
            Vec::new()
        };
        for missed in &missed {
            println!("floor missed: {missed}");
        }
        self.failed == 0 && missed.is_empty()
    }
}

/// Seeds that must meet every floor.
const ENOUGH: u64 = 1_000;

fn main() -> ExitCode {
    let Asked { options, seeds } = match asked() {
        Ok(asked) => asked,
        Err(why) => {
            println!("{why}");
            return ExitCode::from(2);
        }
    };
    let began = Instant::now();
    let mut sum = Sum::default();
    for seed in options.seed..options.seed.saturating_add(seeds) {
        let options = Options { seed, ..options };
        sum.add(&options, &run(&options));
    }
    let took = began.elapsed().as_secs_f64().max(1e-9);
    if sum.tell(seeds, took) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
