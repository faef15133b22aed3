//! Restarts: all at once, and one after the other.

use std::time::{Duration, Instant};

use super::Step;
use crate::chaos::Arena;

/// Longer than `--drain`.
const DRAINED: Duration = Duration::from_secs(40);

pub(super) fn all(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        arena.fault("SIGKILL every coordinator and worker");
        for index in 0..arena.cluster.coordinators.len() {
            arena.cluster.kill_coordinator(index).await;
        }
        for index in 0..arena.cluster.workers.len() {
            arena.cluster.kill_worker(index).await;
        }
        for index in 0..arena.cluster.coordinators.len() {
            arena.cluster.start_coordinator(index).await;
        }
        for index in 0..arena.cluster.workers.len() {
            arena.cluster.start_worker(index).await;
        }
        arena.recovered().await;
    })
}

/// Each coordinator, the leader among them, then each worker: drained by
/// SIGTERM, started again, and the next one once `/readyz` says so.
pub(super) fn rolling(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        for index in 0..arena.cluster.coordinators.len() {
            let leads = arena.cluster.leader().await == index;
            let role = if leads { "the leader" } else { "a follower" };
            arena.fault(&format!("SIGTERM coordinator {index}, {role}"));
            let process = arena.cluster.coordinators[index].take();
            end(arena, "coordinator", index, process).await;
            arena.cluster.start_coordinator(index).await;
            arena.until_ready(index).await;
            arena.recovered().await;
        }
        for index in 0..arena.cluster.workers.len() {
            arena.fault(&format!("SIGTERM worker {index}"));
            let process = arena.cluster.workers[index].take();
            end(arena, "worker", index, process).await;
            arena.cluster.start_worker(index).await;
            arena.until_workers().await;
            arena.recovered().await;
        }
    })
}

async fn end(arena: &mut Arena, role: &str, index: usize, process: Option<crate::Process>) {
    let Some(mut process) = process else {
        arena.accuse(format!("{role} {index} was not running"));
        return;
    };
    let began = Instant::now();
    if !process.terminate(DRAINED).await {
        arena.accuse(format!("{role} {index} did not end with 0 after SIGTERM"));
    }
    let took = began.elapsed().as_secs_f64();
    arena.say(&format!("{role} {index} drained in {took:.2} s"));
}
