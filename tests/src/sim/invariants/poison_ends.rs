//! An agent that fails too often ends, and so does one that fails for good.

use conclave_coordinator_core::{agent::MAX_FAILURES, job::Job};
use conclave_proto::v1::AgentState;

use super::Check;

pub(super) fn check(job: &Job) -> Check {
    for agent in &job.agents {
        if agent.failures > agent.attempt {
            return Err(format!(
                "job {} agent {}: {} failures of {} attempts",
                job.id, agent.spec.agent, agent.failures, agent.attempt
            ));
        }
        let open = matches!(agent.state, AgentState::Queued | AgentState::Running);
        if agent.failures > MAX_FAILURES || (agent.failures == MAX_FAILURES && open) {
            return Err(format!(
                "job {} agent {}: {:?} after {} failures",
                job.id, agent.spec.agent, agent.state, agent.failures
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::super::oracle, *};

    #[test]
    fn an_agent_that_is_tried_for_ever_is_found() {
        let mut job = oracle::job();
        assert_eq!(check(&job), Ok(()));
        job.agents[0].failures = MAX_FAILURES;
        assert!(check(&job).is_err(), "one attempt failed several times");
        job.agents[0].attempt = MAX_FAILURES;
        job.agents[0].state = AgentState::Failed;
        assert_eq!(check(&job), Ok(()));
        job.agents[0].state = AgentState::Queued;
        assert!(check(&job).is_err());
    }
}
