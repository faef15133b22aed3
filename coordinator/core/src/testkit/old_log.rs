//! Logs that programs of each log version wrote, and the states that those programs came to.
//!
//! A fixture is made once, by the program that introduces a log version (and, for versions before there
//! were fixtures, by the last program that knew no newer one): [`write`] prints it. From then on every
//! program must come to the same states on it, whatever becomes of the code that made it.

use std::fmt::Write as _;

use conclave_proto::v1::{
    CancelJobCommand, Command, CreateCluster, ExpireJobs, PrepareDone, Prepared, RegisterWorker,
    ReviewJobCommand, SetLogVersion, SetMemberAddress, Tick, Verdict, command::Command as Body,
};
use prost::Message as _;

use super::{
    World, choice,
    history::{Step, carry_out},
    width,
};
use crate::{State, codec, snapshot};

/// Commands of a fixture, about.
const LENGTH: usize = 150;

/// An entry, and the first bytes of the state's digest behind it.
pub(crate) struct Line {
    pub index: u64,
    pub entry: Vec<u8>,
    pub digest: String,
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
        .collect()
}

/// So much of the state's digest is kept with each entry.
pub(crate) fn digest(state: &State) -> String {
    hex(&snapshot::encode(state).0.digest[..8])
}

/// Entries, then the manifest and the bytes of the last state.
pub(crate) fn read(fixture: &str) -> (Vec<Line>, Vec<u8>, Vec<u8>) {
    let mut lines = Vec::new();
    let mut last = (Vec::new(), Vec::new());
    for line in fixture.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let [first, second, third] = words[..] else {
            panic!("{line}");
        };
        match first.parse() {
            Ok(index) => lines.push(Line {
                index,
                entry: unhex(second),
                digest: third.to_owned(),
            }),
            Err(_) => last = (unhex(second), unhex(third)),
        }
    }
    (lines, last.0, last.1)
}

/// A fixture as this program makes it, on a cluster of this log version.
pub(crate) fn write(log_version: u32) -> String {
    let mut state = State::new();
    let mut fixture = String::new();
    for (index, command) in history(log_version) {
        state.apply(index, 1, &command);
        let (entry, digest) = (hex(&codec::encode(&command)), digest(&state));
        let _ = writeln!(fixture, "{index} {entry} {digest}");
    }
    let (manifest, bytes) = snapshot::encode(&state);
    let manifest = hex(&manifest.encode_to_vec());
    let _ = writeln!(fixture, "snapshot {manifest} {}", hex(&bytes));
    fixture
}

fn history(log_version: u32) -> Vec<(u64, Command)> {
    let mut world = World::new();
    if log_version > 1 {
        world.apply(Body::SetLogVersion(SetLogVersion { log_version }));
    }
    by_hand(&mut world);
    let mut chance = u64::from(log_version);
    while world.log.len() < LENGTH {
        let step = step(&mut chance);
        carry_out(&mut world, step);
    }
    day_after(&mut world);
    world.log
}

/// What the drawn steps do not do.
fn by_hand(world: &mut World) {
    let foreign = CreateCluster {
        cluster_id: "other".into(),
        ..CreateCluster::default()
    };
    world.apply(Body::CreateCluster(foreign));
    for (node_id, removed) in [(7, false), (8, false), (8, true)] {
        world.apply(Body::SetMemberAddress(SetMemberAddress {
            node_id,
            address: format!("db{node_id}:7400"),
            removed,
        }));
    }
    world.register("w0", "i0", 3);
    // Its agents are cut while they run; one of them hands in what it had.
    world.submit("cut", &choice(width(2)));
    world.prepare("cut");
    world.go("cut");
    world.apply(Body::CancelJob(CancelJobCommand {
        job_id: "cut".into(),
        reason: "why not".into(),
        unix_ms: 5,
    }));
    world.hand_in("cut", 1, &super::draft("yes", 1));
    // The same process again; it has forgotten what it runs, and knows of what nobody wants.
    let stranger = world.key("cut", 1);
    world.apply(Body::RegisterWorker(RegisterWorker {
        worker_id: "w0".into(),
        incarnation: "i0".into(),
        max_sequences: 3,
        kv_blocks: 4096,
        running: vec![stranger],
        ..RegisterWorker::default()
    }));
    let late = Tick {
        elapsed_ms: 5_000,
        unix_ms: 9_000,
        new_term: true,
    };
    world.apply(Body::Tick(late));
    world.submit("long", &choice(width(1)));
    let refused = Prepared {
        job_id: "long".into(),
        error: "too long".into(),
        ..Prepared::default()
    };
    let prepared = Some(refused);
    world.apply(Body::PrepareDone(PrepareDone { prepared }));
    reviewed(world, Verdict::Edit);
    reviewed(world, Verdict::Reject);
}

/// A job whose answer a person edits or rejects.
fn reviewed(world: &mut World, verdict: Verdict) {
    let id = format!("review-{}", verdict as i32);
    let policy = conclave_proto::v1::ContemplationPolicy {
        review: true,
        ..width(2)
    };
    world.register("w1", "i0", 3);
    world.submit(&id, &choice(policy));
    world.prepare(&id);
    world.go(&id);
    world.all_answer(&id, "yes");
    world.decide(&id);
    world.apply(Body::ReviewJob(ReviewJobCommand {
        job_id: id,
        verdict: verdict as i32,
        text: "no".into(),
        note: "wrong".into(),
        reviewer: "ann".into(),
        unix_ms: 12_000,
    }));
}

/// Keys live on for a day behind their jobs.
fn day_after(world: &mut World) {
    let all = |world: &World| world.state.all_jobs().map(|j| j.id.clone()).collect();
    let job_ids = all(world);
    world.apply(Body::ExpireJobs(ExpireJobs { job_ids }));
    world.now += 25 * 60 * 60 * 1_000;
    world.tick(500);
    let job_ids = all(world);
    world.apply(Body::ExpireJobs(ExpireJobs { job_ids }));
    world.submit("j0", &choice(width(2)));
}

/// A number below `n`.
fn below(chance: &mut u64, n: u64) -> u64 {
    *chance = chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (*chance ^ (*chance >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) % n
}

fn step(chance: &mut u64) -> Step {
    let mut draw = |n: u64| below(chance, n) as u8;
    match draw(34) {
        0..=1 => Step::Submit {
            id: draw(4),
            refine: draw(2) == 0,
            review: draw(4) == 0,
        },
        2..=4 => Step::Prepare(draw(4)),
        5..=9 => Step::Decide(draw(4)),
        10..=14 => Step::Place,
        15..=22 => Step::HandIn {
            job: draw(4),
            agent: draw(8),
            yes: draw(2) == 0,
        },
        23..=24 => Step::Fail {
            job: draw(4),
            agent: draw(8),
            kind: draw(4),
        },
        25 => Step::Cancel(draw(4)),
        26 => Step::Review(draw(4)),
        27..=28 => Step::Register {
            worker: draw(3),
            incarnation: draw(3),
        },
        29 => Step::Renew(draw(3)),
        30 => Step::Drain(draw(3)),
        31..=32 => Step::Tick(below(chance, 2_000) as u16),
        _ => Step::Again(below(chance, 1 << 16) as u16),
    }
}
