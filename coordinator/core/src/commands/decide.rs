//! `Decide`: what the leader found that a job does next. Only the revision is checked (law 1).

use conclave_proto::v1::{
    Answer, AuditDecided, AuditRound, Decide, EndJob, JobState, RoundRecord, StartRound,
    audit_event, decide::Next, job_event,
};

use super::{At, Ending, end, stop_agents};
use crate::{
    agent::Agent,
    effect::{Applied, Effect, Reply, Stale},
    job::{Job, is_final},
    payload,
    state::State,
};

pub(crate) fn apply(state: &mut State, at: At, command: &Decide) -> Applied {
    let now = state.unix_ms;
    let Some(job) = state.jobs.get_mut(&command.job_id) else {
        return Applied::only(Reply::NotFound);
    };
    if job.revision != command.revision || !job.needs_decision() {
        return Applied::only(Reply::Stale(Stale::Revision));
    }
    if let Err(why) = check(job, command) {
        return Applied::only(Reply::Rejected { why: why.into() });
    }
    let mut effects = stop_agents(job, now, &command.cancel);
    if !command.cancel.is_empty() || !command.votes.is_empty() || !command.reason.is_empty() {
        let decided = AuditDecided {
            cancelled: command.cancel.clone(),
            votes: command.votes.clone(),
            reason: command.reason.clone(),
        };
        job.record(at.index, audit_event::Event::Decided(decided));
    }
    match &command.next {
        Some(Next::StartRound(round)) => effects.extend(start_round(job, at, now, round)),
        Some(Next::EndJob(ending)) => {
            effects.extend(end(state, at, &command.job_id, ending_of(ending)));
            return Applied::ok(effects);
        }
        Some(Next::AwaitReview(answer)) => {
            await_review(job, now, answer, &command.reason);
            effects.push(job.changed());
        }
        None => effects.push(job.changed()),
    }
    state.reindex(&command.job_id);
    Applied::ok(effects)
}

/// What would leave the state inconsistent, whoever proposed it.
fn check(job: &Job, command: &Decide) -> Result<(), &'static str> {
    match &command.next {
        Some(Next::StartRound(round)) => {
            let first = job.agents.len() as u32 + 1;
            let numbered = round
                .agents
                .iter()
                .zip(first..)
                .all(|(spec, n)| spec.agent == n);
            if !numbered || round.agents.is_empty() {
                return Err("a round's agents are numbered on from the job's last one");
            }
            if job.rounds.iter().any(|r| r.round >= round.round) {
                return Err("rounds only go up");
            }
            match JobState::try_from(round.state) {
                Ok(state) if !is_final(state) && state != JobState::Unspecified => Ok(()),
                _ => Err("a round needs a running state"),
            }
        }
        Some(Next::EndJob(ending)) => match JobState::try_from(ending.state) {
            Ok(state) if is_final(state) => Ok(()),
            _ => Err("a job ends in a final state"),
        },
        Some(Next::AwaitReview(_)) | None => Ok(()),
    }
}

fn ending_of(ending: &EndJob) -> Ending {
    Ending {
        state: ending.state(),
        answer: ending.answer.clone(),
        message: ending.message.clone(),
    }
}

fn start_round(job: &mut Job, at: At, now: i64, round: &StartRound) -> Vec<Effect> {
    let mut effects = Vec::new();
    let context = round.context.clone();
    if let Some((hash, length)) = context.as_ref().and_then(payload::blob_ref) {
        effects.push(Effect::FetchBlob { hash, length });
    }
    let record = AuditRound {
        round: round.round,
        state: round.state,
        context: String::new(),
        agents: round.agents.clone(),
        context_digest: context.as_ref().map(payload::digest).unwrap_or_default(),
    };
    job.record(at.index, audit_event::Event::Round(record));
    job.round = round.round;
    job.rounds.push(RoundRecord {
        round: round.round,
        state: round.state,
        context,
        quorum: round.quorum,
    });
    job.enter(now, round.state());
    for spec in &round.agents {
        job.agents.push(Agent::new(spec.clone()));
        job.emit_agent(now, spec.agent);
    }
    effects.push(job.changed());
    effects.push(Effect::Place);
    effects
}

