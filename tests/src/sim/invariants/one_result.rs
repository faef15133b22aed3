//! An agent has one current attempt, which runs in one process; one result of it is accepted, and what
//! was accepted stays.

use std::collections::BTreeMap;

use conclave_coordinator_core::{Applied, Reply, State, agent::Agent, job::Job, payload};
use conclave_proto::v1::{AgentState, AttemptKey, Command, command::Command as Body};

use super::Check;

/// An agent as it was last seen: state, attempt, digest of its draft.
type Seen = (AgentState, u32, Option<Vec<u8>>);

#[derive(Debug, Default)]
pub(super) struct OneResult {
    agents: BTreeMap<String, Vec<Seen>>,
    started: BTreeMap<(String, u32, u32), (String, u64)>,
}

impl OneResult {
    /// A worker process begins an attempt.
    pub(super) fn started(&mut self, key: &(String, u32, u32), worker: &str, boot: u64) -> Check {
        let here = (worker.to_owned(), boot);
        let first = self
            .started
            .entry(key.clone())
            .or_insert_with(|| here.clone());
        if *first == here {
            Ok(())
        } else {
            Err(format!("{key:?} begins on {here:?} and on {first:?}"))
        }
    }

    /// A result that is taken belongs to the attempt that was current.
    pub(super) fn applied(&self, command: &Command, applied: &Applied) -> Check {
        let Some(Body::AttemptFinished(finished)) = &command.command else {
            return Ok(());
        };
        let Some(key) = finished.key.as_ref().filter(|_| applied.reply == Reply::Ok) else {
            return Ok(());
        };
        let agents = self.agents.get(&key.job_id);
        let current = agents.and_then(|a| a.get(key.agent as usize - 1));
        match current {
            Some((_, attempt, _)) if *attempt == key.attempt => Ok(()),
            other => Err(format!("a result of {key:?} was taken while {other:?}")),
        }
    }

    pub(super) fn check(&mut self, job: &Job) -> Check {
        let now: Vec<Seen> = job.agents.iter().map(seen).collect();
        let before = self.agents.insert(job.id.clone(), now).unwrap_or_default();
        if before.len() > job.agents.len() {
            return Err(format!("job {} lost agents", job.id));
        }
        for (agent, (state, attempt, draft)) in job.agents.iter().zip(before) {
            let name = || format!("job {} agent {}", job.id, agent.spec.agent);
            if agent.attempt < attempt || agent.attempt > attempt + 1 {
                return Err(format!(
                    "{}: attempt {attempt} to {}",
                    name(),
                    agent.attempt
                ));
            }
            if agent.attempt > attempt && state != AgentState::Queued {
                return Err(format!(
                    "{}: attempt {} while {state:?}",
                    name(),
                    agent.attempt
                ));
            }
            let settled = matches!(
                state,
                AgentState::Done | AgentState::Failed | AgentState::Cancelled
            );
            if settled && agent.state != state {
                return Err(format!("{}: {state:?} became {:?}", name(), agent.state));
            }
            if draft.is_some() && seen(agent).2 != draft {
                return Err(format!("{}: an accepted draft was replaced", name()));
            }
        }
        Ok(())
    }
}

/// A worker may forget what nobody waits for any more: a result that was accepted or refused, or one of an
/// attempt that is over.
pub(super) fn acked(state: &State, keys: &[AttemptKey]) -> Check {
    let waits = |key: &&AttemptKey| {
        let agent = state.job(&key.job_id).and_then(|job| job.agent(key.agent));
        agent.is_some_and(|agent| agent.attempt == key.attempt && agent.holds_worker())
    };
    match keys.iter().find(waits) {
        None => Ok(()),
        Some(key) => Err(format!(
            "{key:?} is acknowledged, and its result is not committed"
        )),
    }
}

/// A worker is told to start what the state says runs, and nothing else.
pub(super) fn starts(state: &State, key: &AttemptKey) -> Check {
    let agent = state.job(&key.job_id).and_then(|job| job.agent(key.agent));
    match agent {
        Some(agent) if agent.attempt == key.attempt && agent.state == AgentState::Running => Ok(()),
        _ => Err(format!("{key:?} is to start, and does not run")),
    }
}

fn seen(agent: &Agent) -> Seen {
    let draft = agent.draft.as_ref().map(payload::digest);
    (agent.state, agent.attempt, draft)
}

#[cfg(test)]
mod tests {
    use super::{super::super::oracle, *};

    #[test]
    fn an_acknowledgement_that_comes_too_early_is_found() {
        let (state, job_id) = oracle::running(2);
        let key = |attempt| AttemptKey {
            job_id: job_id.clone(),
            agent: 1,
            attempt,
        };
        assert_eq!(
            acked(&state, &[key(0), key(2)]),
            Ok(()),
            "another attempt runs"
        );
        assert!(acked(&state, &[key(0), key(1)]).is_err(), "it still runs");
    }

    #[test]
    fn a_start_of_what_does_not_run_is_found() {
        let (state, job_id) = oracle::running(1);
        let key = |attempt| AttemptKey {
            job_id: job_id.clone(),
            agent: 1,
            attempt,
        };
        assert_eq!(starts(&state, &key(1)), Ok(()));
        assert!(starts(&state, &key(2)).is_err());
    }

    #[test]
    fn an_attempt_in_two_processes_is_found() {
        let mut law = OneResult::default();
        let key = ("j".to_owned(), 1, 1);
        assert_eq!(law.started(&key, "w1", 1), Ok(()));
        assert_eq!(law.started(&key, "w1", 1), Ok(()));
        assert!(law.started(&key, "w2", 2).is_err());
    }
}
