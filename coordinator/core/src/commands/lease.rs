//! Leases are renewed in batches; a worker that drains takes nothing new.

use conclave_proto::v1::{DrainWorker, RenewLeases};

use crate::{
    effect::{Applied, Effect, Reply, Stale},
    state::State,
    worker::LEASE_TTL_MS,
};

/// Renews the leases of processes that still hold one; others must register anew.
pub(crate) fn renew(state: &mut State, command: &RenewLeases) -> Applied {
    for lease in &command.leases {
        let worker = state.workers.get_mut(&lease.worker_id);
        if let Some(worker) = worker.filter(|w| w.incarnation == lease.incarnation) {
            worker.expires_ms = state.lease_clock_ms + LEASE_TTL_MS;
        }
    }
    Applied::only(Reply::Ok)
}

/// Marks a process as draining.
pub(crate) fn drain(state: &mut State, command: &DrainWorker) -> Applied {
    let Some(worker) = state.workers.get_mut(&command.worker_id) else {
        return Applied::only(Reply::NotFound);
    };
    if worker.incarnation != command.incarnation {
        return Applied::only(Reply::Stale(Stale::Incarnation));
    }
    worker.draining = true;
    Applied::ok(vec![Effect::Place])
}
