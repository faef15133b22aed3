//! The scenarios of `make chaos` that fit into `make test`: a stopped leader, a
//! torn log, a rolling restart, and a partition where the machine
//! allows one.

use std::process::Command;

/// One after the other, in one process: each loads every core there is.
const SCENARIOS: [&str; 4] = [
    "pause-leader",
    "isolate-leader",
    "torn-log",
    "rolling-restart",
];

#[test]
fn nothing_is_lost_doubled_or_different_under_real_faults() {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(SCENARIOS)
        .output()
        .expect("the runner starts");
    let table = String::from_utf8_lossy(&output.stdout);
    let story = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{table}\n{story}");
    let ran = SCENARIOS.iter().filter(|name| {
        let row = table.lines().find(|line| line.starts_with(*name));
        row.is_some_and(|row| !row.contains("SKIPPED"))
    });
    assert!(ran.count() >= 3, "those on loopback run anywhere:\n{table}");
}
