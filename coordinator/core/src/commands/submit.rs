//! `SubmitJob`: a job is accepted, once per idempotency key (law 7).

use conclave_proto::v1::{
    AuditSubmitted, JobState, KeyRecord, Replay, SubmitJobCommand, audit_event,
};

use super::At;
use crate::{
    audit::Chain,
    effect::{Applied, Effect, Reply},
    job::Job,
    payload,
    state::State,
};

pub(crate) fn apply(state: &mut State, at: At, command: &SubmitJobCommand) -> Applied {
    let now = state.advance_unix(command.unix_ms);
    let key = (command.tenant.clone(), command.idempotency_key.clone());
    if let Some(known) = state.keys.get(&key) {
        let job_id = known.job_id.clone();
        return Applied::only(if known.request_digest == command.request_digest {
            Reply::Submitted {
                job_id,
                existing: true,
            }
        } else {
            Reply::Conflict { job_id }
        });
    }
    let Some(spec) = command.spec.clone() else {
        return Applied::only(Reply::Rejected {
            why: "a submission without a spec".into(),
        });
    };
    if state.jobs.contains_key(&command.job_id) {
        return Applied::only(Reply::Rejected {
            why: "this job id is taken".into(),
        });
    }
    let mut effects = Vec::new();
    if let Some((hash, length)) = payload::blob_ref(&spec) {
        effects.push(Effect::FetchBlob { hash, length });
    }
    let record = KeyRecord {
        tenant: command.tenant.clone(),
        key: command.idempotency_key.clone(),
        request_digest: command.request_digest.clone(),
        job_id: command.job_id.clone(),
        unix_ms: now,
    };
    state.keys.insert(key, record);
    state
        .jobs
        .insert(command.job_id.clone(), new_job(at, now, command, spec));
    state.reindex(&command.job_id);
    effects.push(Effect::Prepare {
        job_id: command.job_id.clone(),
    });
    effects.push(Effect::JobChanged {
        job_id: command.job_id.clone(),
    });
    let reply = Reply::Submitted {
        job_id: command.job_id.clone(),
        existing: false,
    };
    Applied { reply, effects }
}

fn new_job(at: At, now: i64, command: &SubmitJobCommand, spec: conclave_proto::v1::Payload) -> Job {
    let submitted = AuditSubmitted {
        tenant: command.tenant.clone(),
        spec: None,
        unix_ms: now,
        request_digest: command.request_digest.clone(),
        spec_digest: payload::digest(&spec),
    };
    let mut job = Job {
        id: command.job_id.clone(),
        tenant: command.tenant.clone(),
        idempotency_key: command.idempotency_key.clone(),
        spec,
        state: JobState::Unspecified,
        round: 0,
        revision: 1,
        agents: Vec::new(),
        prepared: None,
        rounds: Vec::new(),
        answer: None,
        message: String::new(),
        submitted_unix_ms: now,
        ended_unix_ms: 0,
        deadline_unix_ms: command.deadline_unix_ms,
        events: Vec::new(),
        audit: Chain::default(),
        replay: Replay::Exact,
        numeric_class: String::new(),
    };
    job.record(at.index, audit_event::Event::Submitted(submitted));
    job.enter(now, JobState::Preparing);
    job
}
