//! Logs: who lacks what, how a leader finds out, and when it sends a snapshot.

use super::*;

/// Indices of the entries that are in flight to this node.
fn sent_to(net: &Net, id: u64) -> Vec<u64> {
    let appends = net.flight.iter().filter(|m| m.to == id);
    appends
        .flat_map(|m| m.entries.iter().map(|e| e.index))
        .collect()
}

fn same_logs(net: &Net) {
    let log = |p: &Peer| {
        let entries = p.disk.entries.iter();
        entries.map(|e| (e.index, e.term)).collect::<Vec<_>>()
    };
    let mut peers = net.peers.values();
    let first = log(peers.next().expect("a node"));
    assert!(!first.is_empty());
    peers.for_each(|peer| assert_eq!(log(peer), first, "{}", peer.config.id));
}

#[test]
fn a_slow_follower_gets_the_snapshot_and_then_appends() {
    let mut net = Net::voters(&[1, 2, 3]);
    let before = net.peers[&3].snapshots;
    for i in 0..10 {
        net.hand_in(&format!("c{i}"));
        net.settle_without(to(3));
    }
    net.compact(1);
    // It is not cut off: it answers a heartbeat, is probed, and lacks what is gone.
    net.ticks(2);
    net.settle();
    assert_eq!(net.peers[&3].snapshots, before + 1);
    let matched = net.matched(1, 3);
    assert_eq!(matched, net.node(1).commit_index());
    net.propose("next");
    net.propose("last");
    assert_eq!(net.peers[&3].snapshots, before + 1, "appends from then on");
    assert_eq!(
        net.applied(3),
        ["next", "last"],
        "the rest came with the snapshot"
    );
}

#[test]
fn entries_kept_behind_a_snapshot_spare_a_follower_the_snapshot() {
    let mut net = Net::voters(&[1, 2, 3]);
    let before = net.peers[&3].snapshots;
    net.cut.insert(3);
    for i in 0..10 {
        net.propose(&format!("c{i}"));
    }
    net.compact_keeping(1, 20);
    net.cut.clear();
    net.ticks(10);
    assert_eq!(net.peers[&3].snapshots, before);
    assert_eq!(net.applied(3).len(), 10);
    // The same entries are still there when the process starts again.
    net.cut.insert(3);
    net.propose("d");
    net.restart(1);
    net.ticks(40);
    net.cut.clear();
    net.ticks(20);
    assert_eq!(net.peers[&3].snapshots, before);
    assert_eq!(net.applied(3).len(), 11);
}

#[test]
fn a_lost_snapshot_is_sent_again() {
    let mut net = Net::voters(&[1, 2, 3]);
    let before = net.peers[&3].snapshots;
    net.cut.insert(3);
    (0..10).for_each(|i| net.propose(&format!("c{i}")));
    net.compact(1);
    net.cut.clear();
    for _ in 0..10 {
        net.peers.values_mut().for_each(|p| p.node.tick());
        net.settle_without(is(MessageType::MsgSnapshot));
        // The shell says so when the lane drops one.
        net.node(1).report_snapshot(3, false);
    }
    assert_eq!(net.peers[&3].snapshots, before);
    net.ticks(10);
    assert_eq!(net.peers[&3].snapshots, before + 1);
    net.propose("last");
    assert_eq!(net.applied(3), ["last"]);
}

#[test]
fn a_followers_answer_says_that_the_snapshot_arrived() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.report = false;
    net.cut.insert(3);
    (0..10).for_each(|i| net.propose(&format!("c{i}")));
    net.compact(1);
    net.cut.clear();
    net.ticks(10);
    assert_eq!(net.matched(1, 3), net.node(1).commit_index());
    net.propose("last");
    assert_eq!(net.applied(3), ["last"]);
}

