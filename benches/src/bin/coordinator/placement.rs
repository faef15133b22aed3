//! Time to place an agent: the pure core, among simulated workers and finished jobs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use conclave_coordinator_core::payload::InlineOnly;
use conclave_coordinator_core::placement::{self, Load};
use conclave_coordinator_core::quota::Quotas;
use conclave_coordinator_core::{State, snapshot};
use conclave_proto::v1::{
    AgentRecord, AgentSpec, AgentState, JobRecord, JobState, ModelInfo, Payload, Prepared, Replay,
    SnapshotManifest, SnapshotState, WorkerRecord, payload,
};
use prost::Message as _;

const WORKERS: [u32; 3] = [100, 1_000, 10_000];
const FINISHED: [u32; 3] = [0, 10_000, 100_000];
/// Jobs that wait at once, of eight agents each.
const WAITING: [u32; 2] = [1, 128];
const AGENTS: u32 = 8;
/// Attempts that run on each worker meanwhile.
const RUNNING: u32 = 4;
const TRIES: usize = 5;

/// Prints the table.
pub fn print() {
    println!(
        "\n## Placement, microseconds an agent, best of {TRIES}; {RUNNING} agents run on each worker\n\n\
         | workers | finished jobs | one job of {AGENTS} waits | {} jobs wait |\n|---|---|---|---|",
        WAITING[1]
    );
    for workers in WORKERS {
        for finished in FINISHED {
            let times = WAITING.map(|waiting| per_agent(workers, finished, waiting));
            println!(
                "| {workers} | {finished} | {:.1} | {:.1} |",
                times[0], times[1]
            );
        }
    }
}

fn per_agent(workers: u32, finished: u32, waiting: u32) -> f64 {
    let state = state(workers, finished, waiting);
    let loads: BTreeMap<String, Load> = state
        .workers()
        .map(|worker| (worker.worker_id.clone(), Load::default()))
        .collect();
    let mut best = Duration::MAX;
    let wanted = (waiting * AGENTS).min(workers * (16 - RUNNING)) as usize;
    for _ in 0..TRIES {
        let started = Instant::now();
        let placed = placement::place(&state, &loads, &Quotas::default(), &InlineOnly);
        best = best.min(started.elapsed());
        assert_eq!(placed.assigns.len(), wanted, "all that fit are placed");
    }
    best.as_secs_f64() * 1e6 / wanted as f64
}

fn state(workers: u32, finished: u32, waiting: u32) -> State {
    let running = (0..workers).map(|n| job("b-running", n, RUNNING, Some(n)));
    let ended = (0..finished).map(|n| JobRecord {
        state: JobState::Done as i32,
        sealed: true,
        agents: Vec::new(),
        ..job("a-ended", n, 0, None)
    });
    let waits = (0..waiting).map(|n| job("c-waiting", n, AGENTS, None));
    let bytes = SnapshotState {
        log_version: 1,
        jobs: ended.chain(running).chain(waits).collect(),
        workers: (0..workers).map(worker).collect(),
        ..SnapshotState::default()
    }
    .encode_to_vec();
    let manifest = SnapshotManifest {
        log_version: 1,
        digest: blake3::hash(&bytes).as_bytes().to_vec(),
        length: bytes.len() as u64,
        ..SnapshotManifest::default()
    };
    snapshot::decode(&manifest, &bytes).expect("a state")
}

fn worker(n: u32) -> WorkerRecord {
    WorkerRecord {
        worker_id: format!("worker-{n:05}"),
        incarnation: format!("incarnation-{n:05}"),
        models: vec![ModelInfo {
            name: "model".into(),
            digest: vec![7; 32],
            numeric_class: "v1/avx512/q8".into(),
            context_tokens: 8192,
        }],
        max_sequences: 16,
        kv_blocks: 4_096,
        ..WorkerRecord::default()
    }
}

/// A job whose agents run on a worker, or wait.
fn job(kind: &str, n: u32, agents: u32, on: Option<u32>) -> JobRecord {
    let agent = |agent| AgentRecord {
        spec: Some(AgentSpec {
            agent,
            thought_tokens: 512,
            answer_tokens: 128,
            tail: "be brief".into(),
            ..AgentSpec::default()
        }),
        state: on.map_or(AgentState::Queued, |_| AgentState::Running) as i32,
        attempt: u32::from(on.is_some()),
        worker_id: on.map_or_else(String::new, |n| format!("worker-{n:05}")),
        incarnation: on.map_or_else(String::new, |n| format!("incarnation-{n:05}")),
        ..AgentRecord::default()
    };
    JobRecord {
        job_id: format!("{kind}-{n:06}"),
        tenant: "t".into(),
        spec: Some(Payload {
            body: Some(payload::Body::Inline(Vec::new())),
        }),
        state: JobState::Proposing as i32,
        replay: Replay::Exact as i32,
        agents: (1..=agents).map(agent).collect(),
        prepared: Some(Prepared {
            model: "model".into(),
            model_digest: vec![7; 32],
            prompt_tokens: 300,
            ..Prepared::default()
        }),
        ..JobRecord::default()
    }
}
