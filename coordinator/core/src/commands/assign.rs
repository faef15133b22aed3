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
    state.reindex(&command.job_id);
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

#[cfg(test)]
mod tests {
    use conclave_proto::v1::command::Command as Body;

    use super::*;
    use crate::testkit::{World, choice, width};

    fn assign(agent: u32, attempt: u32, incarnation: &str) -> Body {
        Body::Assign(Assign {
            job_id: "j".into(),
            agent,
            attempt,
            worker_id: "w1".into(),
            incarnation: incarnation.into(),
            numeric_class: "a".into(),
        })
    }

    fn world() -> World {
        let mut world = World::with_job(&choice(width(2)));
        world.decide("j");
        world
    }

    #[test]
    fn an_attempt_starts_once() {
        let mut world = world();
        let revision = world.job("j").revision;
        let applied = world.apply(assign(1, 1, "i1"));
        let key = world.key("j", 1);
        assert!(matches!(&applied.effects[0], Effect::Start { key: k, .. } if *k == key));
        assert_eq!(
            world.apply(assign(1, 1, "i1")).reply,
            Reply::Stale(Stale::Attempt)
        );
        assert_eq!(world.job("j").numeric_class, "a");
        assert_eq!(
            world.job("j").revision,
            revision,
            "a placement makes no decision stale"
        );
    }

    #[test]
    fn what_placement_saw_must_still_hold() {
        let mut world = world();
        assert_eq!(
            world.apply(assign(1, 2, "i1")).reply,
            Reply::Stale(Stale::Attempt)
        );
        assert_eq!(
            world.apply(assign(1, 1, "i0")).reply,
            Reply::Stale(Stale::Incarnation)
        );
        assert_eq!(world.apply(assign(9, 1, "i1")).reply, Reply::NotFound);
        let lease = conclave_proto::v1::DrainWorker {
            worker_id: "w1".into(),
            incarnation: "i1".into(),
        };
        world.apply(Body::DrainWorker(lease));
        assert!(matches!(
            world.apply(assign(1, 1, "i1")).reply,
            Reply::Rejected { .. }
        ));
    }
}
