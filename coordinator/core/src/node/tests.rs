//! A cluster of nodes in memory: what their disks hold, what is in flight, who hears whom.

use std::collections::{BTreeMap, BTreeSet};

use conclave_proto::v1::SnapshotManifest;
use raft::eraftpb::{ConfChangeType, Entry, Message};

use super::*;
use crate::{
    State, codec, snapshot,
    testkit::{World, choice, width},
};

/// A node with its disk and the commands that it has applied.
struct Peer {
    node: Node,
    config: NodeConfig,
    disk: Restored,
    applied: Vec<Vec<u8>>,
    /// What the applied commands made of the genesis; texts that are no commands leave no mark.
    state: State,
    reads: Vec<ReadState>,
    snapshots: usize,
}

impl Peer {
    fn start(config: NodeConfig, disk: Restored) -> Peer {
        let node = Node::new(&config, disk.clone()).expect("starts");
        Peer {
            node,
            config,
            disk,
            applied: Vec::new(),
            state: genesis_state(),
            reads: Vec::new(),
            snapshots: 0,
        }
    }

    /// Carries out all that the node wants; returns what it sends.
    fn drain(&mut self) -> Vec<Message> {
        let mut sent = Vec::new();
        while let Some(output) = self.node.ready() {
            sent.extend(output.messages);
            self.persist(&output.persist);
            sent.extend(output.after_persist);
            self.node.persisted(output.number);
            let last = output.committed.last().map(|c| c.index);
            for committed in output.committed {
                match committed.payload {
                    Payload::Empty => self.state.skip(committed.index, committed.term),
                    Payload::Command { data, .. } => {
                        match codec::decode(&data) {
                            Ok(command) => {
                                self.state.apply(committed.index, committed.term, &command);
                            }
                            Err(_) => self.state.skip(committed.index, committed.term),
                        }
                        self.applied.push(data);
                    }
                    Payload::Conf { change, .. } => {
                        self.state.skip(committed.index, committed.term);
                        self.disk.conf_state = self.node.apply_conf(&change).expect("applies");
                    }
                }
            }
            if let Some(index) = last {
                self.node.applied(index);
                self.disk.applied = index;
            }
            self.reads.extend(output.reads);
        }
        sent
    }

    fn persist(&mut self, persist: &Persist) {
        if let Some(snapshot) = &persist.snapshot {
            let meta = snapshot.get_metadata();
            self.disk.entries.clear();
            self.disk.applied = meta.index;
            self.disk.conf_state = meta.get_conf_state().clone();
            self.disk.snapshot = Some(snapshot.clone());
            self.snapshots += 1;
        }
        if let Some(first) = persist.entries.first() {
            self.disk.entries.retain(|e| e.index < first.index);
            self.disk.entries.extend_from_slice(&persist.entries);
        }
        if let Some(hard_state) = &persist.hard_state {
            self.disk.hard_state = hard_state.clone();
        }
    }
}

fn genesis_state() -> State {
    let (manifest, bytes) = snapshot::genesis();
    snapshot::decode(&manifest, &bytes).expect("decodes")
}

struct Net {
    peers: BTreeMap<u64, Peer>,
    cut: BTreeSet<u64>,
}

impl Net {
    /// One voter that leads, and blank nodes.
    fn new(ids: &[u64]) -> Net {
        let mut peers = BTreeMap::new();
        for (at, &id) in ids.iter().enumerate() {
            let genesis = snapshot::genesis().0;
            let disk = if at == 0 {
                Restored::genesis(id, &genesis)
            } else {
                Restored::default()
            };
            peers.insert(id, Peer::start(NodeConfig::new(id, id * 77), disk));
        }
        let mut net = Net {
            peers,
            cut: BTreeSet::new(),
        };
        net.node(ids[0]).campaign().expect("may campaign");
        net.settle();
        net
    }

    /// All of these are voters.
    fn voters(ids: &[u64]) -> Net {
        let mut net = Net::new(ids);
        for &id in &ids[1..] {
            net.change(ConfChangeType::AddLearnerNode, id);
            net.ticks(4);
            net.change(ConfChangeType::AddNode, id);
        }
        net
    }

    fn node(&mut self, id: u64) -> &mut Node {
        &mut self.peers.get_mut(&id).expect("exists").node
    }