#[test]
fn a_follower_that_took_an_older_snapshot_goes_on_from_it() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.report = false;
    net.cut.insert(3);
    (0..5).for_each(|i| net.propose(&format!("c{i}")));
    net.compact(1);
    net.cut.clear();
    while !net.flight.iter().any(is(MessageType::MsgSnapshot)) {
        net.peers.values_mut().for_each(|p| p.node.tick());
        net.pump();
        net.deliver(|m| m.get_msg_type() != MessageType::MsgSnapshot);
        net.pump();
    }
    // While it travels the log moves on, and is cut behind it once more.
    let travelling = net.lose(is(MessageType::MsgSnapshot));
    net.cut.insert(3);
    (5..9).for_each(|i| net.propose(&format!("c{i}")));
    net.compact(1);
    net.cut.clear();
    net.flight.extend(travelling);
    net.settle();
    net.ticks(10);
    assert_eq!(net.matched(1, 3), net.node(1).commit_index());
    net.propose("last");
    assert_eq!(net.applied(3).last().map(String::as_str), Some("last"));
}

#[test]
fn the_log_keeps_what_a_member_that_fetches_a_snapshot_needs_next() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.report = false;
    net.cut.insert(3);
    (0..5).for_each(|i| net.propose(&format!("c{i}")));
    net.compact(1);
    let sent = net.node(1).commit_index();
    net.cut.clear();
    while !net.flight.iter().any(is(MessageType::MsgSnapshot)) {
        net.peers.values_mut().for_each(|p| p.node.tick());
        net.pump();
        net.deliver(|m| m.get_msg_type() != MessageType::MsgSnapshot);
        net.pump();
    }
    net.lose(is(MessageType::MsgSnapshot));
    net.cut.insert(3);
    (5..9).for_each(|i| net.propose(&format!("c{i}")));
    let now = net.node(1).commit_index();
    assert_eq!(now, sent + 4);
    let keep = |net: &mut Net, most| {
        net.peer(1)
            .node
            .keep_from(now, Keep::entries(0), Keep::entries(most))
    };
    assert_eq!(keep(&mut net, 100), sent + 1);
    assert_eq!(keep(&mut net, 2), now - 1, "no more than the most");
    // One that does not answer is not waited for.
    net.ticks(40);
    assert_eq!(keep(&mut net, 100), now + 1);
}

#[test]
fn a_new_leader_probes_each_log_and_overwrites_what_differs() {
    // The logs of the Raft paper's figure 7, one term on: behind, cut short, and with entries of
    // leaders that nobody followed.
    let mut net = Net::with_logs(&[
        (1, &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6]),
        (2, &[1, 1, 1, 4, 4, 5, 5, 6, 6]),
        (3, &[1, 1, 1, 4]),
        (4, &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6]),
        (5, &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7]),
        (6, &[1, 1, 1, 4, 4, 4, 4]),
        (7, &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]),
    ]);
    // Its term must be above theirs; 2, 3, 6 and 7 vote for it.
    net.node(1).campaign().expect("may ask");
    net.settle();
    net.ticks(60);
    let leader = net.leader();
    net.propose("one log");
    net.ticks(4);
    same_logs(&net);
    let terms: Vec<u64> = net.peers[&leader]
        .disk
        .entries
        .iter()
        .map(|e| e.term)
        .collect();
    assert_eq!(terms[..7], [1, 1, 1, 4, 4, 5, 5], "what a majority held");
}

#[test]
fn few_probes_find_where_a_long_log_differs() {
    let (long, other) = ([2; 60], [[1; 20].as_slice(), &[3; 40]].concat());
    let mut net = Net::with_logs(&[(1, &other), (2, &other), (3, &long)]);
    net.node(1).campaign().expect("may ask");
    let mut rounds = 0;
    loop {
        net.pump();
        let refused = net.flight.iter().filter(|m| m.from == 3 && m.reject);
        rounds += refused
            .filter(|m| m.get_msg_type() == MessageType::MsgAppendResponse)
            .count();
        if net.deliver(|_| true) == 0 {
            break;
        }
    }
    assert_eq!(net.leader(), 1);
    assert!(
        (1..=4).contains(&rounds),
        "by terms, not by entries: {rounds}"
    );
    net.ticks(2);
    same_logs(&net);
}

