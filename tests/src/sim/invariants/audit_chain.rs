//! A job's audit chain is whole: every link, every payload, sealed at its end.

use conclave_coordinator_core::{audit, job::Job, payload::InlineOnly};

use super::Check;

/// The job has ended and nothing more can happen to it.
pub(super) fn check(job: &Job) -> Check {
    let broken = |why: String| Err(format!("job {}: {why}", job.id));
    if !job.audit.is_sealed() {
        return broken("its chain is open".into());
    }
    let records = match audit::export(job, &InlineOnly) {
        Ok(records) => records,
        Err(error) => return broken(error.to_string()),
    };
    match audit::verify_complete(&records, Some(&job.audit.head())) {
        Ok(()) => Ok(()),
        Err(error) => broken(error.to_string()),
    }
}
