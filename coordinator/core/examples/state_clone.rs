//! What a snapshot costs the node's loop: the clone of a state with many ended jobs.
//!
//! `cargo run --release -p conclave-coordinator-core --example state_clone [JOBS]`
//!
//! Prints, in milliseconds (the least of 10), what is taken of a state with `JOBS` jobs (10,000 unless
//! told) of five drafts each, and beside it a copy of the jobs by value, which is what a clone would
//! be if jobs were not shared.
#![allow(clippy::print_stdout, reason = "a bench prints what it found")]
#![allow(clippy::disallowed_methods, reason = "a bench has a clock")]

use std::{
    error::Error,
    time::{Duration, Instant},
};

use conclave_coordinator_core::{State, job::Job, snapshot};
use conclave_proto::v1::{
    AgentRecord, AgentSpec, AgentState, AuditRecord, JobEvent, JobRecord, JobState, KeyRecord,
    Payload, Replay, SnapshotManifest, SnapshotState, job_event, payload,
};
use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let count = std::env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let bytes = SnapshotState {
        log_version: 1,
        jobs: (0..count).map(job).collect(),
        keys: (0..count).map(key).collect(),
        ..SnapshotState::default()
    }
    .encode_to_vec();
    let manifest = SnapshotManifest {
        log_version: 1,
        digest: blake3::hash(&bytes).as_bytes().to_vec(),
        length: bytes.len() as u64,
        ..SnapshotManifest::default()
    };
    let state = snapshot::decode(&manifest, &bytes)?;
    let shared = least(|| state.to_save());
    let copied = least(|| state.all_jobs().cloned().collect::<Vec<Job>>());
    println!("{count} jobs, {} MB as a snapshot", bytes.len() >> 20);
    println!(
        "what is saved of the state: {:.1} ms",
        shared.as_secs_f64() * 1e3
    );
    println!("copy of its jobs: {:.1} ms", copied.as_secs_f64() * 1e3);
    // What is shared is equal, and stays what it was.
    assert!(State::clone(&state) == state);
    Ok(())
}

/// The least of 10 runs; what they made is dropped off the clock.
fn least<T>(run: impl Fn() -> T) -> Duration {
    let time = |_| {
        let started = Instant::now();
        let made = run();
        let took = started.elapsed();
        drop(made);
        took
    };
    (0..10).map(time).min().unwrap_or_default()
}

fn id(n: u64) -> String {
    format!("0191f0a2-0000-7000-8000-{n:012x}")
}

fn key(n: u64) -> KeyRecord {
    KeyRecord {
        tenant: "tenant".into(),
        key: format!("key-{n}"),
        request_digest: vec![3; 32],
        job_id: id(n),
        unix_ms: 1_700_000_000_000,
    }
}

fn inline(bytes: usize) -> Option<Payload> {
    Some(Payload {
        body: Some(payload::Body::Inline(vec![b'x'; bytes])),
    })
}

/// Five drafts of 2 KB, with the events and the audit chain that they leave.
fn job(n: u64) -> JobRecord {
    let agent = |agent| AgentRecord {
        spec: Some(AgentSpec {
            agent,
            tail: "be brief".into(),
            ..AgentSpec::default()
        }),
        state: AgentState::Done as i32,
        attempt: 1,
        draft: inline(2_000),
        ..AgentRecord::default()
    };
    let event = |index| JobEvent {
        index,
        unix_ms: 1_700_000_000_000,
        event: Some(job_event::Event::Message("something happened".into())),
    };
    let record = |seq| AuditRecord {
        job_id: id(n),
        seq,
        payload_digest: vec![4; 32],
        prev_hash: vec![5; 32],
        hash: vec![6; 32],
        body: vec![7; 120],
        ..AuditRecord::default()
    };
    JobRecord {
        job_id: id(n),
        tenant: "tenant".into(),
        spec: inline(500),
        state: JobState::Done as i32,
        replay: Replay::Exact as i32,
        agents: (1..=5).map(agent).collect(),
        events: (1..=20).map(event).collect(),
        audit: (1..=16).map(record).collect(),
        sealed: true,
        ended_unix_ms: 1_700_000_000_000,
        ..JobRecord::default()
    }
}