    /// Delivers until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut sent = Vec::new();
            for peer in self.peers.values_mut() {
                sent.extend(peer.drain());
            }
            if sent.is_empty() {
                return;
            }
            for message in sent {
                let lost = self.cut.contains(&message.from) || self.cut.contains(&message.to);
                if message.get_msg_type() == raft::eraftpb::MessageType::MsgSnapshot {
                    let (from, to) = (message.from, message.to);
                    self.node(from).report_snapshot(to, !lost);
                }
                if let Some(peer) = self.peers.get_mut(&message.to).filter(|_| !lost) {
                    peer.node.step(message).expect("steps");
                }
            }
        }
    }

    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.peers.values_mut().for_each(|p| p.node.tick());
            self.settle();
        }
    }

    fn leader(&self) -> u64 {
        let leads = |(id, peer): (&u64, &Peer)| {
            (peer.node.leadership().role == Role::Leader && !self.cut.contains(id)).then_some(*id)
        };
        let leaders: Vec<u64> = self.peers.iter().filter_map(leads).collect();
        assert_eq!(leaders.len(), 1, "one leader: {leaders:?}");
        leaders[0]
    }

    fn propose(&mut self, data: &str) {
        let leader = self.leader();
        self.node(leader)
            .propose(vec![1], data.into())
            .expect("leads");
        self.settle();
    }

    fn change(&mut self, kind: ConfChangeType, id: u64) {
        let leader = self.leader();
        self.node(leader)
            .propose_conf_change(vec![2], kind, id)
            .expect("leads");
        self.settle();
    }

    fn applied(&self, id: u64) -> Vec<String> {
        let text = |data: &Vec<u8>| String::from_utf8_lossy(data).into_owned();
        self.peers[&id].applied.iter().map(text).collect()
    }

    /// Snapshots the node's state and drops the log behind it.
    fn compact(&mut self, id: u64) {
        let peer = self.peers.get_mut(&id).expect("exists");
        let index = peer.disk.applied;
        let term = peer
            .disk
            .entries
            .iter()
            .find(|e| e.index == index)
            .map_or(1, |e| e.term);
        let manifest = SnapshotManifest {
            index,
            term,
            ..SnapshotManifest::default()
        };
        let snapshot = snapshot_of(&manifest, peer.node.conf_state());
        peer.node.compact(snapshot.clone(), index + 1);
        peer.disk.snapshot = Some(snapshot);
        peer.disk.entries.retain(|e| e.index > index);
    }

    fn restart(&mut self, id: u64) {
        let peer = self.peers.remove(&id).expect("exists");
        let mut again = Peer::start(peer.config, peer.disk);
        again.applied = peer.applied;
        again.state = peer.state;
        self.peers.insert(id, again);
    }
}

#[test]
fn a_cluster_grows_from_one_voter_through_learners() {
    let mut net = Net::new(&[1, 2, 3]);
    assert_eq!(net.leader(), 1);
    net.propose("a");
    assert_eq!(net.node(2).leadership().role, Role::Outside);
    net.change(ConfChangeType::AddLearnerNode, 2);
    net.ticks(4);
    assert_eq!(net.node(2).leadership().role, Role::Learner);
    assert_eq!(
        net.applied(2),
        ["a"],
        "what was committed before it came reaches it"
    );
    let learner = net.node(1).progress()[1];
    assert!(learner.learner && learner.active);
    assert_eq!(learner.matched, net.node(1).commit_index());
    net.change(ConfChangeType::AddNode, 2);
    assert_eq!(net.node(2).leadership().role, Role::Follower);
    assert!(!net.node(1).progress()[1].learner);
    assert_eq!(net.node(1).conf_state().voters.len(), 2);
    assert_eq!(
        net.peers[&2].snapshots, 1,
        "a blank node begins with a snapshot"
    );
}

#[test]
fn commands_reach_every_member_in_one_order() {
    let mut net = Net::voters(&[1, 2, 3]);
    for i in 0..50 {
        net.propose(&format!("c{i}"));
    }
    net.ticks(2);
    let expected: Vec<String> = (0..50).map(|i| format!("c{i}")).collect();
    for id in [1, 2, 3] {
        assert_eq!(net.applied(id), expected);
    }
}

#[test]
fn a_cut_off_leader_steps_down_and_its_proposals_are_lost() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.propose("a");
    net.cut.insert(1);
    net.node(1)
        .propose(vec![], b"lost".to_vec())
        .expect("it still believes to lead");
    net.ticks(60);
    assert_ne!(net.node(1).leadership().role, Role::Leader, "check_quorum");
    let leader = net.leader();
    assert_ne!(leader, 1);
    net.propose("b");
    net.cut.clear();
    net.ticks(30);
    assert_eq!(
        net.leader(),
        leader,
        "pre-vote: a returning node deposes nobody"
    );
    for id in [1, 2, 3] {
        assert_eq!(net.applied(id), ["a", "b"]);
    }
}

