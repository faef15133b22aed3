//! Of which cluster this node is, who else is, and where they listen.

use std::{collections::BTreeMap, time::Instant};

use conclave_coordinator_core::node::{Node, Role};
use raft::eraftpb::ConfChangeType;

use super::{Change, Done, Follower, NodeError, storage::Fatal, task::Task, waiters::Waiter};
use crate::transport::lanes::{Lanes, Sender};

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

    pub(super) fn transfer(&mut self, node_id: u64) -> Result<(), NodeError> {
        if self.leadership.role != Role::Leader {
            return Err(NodeError::NotLeader);
        }
        let me = self.identity.node_id();
        let able = self
            .node
            .progress()
            .into_iter()
            .filter(|p| !p.learner && p.active && p.id != me);
        let to = match node_id {
            0 => able.max_by_key(|p| p.matched).map(|p| p.id),
            wanted => able.map(|p| p.id).find(|id| *id == wanted),
        };
        let Some(to) = to else {
            return Err(NodeError::Refused(match node_id {
                0 => "no other voter answers".to_owned(),
                id => format!("{id:x} is no voter that answers"),
            }));
        };
        self.node.transfer(to);
        Ok(())
    }

    pub(super) fn progress(&self) -> BTreeMap<u64, Follower> {
        progress_of(&self.node)
    }
}

fn progress_of(node: &Node) -> BTreeMap<u64, Follower> {
    let follower = |p: conclave_coordinator_core::node::MemberProgress| {
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
