//! A job's audit chain is whole: every link, every payload, sealed at its end; and it tells all: where each
//! attempt ran, and what became of it.

use std::collections::BTreeMap;

use conclave_coordinator_core::{Payloads, agent::Agent, audit, job::Job};
use conclave_proto::v1::audit_event::Event;

use super::Check;

/// The job has ended and nothing more can happen to it.
pub(super) fn check(job: &Job, blobs: &dyn Payloads) -> Check {
    let broken = |why: String| Err(format!("job {}: {why}", job.id));
    if !job.audit.is_sealed() {
        return broken("its chain is open".into());
    }
    if job.agents.iter().any(Agent::holds_worker) {
        return broken("its chain is sealed before all has been reported".into());
    }
    let records = match audit::export(job, blobs) {
        Ok(records) => records,
        Err(error) => return broken(error.to_string()),
    };
    if let Err(error) = audit::verify_complete(&records, Some(&job.audit.head())) {
        return broken(error.to_string());
    }
    let told = told(job);
    for agent in &job.agents {
        let (placed, ended) = told.get(&agent.spec.agent).copied().unwrap_or_default();
        if (placed, ended) != (agent.attempt, agent.attempt) {
            return broken(format!(
                "agent {} had {} attempts, {placed} and {ended} ends of them are recorded",
                agent.spec.agent, agent.attempt
            ));
        }
    }
    Ok(())
}

/// By agent: placements that the chain tells of, and ends of attempts.
fn told(job: &Job) -> BTreeMap<u32, (u32, u32)> {
    let mut told: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    for record in job.audit.records().iter().filter_map(audit::open) {
        match record.event {
            Some(Event::Assigned(a)) => told.entry(a.agent).or_default().0 += 1,
            Some(Event::Draft(d)) => told.entry(d.agent).or_default().1 += 1,
            Some(Event::AttemptEnded(e)) => told.entry(e.agent).or_default().1 += 1,
            _ => {}
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use conclave_coordinator_core::payload::{self, InlineOnly};

    use super::{super::super::oracle, *};

    #[test]
    fn a_chain_over_another_draft_is_found() {
        let mut job = oracle::job();
        assert_eq!(check(&job, &InlineOnly), Ok(()));
        job.agents[0].draft = Some(payload::inline(b"another".to_vec()));
        assert!(check(&job, &InlineOnly).is_err());
    }

    #[test]
    fn an_attempt_that_the_chain_does_not_tell_of_is_found() {
        let mut job = oracle::job();
        job.agents[0].attempt += 1;
        assert!(check(&job, &InlineOnly).is_err());
    }

    #[test]
    fn a_chain_that_is_sealed_too_early_is_found() {
        let mut job = oracle::job();
        job.agents[0].stopping = true;
        assert!(check(&job, &InlineOnly).is_err());
    }
}
