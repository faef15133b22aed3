//! Linearizable reads: a quorum says that the leader still leads, or the read is never answered.

use super::*;

/// Read points that this node has got, by context.
fn points(net: &Net, id: u64) -> Vec<(u8, u64)> {
    let reads = net.peers[&id].reads.iter();
    reads.map(|r| (r.context[0], r.index)).collect()
}

#[test]
fn a_read_in_flight_when_the_leader_changes_is_not_answered_with_the_past() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.propose("old");
    let past = net.node(1).commit_index();
    // The old leader asks; its question and the answers are on their way when another is elected.
    net.node(1).read_index(vec![9]);
    net.pump();
    let asked = net.lose(|m| m.from == 1);
    net.cut.insert(1);
    net.ticks(60);
    assert_ne!(net.leader(), 1);
    net.propose("new");
    net.cut.clear();
    net.flight.extend(asked);
    net.settle();
    net.ticks(20);
    assert!(points(&net, 1).iter().all(|(_, index)| *index > past));
    // The same reader, asking anew, sees the new entry.
    net.node(1).read_index(vec![10]);
    net.settle();
    let (context, index) = *points(&net, 1).last().expect("answered");
    assert!(context == 10 && index > past);
}

#[test]
fn answers_that_come_to_a_leader_that_is_none_any_more_confirm_nothing() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.propose("old");
    net.node(1).read_index(vec![9]);
    net.pump();
    net.deliver(is(MessageType::MsgHeartbeat));
    net.pump();
    let answers = net.lose(is(MessageType::MsgHeartbeatResponse));
    assert!(!answers.is_empty());
    net.node(1).transfer(2);
    net.ticks(2);
    assert_eq!(net.leader(), 2);
    net.propose("new");
    net.flight.extend(answers);
    net.settle();
    assert_eq!(points(&net, 1), []);
}

#[test]
fn a_new_leader_answers_no_read_before_its_first_entry_is_committed() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.hand_in("a");
    // 2 and 3 hold the entry; 3 does not know that it is committed, and then leads.
    net.settle_without(|m| m.to == 3 && m.entries.is_empty());
    net.cut.insert(1);
    (0..10).for_each(|_| net.node(2).tick());
    net.node(3).campaign().expect("may ask");
    let stands = |m: &Message| m.from == 2 && is(MessageType::MsgRequestPreVote)(m);
    net.settle_without(|m| stands(m) || is(MessageType::MsgAppendResponse)(m));
    assert_eq!(net.role(3), Role::Leader);
    assert!(!net.node(3).leads_with_commit());
    net.node(3).read_index(vec![8]);
    net.settle_without(is(MessageType::MsgAppendResponse));
    assert_eq!(
        points(&net, 3),
        [],
        "it may know less than was acknowledged"
    );
    net.ticks(30);
    let leader = net.leader();
    net.node(leader).read_index(vec![8]);
    net.settle();
    let (_, index) = *points(&net, leader).last().expect("answered");
    assert_eq!(index, net.node(leader).commit_index());
    assert_eq!(net.applied(leader), ["a"]);
}

#[test]
fn a_late_answer_confirms_its_own_question_only() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.node(1).read_index(vec![1]);
    net.pump();
    net.deliver(is(MessageType::MsgHeartbeat));
    net.pump();
    let first = net.lose(is(MessageType::MsgHeartbeatResponse));
    net.hand_in("a");
    net.settle();
    net.node(1).read_index(vec![2]);
    net.pump();
    net.lose(is(MessageType::MsgHeartbeat));
    net.flight.extend(first);
    net.settle();
    let contexts: Vec<u8> = points(&net, 1).iter().map(|p| p.0).collect();
    assert_eq!(contexts, [1], "nobody has answered the second");
}

#[test]
fn a_read_through_a_follower_sees_all_that_was_acknowledged() {
    let mut net = Net::voters(&[1, 2, 3]);
    // 3 is told of the entry, not of its commitment; a client of 1 has its answer.
    net.hand_in("a");
    net.settle_without(|m| m.to == 3 && m.entries.is_empty());
    let acknowledged = net.node(1).commit_index();
    assert!(net.node(3).commit_index() < acknowledged);
    net.node(3).read_index(vec![4]);
    net.settle();
    assert_eq!(points(&net, 3), [(4, acknowledged)]);
    net.ticks(2);
    assert!(net.peers[&3].disk.applied >= acknowledged);
}

#[test]
fn a_partition_that_heals_brings_no_stale_read() {
    let mut net = Net::voters(&[1, 2, 3, 4, 5]);
    net.propose("a");
    // 1 and 2 on one side, with the old leader; a client asks both again and again.
    net.cut.extend([3, 4, 5]);
    for context in 1..20 {
        net.node(1).read_index(vec![context]);
        net.node(2).read_index(vec![context + 100]);
        net.ticks(1);
    }
    assert_eq!(points(&net, 1), []);
    assert_eq!(points(&net, 2), []);
    net.cut = [1, 2].into();
    net.ticks(60);
    net.propose("b");
    let acknowledged = net.node(3).commit_index();
    net.cut.clear();
    net.ticks(30);
    for id in [1, 2] {
        net.node(id).read_index(vec![200]);
        net.settle();
        let late = points(&net, id);
        assert!(late.iter().all(|(_, index)| *index >= acknowledged));
        assert!(late.iter().any(|(context, _)| *context == 200));
    }
}
