//! A key stands for one job, however often and wherever it was submitted.

use std::collections::BTreeMap;

use conclave_coordinator_core::{Applied, Reply, State};
use conclave_proto::v1::{Command, command::Command as Body};

use super::Check;

#[derive(Debug, Default)]
pub(super) struct OneJobAKey(BTreeMap<String, String>);

impl OneJobAKey {
    /// A client was told this job for its key.
    pub(super) fn told(&mut self, key: &str, job_id: &str) -> Check {
        let first = self
            .0
            .entry(key.to_owned())
            .or_insert_with(|| job_id.to_owned());
        if first == job_id {
            Ok(())
        } else {
            Err(format!("key {key} is job {first} and job {job_id}"))
        }
    }

    pub(super) fn applied(&mut self, command: &Command, applied: &Applied) -> Check {
        match (&command.command, &applied.reply) {
            (
                Some(Body::SubmitJob(c)),
                Reply::Submitted { job_id, .. } | Reply::Conflict { job_id },
            ) => self.told(&c.idempotency_key, job_id),
            _ => Ok(()),
        }
    }

    pub(super) fn at_rest(&self, state: &State) -> Check {
        for job in state.all_jobs() {
            if self.0.get(&job.idempotency_key) != Some(&job.id) {
                return Err(format!("job {} is not its key's job", job.id));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_job_of_a_key_is_found() {
        let mut law = OneJobAKey::default();
        assert_eq!(law.told("k", "j1"), Ok(()));
        assert_eq!(law.told("k", "j1"), Ok(()));
        assert!(law.told("k", "j2").is_err());
    }
}
