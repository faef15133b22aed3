//! Who leads: votes, pre-votes, quorum checks, transfers of leadership.

use super::*;

const VOTES: [MessageType; 2] = [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote];

#[test]
fn a_single_voter_leads_commits_and_reads_alone() {
    let mut net = Net::new(&[1]);
    assert_eq!(net.leader(), 1);
    net.propose("a");
    net.node(1).read_index(vec![7]);
    net.pump();
    let index = net.node(1).commit_index();
    let context = vec![7];
    assert_eq!(net.peers[&1].reads, [ReadState { context, index }]);
    net.restart(1);
    net.ticks(20);
    net.propose("b");
    assert_eq!(net.applied(1), ["a", "b"]);
    net.ticks(30);
    assert_eq!(net.leader(), 1, "no quorum is missing where one is enough");
}

#[test]
fn a_log_that_is_behind_wins_no_votes() {
    // 1: a later term beats more entries. 2: more entries, of an older term. 3: behind in both.
    let mut net = Net::with_logs(&[(1, &[1, 3]), (2, &[1, 1, 1, 1]), (3, &[1])]);
    for id in [2, 3] {
        net.node(id).campaign().expect("may ask");
        net.settle_without(to(id));
        net.settle();
    }
    for id in [2, 3] {
        assert_ne!(net.role(id), Role::Leader);
        net.node(id).campaign().expect("may ask");
        net.settle();
        assert!(net.leaders.values().all(|leader| *leader != 3));
    }
    net.node(1).campaign().expect("may ask");
    net.settle();
    assert_eq!(net.leader(), 1);
}

#[test]
fn a_voter_that_restarts_does_not_vote_twice() {
    let mut net = Net::with_logs(&[(1, &[]), (2, &[]), (3, &[])]);
    // 1 and 2 stand in the same term; 3 hears 1 and grants, then 2.
    for id in [1, 2] {
        net.node(id).campaign().expect("may ask");
    }
    net.pump();
    net.deliver(is(MessageType::MsgRequestPreVote));
    net.pump();
    net.deliver(is(MessageType::MsgRequestPreVoteResponse));
    net.pump();
    let asks = |from: u64| {
        move |m: &Message| {
            m.get_msg_type() == MessageType::MsgRequestVote && m.from == from && m.to == 3
        }
    };
    assert_eq!(net.deliver(asks(1)), 1);
    net.pump();
    assert_eq!(net.peers[&3].disk.hard_state.vote, 1);
    net.restart(3);
    assert_eq!(net.deliver(asks(2)), 1);
    net.pump();
    let granted = |m: &Message| m.from == 3 && m.to == 2 && !m.reject;
    assert!(
        !net.flight.iter().any(granted),
        "its vote of this term is given"
    );
    net.settle();
    assert_eq!(net.leader(), 1);
}

#[test]
fn a_node_that_was_cut_off_disturbs_nobody() {
    let mut net = Net::voters(&[1, 2, 3]);
    let term = net.term(1);
    net.cut.insert(3);
    net.ticks(100);
    assert_eq!(net.role(3), Role::Candidate, "it would like to lead");
    assert_eq!(net.term(3), term, "a pre-vote raises no term");
    net.propose("meanwhile");
    net.cut.clear();
    net.ticks(30);
    assert_eq!((net.leader(), net.term(1)), (1, term));
    assert_eq!(net.applied(3), ["meanwhile"]);
}

#[test]
fn a_node_that_is_heard_and_does_not_hear_disturbs_nobody() {
    let mut net = Net::voters(&[1, 2, 3]);
    let term = net.term(1);
    for _ in 0..100 {
        net.peers.values_mut().for_each(|p| p.node.tick());
        net.settle_without(to(3));
    }
    assert_eq!((net.leader(), net.term(1)), (1, term));
    net.propose("on");
    assert_eq!(net.applied(3), ["on"]);
}

#[test]
fn votes_are_withheld_while_a_leader_is_heard() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.ticks(4);
    let term = net.term(1);
    net.node(2).campaign().expect("may ask");
    net.pump();
    assert_eq!(net.deliver(|m| VOTES.contains(&m.get_msg_type())), 2);
    net.pump();
    assert!(net.flight.iter().all(|m| m.to != 2 || m.from == 1));
    net.settle();
    net.ticks(20);
    assert_eq!((net.leader(), net.term(1)), (1, term));
}

