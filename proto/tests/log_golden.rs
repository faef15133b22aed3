//! The durable format, held to bytes: what an earlier build wrote decodes to
//! what it meant, and this build writes the same.
//!
//! `golden/log_v1.txt` holds a line a message, `name hex`. Its lines are never
//! changed: a new field gets a line of its own.

use std::collections::BTreeMap;

use conclave_proto::v1::{
    self as proto, AgentRecord, AgentSpec, AgentState, AnswerKind, Assign, AttemptError,
    AttemptFinished, AttemptKey, AuditRecord, BlobRef, CancelJobCommand, Command, ConfidencePolicy,
    CreateCluster, Decide, DrainWorker, EndJob, ErrorKind, ExpireJobs, JobEvent, JobRecord,
    JobState, KeyRecord, LineageKind, LineageRecord, MemberRecord, ModelInfo, Payload, PrepareDone,
    Prepared, RegisterWorker, RenewLeases, Replay, ReviewJobCommand, Role, RoundRecord, Sampling,
    SetLogVersion, SetMemberAddress, SnapshotManifest, SnapshotState, StartRound, SubmitJobCommand,
    Tick, Verdict, Vote, WorkerLease, WorkerRecord, answer_kind, attempt_finished,
    audit_event::Event, command::Command as Body, decide, job_event, payload, snapshot_item::Item,
};
use prost::Message;

/// The lines of the fixture.
fn fixture() -> BTreeMap<&'static str, Vec<u8>> {
    let line = |line: &'static str| {
        let (name, hex) = line.split_once(' ').expect("name and bytes");
        (name, unhex(hex))
    };
    include_str!("golden/log_v1.txt")
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

fn inline(text: &str) -> Option<Payload> {
    Some(Payload {
        body: Some(payload::Body::Inline(text.into())),
    })
}

fn blob() -> Option<Payload> {
    Some(Payload {
        body: Some(payload::Body::Blob(BlobRef {
            hash: vec![0xb1; 32],
            length: 20_000,
        })),
    })
}

fn key() -> AttemptKey {
    AttemptKey {
        job_id: "job-1".into(),
        agent: 2,
        attempt: 3,
    }
}

fn model() -> ModelInfo {
    ModelInfo {
        name: "m".into(),
        digest: vec![0xd1; 32],
        numeric_class: "q4/avx2".into(),
        context_tokens: 4096,
    }
}

fn prepared() -> Prepared {
    Prepared {
        job_id: "job-1".into(),
        error: "too long".into(),
        prompt_tokens: 40,
        model_digest: vec![0xd1; 32],
        numeric_class: "q4/avx2".into(),
        model: "m".into(),
        checkpoints: vec![vec![1; 16], vec![2; 16]],
        context_tokens: 4096,
        retry: true,
    }
}

fn agent_spec() -> AgentSpec {
    AgentSpec {
        agent: 2,
        role: Role::Refiner as i32,
        round: 1,
        index: 4,
        seed: 0x0123_4567_89ab_cdef,
        tail: "be brief".into(),
        thought_tokens: 192,
        answer_tokens: 128,
        sampling: Some(Sampling {
            temperature: Some(0.5),
            top_k: Some(40),
            top_p: Some(0.25),
            min_p: Some(0.125),
            repetition_penalty: Some(1.5),
            stop: vec!["END".into()],
        }),
        confidence: Some(ConfidencePolicy {
            top_k: Some(5),
            window: Some(32),
            stop_below: Some(2.0),
        }),
        answer: Some(AnswerKind {
            kind: Some(answer_kind::Kind::Regex("yes|no".into())),
        }),
        thinking_penalty: 0.75,
        sources: vec![1, 2, 300],
        cue: "So:".into(),
    }
}

fn answer() -> proto::Answer {
    proto::Answer {
        text: "Yes.".into(),
        canonical: "yes".into(),
        aggregator: proto::Aggregator::Majority as i32,
        votes: vec![vote()],
        agent: Some(1),
        edited: true,
    }
}

fn vote() -> Vote {
    Vote {
        canonical: "yes".into(),
        agents: vec![1, 3],
        weight_micro: -2_000_000,
    }
}

