//! Cuts between network namespaces. Clients reach every coordinator all along,
//! also the one that is cut off.

use std::time::Duration;

use super::{COORDINATORS, Site, Step, WORKERS};
use crate::chaos::Arena;
use crate::chaos::netns::{End, Net};

/// Longer than an election, a worker's lease, and the keepalives of every link.
const LONG: Duration = Duration::from_secs(8);

fn net(arena: &Arena) -> &Net {
    match &arena.site {
        Site::Net(net) => net,
        _ => panic!("the scenario stands on namespaces"),
    }
}

async fn heal(arena: &mut Arena) {
    arena.run_for(LONG).await;
    arena.fault("heal");
    net(arena).heal();
    arena.recovered().await;
    for index in 0..COORDINATORS {
        arena.until_ready(index).await;
    }
    arena.until_workers().await;
}

pub(super) fn isolate_leader(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let leader = arena.cluster.leader().await;
        arena.fault(&format!("cut coordinator {leader}, the leader, off"));
        net(arena).isolate(End::Coordinator(leader));
        arena.another_leader(leader).await;
        arena.recovered().await;
        heal(arena).await;
    })
}

pub(super) fn isolate_follower(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let follower = arena.follower().await;
        let before = arena.cluster.leader().await;
        arena.fault(&format!("cut coordinator {follower}, a follower, off"));
        net(arena).isolate(End::Coordinator(follower));
        arena.recovered().await;
        heal(arena).await;
        let after = arena.cluster.leader().await;
        if before != after {
            arena.accuse(format!(
                "a follower that came back moved the lead {before} -> {after}"
            ));
        }
    })
}

pub(super) fn no_quorum(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        arena.fault("cut all coordinators from each other");
        for one in 0..COORDINATORS {
            for other in one + 1..COORDINATORS {
                net(arena).cut(End::Coordinator(one), End::Coordinator(other));
            }
        }
        heal(arena).await;
    })
}

pub(super) fn deaf_leader(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let leader = arena.cluster.leader().await;
        arena.fault(&format!(
            "coordinator {leader}, the leader, hears no other process"
        ));
        for other in others(leader) {
            net(arena).cut_one_way(other, End::Coordinator(leader));
        }
        arena.recovered().await;
        heal(arena).await;
    })
}

pub(super) fn mute_leader(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let leader = arena.cluster.leader().await;
        arena.fault(&format!(
            "no other process hears coordinator {leader}, the leader"
        ));
        for other in others(leader) {
            net(arena).cut_one_way(End::Coordinator(leader), other);
        }
        arena.recovered().await;
        heal(arena).await;
    })
}

pub(super) fn cut_worker(arena: &mut Arena) -> Step<'_> {
    Box::pin(async move {
        let (leader, worker) = (arena.cluster.leader().await, arena.busy_worker().await);
        arena.fault(&format!(
            "cut worker {worker} from coordinator {leader}, the leader"
        ));
        net(arena).cut(End::Coordinator(leader), End::Worker(worker));
        arena.recovered().await;
        heal(arena).await;
    })
}

fn others(coordinator: usize) -> impl Iterator<Item = End> {
    let coordinators = (0..COORDINATORS).filter(move |index| *index != coordinator);
    coordinators
        .map(End::Coordinator)
        .chain((0..WORKERS).map(End::Worker))
}
