//! A job that was acknowledged is there until it has ended, was sealed, and its time was up.

use std::collections::BTreeSet;

use conclave_coordinator_core::State;

use super::Check;

#[derive(Debug, Default)]
pub(super) struct NothingLost {
    acknowledged: BTreeSet<String>,
    expired: BTreeSet<String>,
}

impl NothingLost {
    pub(super) fn acknowledged(&mut self, job_id: &str) {
        self.acknowledged.insert(job_id.to_owned());
    }

    /// These were to be forgotten; `sealed` had ended before.
    pub(super) fn expired(
        &mut self,
        job_ids: &[String],
        sealed: &BTreeSet<String>,
        state: &State,
    ) -> Check {
        for job_id in job_ids.iter().filter(|id| state.job(id).is_none()) {
            if !sealed.contains(job_id) {
                return Err(format!("job {job_id} was forgotten before it had ended"));
            }
            self.expired.insert(job_id.clone());
        }
        Ok(())
    }

    /// A read after the acknowledgement did not find it.
    pub(super) fn missing(&self, job_id: &str) -> Check {
        if self.expired.contains(job_id) {
            Ok(())
        } else {
            Err(format!("job {job_id} was acknowledged, and is not there"))
        }
    }

    pub(super) fn at_rest(&self, state: &State) -> Check {
        self.acknowledged
            .iter()
            .filter(|id| state.job(id).is_none())
            .try_for_each(|id| self.missing(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_job_is_found() {
        let mut law = NothingLost::default();
        law.acknowledged("j");
        assert!(law.at_rest(&State::new()).is_err());
        let ids = ["j".to_owned()];
        assert!(law.expired(&ids, &BTreeSet::new(), &State::new()).is_err());
        assert_eq!(
            law.expired(&ids, &ids.clone().into(), &State::new()),
            Ok(())
        );
        assert_eq!(law.at_rest(&State::new()), Ok(()));
    }
}
