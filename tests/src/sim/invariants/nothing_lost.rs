//! A job that was acknowledged is there until it has ended, was sealed, and its time was up.

use std::collections::{BTreeMap, BTreeSet};

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

    /// These were to be forgotten, if they had ended by `due`, Unix ms, at the latest; `sealed` had ended
    /// then.
    pub(super) fn expired(
        &mut self,
        job_ids: &[String],
        sealed: &BTreeMap<String, i64>,
        due: i64,
        state: &State,
    ) -> Check {
        for job_id in job_ids.iter().filter(|id| state.job(id).is_none()) {
            let Some(ended) = sealed.get(job_id) else {
                return Err(format!("job {job_id} was forgotten before it had ended"));
            };
            if *ended > due {
                return Err(format!(
                    "job {job_id} was forgotten {} ms before its time was up",
                    ended - due
                ));
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
        let mut expired = |sealed, due| law.expired(&ids, &sealed, due, &State::new());
        assert!(expired(BTreeMap::new(), 9).is_err(), "it goes on");
        let sealed = BTreeMap::from([("j".to_owned(), 9)]);
        assert!(expired(sealed.clone(), 8).is_err(), "it ended just now");
        assert_eq!(expired(sealed, 9), Ok(()));
        assert_eq!(law.at_rest(&State::new()), Ok(()));
    }
}
