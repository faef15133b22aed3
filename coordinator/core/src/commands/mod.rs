//! One command of the log a file: what applying it checks and records.

use conclave_proto::v1::{
    Answer, AuditAttemptEnded, AuditEnded, AuditSealed, JobState, audit_event, job_event,
};

use crate::{
    agent::KILLED_DRAINS_VERSION,
    effect::Effect,
    job::Job,
    payload,
    state::{State, undelivered},
    worker::Worker,
};

pub(crate) mod assign;
pub(crate) mod attempt;
pub(crate) mod cancel;
pub(crate) mod cluster;
pub(crate) mod decide;
pub(crate) mod expire;
pub(crate) mod lease;
pub(crate) mod prepare;
pub(crate) mod register;
pub(crate) mod review;
pub(crate) mod submit;
pub(crate) mod tick;

/// The entry that is being applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    /// Its index in the log.
    pub index: u64,
}

/// How a job ends.
pub(crate) struct Ending {
    pub state: JobState,
    pub answer: Option<Answer>,
    pub message: String,
}

impl Ending {
    pub(crate) fn failed(message: impl Into<String>) -> Ending {
        Ending {
            state: JobState::Failed,
            answer: None,
            message: message.into(),
        }
    }
}

/// Ends a job: stops its agents, records the answer, seals the chain if nothing is outstanding.
pub(crate) fn end(state: &mut State, at: At, job_id: &str, ending: Ending) -> Vec<Effect> {
    let now = state.unix_ms;
    let Some(job) = state.jobs.get_mut(job_id) else {
        return Vec::new();
    };
    let open: Vec<u32> = job
        .agents
        .iter()
        .filter(|a| !a.is_final())
        .map(|a| a.spec.agent)
        .collect();
    let mut effects = stop_agents(job, now, &open);
    if let Some(answer) = &ending.answer {
        job.emit(now, job_event::Event::Answer(answer.clone()));
    }
    if !ending.message.is_empty() {
        job.emit(now, job_event::Event::Message(ending.message.clone()));
    }
    job.record(
        at.index,
        audit_event::Event::Ended(AuditEnded {
            state: ending.state as i32,
            answer: ending.answer.clone(),
            message: ending.message.clone(),
        }),
    );
    job.answer = ending.answer;
    job.message = ending.message;
    job.ended_unix_ms = now;
    job.enter(now, ending.state);
    job.revision += 1;
    seal_if_quiet(job, at);
    effects.push(Effect::JobEnded {
        job_id: job_id.to_owned(),
    });
    state.reindex(job_id);
    effects
}

/// Cancels these agents: waiting ones end at once, running ones are told to stop and report.
pub(crate) fn stop_agents(job: &mut Job, now: i64, numbers: &[u32]) -> Vec<Effect> {
    use conclave_proto::v1::AgentState;
    let mut effects = Vec::new();
    for &number in numbers {
        let Some(agent) = job.agent_mut(number) else {
            continue;
        };
        if agent.is_final() {
            continue;
        }
        agent.stopping = agent.state == AgentState::Running;
        agent.state = AgentState::Cancelled;
        job.emit_agent(now, number);
        effects.extend(job.agent(number).and_then(|agent| undelivered(job, agent)));
    }
    effects
}

/// Records that the agent's current attempt is over without an accepted draft.
pub(crate) fn attempt_ended(job: &mut Job, at: At, number: u32, reason: &str) {
    let Some(agent) = job.agent(number) else {
        return;
    };
    let event = AuditAttemptEnded {
        agent: number,
        attempt: agent.attempt,
        reason: reason.to_owned(),
        cut: None,
        cut_digest: agent
            .draft
            .as_ref()
            .map(payload::digest)
            .unwrap_or_default(),
    };
    job.record(at.index, audit_event::Event::AttemptEnded(event));
}

/// Seals the chain of an ended job once every attempt has reported or lapsed.
pub(crate) fn seal_if_quiet(job: &mut Job, at: At) {
    let quiet = job.agents.iter().all(|a| !a.holds_worker());
    if job.is_final() && quiet && !job.audit.is_sealed() {
        job.record(at.index, audit_event::Event::Sealed(AuditSealed {}));
        job.retire();
    }
}

/// What an attempt's loss means for its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Counts towards the poison limit.
    Failure,
    /// The worker only drained.
    Drained,
    /// No other attempt will fare better.
    Permanent,
}

/// Ends the current attempt of a running or stopping agent without a draft: requeues it, or gives
/// it up. Returns what follows; the caller reindexes.
pub(crate) fn lose_attempt(
    job: &mut Job,
    at: At,
    now: i64,
    number: u32,
    loss: Loss,
    reason: &str,
) -> Vec<Effect> {
    use conclave_proto::v1::AgentState;
    let Some(agent) = job.agent_mut(number).filter(|a| a.holds_worker()) else {
        return Vec::new();
    };
    if agent.stopping {
        agent.stopping = false;
        attempt_ended(job, at, number, reason);
        seal_if_quiet(job, at);
        return vec![job.changed()];
    }
    agent.failures += u32::from(loss != Loss::Drained);
    reason.clone_into(&mut agent.error);
    let poisoned = loss == Loss::Permanent || agent.failures >= crate::agent::MAX_FAILURES;
    agent.state = if poisoned {
        AgentState::Failed
    } else {
        AgentState::Queued
    };
    attempt_ended(job, at, number, reason);
    job.emit_agent(now, number);
    if poisoned {
        vec![job.changed()]
    } else {
        vec![Effect::Place]
    }
}

/// Ends every attempt on a process that is gone. One that drained was about to be stopped: that is
/// no word against its prompts (law 6).
pub(crate) fn lose_worker(state: &mut State, at: At, worker: &Worker, reason: &str) -> Vec<Effect> {
    let lost: Vec<(String, u32)> = state
        .placed_on(&worker.worker_id, &worker.incarnation)
        .map(|(job, agent)| (job.id.clone(), agent.spec.agent))
        .collect();
    let loss = if worker.draining && state.log_version >= KILLED_DRAINS_VERSION {
        Loss::Drained
    } else {
        Loss::Failure
    };
    let now = state.unix_ms;
    let mut effects = Vec::new();
    for (job_id, number) in lost {
        if let Some(job) = state.jobs.get_mut(&job_id) {
            effects.extend(lose_attempt(job, at, now, number, loss, reason));
        }
        state.reindex(&job_id);
    }
    effects
}

#[cfg(test)]
mod killed_drains;
#[cfg(test)]
mod old_logs;
