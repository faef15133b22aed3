//! Raft messages of a peer: a garbled one must not bring the node down, whatever its role.

use conclave_coordinator_core::{
    node::{Node, NodeConfig, Payload, Restored},
    snapshot,
};
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType};

use crate::{Limits, Target};

/// Messages with their lengths (two bytes) before them; the first byte of all says how the node begins.
pub const TARGET: Target = Target {
    name: "raft_messages",
    run,
    seeds,
    words: &["\x08\x03", "\x10\x01", "\x18\x02", "\x20\x05"],
    inputs: 20_000,
    // rust-protobuf makes room for up to 10 MB before it finds that a field is shorter than it says.
    limits: Limits {
        memory: 16 << 20,
        ..Limits::SMALL
    },
};

/// A voter of three, with four entries of which three are committed.
fn node() -> Node {
    let (manifest, _) = snapshot::genesis();
    let mut restored = Restored::genesis(1, &manifest);
    let conf = ConfState {
        voters: vec![1, 2, 3],
        ..ConfState::default()
    };
    restored.conf_state = conf;
    restored.hard_state = HardState {
        term: 2,
        commit: 4,
        ..HardState::default()
    };
    restored.entries = (2..=5)
        .map(|index| Entry {
            index,
            term: if index < 4 { 1 } else { 2 },
            ..Entry::default()
        })
        .collect();
    restored.applied = 4;
    Node::new(&NodeConfig::new(1, 9), restored).expect("a node")
}

fn run(input: &[u8]) {
    let Some((how, mut rest)) = input.split_first() else {
        return;
    };
    let mut node = node();
    match how % 3 {
        0 => {}
        1 => campaign(&mut node, false),
        _ => campaign(&mut node, true),
    }
    while let [low, high, tail @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let message;
        (message, rest) = tail.split_at(length);
        let Ok(message) = Message::parse_from_bytes(message) else {
            continue;
        };
        let committed = node.commit_index();
        // Refused or taken.
        let _ = node.step(message);
        carry_out(&mut node);
        assert!(node.commit_index() >= committed, "committed is committed");
        assert!(node.last_index() >= node.commit_index());
        node.tick();
    }
    for _ in 0..25 {
        node.tick();
        carry_out(&mut node);
    }
}

/// As a member that its peers answer; with `won`, they elect it.
fn campaign(node: &mut Node, won: bool) {
    node.campaign().expect("a voter campaigns");
    carry_out(node);
    if !won {
        return;
    }
    for kind in [
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgRequestVoteResponse,
    ] {
        let vote = Message {
            msg_type: kind,
            from: 2,
            to: 1,
            term: 3,
            ..Message::default()
        };
        node.step(vote).expect("a vote");
        carry_out(node);
    }
    assert_eq!(node.leadership().leader_id, 1, "elected");
}

/// What a shell does with the node's outputs.
fn carry_out(node: &mut Node) {
    while let Some(output) = node.ready() {
        node.persisted(output.number);
        let mut applied = output
            .persist
            .snapshot
            .as_ref()
            .map(|snapshot| snapshot.get_metadata().index);
        for committed in output.committed {
            applied = applied.max(Some(committed.index));
            if let Payload::Conf { change, .. } = committed.payload {
                let _ = node.apply_conf(&change);
            }
        }
        if let Some(index) = applied {
            node.applied(index);
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let message = |msg_type, term| Message {
        msg_type,
        from: 2,
        to: 1,
        term,
        ..Message::default()
    };
    let entry = |index, term| Entry {
        index,
        term,
        data: vec![8, 1].into(),
        ..Entry::default()
    };
    let append = Message {
        index: 5,
        log_term: 2,
        commit: 6,
        entries: vec![entry(6, 2), entry(7, 2)].into(),
        ..message(MessageType::MsgAppend, 2)
    };
    let change = Message {
        index: 5,
        log_term: 2,
        commit: 6,
        entries: vec![Entry {
            entry_type: EntryType::EntryConfChangeV2,
            ..entry(6, 2)
        }]
        .into(),
        ..message(MessageType::MsgAppend, 2)
    };
    let beat = Message {
        commit: 5,
        ..message(MessageType::MsgHeartbeat, 2)
    };
    let (mut manifest, _) = snapshot::genesis();
    (manifest.index, manifest.term) = (9, 2);
    let snapshot = Message {
        snapshot: Some(conclave_coordinator_core::node::snapshot_of(
            &manifest,
            ConfState {
                voters: vec![1, 2, 3],
                ..ConfState::default()
            },
        ))
        .into(),
        ..message(MessageType::MsgSnapshot, 2)
    };
    let acknowledge = |reject| Message {
        index: 6,
        reject,
        reject_hint: 4,
        ..message(MessageType::MsgAppendResponse, 3)
    };
    let read = |kind| Message {
        entries: vec![entry(0, 0)].into(),
        // Passed on, it has no term.
        ..message(
            kind,
            if kind == MessageType::MsgReadIndex {
                0
            } else {
                3
            },
        )
    };
    let all = [
        append,
        change,
        beat,
        snapshot,
        acknowledge(false),
        acknowledge(true),
        read(MessageType::MsgReadIndex),
        read(MessageType::MsgReadIndexResp),
        read(MessageType::MsgPropose),
        message(MessageType::MsgHeartbeatResponse, 3),
        message(MessageType::MsgRequestVote, 4),
        message(MessageType::MsgRequestPreVote, 4),
        message(MessageType::MsgTimeoutNow, 3),
        message(MessageType::MsgTransferLeader, 3),
    ];
    let framed = |message: &Message| {
        let bytes = message.write_to_bytes().expect("encodes");
        let length = u16::try_from(bytes.len()).expect("short").to_le_bytes();
        [&length[..], &bytes].concat()
    };
    let mut seeds = Vec::new();
    for how in 0..3u8 {
        seeds.extend(all.iter().map(|one| [&[how][..], &framed(one)].concat()));
        seeds.push([vec![how], all.iter().flat_map(framed).collect()].concat());
    }
    seeds
}