fn decide(next: decide::Next) -> Body {
    Body::Decide(Decide {
        job_id: "job-1".into(),
        revision: 9,
        cancel: vec![4, 5],
        reason: "quorum".into(),
        votes: vec![vote()],
        next: Some(next),
    })
}

fn finished(result: attempt_finished::Result) -> Body {
    Body::AttemptFinished(AttemptFinished {
        key: Some(key()),
        incarnation: "i1".into(),
        result: Some(result),
        unix_ms: 1_700_000_000_123,
    })
}

/// Every kind of command, each field set, by the name of its line.
fn commands() -> Vec<(&'static str, Body)> {
    let mut all = cluster_commands();
    all.extend(job_commands());
    all
}

fn cluster_commands() -> Vec<(&'static str, Body)> {
    let create = CreateCluster {
        cluster_id: "c1".into(),
        signing_seed: vec![1; 32],
        salt_key: vec![2; 32],
        unix_ms: 1_700_000_000_000,
    };
    let register = RegisterWorker {
        worker_id: "w1".into(),
        incarnation: "i1".into(),
        models: vec![model()],
        max_sequences: 8,
        kv_blocks: 512,
        version: "0.1.0".into(),
        running: vec![key()],
    };
    let renew = RenewLeases {
        leases: vec![WorkerLease {
            worker_id: "w1".into(),
            incarnation: "i1".into(),
        }],
    };
    let drain = DrainWorker {
        worker_id: "w1".into(),
        incarnation: "i1".into(),
    };
    let tick = Tick {
        elapsed_ms: 500,
        unix_ms: 1_700_000_000_500,
        new_term: true,
    };
    let address = SetMemberAddress {
        node_id: u64::MAX,
        address: "db1:7400".into(),
        removed: true,
    };
    vec![
        ("create_cluster", Body::CreateCluster(create)),
        ("register_worker", Body::RegisterWorker(register)),
        ("renew_leases", Body::RenewLeases(renew)),
        ("drain_worker", Body::DrainWorker(drain)),
        ("tick", Body::Tick(tick)),
        (
            "set_log_version",
            Body::SetLogVersion(SetLogVersion { log_version: 2 }),
        ),
        ("set_member_address", Body::SetMemberAddress(address)),
    ]
}

fn job_commands() -> Vec<(&'static str, Body)> {
    let submit = SubmitJobCommand {
        job_id: "job-1".into(),
        tenant: "t".into(),
        idempotency_key: "k".into(),
        request_digest: vec![3; 32],
        spec: blob(),
        unix_ms: 1_700_000_000_000,
        deadline_unix_ms: 1_700_000_060_000,
    };
    let round = StartRound {
        round: 1,
        state: JobState::Refining as i32,
        context: inline("drafts"),
        agents: vec![agent_spec()],
        quorum: 5,
    };
    let end = EndJob {
        state: JobState::Degraded as i32,
        answer: Some(answer()),
        message: "late".into(),
    };
    let assign = Assign {
        job_id: "job-1".into(),
        agent: 2,
        attempt: 3,
        worker_id: "w1".into(),
        incarnation: "i1".into(),
        numeric_class: "q4/avx2".into(),
    };
    let error = AttemptError {
        kind: ErrorKind::Permanent as i32,
        message: "refused".into(),
    };
    let cancel = CancelJobCommand {
        job_id: "job-1".into(),
        reason: "why not".into(),
        unix_ms: 1_700_000_000_000,
    };
    let review = ReviewJobCommand {
        job_id: "job-1".into(),
        verdict: Verdict::Edit as i32,
        text: "No.".into(),
        note: "wrong".into(),
        reviewer: "ann".into(),
        unix_ms: 1_700_000_000_000,
    };
    let expire = ExpireJobs {
        job_ids: vec!["job-1".into(), "job-2".into()],
    };
    let draft = inline("draft").expect("a payload");
    vec![
        ("submit_job", Body::SubmitJob(submit)),
        (
            "prepare_done",
            Body::PrepareDone(PrepareDone {
                prepared: Some(prepared()),
            }),
        ),
        ("decide_round", decide(decide::Next::StartRound(round))),
        ("decide_end", decide(decide::Next::EndJob(end))),
        ("decide_review", decide(decide::Next::AwaitReview(answer()))),
        ("assign", Body::Assign(assign)),
        (
            "finished_draft",
            finished(attempt_finished::Result::Draft(draft)),
        ),
        (
            "finished_error",
            finished(attempt_finished::Result::Error(error)),
        ),
        ("cancel_job", Body::CancelJob(cancel)),
        ("review_job", Body::ReviewJob(review)),
        ("expire_jobs", Body::ExpireJobs(expire)),
    ]
}

