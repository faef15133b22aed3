//! `ExpireJobs`: finished jobs are forgotten; keys live on for a day at least (law 7).

use conclave_proto::v1::ExpireJobs;

use crate::{
    effect::{Applied, Reply},
    state::State,
};

/// How long a key outlives its job's submission at least, ms. Part of log version 1.
const KEY_RETENTION_MS: i64 = 24 * 60 * 60 * 1000;

pub(crate) fn apply(state: &mut State, command: &ExpireJobs) -> Applied {
    for id in &command.job_ids {
        if state.jobs.get(id).is_none_or(|job| job.is_active()) {
            continue;
        }
        if let Some(job) = state.jobs.remove(id) {
            if let Some(ids) = state.by_tenant.get_mut(&job.tenant) {
                ids.remove(id);
                if ids.is_empty() {
                    state.by_tenant.remove(&job.tenant);
                }
            }
            state.reindex(id);
        }
    }
    let oldest = state.unix_ms.saturating_sub(KEY_RETENTION_MS);
    let jobs = &state.jobs;
    state
        .keys
        .retain(|_, key| key.unix_ms > oldest || jobs.contains_key(&key.job_id));
    Applied::only(Reply::Ok)
}
