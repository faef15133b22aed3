//! An operator: keeps the cluster at its size, adds learners, promotes those that caught up, removes
//! members, switches off what was removed.

use conclave_coordinator_core::lead::Leader;
use raft::eraftpb::ConfChangeType;

use super::{
    coordinator::{Coordinator, NEXT_VERSION},
    cx::{Event, Input},
    disk::Disk,
    world::World,
};

/// Voters of a cluster at rest.
const SIZE: usize = 3;
/// Folders ever made in one world.
const MOST_NODES: u64 = 9;

impl World {
    /// The one that leads and serves, if any: of the highest term, if several believe so.
    pub(super) fn leader(&self) -> Option<&Coordinator> {
        let serving = self
            .nodes
            .values()
            .filter(|n| !n.paused && n.leader.as_ref().is_some_and(Leader::speaks));
        serving.max_by_key(|n| n.leadership.term)
    }

    /// Looks after the members now and then.
    pub(super) fn operator(&mut self) {
        let pause = self.cx.rng.between(400, 1_500);
        self.cx.after(pause, Event::Operator);
        self.operate(false);
        self.raise();
    }

    /// Raises the log version by one once every program knows it; rarely too early: then those that do not
    /// know it stop.
    fn raise(&mut self) {
        let members = self.addresses();
        let known: Vec<u32> = members
            .iter()
            .filter_map(|id| self.speaks.get(id).copied())
            .collect();
        let every = known.iter().min().copied().unwrap_or(1);
        let agreed = self
            .leader()
            .map_or(NEXT_VERSION, |l| l.state.log_version());
        let next = agreed + 1;
        let early = known.iter().any(|k| *k >= next) && self.cx.rng.below(256) == 0;
        if agreed < NEXT_VERSION && (early || (every >= next && self.cx.rng.below(8) == 0)) {
            self.cx.coverage.hit("deeds", "log version raised");
            self.tell_leader(Input::Raise(next));
        }
    }

    /// One step towards the wanted members; with `restless`, away from them.
    pub(super) fn operate(&mut self, restless: bool) {
        let Some(leader) = self.leader() else { return };
        let (conf, progress) = (leader.node.conf_state(), leader.node.progress());
        let last = leader.node.last_index();
        let known = |id: &u64| conf.voters.contains(id) || conf.learners.contains(id);
        let members = conf.voters.len() + conf.learners.len();
        if leader.state.applied_index() == leader.node.commit_index() {
            self.switch_off(&known);
        }
        if self.joining.is_some_and(|id| known(&id)) {
            self.joining = None;
        }
        let caught_up = progress
            .iter()
            .find(|p| p.learner && p.active && p.matched + 20 >= last);
        if let Some(learner) = caught_up {
            self.cx.fault("learner promoted");
            self.tell_leader(Input::Change(ConfChangeType::AddNode, learner.id));
        } else if let Some(id) = self.joining {
            self.tell_leader(Input::Change(ConfChangeType::AddLearnerNode, id));
        } else if members < SIZE || (restless && members < SIZE + 2 && self.cx.rng.below(2) == 0) {
            self.join();
        } else if restless
            && conf.voters.len() > 2
            && self.minted < MOST_NODES
            && let Some(id) = self.cx.rng.pick(&conf.voters)
        {
            self.cx.fault("member removed");
            self.tell_leader(Input::Change(ConfChangeType::RemoveNode, id));
        }
    }

    fn join(&mut self) {
        if self.minted >= MOST_NODES {
            return;
        }
        self.minted += 1;
        let id = self.minted;
        self.joining = Some(id);
        // Nobody adds a program that is too old for the cluster.
        let agreed = self.leader().map_or(1, |l| l.state.log_version());
        self.speaks.insert(id, self.program.max(agreed));
        self.start(id, Disk::default());
        self.cx.fault("learner added");
        self.tell_leader(Input::Change(ConfChangeType::AddLearnerNode, id));
    }

    /// What is no member any more is switched off, for good.
    fn switch_off(&mut self, known: &dyn Fn(&u64) -> bool) {
        let joining = self.joining;
        let gone = |id: &u64| !known(id) && joining != Some(*id);
        let running: Vec<u64> = self.nodes.keys().copied().filter(gone).collect();
        for id in &running {
            if let Some(node) = self.nodes.remove(id) {
                node.die(&mut self.cx);
                self.cx.tell(|| format!("coordinator {id}: switched off"));
            }
        }
        let down: Vec<u64> = self.disks.keys().copied().filter(gone).collect();
        self.disks.retain(|id, _| !gone(id));
        for id in running.iter().chain(&down) {
            self.speaks.remove(id);
            if let Some(leader) = self.leader().map(|l| l.id) {
                self.cx.ledger.left(*id, &self.nodes[&leader].state);
            }
        }
    }

    pub(super) fn tell_leader(&mut self, input: Input) {
        if let Some((id, boot)) = self.leader().map(|l| (l.id, l.boot)) {
            self.cx.after(0, Event::Node(id, boot, input));
        }
    }
}
