//! `AttemptFinished`: a worker hands in a draft, or says why there is none. One result an agent is
//! accepted, from its current attempt only (law 4).

use conclave_proto::v1::{
    AgentState, AttemptError, AttemptFinished, AttemptKey, AuditDraft, ErrorKind, Payload,
    attempt_finished, audit_event,
};

use super::{At, Loss, attempt_ended, lose_attempt, seal_if_quiet};
use crate::{
    effect::{Applied, Effect, Reply, Stale},
    job::Job,
    payload,
    state::State,
};

pub(crate) fn apply(state: &mut State, at: At, command: &AttemptFinished) -> Applied {
    let now = state.advance_unix(command.unix_ms);
    let Some(key) = &command.key else {
        return Applied::only(Reply::Rejected {
            why: "a result without a key".into(),
        });
    };
    let Some(job) = state.jobs.get_mut(&key.job_id) else {
        return Applied::only(Reply::NotFound);
    };
    let Some(agent) = job.agent(key.agent) else {
        return Applied::only(Reply::NotFound);
    };
    if agent.attempt != key.attempt || !agent.holds_worker() {
        return Applied::only(Reply::Stale(Stale::Attempt));
    }
    let Some(placement) = agent
        .placement
        .clone()
        .filter(|p| p.incarnation == command.incarnation)
    else {
        return Applied::only(Reply::Stale(Stale::Incarnation));
    };
    let mut effects = vec![Effect::Ack {
        worker_id: placement.worker_id,
        keys: vec![key.clone()],
    }];
    match &command.result {
        Some(attempt_finished::Result::Draft(draft)) => {
            effects.extend(fetch(draft));
            effects.extend(take_draft(job, at, now, key, draft));
        }
        Some(attempt_finished::Result::Error(error)) => {
            let reason = reason(error);
            effects.extend(lose_attempt(job, at, now, key.agent, loss(error), &reason));
        }
        None => {
            return Applied::only(Reply::Rejected {
                why: "a result without a body".into(),
            });
        }
    }
    effects.push(Effect::Place);
    state.reindex(&key.job_id);
    Applied::ok(effects)
}

fn fetch(draft: &Payload) -> Option<Effect> {
    payload::blob_ref(draft).map(|(hash, length)| Effect::FetchBlob { hash, length })
}

/// Accepts the draft of a running agent; of a stopping one, records where it was cut.
fn take_draft(job: &mut Job, at: At, now: i64, key: &AttemptKey, draft: &Payload) -> Vec<Effect> {
    let Some(agent) = job.agent_mut(key.agent) else {
        return Vec::new();
    };
    agent.draft = Some(draft.clone());
    if agent.stopping {
        agent.stopping = false;
        attempt_ended(job, at, key.agent, "cut");
    } else {
        agent.state = AgentState::Done;
        agent.error.clear();
        let event = AuditDraft {
            agent: key.agent,
            attempt: key.attempt,
            draft: None,
            draft_digest: payload::digest(draft),
        };
        job.record(at.index, audit_event::Event::Draft(event));
    }
    job.emit_agent(now, key.agent);
    seal_if_quiet(job, at);
    vec![job.changed()]
}

fn loss(error: &AttemptError) -> Loss {
    match error.kind() {
        ErrorKind::Permanent => Loss::Permanent,
        ErrorKind::Drained => Loss::Drained,
        ErrorKind::Transient | ErrorKind::Unspecified => Loss::Failure,
    }
}

fn reason(error: &AttemptError) -> String {
    if error.message.is_empty() {
        "the worker gave no reason".into()
    } else {
        error.message.clone()
    }
}