#[test]
fn a_leader_that_is_removed_steps_down_and_the_others_go_on() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.propose("a");
    net.change(ConfChangeType::RemoveNode, 1);
    assert_eq!(net.node(1).leadership().role, Role::Outside);
    net.ticks(40);
    assert_ne!(net.leader(), 1);
    net.propose("b");
    net.ticks(2);
    for id in [2, 3] {
        assert_eq!(net.applied(id), ["a", "b"]);
    }
}

#[test]
fn a_follower_far_behind_catches_up_by_snapshot() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.cut.insert(3);
    for i in 0..10 {
        net.propose(&format!("c{i}"));
    }
    net.compact(1);
    net.compact(2);
    let before = net.peers[&3].snapshots;
    net.cut.clear();
    net.ticks(10);
    assert_eq!(net.peers[&3].snapshots, before + 1);
    net.propose("last");
    net.ticks(2);
    assert_eq!(net.applied(3), ["last"], "the rest came with the snapshot");
    let commit = net.node(1).commit_index();
    assert_eq!(net.node(3).commit_index(), commit);
}

#[test]
fn restarted_nodes_go_on_where_their_disks_were() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.propose("a");
    net.compact(1);
    net.propose("b");
    [1, 2, 3].into_iter().for_each(|id| net.restart(id));
    net.ticks(40);
    net.propose("c");
    net.ticks(2);
    for id in [1, 2, 3] {
        assert_eq!(
            net.applied(id),
            ["a", "b", "c"],
            "nothing is lost or applied twice"
        );
    }
}

#[test]
fn reads_are_confirmed_on_leader_and_follower_but_not_when_cut_off() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.propose("a");
    let commit = net.node(1).commit_index();
    net.node(1).read_index(vec![7]);
    net.node(2).read_index(vec![8]);
    net.settle();
    let read = |context| ReadState {
        context,
        index: commit,
    };
    assert_eq!(net.peers[&1].reads, [read(vec![7])]);
    assert_eq!(net.peers[&2].reads, [read(vec![8])]);
    net.cut.insert(1);
    net.node(1).read_index(vec![9]);
    net.ticks(5);
    assert_eq!(
        net.peers[&1].reads.len(),
        1,
        "a cut off leader confirms nothing"
    );
}

#[test]
fn leadership_is_handed_over_and_followers_refuse_proposals() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.node(1).transfer(3);
    net.ticks(1);
    assert_eq!(net.leader(), 3);
    let refused = net.node(1).propose(vec![], vec![1]);
    assert!(matches!(refused, Err(NodeError::Dropped)));
    net.change(ConfChangeType::RemoveNode, 1);
    net.ticks(2);
    assert_eq!(net.node(3).conf_state().voters.len(), 2);
}

#[test]
fn equal_seeds_and_inputs_give_equal_runs() {
    let run = || {
        let mut net = Net::voters(&[1, 2, 3]);
        net.cut.insert(1);
        let mut trace = Vec::new();
        for _ in 0..80 {
            net.ticks(1);
            trace.extend(net.peers.values().map(|p| p.node.leadership()));
        }
        trace
    };
    assert_eq!(run(), run(), "raft-rs draws at random, the node does not");
}

#[test]
fn a_log_with_a_hole_does_not_start() {
    let entry = |index| Entry {
        index,
        term: 1,
        ..Entry::default()
    };
    let genesis = Restored::genesis(1, &snapshot::genesis().0);
    let hole = Restored {
        entries: vec![entry(3)],
        ..genesis.clone()
    };
    let gap = Restored {
        entries: vec![entry(2), entry(4)],
        ..genesis.clone()
    };
    let mut short = genesis;
    short.hard_state.commit = 9;
    for broken in [hole, gap, short] {
        let started = Node::new(&NodeConfig::new(1, 1), broken);
        assert!(matches!(started, Err(NodeError::Unusable(_))));
    }
}

#[test]
fn replicas_hold_equal_bytes_at_equal_index() {
    let mut world = World::with_job(&choice(width(3)));
    world.go("j");
    world.all_answer("j", "yes");
    world.go("j");
    let mut net = Net::voters(&[1, 2, 3]);
    for (at, (_, command)) in world.log.iter().enumerate() {
        let leader = net.leader();
        let data = codec::encode(command);
        net.node(leader).propose(vec![], data).expect("leads");
        if at == 5 {
            net.node(leader).transfer(2);
            net.ticks(2);
        }
        net.settle();
    }
    net.ticks(2);
    let bytes = |id: u64| snapshot::encode(&net.peers[&id].state);
    assert_eq!(bytes(1), bytes(2));
    assert_eq!(bytes(1), bytes(3));
    let job = net.peers[&3].state.job("j").expect("replicated");
    assert_eq!(job.answer, world.job("j").answer);
}
