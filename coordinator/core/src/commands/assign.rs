//! `Assign`: an attempt begins on a worker, if all that placement saw still holds.

use conclave_proto::v1::{AgentState, Assign, AuditAssigned, Replay, audit_event};

use super::At;
use crate::{
    agent::Placement,
    effect::{Applied, Effect, Reply, Stale},
    state::State,
};

pub(crate) fn apply(state: &mut State, at: At, command: &Assign) -> Applied {
    let now = state.unix_ms;
    let Some(worker) = state.workers.get(&command.worker_id) else {
        return Applied::only(Reply::Stale(Stale::Incarnation));
    };
    if worker.incarnation != command.incarnation {
        return Applied::only(Reply::Stale(Stale::Incarnation));
    }
    if worker.draining {
        return Applied::only(Reply::Rejected {
            why: "the worker drains".into(),
        });
    }
    let Some(job) = state.jobs.get_mut(&command.job_id) else {
        return Applied::only(Reply::NotFound);
    };
    let Some(agent) = job.agent_mut(command.agent) else {
        return Applied::only(Reply::NotFound);
    };
    if agent.state != AgentState::Queued || command.attempt != agent.attempt + 1 {
        return Applied::only(Reply::Stale(Stale::Attempt));
    }
    agent.attempt = command.attempt;
    agent.state = AgentState::Running;
    agent.placement = Some(Placement {
        worker_id: command.worker_id.clone(),
        incarnation: command.incarnation.clone(),
    });
    agent.numeric_class.clone_from(&command.numeric_class);
    let key = agent.key(&command.job_id);
    if job.numeric_class.is_empty() {
        job.numeric_class.clone_from(&command.numeric_class);
    } else if job.numeric_class != command.numeric_class {
        job.replay = Replay::Inexact;
    }
    let assigned = AuditAssigned {
        agent: command.agent,
        attempt: command.attempt,
        worker: command.worker_id.clone(),
        incarnation: command.incarnation.clone(),
        numeric_class: command.numeric_class.clone(),
    };
    job.record(at.index, audit_event::Event::Assigned(assigned));
    job.emit_agent(now, command.agent);
    Applied::ok(vec![
        Effect::Start {
            worker_id: command.worker_id.clone(),
            incarnation: command.incarnation.clone(),
            key,
        },
        Effect::JobChanged {
            job_id: command.job_id.clone(),
        },
    ])
}
