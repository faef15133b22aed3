//! The events of a job's audit chain.

use conclave_proto::v1::{audit_event::Event, *};

use crate::values::*;

/// What a record's digest is of: a change here would break every chain.
pub fn audit_events() -> Vec<(&'static str, Event)> {
    let submitted = AuditSubmitted {
        tenant: "t".into(),
        spec: None,
        unix_ms: 1_700_000_000_000,
        request_digest: vec![3; 32],
        spec_digest: vec![4; 32],
    };
    let prepared = AuditPrepared {
        model: "m".into(),
        model_digest: vec![0xd1; 32],
        numeric_class: "q4/avx2".into(),
        prompt_tokens: 40,
        error: "too long".into(),
    };
    let round = AuditRound {
        round: 1,
        state: JobState::Refining as i32,
        context: String::new(),
        agents: vec![agent_spec()],
        context_digest: vec![5; 32],
    };
    let assigned = AuditAssigned {
        agent: 2,
        attempt: 3,
        worker: "w1".into(),
        incarnation: "i1".into(),
        numeric_class: "q4/avx2".into(),
    };
    let draft = AuditDraft {
        agent: 2,
        attempt: 3,
        draft: None,
        draft_digest: vec![6; 32],
    };
    let ended = AuditAttemptEnded {
        agent: 2,
        attempt: 3,
        reason: "cut".into(),
        cut: None,
        cut_digest: vec![7; 32],
    };
    let decided = AuditDecided {
        cancelled: vec![4, 5],
        votes: vec![vote()],
        reason: "quorum".into(),
    };
    let job_ended = AuditEnded {
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
        ("audit_sealed", Event::Sealed(AuditSealed {})),
    ]
}

fn reviewed() -> Event {
    Event::Reviewed(AuditReviewed {
        reviewer: "ann".into(),
        verdict: Verdict::Edit as i32,
        text: "No.".into(),
        note: "wrong".into(),
    })
}