#[test]
fn a_full_window_pauses_a_follower_and_its_answers_open_it() {
    let mut net = Net::voters(&[1, 2, 3]);
    let peer = net.peers.remove(&1).expect("exists");
    let config = NodeConfig {
        max_inflight: 3,
        max_message_bytes: 1,
        ..peer.config
    };
    net.peers.insert(1, Peer::start(config, peer.disk));
    net.ticks(40);
    let leader = net.leader();
    net.node(leader).transfer(1);
    net.ticks(2);
    assert_eq!(net.leader(), 1);
    let before = net.node(1).last_index();
    (0..10).for_each(|i| net.hand_in(&format!("c{i}")));
    net.pump();
    assert_eq!(sent_to(&net, 3).len(), 3, "three in flight, one entry each");
    net.deliver(|m| m.to == 2 || m.from == 2);
    net.pump();
    assert_eq!(sent_to(&net, 3), [before + 1, before + 2, before + 3]);
    net.settle();
    assert_eq!(net.applied(3).len(), 10);
}

#[test]
fn an_answered_heartbeat_wakes_a_follower_that_is_probed() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.hand_in("a");
    net.pump();
    net.lose(to(3));
    // The lane broke: one probe at a time from now on, and that one is lost, too.
    net.node(1).report_unreachable(3);
    net.hand_in("b");
    net.settle_without(to(3));
    net.hand_in("c");
    net.pump();
    assert_eq!(sent_to(&net, 3), [0_u64; 0], "it is being probed");
    net.settle();
    assert_eq!(net.applied(3), [""; 0]);
    net.ticks_of(1, 2);
    assert_eq!(net.applied(3), ["a", "b", "c"]);
}

#[test]
fn a_lost_commit_index_comes_again_with_the_heartbeat() {
    let mut net = Net::voters(&[1, 2, 3]);
    net.hand_in("a");
    // The entry arrives, the word that it is committed does not.
    net.settle_without(|m| m.to == 3 && m.entries.is_empty());
    assert_eq!(net.applied(3), [""; 0]);
    assert_eq!(net.matched(1, 3), net.node(1).commit_index());
    net.ticks_of(1, 2);
    assert_eq!(net.applied(3), ["a"]);
}

#[test]
fn messages_twice_and_out_of_order_change_nothing() {
    let mut net = Net::voters(&[1, 2, 3]);
    for i in 0..8 {
        net.hand_in(&format!("c{i}"));
    }
    net.pump();
    let doubled: Vec<Message> = net.flight.iter().rev().cloned().collect();
    net.flight.extend(doubled.clone());
    net.settle();
    net.propose("d");
    net.flight.extend(doubled);
    net.ticks(4);
    for id in [1, 2, 3] {
        assert_eq!(net.applied(id).len(), 9);
    }
    same_logs(&net);
}

#[test]
fn a_log_that_lost_what_it_acknowledged_is_found_out() {
    let mut net = Net::voters(&[1, 2, 3]);
    (0..4).for_each(|i| net.propose(&format!("c{i}")));
    // Not a torn write: what an fsync had covered is gone, and the hard state went with it.
    let peer = net.peer(3);
    let kept = peer.disk.entries.len() - 3;
    peer.disk.entries.truncate(kept);
    peer.disk.hard_state.commit = peer.disk.entries.last().expect("some").index;
    peer.disk.applied = peer.disk.hard_state.commit;
    net.restart(3);
    net.peer(3).applied.truncate(1);
    net.node(1).tick();
    net.node(1).tick();
    net.pump();
    let beat = net.lose(|m| is(MessageType::MsgHeartbeat)(m) && m.to == 3);
    let lost = net.node(3).step(beat[0].clone());
    assert!(matches!(lost, Err(NodeError::LogLost { .. })), "{lost:?}");
}

#[test]
fn another_entry_where_one_is_committed_is_found_out() {
    let mut net = Net::voters(&[1, 2, 3]);
    (0..4).for_each(|i| net.propose(&format!("c{i}")));
    let committed = net.peer(3).disk.entries.last().expect("some").clone();
    let mut append = Message {
        from: 1,
        to: 3,
        term: committed.term + 5,
        index: committed.index - 1,
        log_term: committed.term,
        ..Message::default()
    };
    append.set_msg_type(MessageType::MsgAppend);
    append.entries.push(committed.clone());
    net.node(3)
        .step(append.clone())
        .expect("the same entry again");
    append.entries[0].term += 5;
    let other = net.node(3).step(append);
    assert!(
        matches!(other, Err(NodeError::Diverged { .. })),
        "{other:?}"
    );
}
