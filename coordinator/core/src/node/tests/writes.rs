//! A disk that takes its time: what is sent, counted and applied meanwhile.

use super::*;

#[test]
fn nothing_is_acknowledged_or_applied_before_it_is_written() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.peer(3).slow = true;
    net.hand_in("a");
    net.pump();
    net.deliver(to(3));
    net.pump();
    assert!(!net.flight.iter().any(|m| m.from == 3), "3 has not written");
    net.settle();
    let held = net.matched(1, 3);
    assert!(held < net.node(1).commit_index());
    // The leader's own disk: the others' votes commit, it applies only what it holds itself.
    net.peer(1).slow = true;
    net.node(1).propose(vec![], b"b".to_vec()).expect("leads");
    net.settle();
    assert_eq!(net.applied(1), ["a"]);
    while !net.peers[&3].writes.is_empty() {
        net.write(3);
    }
    net.settle();
    while !net.peers[&3].writes.is_empty() {
        net.write(3);
        net.settle();
    }
    assert_eq!(net.applied(1), ["a"], "2 and 3 hold it, 1 does not");
    while !net.peers[&1].writes.is_empty() {
        net.write(1);
        net.settle();
    }
    net.peer(1).slow = false;
    net.peer(3).slow = false;
    net.ticks(4);
    for id in [1, 2, 3] {
        assert_eq!(net.applied(id), ["a", "b"]);
    }
}

#[test]
fn a_lone_voter_acknowledges_nothing_before_its_write() {
    let mut net = Net::new(&[1]);
    net.propose("a");
    net.peer(1).slow = true;
    net.hand_in("b");
    net.pump();
    let commit = net.node(1).commit_index();
    assert_eq!(
        net.applied(1),
        ["a"],
        "it is its own quorum, once it has written"
    );
    // The write comes to its end: then, and only then, it counts.
    while !net.peers[&1].writes.is_empty() {
        net.write(1);
        net.pump();
    }
    assert_eq!(net.applied(1), ["a", "b"]);
    assert!(net.node(1).commit_index() > commit);
    // A crash before the write loses what was never acknowledged.
    net.hand_in("lost");
    net.pump();
    net.restart(1);
    net.ticks(20);
    net.propose("c");
    assert_eq!(net.applied(1), ["a", "b", "c"]);
}

#[test]
fn a_leader_that_crashes_before_its_write_loses_what_nobody_else_holds() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.propose("a");
    net.peer(1).slow = true;
    net.node(1)
        .propose(vec![], b"lost".to_vec())
        .expect("leads");
    net.pump();
    net.lose(|_| true);
    net.restart(1);
    net.ticks(60);
    net.propose("b");
    net.ticks(4);
    for id in [1, 2, 3] {
        assert_eq!(net.applied(id), ["a", "b"]);
    }
}

#[test]
fn a_late_write_of_entries_since_replaced_acknowledges_nothing() {
    let mut net = Net::voters(&[1, 2, 3, 4, 5]);
    net.propose("a");
    // 2 gets an entry of 1 and writes slowly; nobody else gets it.
    net.peer(2).slow = true;
    net.hand_in("replaced");
    net.pump();
    net.lose(|m| m.to > 2);
    net.deliver(to(2));
    net.pump();
    net.lose(|_| true);
    assert_eq!(net.peers[&2].writes.len(), 1);
    let index = net.node(2).last_index();
    // The others elect a leader, which puts another entry there; 2 takes it while it still writes.
    net.cut.insert(1);
    (0..80).for_each(|_| net.ticks(1));
    let leader = net.leader();
    assert!(leader > 2);
    assert!(
        net.history.contains_key(&index),
        "committed without 1 and 2"
    );
    assert!(net.peers[&2].writes.len() > 1);
    assert!(net.matched(leader, 2) < index);
    net.write(2);
    net.settle();
    assert!(net.matched(leader, 2) < index, "that was the older entry");
    while !net.peers[&2].writes.is_empty() {
        net.write(2);
        net.settle();
    }
    net.peer(2).slow = false;
    net.propose("b");
    net.cut.clear();
    net.ticks(30);
    for id in 1..=5 {
        assert_eq!(net.applied(id), ["a", "b"]);
    }
}