fn await_review(job: &mut Job, now: i64, answer: &Answer, degraded: &str) {
    job.answer = Some(answer.clone());
    degraded.clone_into(&mut job.message);
    job.emit(now, job_event::Event::Answer(answer.clone()));
    job.enter(now, JobState::AwaitingReview);
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{AgentState, command::Command as Body};

    use super::*;
    use crate::testkit::{World, cancels, choice, draft, width};

    #[test]
    fn a_decision_on_an_old_revision_changes_nothing() {
        let mut world = World::with_job(&choice(width(2)));
        let decide = world.next("j").expect("a round to start");
        world.apply(Body::Decide(decide.clone()));
        let before = world.job("j").clone();
        let again = world.apply(Body::Decide(decide));
        assert_eq!(again, Applied::only(Reply::Stale(Stale::Revision)));
        assert_eq!(*world.job("j"), before, "no second set of agents");
    }

    #[test]
    fn an_end_decided_on_an_old_revision_is_refused() {
        let budget = conclave_proto::v1::Budget {
            deadline_ms: 500,
            ..Default::default()
        };
        let mut world = World::with_job(&conclave_proto::v1::JobSpec {
            budget: Some(budget),
            ..choice(width(2))
        });
        world.go("j");
        world.hand_in("j", 1, &draft("yes", 1));
        world.now += 500;
        // Decided at the deadline; the other draft came into the log before the decision did.
        let late = world.next("j").expect("the deadline passed");
        assert!(matches!(late.next, Some(Next::EndJob(_))));
        world.hand_in("j", 2, &draft("yes", 1));
        let applied = world.apply(Body::Decide(late));
        assert_eq!(applied, Applied::only(Reply::Stale(Stale::Revision)));
        assert!(!world.job("j").is_final(), "decided anew, on both drafts");
    }

    #[test]
    fn a_round_whose_agents_are_misnumbered_is_refused() {
        let mut world = World::with_job(&choice(width(2)));
        let mut decide = world.next("j").expect("a round to start");
        if let Some(Next::StartRound(round)) = &mut decide.next {
            round.agents[1].agent = 7;
        }
        assert!(matches!(
            world.apply(Body::Decide(decide)).reply,
            Reply::Rejected { .. }
        ));
        assert!(world.job("j").agents.is_empty());
    }

    #[test]
    fn stragglers_are_told_to_stop_and_hold_the_seal_until_they_report() {
        let policy = conclave_proto::v1::ContemplationPolicy {
            quorum: Some(1),
            ..width(3)
        };
        let mut world = World::with_job(&choice(policy));
        world.go("j");
        world.hand_in("j", 1, &draft("yes", 1));
        let decide = world.next("j").expect("the quorum is there");
        let applied = world.apply(Body::Decide(decide));
        assert_eq!(cancels(&applied.effects), [2, 3]);
        let job = world.job("j");
        assert!(job.is_final() && !job.audit.is_sealed() && job.is_active());
        world.hand_in("j", 2, &draft("ye", 1));
        world.hand_in("j", 3, &draft("n", 1));
        let job = world.job("j");
        assert!(job.audit.is_sealed() && !job.is_active());
        assert_eq!(
            world.agents("j", AgentState::Cancelled),
            [2, 3],
            "a late draft changes no vote"
        );
        assert!(
            job.agents[1].draft.is_some(),
            "but it is on record where it was cut"
        );
    }

    #[test]
    fn events_have_gapless_indices() {
        let mut world = World::with_job(&choice(width(2)));
        world.go("j");
        world.all_answer("j", "yes");
        world.go("j");
        let indices: Vec<u64> = world.job("j").events.iter().map(|e| e.index).collect();
        assert_eq!(indices, (1..=indices.len() as u64).collect::<Vec<_>>());
        let last = world.job("j").events.last().and_then(|e| e.event.clone());
        assert_eq!(last, Some(job_event::Event::State(JobState::Done as i32)));
    }
}
