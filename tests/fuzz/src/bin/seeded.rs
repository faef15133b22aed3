//! Runs targets with the seeded driver: `seeded list`, `seeded seeds TARGET FOLDER`, `seeded input TARGET
//! FILE`, `seeded run TARGET SECONDS [SEED]`.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use conclave_fuzz::{Target, seeded, targets};

const USAGE: &str = "usage: seeded list | seeds TARGET FOLDER | input TARGET FILE | run TARGET SECONDS [SEED]\n\
    e.g. seeded run gguf 60\n`make fuzz` runs every target, guided by coverage";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match act(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            println!("{problem}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn act(words: &[&str]) -> Result<(), String> {
    match words {
        ["list"] => targets::ALL.iter().for_each(|t| println!("{}", t.name)),
        ["seeds", name, folder] => {
            for (number, seed) in find(name)?.corpus().iter().enumerate() {
                let path = std::path::Path::new(folder).join(format!("seed-{number}"));
                std::fs::write(&path, seed).map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
        ["input", name, file] => {
            let input = std::fs::read(file).map_err(|e| format!("{file}: {e}"))?;
            seeded::rerun(find(name)?, &input);
            println!("{name}: {} bytes, nothing found", input.len());
        }
        ["run", name, seconds, seed @ ..] => {
            let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
            let seed = seed.first().map_or(Ok(1), |seed| number(seed))?;
            let until = seeded::Until::Elapsed(Duration::from_secs(number(seconds)?));
            let started = Instant::now();
            let count = seeded::run(find(name)?, seed, until);
            println!(
                "{name}: {count} inputs in {:.0?}, nothing found (seed {seed})",
                started.elapsed()
            );
        }
        _ => return Err("what is to be done?".to_owned()),
    }
    Ok(())
}

fn find(name: &str) -> Result<&'static Target, String> {
    let names = || {
        let names: Vec<_> = targets::ALL.iter().map(|t| t.name).collect();
        format!("no target `{name}`; there are {}", names.join(", "))
    };
    targets::ALL
        .iter()
        .find(|t| t.name == name)
        .ok_or_else(names)
}
