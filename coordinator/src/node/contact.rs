//! Says of a node whether it and a leader reach each other, both ways.
//!
//! Heartbeats go one way. A member that nobody hears still learns who leads: it would hold each call
//! until its deadline, at a leader that never gets it, while the other members serve. So it asks the
//! leader for a sign of life, and says of itself, and in its log, when there was none for too long.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{Handle, Input, NodeRole, NodeStatus};
use crate::{
    api::silent_members,
    transport::{Network, service::removed},
};

/// Elections without a leader in reach after which a node counts as cut off. The first two are the
/// silence of the leader, or its own.
pub const ELECTIONS: u32 = 5;

/// Whom the node has to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Leader {
    /// Nobody: it leads, or belongs to no cluster.
    Here,
    /// It does not know who leads.
    Unknown,
    /// The member at this address.
    At(String),
}

impl Leader {
    fn of(status: &NodeStatus) -> Self {
        if status.serving || status.cluster_id.is_none() {
            return Self::Here;
        }
        // One that leads and does not serve has yet to hear from a quorum.
        let leader = status.members.get(&status.leader_id);
        match leader.filter(|_| !status.leads()) {
            Some(leader) => Self::At(leader.address.clone()),
            None => Self::Unknown,
        }
    }
}

/// Keeps [`NodeStatus::cut_off`] true until the loop has ended. `election`: how long a leader may be
/// silent before others campaign.
pub async fn watch(
    node: Handle,
    network: Network,
    status: watch::Sender<NodeStatus>,
    election: Duration,
) {
    let mut look = tokio::time::interval(election / 2);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changes = status.subscribe();
    let (mut before, mut reached_at) = (Leader::Here, Instant::now());
    loop {
        if status.borrow().stopped.is_some() {
            return;
        }
        let asked = Instant::now();
        let leader = Leader::of(&status.borrow());
        let reached = leader == Leader::Here || ask(&node, &network, &leader, election).await;
        if reached {
            reached_at = asked;
        } else if before == Leader::Here && leader == Leader::Unknown {
            // A leader steps down when no quorum has answered it for an election.
            reached_at = reached_at.checked_sub(election).unwrap_or(reached_at);
        }
        let why = match reached_at.elapsed() >= election * ELECTIONS {
            true => Some(why(&network, &status).await),
            false => None,
        };
        let changed = status.send_if_modified(|s| {
            // Another leader may have been found while the members were asked: that one is next.
            let changed = s.cut_off != why && (why.is_none() || Leader::of(s) == leader);
            if changed {
                s.cut_off.clone_from(&why);
            }
            changed
        });
        if changed {
            log(&status.borrow(), reached_at);
        }
        before = leader;
        tokio::select! {
            _ = look.tick() => {}
            _ = changes.wait_for(|s| s.stopped.is_some() || Leader::of(s) != before) => {}
        }
    }
}

/// Asks the leader, or all members where none is known, for a sign of life; true if the leader gave
/// one. A leader may say that this node is no member any more.
async fn ask(node: &Handle, network: &Network, leader: &Leader, wait: Duration) -> bool {
    let now = node.now();
    let asks = (now.cluster_id.as_deref().unwrap_or_default(), now.node_id);
    let addresses: Vec<&str> = match leader {
        Leader::At(address) => vec![address],
        Leader::Here | Leader::Unknown => {
            let others = now.members.iter().filter(|(id, _)| **id != now.node_id);
            others.map(|(_, member)| member.address.as_str()).collect()
        }
    };
    let asked = addresses
        .iter()
        .map(|to| network.sign_of_life(to, asks, wait));
    let said = join_all(asked).await;
    let gone = said.iter().any(|said| said.as_ref().is_err_and(removed));
    if gone {
        // It comes again with the next question.
        let _ = node.send(Input::Removed, Instant::now() + wait).await;
    }
    let known = matches!(leader, Leader::At(_));
    known && (gone || said.iter().any(Result::is_ok))
}

/// What to tell a caller: which members do not answer either.
async fn why(network: &Network, status: &watch::Sender<NodeStatus>) -> String {
    let now = status.borrow().clone();
    let silent = silent_members(network, &now).await;
    match silent.is_empty() {
        true => "no leader is in reach; every member answers".to_owned(),
        false => format!(
            "no leader is in reach; members that do not answer: {}",
            silent.join(", ")
        ),
    }
}

/// A node that goes, or is no member, has nobody to miss.
fn log(status: &NodeStatus, reached_at: Instant) {
    if status.leaving || status.role == NodeRole::Removed {
        return;
    }
    let for_ms = u64::try_from(reached_at.elapsed().as_millis()).unwrap_or(u64::MAX);
    match &status.cut_off {
        Some(why) => tracing::warn!(
            for_ms,
            why,
            "cut off: this node refuses calls; where no majority of the voters answers, nothing is \
             served until those that do not are started"
        ),
        None => tracing::info!(
            leader = format!("{:016x}", status.leader_id),
            "a leader is in reach again"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{MemberInfo, NodeRole};

    const ELECTION: Duration = Duration::from_millis(40);

    fn following(address: &str) -> NodeStatus {
        let member = |address: &str| MemberInfo {
            address: address.to_owned(),
            learner: false,
        };
        NodeStatus {
            node_id: 1,
            cluster_id: Some("c".to_owned()),
            role: NodeRole::Follower,
            leader_id: 2,
            members: [(1, member("here")), (2, member(address))].into(),
            ..NodeStatus::default()
        }
    }

    async fn until(status: &watch::Sender<NodeStatus>, cut_off: bool) -> Duration {
        let (began, mut changes) = (Instant::now(), status.subscribe());
        let said = changes.wait_for(|s| s.cut_off.is_some() == cut_off);
        let said = tokio::time::timeout(Duration::from_secs(20), said).await;
        said.expect("it says so").expect("the sender is here");
        began.elapsed()
    }

    #[tokio::test]
    async fn a_leader_that_is_known_and_never_answers_is_out_of_reach() {
        // It takes the connection and says nothing, as a machine does whose answers are lost.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let status = watch::Sender::new(following(&address));
        let network = Network::new(
            crate::auth::Auth::open(),
            conclave_credentials::Dial::plain(),
            1 << 20,
        );
        let (inputs, _inputs) = tokio::sync::mpsc::channel(1);
        let (messages, _messages) = tokio::sync::mpsc::channel(1);
        let node = Handle::new(inputs, messages, status.subscribe());
        let task = tokio::spawn(watch(node, network, status.clone(), ELECTION));
        assert!(until(&status, true).await >= ELECTION * (ELECTIONS - 1));
        let why = status.borrow().cut_off.clone().unwrap();
        assert!(why.contains(&address), "{why}");
        assert!(status.borrow().unready().is_some_and(|said| said == why));

        // It leads itself: whoever does is in reach.
        status.send_modify(|s| (s.role, s.leader_id, s.serving) = (NodeRole::Leader, 1, true));
        until(&status, false).await;
        status.send_modify(|s| (s.role, s.leader_id, s.serving) = (NodeRole::Follower, 0, false));
        until(&status, true).await;
        status.send_modify(|s| s.stopped = Some("a test".to_owned()));
        task.await.unwrap();
    }
}
