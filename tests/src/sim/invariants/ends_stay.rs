//! What has ended stays as it ended: its state, its answer, its word; and no agent of it is tried again.

use std::collections::BTreeMap;

use conclave_coordinator_core::job::Job;
use conclave_proto::v1::{Answer, JobState};

#[derive(Debug)]
struct End {
    state: JobState,
    answer: Option<Answer>,
    message: String,
    /// Events up to its end.
    events: u64,
}

/// Jobs that have ended, as they were first seen so.
#[derive(Debug, Default)]
pub(super) struct EndsStay(BTreeMap<String, End>);

impl EndsStay {
    /// Says whether it ended just now.
    pub(super) fn check(&mut self, job: &Job) -> Result<bool, String> {
        let Some(end) = self.0.get(&job.id) else {
            if job.is_final() {
                let end = End {
                    state: job.state,
                    answer: job.answer.clone(),
                    message: job.message.clone(),
                    events: job.events.len() as u64,
                };
                self.0.insert(job.id.clone(), end);
            }
            return Ok(job.is_final());
        };
        let same = end.state == job.state && end.answer == job.answer && end.message == job.message;
        if !same || job.agents.iter().any(|a| !a.is_final()) {
            return Err(format!(
                "job {} ended {:?} and is {:?}: {}",
                job.id, end.state, job.state, job.message
            ));
        }
        Ok(false)
    }

    /// Events that whoever is told of the job's end has seen by then; `None` if it has not ended.
    pub(super) fn events(&self, job_id: &str) -> Option<u64> {
        self.0.get(job_id).map(|end| end.events)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::oracle, *};

    #[test]
    fn an_end_that_changes_is_found() {
        let mut law = EndsStay::default();
        let job = oracle::job();
        assert_eq!(law.check(&job), Ok(true));
        assert_eq!(law.check(&job), Ok(false));
        let mut other = job.clone();
        other.answer = None;
        assert!(law.check(&other).is_err(), "another answer");
        let mut again = job;
        again.state = JobState::Refining;
        assert!(law.check(&again).is_err(), "it goes on");
    }
}
