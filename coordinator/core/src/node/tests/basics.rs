//! Growth, loss and return of members; reads; restarts; equal runs and equal replicas.

use super::*;
use crate::testkit::{World, choice, width};

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
