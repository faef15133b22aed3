//! `sim`: runs seeded worlds of coordinators, workers and clients, and says which law did not hold.

use std::{io::Write as _, process::ExitCode, time::Instant};

use clap::Parser;
use conclave_tests::sim::{Coverage, ENOUGH, Options, Outcome, run};

/// Prints a line. A closed pipe ends the telling, not the run.
macro_rules! say {
    ($($line:tt)*) => {
        let _ = writeln!(std::io::stdout(), $($line)*);
    };
}

/// Runs seeded worlds of coordinators, workers and clients, and says which law did not hold.
#[derive(Parser)]
#[command(name = "sim", after_help = "Example: sim --seed 5000 --seeds 1000")]
struct Asked {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds, one after the other; with 1000 or more, what they met is held against the floors.
    #[arg(long, value_name = "K", default_value_t = 1)]
    seeds: u64,
    /// Events until faults stop.
    #[arg(long, value_name = "M", default_value_t = Options::new(0).steps)]
    steps: u64,
    /// Run each seed twice and compare the stories' bytes.
    #[arg(long)]
    twice: bool,
    /// Print the story.
    #[arg(long)]
    trace: bool,
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
            say!("{fault}");
        } else if options.twice {
            let (lines, digest) = (outcome.lines, &outcome.digest);
            say!("seed {}: twice {lines} lines, {digest}", options.seed);
        }
    }

    /// Prints what the runs met; false if a law did not hold, or too little was met.
    fn tell(&self, seeds: u64, took: f64) -> bool {
        let wanted = if seeds >= ENOUGH { seeds } else { 0 };
        say!("{}", self.coverage.table(wanted));
        let hours = self.virtual_ms as f64 / 3_600_000.0;
        say!(
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
            say!("floor missed: {missed}");
        }
        self.failed == 0 && missed.is_empty()
    }
}

fn main() -> ExitCode {
    let Asked {
        seed,
        seeds,
        steps,
        twice,
        trace,
    } = Asked::parse();
    let options = Options {
        steps,
        twice,
        trace,
        ..Options::new(seed)
    };
    let began = Instant::now();
    let mut sum = Sum::default();
    for seed in (0..seeds).map(|number| options.seed.wrapping_add(number)) {
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
