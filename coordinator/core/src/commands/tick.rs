//! `Tick`: replicated time moves; leases and deadlines fall due (law 3).

use conclave_proto::v1::Tick;

use super::{At, lose_worker};
use crate::{
    effect::{Applied, Effect},
    state::State,
    worker::LEASE_TTL_MS,
};

/// The most that one tick moves the lease clock, ms: a leader that slept must not expire what it
/// could not hear. Part of log version 1.
pub(crate) const MAX_TICK_MS: u64 = 1_000;

pub(crate) fn apply(state: &mut State, at: At, command: &Tick) -> Applied {
    state.advance_unix(command.unix_ms);
    state.lease_clock_ms += command.elapsed_ms.min(MAX_TICK_MS);
    if command.new_term {
        let full = state.lease_clock_ms + LEASE_TTL_MS;
        state
            .workers
            .values_mut()
            .for_each(|worker| worker.expires_ms = full);
    }
    let mut effects = expire_leases(state, at);
    let due = state.active_jobs().filter(|job| {
        job.needs_decision() && job.deadline_unix_ms > 0 && job.deadline_unix_ms <= state.unix_ms
    });
    effects.extend(due.map(|job| Effect::JobChanged {
        job_id: job.id.clone(),
    }));
    Applied::ok(effects)
}

fn expire_leases(state: &mut State, at: At) -> Vec<Effect> {
    let clock = state.lease_clock_ms;
    let expired: Vec<_> = state
        .workers
        .values()
        .filter(|w| w.expires_ms <= clock)
        .map(|w| (w.worker_id.clone(), w.incarnation.clone()))
        .collect();
    let mut effects = Vec::new();
    for (worker_id, incarnation) in expired {
        state.workers.remove(&worker_id);
        effects.extend(lose_worker(
            state,
            at,
            &worker_id,
            &incarnation,
            "the worker's lease ran out",
        ));
    }
    effects
}
