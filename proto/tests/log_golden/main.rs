//! The durable format, held to bytes: what an earlier build wrote decodes to
//! what it meant, and this build writes the same.
//!
//! `../golden/log_v1.txt` holds a line a message, `name hex`. Its lines are never
//! changed: a new field gets a line of its own.

mod audit;
mod commands;
mod records;
mod schema;
mod values;

use std::collections::BTreeMap;

use conclave_proto::v1::{self as proto, Command, command::Command as Body};
use prost::Message;

/// The lines of the fixture.
fn fixture() -> BTreeMap<&'static str, Vec<u8>> {
    let line = |line: &'static str| {
        let (name, hex) = line.split_once(' ').expect("name and bytes");
        (name, unhex(hex))
    };
    include_str!("../golden/log_v1.txt")
        .lines()
        .map(line)
        .collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares with the fixture, both ways; says which line is missing.
fn check<M: Message + Default + PartialEq + std::fmt::Debug>(
    name: &str,
    value: &M,
    missing: &mut Vec<String>,
) {
    let written = value.encode_to_vec();
    let Some(golden) = fixture().remove(name) else {
        return missing.push(format!("{name} {}", hex(&written)));
    };
    let read = M::decode(golden.as_slice()).expect("the fixture decodes");
    assert_eq!(&read, value, "{name} means something else now");
    assert_eq!(
        hex(&written),
        hex(&golden),
        "{name} is written otherwise now"
    );
}

fn check_audit(missing: &mut Vec<String>) {
    for (name, event) in audit::audit_events() {
        let event = proto::AuditEvent { event: Some(event) };
        check(name, &event, missing);
    }
}

#[test]
fn the_log_and_snapshots_are_read_and_written_as_they_always_were() {
    let mut missing = Vec::new();
    for (name, body) in commands::commands() {
        let command = Command {
            log_version: 1,
            command: Some(body),
        };
        check(name, &command, &mut missing);
    }
    check("snapshot_state", &records::snapshot(), &mut missing);
    let lineage = records::snapshot_with_lineage();
    check("snapshot_state_lineage", &lineage, &mut missing);
    check_audit(&mut missing);
    records::check_saved(&mut missing);
    check("snapshot_manifest", &records::manifest(), &mut missing);
    assert!(
        missing.is_empty(),
        "the fixture lacks these lines:\n{}",
        missing.join("\n")
    );
}

/// A kind without a line here would be free to change.
#[test]
fn every_kind_of_command_has_its_line() {
    let has = |body: &Body| match body {
        Body::CreateCluster(_) => 2,
        Body::SubmitJob(_) => 3,
        Body::PrepareDone(_) => 4,
        Body::Decide(_) => 5,
        Body::Assign(_) => 6,
        Body::AttemptFinished(_) => 7,
        Body::CancelJob(_) => 8,
        Body::ReviewJob(_) => 9,
        Body::RegisterWorker(_) => 10,
        Body::RenewLeases(_) => 11,
        Body::DrainWorker(_) => 12,
        Body::Tick(_) => 13,
        Body::ExpireJobs(_) => 14,
        Body::SetLogVersion(_) => 15,
        Body::SetMemberAddress(_) => 16,
    };
    let mut numbers: Vec<u32> = commands::commands()
        .iter()
        .map(|(_, body)| has(body))
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (2..=16).collect::<Vec<_>>());
}
