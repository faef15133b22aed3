//! `laws`: takes the code of each law out, and shows that its test fails.

#![allow(clippy::print_stdout, reason = "it is what the program is for")]

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use conclave_tests::laws::{self, LAWS, LawError, Patch, Scratch, Verdict};

/// Takes the code of each law out, and shows that its test fails.
///
/// Takes the code of each law of docs/ARCHITECTURE.md out, one patch of tests/laws at a time, in a copy of
/// the tree, and runs the tests that the patch names: they pass with the code and must fail without it.
/// Registry dependencies are shared with CARGO_TARGET_DIR; the copy is kept there.
#[derive(Parser)]
#[command(name = "laws", after_help = "Example: laws --only 03- --only 07-key")]
struct Asked {
    /// Patches whose file name contains TEXT, or whose tests are all in the package TEXT; may be given
    /// several times.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only say which patches there are.
    #[arg(long)]
    list: bool,
}

fn chosen(patch: &Patch, text: &str) -> bool {
    let inside = |tests: &laws::Tests| tests.target.iter().any(|word| word == text);
    patch.file.contains(text) || patch.fails.iter().all(inside)
}

fn target() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    set.unwrap_or_else(|| laws::root().join("target"))
}

/// Tries the patches; returns how many laws are not held.
fn try_all(patches: &[Patch]) -> Result<usize, LawError> {
    // All must apply before the first is tried: that takes a moment, the rest minutes.
    for patch in patches {
        patch.applied(&laws::root())?;
    }
    let scratch = Scratch::new(&laws::root(), &target().join("laws"))?;
    println!("building and running the tests with every law in place ...");
    let began = Instant::now();
    let bad = laws::baseline(&scratch, patches)?;
    println!(
        "{} s; {} do not pass: {}",
        began.elapsed().as_secs(),
        bad.len(),
        bad.join(", ")
    );
    println!(
        "\n{:>3}  {:<58}  {:<6} {:>5}  tests",
        "law", "without", "", "s"
    );
    let mut unheld = bad.len();
    for patch in patches {
        let began = Instant::now();
        let verdict = laws::judge(&scratch, patch)?;
        let word = match &verdict {
            Verdict::Fails => "fails",
            Verdict::DoesNotBuild(_) => "BUILD",
            Verdict::Passes(_) => "PASSES",
        };
        unheld += usize::from(verdict != Verdict::Fails);
        let (seconds, names) = (began.elapsed().as_secs(), patch.test_names());
        let names = names.collect::<Vec<_>>().join(", ");
        println!(
            "{:>3}  {:<58}  {word:<6} {seconds:>5}  {names}",
            patch.law, patch.takes_out
        );
        match verdict {
            Verdict::Fails => {}
            Verdict::DoesNotBuild(why) => println!("{why}"),
            Verdict::Passes(which) => println!(
                "     {} holds nothing: {} passed",
                patch.file,
                which.join(", ")
            ),
        }
    }
    Ok(unheld)
}

fn main() -> ExitCode {
    let asked = Asked::parse();
    let mut patches = match laws::patches(&laws::root()) {
        Ok(patches) => patches,
        Err(why) => {
            println!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let missing: Vec<u32> = (1..=LAWS)
        .filter(|law| patches.iter().all(|patch| patch.law != *law))
        .collect();
    if !missing.is_empty() {
        println!("no patch takes out law {missing:?}");
        return ExitCode::FAILURE;
    }
    if !asked.only.is_empty() {
        patches.retain(|patch| asked.only.iter().any(|text| chosen(patch, text)));
    }
    if asked.list {
        for patch in &patches {
            println!("{:>3}  {:<40}  {}", patch.law, patch.file, patch.takes_out);
        }
        return ExitCode::SUCCESS;
    }
    match try_all(&patches) {
        Ok(0) => {
            println!(
                "\n{} pieces of {LAWS} laws, each held by a test",
                patches.len()
            );
            ExitCode::SUCCESS
        }
        Ok(unheld) => {
            println!("\n{unheld} are not held");
            ExitCode::FAILURE
        }
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}
