//! Looked for beside the node's loop: members that moved, and room on the disk. Whether a leader is in
//! reach is for [`contact`](super::contact).

use std::time::{Duration, Instant};

use conclave_proto::v1::IdentifyResponse;
use futures::future::join_all;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Handle, Input, NodeStatus};
use crate::{
    api::PROBE,
    config::Config,
    disk::reserve::Reserve,
    transport::{Network, estranged::other_cluster},
};

/// Period of looking at the disk.
const LOOK: Duration = Duration::from_secs(1);
/// Tries of a leader without room to hand leadership over, until there is room again.
const TRIES: u32 = 3;
/// Pause between two of them, and time for one.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Begins all of it; ends with `stop`.
pub fn begin(
    config: &Config,
    network: &Network,
    node: &Handle,
    reserve: Reserve,
    stop: &CancellationToken,
) -> [JoinHandle<()>; 2] {
    let seeds = find_seeds(config.clone(), network.clone(), node.status());
    let disk = watch_disk(reserve, network.clone(), node.clone());
    [
        tokio::spawn(until_stopped(stop.clone(), seeds)),
        tokio::spawn(until_stopped(stop.clone(), disk)),
    ]
}

async fn until_stopped(stop: CancellationToken, work: impl Future<Output = ()>) {
    let _stopped = stop.run_until_cancelled(work).await;
}

/// Asks seeds who they are while no leader is known: members may all have moved.
async fn find_seeds(config: Config, network: Network, mut status: watch::Receiver<NodeStatus>) {
    let mut period = tokio::time::interval(config.election());
    let mut first = true;
    while !config.seeds.is_empty() && (first || status.wait_for(|s| s.leader_id == 0).await.is_ok())
    {
        period.tick().await;
        for seed in &config.seeds {
            if let Ok(found) = network.identify(seed, config.election()).await {
                let mine = status.borrow().cluster_id.clone();
                same_cluster(first, seed, &found, mine.as_deref());
                network.learn(found.node_id, seed);
            }
        }
        first = false;
    }
}

/// Says, once a start, that a seed and this node are of different clusters: one
/// of the two has another one's data folder.
fn same_cluster(first: bool, seed: &str, found: &IdentifyResponse, mine: Option<&str>) {
    let Some(mine) = mine.filter(|_| first) else {
        return;
    };
    let Some(why) = other_cluster(found, mine) else {
        return;
    };
    tracing::error!(
        seed,
        theirs = found.cluster_id,
        mine,
        why,
        "this node and its seed belong to different clusters: one of them runs on another \
         cluster's data folder"
    );
}

/// Says when there is less room than is kept, and when there is enough again; a leader without room hands
/// leadership to a member with some, for it would refuse all submissions.
async fn watch_disk(reserve: Reserve, network: Network, node: Handle) {
    let mut period = tokio::time::interval(LOOK);
    let mut tries = Tries::default();
    let mut was_short = false;
    loop {
        period.tick().await;
        let short = reserve.check();
        let folder = reserve.folder().display();
        match short {
            Err(short) if !was_short => tracing::warn!(
                %folder,
                free = short.free,
                wanted = short.wanted,
                "the disk is nearly full (disk_reserve_bytes): this node takes no submissions while it leads; \
                 make room"
            ),
            Ok(()) if was_short => tracing::info!(%folder, "there is room on the disk again"),
            Ok(()) | Err(_) => {}
        }
        was_short = short.is_err();
        if tries.due(
            was_short && node.status().borrow().serving,
            was_short,
            Instant::now(),
        ) {
            hand_over(&node, &network).await;
        }
    }
}

/// When a leader without room tries to hand leadership over: a few times, for nobody may have room.
#[derive(Debug, Default)]
struct Tries {
    made: u32,
    not_before: Option<Instant>,
}

impl Tries {
    /// Whether to try now; with room again, the count begins anew.
    fn due(&mut self, leads_short: bool, short: bool, now: Instant) -> bool {
        if !short {
            *self = Self::default();
        }
        let early = self.not_before.is_some_and(|at| now < at);
        if !leads_short || early || self.made >= TRIES {
            return false;
        }
        self.made += 1;
        self.not_before = Some(now + TRY_AGAIN);
        true
    }
}

async fn hand_over(node: &Handle, network: &Network) {
    let Some(node_id) = roomy_successor(node, network).await else {
        tracing::warn!("no other voter with room on its disk answers: this node goes on leading");
        return;
    };
    let force = false;
    let to = format!("{node_id:016x}");
    let asked = node
        .ask(TRY_AGAIN, |_, done| Input::Transfer {
            node_id,
            force,
            done,
        })
        .await;
    match asked {
        Ok(()) => tracing::info!(to, "leadership goes to a member with room on its disk"),
        Err(error) => tracing::info!(to, %error, "leadership stays here, without room"),
    }
}

/// Of the voters that answer and have room on their disks, the one most caught up; for a leader to ask.
pub async fn roomy_successor(node: &Handle, network: &Network) -> Option<u64> {
    let progress = node.progress(PROBE).await.ok()?;
    let status = node.now();
    let others = status.members.iter();
    let others = others.filter(|(id, member)| **id != status.node_id && !member.learner);
    let asked = others.map(|(id, member)| {
        let known = progress.get(id).copied().unwrap_or_default();
        async move {
            let found = network.identify(&member.address, PROBE).await.ok()?;
            let able = known.active && found.node_id == *id && !found.disk_short;
            able.then_some((known.match_index, *id))
        }
    });
    let able = join_all(asked).await.into_iter().flatten();
    able.max().map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_without_room_tries_a_few_times_and_anew_after_there_was_room() {
        let mut tries = Tries::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(
            !tries.due(false, true, at(0)),
            "a follower has nothing to hand over"
        );
        assert!(tries.due(true, true, at(1)));
        assert!(!tries.due(true, true, at(2)), "not at once again");
        let later: Vec<_> = (1..6).map(|n| tries.due(true, true, at(40 * n))).collect();
        assert_eq!(later, [true, true, false, false, false]);
        assert!(!tries.due(false, false, at(300)), "there is room");
        assert!(tries.due(true, true, at(301)));
    }
}
