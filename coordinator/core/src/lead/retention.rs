//! Which ended jobs are forgotten: those too old, and the oldest of tenants that keep too much.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::Settings;
use crate::{job::Job, payload, state::State};

/// Ids of ended and sealed jobs to forget now, `most` at most: by age first, then by bytes; the
/// oldest of either.
pub(super) fn due(
    state: &State,
    settings: &Settings,
    now_unix_ms: i64,
    most: usize,
) -> Vec<String> {
    let old = state.expirable(now_unix_ms, settings.retention_ms, most);
    let taken: BTreeSet<String> = old.iter().cloned().collect();
    let over = too_many_bytes(state, settings.retention_bytes, most);
    let over = over.into_iter().filter(|id| !taken.contains(id));
    let mut job_ids = old;
    job_ids.extend(over);
    job_ids.truncate(most);
    job_ids
}

/// The oldest ended jobs of tenants that keep more than `limit` bytes. Age is by the replicated time
/// of their end: ids are minted by the wall clock of whoever led, which may have been set back.
fn too_many_bytes(state: &State, limit: u64, most: usize) -> Vec<String> {
    let mut kept: BTreeMap<&str, u64> = BTreeMap::new();
    let mut over = Vec::new();
    let mut ended: Vec<&Job> = state.all_jobs().filter(|job| !job.is_active()).collect();
    ended.sort_unstable_by_key(|job| Reverse((job.ended_unix_ms, &job.id)));
    // The newest are counted first.
    for job in ended {
        let kept = kept.entry(&job.tenant).or_default();
        *kept += size(job);
        if *kept > limit {
            over.push(job.id.clone());
        }
    }
    over.reverse();
    over.truncate(most);
    over
}

/// Bytes of a job's payloads.
fn size(job: &Job) -> u64 {
    job.payloads().map(payload::length).sum()
}
