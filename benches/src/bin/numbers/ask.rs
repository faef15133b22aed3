//! `conclave ask` as a user runs it: three coordinators and two workers in one
//! process, eight agents and a chair.

use std::error::Error;
use std::process::Command;
use std::time::Instant;

const QUESTION: &str = "Which is larger, the Moon or the Earth, and how do we know?";

pub fn print() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let output = Command::new(conclave_tests::conclave_binary())
        .args(["ask", "--json", "--seed", "1", QUESTION])
        .output()?;
    let wall = started.elapsed();
    if !output.status.success() {
        return Err(format!("ask: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let tokens = ["thought_tokens", "answer_tokens"]
        .iter()
        .filter_map(|kind| answer["usage"][kind].as_u64())
        .sum::<u64>();
    println!(
        "| `conclave ask`, 8 agents and a chair, {tokens} tokens | {:.1} s |",
        wall.as_secs_f64()
    );
    println!(
        "| its peak memory | {} MiB |",
        conclave_tests::peak_memory_of_children() >> 20
    );
    Ok(())
}
