//! Audit files: reading, verifying, and what `replay` makes of them.

use conclave_cli::audit::{AuditFile, MAGIC, decode, encode, recording::Recording, verify};
use conclave_coordinator_core::{State, payload::InlineOnly};

use super::history;
use crate::{Limits, Target};

/// The file's bytes; the checksum at the end is made to fit.
pub const TARGET: Target = Target {
    name: "audit_file",
    run,
    seeds,
    words: &["conclave-audit\0\x01", "job-1", "\x0a\x00"],
    inputs: 60_000,
    limits: Limits::SMALL,
};

fn run(input: &[u8]) {
    let _ = verify::verify(input, None);
    // An editor who knows the format makes a checksum that fits.
    let end = input.len().saturating_sub(32);
    let mut bytes = input[..end].to_vec();
    bytes.extend(blake3::hash(&bytes).as_bytes());
    match decode(&bytes) {
        Ok(file) => assert!(encode(&file) == bytes, "there is one encoding of a file"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok((file, verified)) = verify::verify(&bytes, None) {
        assert_eq!(verified.records, file.records.len());
        let _ = verify::verify_complete(&file);
        let _ = Recording::read(&file.records);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut state = State::new();
    for (index, command) in (1..).zip(history::golden()) {
        state.apply(index, 1, &command);
    }
    history::lead(&mut state);
    let mut seeds: Vec<_> = state
        .all_jobs()
        .filter_map(|job| conclave_coordinator::audit::export(job, &InlineOnly).ok())
        .map(|records| {
            encode(&AuditFile {
                records,
                head: None,
            })
        })
        .collect();
    seeds.push([&MAGIC[..], &[0; 32]].concat());
    seeds
}
