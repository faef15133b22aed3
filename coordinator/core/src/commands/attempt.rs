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

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{JobState, command::Command as Body};

    use super::*;
    use crate::testkit::{World, choice, draft, width};

    fn world() -> World {
        let mut world = World::with_job(&choice(width(2)));
        world.go("j");
        world
    }

    fn last(world: &World) -> Body {
        world
            .log
            .last()
            .and_then(|(_, c)| c.command.clone())
            .expect("a command")
    }

    #[test]
    fn one_result_is_accepted_and_acknowledged() {
        let mut world = world();
        let key = world.key("j", 1);
        let applied = world.hand_in("j", 1, &draft("yes", 1));
        assert_eq!(
            applied.effects[0],
            Effect::Ack {
                worker_id: "w1".into(),
                keys: vec![key]
            }
        );
        let before = world.job("j").clone();
        let again = last(&world);
        assert_eq!(world.apply(again).reply, Reply::Stale(Stale::Attempt));
        assert_eq!(*world.job("j"), before, "nothing is counted twice");
    }

    #[test]
    fn a_result_of_a_lost_attempt_is_refused() {
        let mut world = world();
        world.hand_in("j", 1, &draft("yes", 1));
        let mut result = last(&world);
        let Body::AttemptFinished(finished) = &mut result else {
            panic!("{result:?}")
        };
        finished.key = Some(world.key("j", 2));
        finished.incarnation = "i0".into();
        assert_eq!(
            world.apply(result.clone()).reply,
            Reply::Stale(Stale::Incarnation)
        );
        world.fail("j", 2, ErrorKind::Transient);
        assert_eq!(world.apply(result).reply, Reply::Stale(Stale::Attempt));
    }

    #[test]
    fn three_failures_poison_an_agent_and_drains_do_not_count() {
        let mut world = world();
        world.fail("j", 1, ErrorKind::Drained);
        for _ in 0..2 {
            world.place();
            world.fail("j", 1, ErrorKind::Transient);
            assert_eq!(world.job("j").agents[0].state, AgentState::Queued);
        }
        world.place();
        assert_eq!(world.job("j").agents[0].attempt, 4);
        world.fail("j", 1, ErrorKind::Transient);
        let agent = &world.job("j").agents[0];
        assert_eq!((agent.state, agent.failures), (AgentState::Failed, 3));
    }

    #[test]
    fn a_permanent_error_ends_an_agent_at_once() {
        let mut world = world();
        let revision = world.job("j").revision;
        world.fail("j", 2, ErrorKind::Permanent);
        assert_eq!(world.job("j").agents[1].state, AgentState::Failed);
        assert!(
            world.job("j").revision > revision,
            "the leader decides anew"
        );
        assert!(world.is_in("j", JobState::Proposing));
    }

    #[test]
    fn a_blob_draft_is_fetched_by_every_replica() {
        let mut world = world();
        let placed = world.job("j").agents[0].placement.clone().expect("placed");
        let applied = world.apply(Body::AttemptFinished(AttemptFinished {
            key: Some(world.key("j", 1)),
            incarnation: placed.incarnation,
            result: Some(attempt_finished::Result::Draft(payload::blob(
                [7; 32], 20_000,
            ))),
            unix_ms: 0,
        }));
        assert!(applied.effects.contains(&Effect::FetchBlob {
            hash: [7; 32],
            length: 20_000
        }));
        assert_eq!(world.state.live_blobs(), [([7; 32], 20_000)].into());
    }
}