fn job_record() -> JobRecord {
    JobRecord {
        job_id: "job-1".into(),
        tenant: "t".into(),
        spec: blob(),
        state: JobState::AwaitingReview as i32,
        round: 1,
        revision: 9,
        agents: vec![AgentRecord {
            spec: Some(agent_spec()),
            state: AgentState::Done as i32,
            attempt: 3,
            failures: 2,
            worker_id: "w1".into(),
            incarnation: "i1".into(),
            draft: inline("draft"),
            error: "broke".into(),
            stopping: true,
            numeric_class: "q4/avx2".into(),
        }],
        answer: Some(answer()),
        message: "late".into(),
        submitted_unix_ms: 1_700_000_000_000,
        ended_unix_ms: 1_700_000_050_000,
        deadline_unix_ms: 1_700_000_060_000,
        prepared: Some(prepared()),
        rounds: vec![RoundRecord {
            round: 1,
            state: JobState::Refining as i32,
            context: inline("drafts"),
            quorum: 5,
        }],
        events: vec![JobEvent {
            index: 1,
            unix_ms: 1_700_000_000_000,
            event: Some(job_event::Event::State(JobState::Preparing as i32)),
        }],
        audit: vec![AuditRecord {
            job_id: "job-1".into(),
            seq: 1,
            log_index: 7,
            kind: 4,
            payload_digest: vec![4; 32],
            prev_hash: vec![5; 32],
            hash: vec![6; 32],
            payload: vec![7; 3],
            body: vec![8; 2],
        }],
        sealed: true,
        replay: Replay::Inexact as i32,
        idempotency_key: "k".into(),
        numeric_class: "q4/avx2".into(),
    }
}

fn snapshot() -> SnapshotState {
    SnapshotState {
        log_version: 1,
        cluster_id: "c1".into(),
        signing_seed: vec![1; 32],
        salt_key: vec![2; 32],
        applied_index: 70_000,
        lease_clock_ms: 12_345,
        unix_ms: 1_700_000_000_000,
        jobs: vec![job_record()],
        workers: vec![WorkerRecord {
            worker_id: "w1".into(),
            incarnation: "i1".into(),
            models: vec![model()],
            max_sequences: 8,
            kv_blocks: 512,
            version: "0.1.0".into(),
            expires_ms: 22_345,
            draining: true,
        }],
        keys: vec![KeyRecord {
            tenant: "t".into(),
            key: "k".into(),
            request_digest: vec![3; 32],
            job_id: "job-1".into(),
            unix_ms: 1_700_000_000_000,
        }],
        members: vec![MemberRecord {
            node_id: u64::MAX,
            address: "db1:7400".into(),
        }],
        lineage: Vec::new(),
    }
}

/// With what came later than its line.
fn snapshot_with_lineage() -> SnapshotState {
    SnapshotState {
        log_version: 2,
        lineage: vec![LineageRecord {
            kind: LineageKind::Recovered as i32,
            from_cluster_id: "c0".into(),
            cluster_id: "c1".into(),
            index: 69_999,
            term: 3,
            unix_ms: 1_700_000_000_000,
            node_id: 7,
            unconfirmed: 4,
            left_behind: vec![MemberRecord {
                node_id: 8,
                address: "db2:7400".into(),
            }],
        }],
        ..snapshot()
    }
}

