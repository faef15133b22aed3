//! Which ended jobs are forgotten: those too old, and the oldest of tenants that keep too much.

use std::collections::BTreeSet;

use super::Settings;
use crate::{
    index::{oldest, size},
    state::State,
};

/// Ids of ended and sealed jobs to forget now, `most` at most: by age first, then by bytes; the
/// oldest of either. It costs what it finds, and a look at each tenant.
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
    let over = state.index.tenants().flat_map(|tenant| {
        let mut kept = tenant.ended_bytes();
        let goes = move |(_, id): &(i64, &str)| {
            let goes = kept > limit;
            kept -= state.job(id).map_or(0, size);
            goes
        };
        tenant.ended().take_while(goes).take(most)
    });
    oldest(over, most)
}
