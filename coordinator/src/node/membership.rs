//! Of which cluster this node is, who else is, and where they listen.

use std::{collections::BTreeMap, time::Instant};

use conclave_coordinator_core::node::{MemberProgress, Node, Role};
use raft::eraftpb::ConfChangeType;

use super::{Change, Done, Follower, NodeError, storage::Fatal, task::Task, waiters::Waiter};
use crate::transport::lanes::{Lanes, Sender};

/// Entries that a voter may lack when it is told to take over.
const LAG: u64 = 1_024;

impl Task {
    /// Puts every member's replicated address into the book.
    pub(super) fn learn_members(&self) {
        for (id, address) in self.state.members() {
            self.network.learn(*id, address);
        }
        self.network.learn(self.identity.node_id(), &self.address);
    }

    /// Lanes need the cluster's id: there are none while blank.
    pub(super) fn open_lanes(&mut self) {
        let Some(cluster_id) = self.identity.cluster_id() else {
            return;
        };
        let sender = Sender {
            cluster_id: cluster_id.to_owned(),
            node_id: self.identity.node_id(),
            address: self.address.clone(),
            advertised: !self.config.advertise.is_empty(),
            most: self.config.max_message_bytes,
        };
        let (runtime, stop) = (self.runtime.clone(), self.stop.clone());
        let (network, node) = (self.network.clone(), self.handle.clone());
        self.lanes = Some(Lanes::new(network, sender, node, runtime, stop));
    }

    /// Creates a cluster with this node as its first voter.
    pub(super) fn init(&mut self, cluster_id: &str) -> Result<Result<(), NodeError>, Fatal> {
        if let Some(mine) = self.identity.cluster_id() {
            let why = format!(
                "this node belongs to cluster {mine} already: others join it with \
                 `conclave cluster add`"
            );
            return Ok(Err(NodeError::Refused(why)));
        }
        // The log first: a crash between the two leaves a blank node that
        // begins anew, never a member without a log.
        let (node, state) = self.storage.genesis(&self.raft_config)?;
        self.identity.bind(cluster_id)?;
        self.node = node;
        self.state = state;
        self.open_lanes();
        self.node.campaign()?;
        Ok(Ok(()))
    }

    /// Joins the cluster that invited this blank node.
    pub(super) fn bind(&mut self, cluster_id: &str) -> Result<(), NodeError> {
        self.identity
            .bind(cluster_id)
            .map_err(|e| NodeError::Refused(e.to_string()))?;
        tracing::info!(cluster_id, "this node was invited into a cluster");
        self.open_lanes();
        Ok(())
    }

    pub(super) fn change(&mut self, node_id: u64, change: Change, deadline: Instant, done: Done) {
        let kind = match change {
            Change::AddLearner => ConfChangeType::AddLearnerNode,
            Change::Promote => ConfChangeType::AddNode,
            Change::Remove => ConfChangeType::RemoveNode,
        };
        let waiter = Waiter::Change(done);
        let context = match self.waiters.add(waiter, Instant::now(), deadline) {
            Ok(context) => context,
            Err(waiter) => return self.fail(waiter, NodeError::Busy),
        };
        let result = self
            .node
            .propose_conf_change(context.clone(), kind, node_id);
        if let Err(error) = result
            && let Some((Waiter::Change(done), _)) = self.waiters.take(&context)
        {
            let _ = done.send(Err(match error {
                _ if self.leadership.role != Role::Leader => NodeError::NotLeader,
                _ => NodeError::Busy,
            }));
        }
    }

    pub(super) fn transfer(&mut self, node_id: u64, force: bool) -> Result<(), NodeError> {
        if self.leadership.role != Role::Leader {
            return Err(NodeError::NotLeader);
        }
        let others: Vec<MemberProgress> = self
            .node
            .progress()
            .into_iter()
            .filter(|p| p.id != self.identity.node_id())
            .collect();
        let name = |id: u64| self.name_members(&[id]);
        let to = successor(&others, node_id, self.node.last_index(), force, &name)
            .map_err(NodeError::Refused)?;
        self.node.transfer(to);
        Ok(())
    }

    pub(super) fn progress(&self) -> BTreeMap<u64, Follower> {
        progress_of(&self.node)
    }
}

/// Who is to lead next. Nothing is proposed while leadership is handed over, so
/// it goes to a voter that can take it at once.
fn successor(
    others: &[MemberProgress],
    wanted: u64,
    last: u64,
    force: bool,
    name: &dyn Fn(u64) -> String,
) -> Result<u64, String> {
    if wanted == 0 {
        let able = others.iter().filter(|p| !p.learner && p.active);
        let best = able.max_by_key(|p| p.matched).map(|p| p.id);
        return best.ok_or_else(|| {
            "no other voter answers: whoever took over would have no quorum".to_owned()
        });
    }
    let Some(member) = others.iter().find(|p| p.id == wanted) else {
        return Err(format!(
            "{wanted:016x} is no member: `conclave cluster members` lists them"
        ));
    };
    let lacks = last.saturating_sub(member.matched);
    if member.learner {
        return Err(format!(
            "{} is a learner and cannot lead: `conclave cluster add` with its address makes it a \
             voter",
            name(wanted)
        ));
    }
    if !member.active {
        return Err(format!("{} does not answer: start it first", name(wanted)));
    }
    if lacks > LAG && !force {
        return Err(format!(
            "{} lacks {lacks} entries: the cluster would take nothing until it has them, or give \
             the transfer up; wait, or use --force",
            name(wanted)
        ));
    }
    Ok(wanted)
}

fn progress_of(node: &Node) -> BTreeMap<u64, Follower> {
    let follower = |p: MemberProgress| {
        (
            p.id,
            Follower {
                match_index: p.matched,
                active: p.active,
            },
        )
    };
    node.progress().into_iter().map(follower).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, matched: u64) -> MemberProgress {
        MemberProgress {
            id,
            matched,
            active: true,
            learner: false,
        }
    }

    fn refused(member: MemberProgress, force: bool) -> Option<String> {
        successor(&[member], member.id, 5_000, force, &|id| format!("n{id}")).err()
    }

    #[test]
    fn leadership_goes_only_to_a_voter_that_can_take_it_at_once() {
        assert_eq!(refused(member(2, 5_000), false), None);
        let lags = refused(member(2, 3_000), false).unwrap();
        assert!(lags.contains("n2 lacks 2000 entries"), "{lags}");
        assert_eq!(refused(member(2, 3_000), true), None, "unless forced");
        for force in [false, true] {
            let learner = MemberProgress {
                learner: true,
                ..member(2, 5_000)
            };
            assert!(refused(learner, force).unwrap().contains("is a learner"));
            let dead = MemberProgress {
                active: false,
                ..member(2, 5_000)
            };
            assert!(refused(dead, force).unwrap().contains("does not answer"));
            let stranger = successor(&[member(2, 1)], 3, 1, force, &|_| String::new());
            assert!(stranger.unwrap_err().contains("no member"));
        }
    }

    #[test]
    fn without_a_wish_the_most_caught_up_voter_takes_over() {
        let others = [member(2, 10), member(3, 12), member(4, 11)];
        let next = successor(&others, 0, 12, false, &|_| String::new());
        assert_eq!(next, Ok(3));
        assert!(successor(&[], 0, 12, true, &|_| String::new()).is_err());
    }
}