/// What a record's digest is of: a change here would break every chain.
fn audit_events() -> Vec<(&'static str, Event)> {
    let submitted = proto::AuditSubmitted {
        tenant: "t".into(),
        spec: None,
        unix_ms: 1_700_000_000_000,
        request_digest: vec![3; 32],
        spec_digest: vec![4; 32],
    };
    let prepared = proto::AuditPrepared {
        model: "m".into(),
        model_digest: vec![0xd1; 32],
        numeric_class: "q4/avx2".into(),
        prompt_tokens: 40,
        error: "too long".into(),
    };
    let round = proto::AuditRound {
        round: 1,
        state: JobState::Refining as i32,
        context: String::new(),
        agents: vec![agent_spec()],
        context_digest: vec![5; 32],
    };
    let assigned = proto::AuditAssigned {
        agent: 2,
        attempt: 3,
        worker: "w1".into(),
        incarnation: "i1".into(),
        numeric_class: "q4/avx2".into(),
    };
    let draft = proto::AuditDraft {
        agent: 2,
        attempt: 3,
        draft: None,
        draft_digest: vec![6; 32],
    };
    let ended = proto::AuditAttemptEnded {
        agent: 2,
        attempt: 3,
        reason: "cut".into(),
        cut: None,
        cut_digest: vec![7; 32],
    };
    let decided = proto::AuditDecided {
        cancelled: vec![4, 5],
        votes: vec![vote()],
        reason: "quorum".into(),
    };
    let job_ended = proto::AuditEnded {
        state: JobState::Degraded as i32,
        answer: Some(answer()),
        message: "late".into(),
    };
    vec![
        ("audit_submitted", Event::Submitted(submitted)),
        ("audit_prepared", Event::Prepared(prepared)),
        ("audit_round", Event::Round(round)),
        ("audit_assigned", Event::Assigned(assigned)),
        ("audit_draft", Event::Draft(draft)),
        ("audit_attempt_ended", Event::AttemptEnded(ended)),
        ("audit_decided", Event::Decided(decided)),
        ("audit_reviewed", reviewed()),
        ("audit_ended", Event::Ended(job_ended)),
        ("audit_sealed", Event::Sealed(proto::AuditSealed {})),
    ]
}

fn reviewed() -> Event {
    Event::Reviewed(proto::AuditReviewed {
        reviewer: "ann".into(),
        verdict: Verdict::Edit as i32,
        text: "No.".into(),
        note: "wrong".into(),
    })
}

fn check_audit(missing: &mut Vec<String>) {
    for (name, event) in audit_events() {
        let event = proto::AuditEvent { event: Some(event) };
        check(name, &event, missing);
    }
}

/// The frames of a saved snapshot; a whole file stands in the coordinator's tests.
fn check_saved(missing: &mut Vec<String>) {
    let header = proto::SnapshotHeader {
        format_version: 1,
        manifest: Some(manifest()),
        jobs: 3,
        live_jobs: 1,
        payloads: 2,
        payload_bytes: 40_000,
        unix_ms: 1_700_000_000_500,
        node_id: u64::MAX,
        version: "0.1.0".into(),
        public_key: vec![3; 32],
    };
    let payload = proto::SnapshotPayload {
        hash: vec![0xb1; 32],
        data: vec![1, 2, 3],
        last: true,
    };
    let items = [
        ("saved_header", Item::Header(header)),
        ("saved_state", Item::State(vec![9; 3])),
        ("saved_payload", Item::Payload(payload)),
        ("saved_end", Item::End(proto::SnapshotEnd { frames: 4 })),
    ];
    for (name, item) in items {
        check(name, &proto::SnapshotItem { item: Some(item) }, missing);
    }
    let frame = proto::SnapshotFrame {
        item: vec![1, 2],
        digest: vec![8; 32],
    };
    check("saved_frame", &frame, missing);
}

fn manifest() -> SnapshotManifest {
    SnapshotManifest {
        log_version: 1,
        cluster_id: "c1".into(),
        index: 70_000,
        term: 3,
        digest: vec![9; 32],
        length: 1 << 33,
    }
}

#[test]
fn the_log_and_snapshots_are_read_and_written_as_they_always_were() {
    let mut missing = Vec::new();
    for (name, body) in commands() {
        let command = Command {
            log_version: 1,
            command: Some(body),
        };
        check(name, &command, &mut missing);
    }
    check("snapshot_state", &snapshot(), &mut missing);
    let lineage = snapshot_with_lineage();
    check("snapshot_state_lineage", &lineage, &mut missing);
    check_audit(&mut missing);
    check_saved(&mut missing);
    check("snapshot_manifest", &manifest(), &mut missing);
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
    let mut numbers: Vec<u32> = commands().iter().map(|(_, body)| has(body)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (2..=16).collect::<Vec<_>>());
}
