//! Nothing fails for nothing: a job that ends otherwise than done was cancelled or turned down, came to its
//! deadline, or lost an agent; and an agent fails of itself, or of too many lost attempts.

use std::collections::BTreeSet;

use conclave_coordinator_core::{Applied, Reply, agent::MAX_FAILURES, job::Job};
use conclave_proto::v1::{AgentState, Command, JobState, Verdict, command::Command as Body};

use super::{super::attempts, Check};

#[derive(Debug, Default)]
pub(super) struct EndsHaveCauses {
    cancelled: BTreeSet<String>,
    rejected: BTreeSet<String>,
}

impl EndsHaveCauses {
    pub(super) fn applied(&mut self, command: &Command, applied: &Applied) {
        if applied.reply != Reply::Ok {
            return;
        }
        match &command.command {
            Some(Body::CancelJob(c)) => drop(self.cancelled.insert(c.job_id.clone())),
            Some(Body::ReviewJob(c)) if c.verdict() == Verdict::Reject => {
                self.rejected.insert(c.job_id.clone());
            }
            _ => {}
        }
    }

    /// The job has ended; by no clock that counts is it later than `latest_ms`, Unix ms.
    pub(super) fn ended(&self, job: &Job, latest_ms: i64) -> Check {
        let lost = |a: &_| !has_cause(a);
        if let Some(agent) = job.agents.iter().find(|a| lost(*a)) {
            return Err(format!(
                "job {} agent {} failed after {} failures: {}",
                job.id, agent.spec.agent, agent.failures, agent.error
            ));
        }
        let failed = || job.agents.iter().any(|a| a.state == AgentState::Failed);
        let refused = || job.prepared.as_ref().is_some_and(|p| !p.error.is_empty());
        let late = || (1..=latest_ms).contains(&job.deadline_unix_ms);
        let good = match job.state {
            JobState::Done => job.answer.is_some(),
            JobState::Cancelled => self.cancelled.contains(&job.id),
            _ => failed() || refused() || late() || self.rejected.contains(&job.id),
        };
        if good {
            return Ok(());
        }
        Err(format!(
            "job {} ended {:?}: {}",
            job.id, job.state, job.message
        ))
    }
}

fn has_cause(agent: &conclave_coordinator_core::agent::Agent) -> bool {
    agent.state != AgentState::Failed
        || agent.failures == MAX_FAILURES
        || attempts::is_for_good(&agent.error)
}

#[cfg(test)]
mod tests {
    use super::{super::super::oracle, *};

    #[test]
    fn an_end_without_a_cause_is_found() {
        let mut law = EndsHaveCauses::default();
        let mut job = oracle::job();
        assert_eq!(law.ended(&job, 0), Ok(()));
        for state in [JobState::Failed, JobState::Degraded, JobState::Cancelled] {
            job.state = state;
            assert!(law.ended(&job, 0).is_err(), "{state:?}");
        }
        law.cancelled.insert(job.id.clone());
        assert_eq!(law.ended(&job, 0), Ok(()));
        job.state = JobState::Failed;
        job.deadline_unix_ms = 9;
        assert_eq!(law.ended(&job, 9), Ok(()), "its deadline came");
        assert!(law.ended(&job, 8).is_err(), "it did not come");
        job.state = JobState::Done;
        job.answer = None;
        assert!(law.ended(&job, 0).is_err(), "done without an answer");
    }

    #[test]
    fn an_agent_that_was_given_up_too_early_is_found() {
        let law = EndsHaveCauses::default();
        let mut job = oracle::job();
        job.state = JobState::Failed;
        job.agents[0].state = AgentState::Failed;
        job.agents[0].failures = MAX_FAILURES;
        assert_eq!(law.ended(&job, 0), Ok(()));
        job.agents[0].failures -= 1;
        assert!(law.ended(&job, 0).is_err());
    }
}
