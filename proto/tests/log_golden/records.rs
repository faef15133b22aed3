//! What a snapshot holds: the state whole, and the frames of a saved one.

use conclave_proto::v1::{snapshot_item::Item, *};

use crate::{check, values::*};

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

pub fn snapshot() -> SnapshotState {
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
pub fn snapshot_with_lineage() -> SnapshotState {
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

/// The frames of a saved snapshot; a whole file stands in the coordinator's tests.
pub fn check_saved(missing: &mut Vec<String>) {
    let header = SnapshotHeader {
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
    let payload = SnapshotPayload {
        hash: vec![0xb1; 32],
        data: vec![1, 2, 3],
        last: true,
    };
    let items = [
        ("saved_header", Item::Header(header)),
        ("saved_state", Item::State(vec![9; 3])),
        ("saved_payload", Item::Payload(payload)),
        ("saved_end", Item::End(SnapshotEnd { frames: 4 })),
    ];
    for (name, item) in items {
        check(name, &SnapshotItem { item: Some(item) }, missing);
    }
    let frame = SnapshotFrame {
        item: vec![1, 2],
        digest: vec![8; 32],
    };
    check("saved_frame", &frame, missing);
}

pub fn manifest() -> SnapshotManifest {
    SnapshotManifest {
        log_version: 1,
        cluster_id: "c1".into(),
        index: 70_000,
        term: 3,
        digest: vec![9; 32],
        length: 1 << 33,
    }
}
