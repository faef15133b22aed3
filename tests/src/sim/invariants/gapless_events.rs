//! A job's events are numbered from 1 without gaps or repeats, and never change.

use std::collections::BTreeMap;

use conclave_coordinator_core::{agent::Agent, job::Job};
use conclave_proto::v1::{JobEvent, job_event::Event as Told};

use super::Check;

#[derive(Debug, Default)]
pub(super) struct GaplessEvents(BTreeMap<String, (usize, Option<JobEvent>)>);

impl GaplessEvents {
    pub(super) fn check(&mut self, job: &Job) -> Check {
        let seen = (job.events.len(), job.events.last().cloned());
        let (before, last) = self.0.insert(job.id.clone(), seen).unwrap_or_default();
        if job.events.len() < before {
            return Err(format!("job {}: events were taken back", job.id));
        }
        if last.as_ref() != before.checked_sub(1).map(|at| &job.events[at]) {
            return Err(format!("job {}: event {before} became another", job.id));
        }
        for (at, event) in job.events.iter().enumerate().skip(before) {
            if event.index != at as u64 + 1 {
                return Err(format!("job {}: event {} at {at}", job.id, event.index));
            }
        }
        Ok(())
    }

    /// Whoever has seen all events of a sealed job knows how its agents ended.
    pub(super) fn tell_all(job: &Job) -> Check {
        let mut last = BTreeMap::new();
        for event in &job.events {
            if let Some(Told::Agent(status)) = &event.event {
                last.insert(status.agent, (status.state, status.attempt));
            }
        }
        let ended = |a: &&Agent| last.get(&a.spec.agent) == Some(&(a.state as i32, a.attempt));
        match job.agents.iter().find(|a| !ended(a)) {
            None => Ok(()),
            Some(agent) => Err(format!(
                "job {}: no event tells how agent {} ended",
                job.id, agent.spec.agent
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::oracle, *};

    #[test]
    fn a_gap_and_a_loss_are_found() {
        let whole = oracle::job();
        assert_eq!(GaplessEvents::default().check(&whole), Ok(()));
        let mut gap = whole.clone();
        gap.events.remove(1);
        assert!(GaplessEvents::default().check(&gap).is_err());
        let mut law = GaplessEvents::default();
        assert_eq!(law.check(&whole), Ok(()));
        let mut less = whole;
        less.events.pop();
        assert!(law.check(&less).is_err(), "an event was taken back");
        let mut law = GaplessEvents::default();
        assert_eq!(law.check(&less), Ok(()));
        less.events.last_mut().expect("there are some").unix_ms += 1;
        assert!(law.check(&less).is_err(), "an event was changed");
    }

    #[test]
    fn an_agent_whose_end_no_event_tells_is_found() {
        let mut job = oracle::job();
        assert_eq!(GaplessEvents::tell_all(&job), Ok(()));
        job.agents[0].attempt += 1;
        assert!(GaplessEvents::tell_all(&job).is_err());
    }
}
