//! A job's audit chain is whole: every link, every payload, sealed at its end.

use conclave_coordinator_core::{Payloads, audit, job::Job};

use super::Check;

/// The job has ended and nothing more can happen to it.
pub(super) fn check(job: &Job, blobs: &dyn Payloads) -> Check {
    let broken = |why: String| Err(format!("job {}: {why}", job.id));
    if !job.audit.is_sealed() {
        return broken("its chain is open".into());
    }
    let records = match audit::export(job, blobs) {
        Ok(records) => records,
        Err(error) => return broken(error.to_string()),
    };
    match audit::verify_complete(&records, Some(&job.audit.head())) {
        Ok(()) => Ok(()),
        Err(error) => broken(error.to_string()),
    }
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
}
