//! Every kind of command, each field set.

use conclave_proto::v1::{command::Command as Body, *};

use crate::values::*;

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
pub fn commands() -> Vec<(&'static str, Body)> {
    let mut all = cluster_commands();
    all.extend(job_commands());
    all.extend(attempt_commands());
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
        ("cancel_job", Body::CancelJob(cancel)),
        ("review_job", Body::ReviewJob(review)),
        ("expire_jobs", Body::ExpireJobs(expire)),
    ]
}

fn attempt_commands() -> Vec<(&'static str, Body)> {
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
    let draft = inline("draft").expect("a payload");
    vec![
        ("assign", Body::Assign(assign)),
        (
            "finished_draft",
            finished(attempt_finished::Result::Draft(draft)),
        ),
        (
            "finished_error",
            finished(attempt_finished::Result::Error(error)),
        ),
    ]
}