#[test]
fn followers_elect_another_once_their_leader_is_gone() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.propose("a");
    net.cut.insert(1);
    net.ticks(25);
    let leader = net.leader();
    assert_ne!(leader, 1);
    net.propose("b");
    for id in [2, 3] {
        assert_eq!(net.node(id).leadership().leader_id, leader);
        assert_eq!(net.applied(id), ["a", "b"]);
    }
}

#[test]
fn without_a_quorum_nobody_leads_and_nothing_is_taken() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.cut.extend([1, 2, 3]);
    net.ticks(60);
    for id in [1, 2, 3] {
        assert_ne!(net.role(id), Role::Leader);
        let refused = net.node(id).propose(vec![], vec![1]);
        assert!(matches!(refused, Err(NodeError::Dropped)));
    }
    let terms: Vec<u64> = [1, 2, 3].map(|id| net.term(id)).into();
    net.ticks(60);
    assert_eq!(terms, [1, 2, 3].map(|id| net.term(id)), "pre-vote");
    net.cut.clear();
    net.ticks(40);
    net.propose("again");
}

#[test]
fn a_transfer_waits_for_the_member_to_catch_up() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.hand_in("a");
    net.settle_without(to(3));
    net.node(1).report_unreachable(3);
    net.node(1).transfer(3);
    net.pump();
    assert!(
        !net.flight.iter().any(is(MessageType::MsgTimeoutNow)),
        "it would lose the election, and time with it"
    );
    net.settle();
    net.ticks(2);
    assert_eq!(net.leader(), 3);
    assert_eq!(net.applied(3), ["a"]);
}

#[test]
fn a_transfer_to_a_member_that_is_cut_off_is_given_up() {
    let mut net = Net::voters(&[1, 2, 3]);
    let term = net.term(1);
    net.cut.insert(3);
    net.node(1).transfer(3);
    net.settle();
    let refused = net.node(1).propose(vec![], vec![1]);
    assert!(matches!(refused, Err(NodeError::Dropped)), "meanwhile");
    assert!(net.node(1).hands_over());
    net.ticks(11);
    assert!(!net.node(1).hands_over(), "an election timeout is enough");
    net.propose("a");
    net.cut.clear();
    net.ticks(20);
    assert_eq!((net.leader(), net.term(1)), (1, term));
    assert_eq!(net.applied(3), ["a"]);
}

#[test]
fn a_transfer_whose_word_comes_late_makes_no_second_leader() {
    let mut net = Net::voters(&[1, 2, 3]);
    let term = net.term(1);
    net.node(1).transfer(3);
    net.pump();
    let late = net.lose(is(MessageType::MsgTimeoutNow));
    assert_eq!(late.len(), 1);
    net.ticks(12);
    net.propose("after");
    // Now it comes, to a member that the old leader cannot hear any more.
    net.flight.extend(late);
    net.settle_without(to(1));
    assert!(net.role(3) == Role::Leader && net.role(1) == Role::Leader);
    assert!(net.term(3) > term, "each in a term of its own");
    net.cut.insert(1);
    assert_eq!(net.leader(), 3);
    net.propose("on");
    net.cut.clear();
    net.ticks(10);
    assert_eq!(net.role(1), Role::Follower);
    assert_eq!(net.applied(1), ["after", "on"]);
}

#[test]
fn leadership_goes_to_no_learner_and_no_stranger() {
    let mut net = Net::new(&[1, 2]);
    net.change(ConfChangeType::AddLearnerNode, 2);
    net.ticks(4);
    for id in [2, 9] {
        net.node(1).transfer(id);
        assert!(!net.node(1).hands_over());
    }
    net.propose("a");
    assert_eq!(net.leader(), 1);
}

#[test]
fn followers_whose_leaders_process_ended_do_not_wait_for_its_silence() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.cut.insert(1);
    for id in [2, 3] {
        net.node(id).report_gone(1);
        assert_eq!(net.node(id).leadership().leader_id, 0);
    }
    // Also where their clocks beat together, one is first.
    net.ticks(1);
    assert_eq!(net.leader(), 2);
}

#[test]
fn a_follower_that_wrongly_thinks_its_leader_gone_disturbs_nobody() {
    let mut net = Net::voters(&[1, 2, 3]);
    let term = net.term(1);
    for _ in 0..20 {
        net.node(2).report_gone(1);
        net.node(3).report_gone(2);
        net.ticks(3);
    }
    assert_eq!((net.leader(), net.term(1)), (1, term));
    assert_eq!(net.node(2).leadership().leader_id, 1);
}
