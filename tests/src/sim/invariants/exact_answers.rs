//! An exact job that is done has the answer that a faultless run gives.

use std::collections::BTreeMap;

use conclave_coordinator_core::{Payloads, job::Job, spec::Policy, view};
use conclave_proto::v1::{JobSpec, JobState};

use super::{super::oracle, Check};

#[derive(Debug, Default)]
pub(super) struct ExactAnswers(BTreeMap<String, (JobSpec, String)>);

impl ExactAnswers {
    pub(super) fn ended(&mut self, job: &Job, blobs: &dyn Payloads) {
        let Ok(spec) = view::spec(job, blobs) else {
            return;
        };
        // One that degraded because an agent was lost three times says so instead.
        if Policy::of(&spec).exact
            && job.state == JobState::Done
            && let Some(answer) = job.answer.as_ref().filter(|a| !a.edited)
        {
            let given = (spec, answer.text.clone());
            self.0.insert(job.id.clone(), given);
        }
    }

    pub(super) fn given(&self) -> &BTreeMap<String, (JobSpec, String)> {
        &self.0
    }

    pub(super) fn at_rest(&self) -> Check {
        for (job_id, (spec, answer)) in &self.0 {
            let expected = oracle::answer(spec)?;
            if expected != *answer {
                return Err(format!("job {job_id}: `{answer}` instead of `{expected}`"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use conclave_coordinator_core::payload::InlineOnly;

    use super::*;

    #[test]
    fn another_answer_is_found() {
        let mut job = oracle::job();
        let mut law = ExactAnswers::default();
        law.ended(&job, &InlineOnly);
        assert_eq!((law.given().len(), law.at_rest()), (1, Ok(())));
        if let Some(answer) = &mut job.answer {
            answer.text.push('!');
        }
        law.ended(&job, &InlineOnly);
        assert!(law.at_rest().is_err());
    }
}
