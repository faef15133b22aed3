//! Workers: those that hold a lease, and those that lost it.

use conclave_proto::v1::WorkerStatus;

use super::{Findings, Level, Seen, machine::files};

/// A worker's lease is renewed each second; with less left of its six, it was not heard of.
const UNHEARD_MS: i64 = 3_000;
/// A worker that was lost longer ago than this was replaced, or is known to be gone.
const NEWS_MS: i64 = 15 * 60_000;

pub(super) fn workers(seen: &Seen, found: &mut Findings) {
    let workers = match &seen.workers {
        Ok(workers) => workers,
        Err(why) => {
            return found.problem(
                "workers",
                format!("the leader does not say which there are: {why}"),
                "see the problems above",
            );
        }
    };
    let waiting = seen
        .leader()
        .map_or(0, |(_, leading)| leading.status.live_jobs);
    if workers.is_empty() {
        let level = if waiting > 0 {
            Level::Problem
        } else {
            Level::Note
        };
        found.add(
            level,
            "workers",
            format!("none holds a lease; {waiting} jobs have not ended"),
            "start workers (`conclave worker`); one that runs says in its log why it has no session",
        );
    }
    for worker in workers {
        files(&worker.worker_id, &worker.refused_files, found);
        if worker.lease_remaining_ms < UNHEARD_MS {
            found.problem(
                &worker.worker_id,
                format!(
                    "was not heard of lately: its lease ends in {:.1} s",
                    worker.lease_remaining_ms as f64 / 1e3
                ),
                "look whether its process hangs, and at the network to the leader",
            );
        } else if worker.draining {
            found.note(
                &worker.worker_id,
                "drains: it takes no agents",
                "none, if it is to stop",
            );
        }
    }
    lost(seen, found);
    let takes = |w: &&WorkerStatus| !w.draining;
    if !workers.is_empty() && !workers.iter().any(|w| takes(&w)) {
        found.problem("workers", "all of them drain", "start others");
    }
}

/// Those whose lease ran out while they did not drain.
fn lost(seen: &Seen, found: &mut Findings) {
    for lost in &seen.lost {
        let ago_ms = (seen.here_unix_ms - lost.unix_ms).max(0);
        let level = if ago_ms < NEWS_MS {
            Level::Problem
        } else {
            Level::Note
        };
        found.add(
            level,
            &lost.worker_id,
            format!(
                "was lost {} min ago, and has not come back: its lease ran out",
                ago_ms / 60_000
            ),
            "its process was killed, hangs, or reaches no coordinator: look at its log and at its memory limit, \
             and start it again; one that is to stop is sent SIGTERM, and drains",
        );
    }
}
