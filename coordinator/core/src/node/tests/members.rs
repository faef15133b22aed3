//! Members come and go, one at a time.

use super::*;

#[test]
fn a_learner_neither_votes_nor_counts() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.peers
        .insert(4, Peer::start(NodeConfig::new(4, 4), Restored::default()));
    net.change(ConfChangeType::AddLearnerNode, 4);
    net.ticks(4);
    assert_eq!(net.role(4), Role::Learner);
    // Two voters of three are enough without it.
    net.cut.extend([3, 4]);
    net.propose("a");
    assert_eq!(net.applied(1), ["a"]);
    // One voter and the learner are not.
    net.cut = [2, 3].into();
    let taken = net.node(1).propose(vec![], b"b".to_vec());
    taken.expect("it leads still");
    net.settle();
    assert_eq!(net.applied(1), ["a"]);
    net.ticks(60);
    assert_ne!(net.role(1), Role::Leader, "its answers make no quorum");
    assert_eq!(net.role(4), Role::Learner, "it does not stand");
    net.cut.clear();
    net.ticks(60);
    net.propose("c");
    net.ticks(2);
    assert_eq!(net.applied(4), net.applied(1));
}

#[test]
fn a_learner_that_lags_counts_from_its_promotion_on() {
    // Why a learner is promoted only once it has caught up: here it is not waited for.
    let mut net = Net::new(&[1, 2]);
    net.change(ConfChangeType::AddLearnerNode, 2);
    net.ticks(4);
    net.cut.insert(2);
    (0..5).for_each(|i| net.propose(&format!("c{i}")));
    net.change(ConfChangeType::AddNode, 2);
    assert_eq!(
        net.node(1).conf_state().voters.len(),
        2,
        "one voter decided it"
    );
    net.hand_in("stuck");
    net.settle();
    assert_eq!(net.applied(1).len(), 5, "two must hold it now");
    net.cut.clear();
    net.ticks(4);
    assert_eq!(net.applied(1).len(), 6);
    assert_eq!(net.applied(2), net.applied(1));
}

#[test]
fn a_learner_that_does_not_know_of_its_promotion_votes() {
    let mut net = Net::voters(&[1, 2]);
    net.peers
        .insert(3, Peer::start(NodeConfig::new(3, 3), Restored::default()));
    net.change(ConfChangeType::AddLearnerNode, 3);
    net.ticks(4);
    let promote = ConfChangeType::AddNode;
    let taken = net.node(1).propose_conf_change(vec![], promote, 3);
    taken.expect("leads");
    net.settle_without(to(3));
    assert_eq!(net.node(2).conf_state().voters.len(), 3);
    assert_eq!(net.role(3), Role::Learner, "it has not heard");
    net.cut.insert(1);
    net.ticks(60);
    assert_eq!(net.leader(), 2, "with the vote of 3");
    net.ticks(4);
    assert_eq!(net.role(3), Role::Follower);
}

#[test]
fn members_change_one_at_a_time() {
    let mut net = Net::voters(&[1, 2, 3]);
    let remove = ConfChangeType::RemoveNode;
    net.node(1)
        .propose_conf_change(vec![], remove, 3)
        .expect("the first is taken");
    let second = net.node(1).propose_conf_change(vec![], remove, 2);
    assert!(matches!(second, Err(NodeError::Dropped)));
    net.settle();
    assert_eq!(net.node(1).conf_state().voters, [1, 2]);
    // The last voter cannot go: raft-rs refuses an empty configuration.
    net.change(remove, 2);
    assert_eq!(net.node(1).conf_state().voters, [1]);
}

#[test]
fn a_change_that_its_leader_did_not_commit_is_undone() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.cut.insert(1);
    net.node(1)
        .propose_conf_change(vec![], ConfChangeType::RemoveNode, 2)
        .expect("it believes to lead");
    net.settle();
    net.ticks(60);
    net.propose("on");
    net.cut.clear();
    net.ticks(30);
    for id in [1, 2, 3] {
        assert_eq!(net.node(id).conf_state().voters.len(), 3, "{id}");
        assert_eq!(net.applied(id), ["on"]);
    }
}

#[test]
fn a_lone_survivor_leads_on_though_the_last_word_was_lost() {
    let mut net = Net::voters(&[1, 2]);
    net.propose("a");
    net.node(1)
        .propose_conf_change(vec![], ConfChangeType::RemoveNode, 1)
        .expect("leads");
    // 2 has the entry and answers; that it is committed it never hears.
    net.settle_without(|m| m.to == 2 && m.entries.is_empty());
    assert_eq!(net.role(1), Role::Outside);
    assert_eq!(net.node(2).conf_state().voters.len(), 2);
    net.ticks(60);
    assert_eq!(net.leader(), 2, "the one that left still votes");
    assert_eq!(net.node(2).conf_state().voters, [2]);
    net.propose("b");
    assert_eq!(net.applied(2), ["a", "b"]);
    assert_eq!(net.role(1), Role::Outside);
}

#[test]
fn entries_behind_the_leaders_removal_need_the_new_quorum() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.node(1)
        .propose_conf_change(vec![], ConfChangeType::RemoveNode, 1)
        .expect("leads");
    net.hand_in("behind");
    net.settle();
    net.ticks(60);
    let leader = net.leader();
    assert_ne!(leader, 1);
    net.propose("after");
    for id in [2, 3] {
        assert_eq!(net.applied(id), ["behind", "after"]);
        assert_eq!(net.node(id).conf_state().voters, [2, 3]);
    }
}

#[test]
fn a_removed_member_that_was_not_told_disturbs_nobody() {
    let mut net = Net::voters(&[1, 2, 3]);
    let term = net.term(1);
    net.cut.insert(3);
    net.change(ConfChangeType::RemoveNode, 3);
    net.ticks(60);
    net.cut.clear();
    net.ticks(60);
    assert_eq!((net.leader(), net.term(1)), (1, term));
    net.propose("a");
    assert_eq!(net.applied(3), [""; 0], "it gets nothing any more");
}

#[test]
fn a_member_that_restarts_applies_each_change_once() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.propose("a");
    net.change(ConfChangeType::RemoveNode, 3);
    net.propose("b");
    // The first voter's snapshot is the genesis: all changes lie behind it.
    net.restart_from_genesis(1);
    assert_eq!(net.node(1).conf_state().voters, [1], "as of the genesis");
    net.node(1).campaign().expect("raft-rs keeps it back");
    net.pump();
    net.lose(|_| true);
    assert_eq!(net.node(1).conf_state().voters, [1, 2], "as of the log");
    assert_eq!(net.applied(1), ["a", "b"]);
    net.ticks(60);
    net.propose("c");
    net.ticks(2);
    assert_eq!(net.applied(1), ["a", "b", "c"]);
    assert_eq!(net.applied(2), ["a", "b", "c"]);
}

#[test]
fn a_change_that_is_committed_and_not_applied_survives_a_crash() {
    let mut net = Net::voters(&[1, 2, 3]);
    let before = net.peers[&2].disk.clone();
    net.change(ConfChangeType::RemoveNode, 3);
    // 2 crashes between the write of its log and the change's effect.
    let after = &net.peers[&2].disk;
    let crashed = Restored {
        conf_state: before.conf_state,
        applied: before.applied,
        ..after.clone()
    };
    assert!(crashed.hard_state.commit > crashed.applied);
    net.peer(2).disk = crashed;
    net.restart(2);
    net.peer(2).state = genesis_state();
    net.pump();
    assert_eq!(net.node(2).conf_state().voters, [1, 2]);
    net.propose("a");
    assert_eq!(net.applied(2), ["a"]);
}
