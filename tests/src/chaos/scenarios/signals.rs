//! Processes that die and processes that stop.

use std::time::Duration;

use super::Step;
use crate::chaos::Arena;

/// Longer than an election, and than the keepalives of every link.
const LONG: Duration = Duration::from_secs(5);
/// Longer than a worker's lease.
const BEYOND_A_LEASE: Duration = Duration::from_secs(9);

pub(super) fn kill_leader(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        for _ in 0..2 {
            let leader = arena.cluster.leader().await;
            arena.fault(&format!("SIGKILL coordinator {leader}, the leader"));
            arena.cluster.kill_coordinator(leader).await;
            arena.recovered().await;
            arena.cluster.start_coordinator(leader).await;
            arena.until_ready(leader).await;
        }
    })
}

pub(super) fn kill_follower(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let follower = arena.follower().await;
        arena.fault(&format!("SIGKILL coordinator {follower}, a follower"));
        arena.cluster.kill_coordinator(follower).await;
        arena.recovered().await;
        arena.cluster.start_coordinator(follower).await;
        arena.until_ready(follower).await;
    })
}

pub(super) fn kill_worker(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let worker = arena.busy_worker().await;
        arena.fault(&format!("SIGKILL worker {worker}"));
        arena.cluster.kill_worker(worker).await;
        arena.recovered().await;
        arena.run_for(BEYOND_A_LEASE).await;
        arena.cluster.start_worker(worker).await;
        arena.until_workers().await;
    })
}

pub(super) fn pause_leader(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let leader = arena.cluster.leader().await;
        arena.fault(&format!("SIGSTOP coordinator {leader}, the leader"));
        signal(arena, leader, libc::SIGSTOP);
        arena.another_leader(leader).await;
        arena.recovered().await;
        arena.run_for(LONG).await;
        arena.fault(&format!(
            "SIGCONT coordinator {leader}: it still takes itself for the leader"
        ));
        signal(arena, leader, libc::SIGCONT);
        arena.recovered().await;
        arena.until_ready(leader).await;
    })
}

pub(super) fn pause_follower(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let follower = arena.follower().await;
        arena.fault(&format!("SIGSTOP coordinator {follower}, a follower"));
        signal(arena, follower, libc::SIGSTOP);
        arena.recovered().await;
        arena.run_for(LONG).await;
        arena.fault(&format!("SIGCONT coordinator {follower}"));
        signal(arena, follower, libc::SIGCONT);
        arena.recovered().await;
        arena.until_ready(follower).await;
    })
}

pub(super) fn pause_worker(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let worker = arena.busy_worker().await;
        let send = |arena: &Arena, signal| {
            if let Some(process) = &arena.cluster.workers[worker] {
                process.signal(signal);
            }
        };
        arena.fault(&format!("SIGSTOP worker {worker}"));
        send(arena, libc::SIGSTOP);
        arena.recovered().await;
        arena.run_for(BEYOND_A_LEASE).await;
        arena.fault(&format!(
            "SIGCONT worker {worker}: its agents run elsewhere by now"
        ));
        send(arena, libc::SIGCONT);
        arena.recovered().await;
        arena.until_workers().await;
    })
}

fn signal(arena: &Arena, coordinator: usize, signal: i32) {
    if let Some(process) = &arena.cluster.coordinators[coordinator] {
        process.signal(signal);
    }
}
