//! What a peer's message must look like before raft-rs sees it: raft-rs takes the word of its peers, and
//! panics where a garbled one contradicts the log.

use raft::{
    Raft, StateRole, Storage,
    eraftpb::{ConfState, Entry, Message, MessageType},
};

use super::NodeError;

/// Terms and indices at or beyond this are no cluster's: counting on from them would overflow.
const BEYOND: u64 = 1 << 62;

/// Checks a message that came over the network.
///
/// # Errors
/// [`NodeError::Garbled`]: no member that runs this program says such a thing.
pub(super) fn check<S: Storage>(message: &Message, raft: &Raft<S>) -> Result<(), NodeError> {
    let garbled = |what| {
        Err(NodeError::Garbled {
            from: message.from,
            what,
        })
    };
    let numbers = [
        message.term,
        message.index,
        message.log_term,
        message.commit,
        message.commit_term,
        message.reject_hint,
        message.request_snapshot,
    ];
    if numbers.iter().any(|number| *number >= BEYOND) {
        return garbled("a term or an index beyond any log's");
    }
    if message.from == 0 || message.from == raft.id {
        return garbled("it names no other member as its sender");
    }
    let kind = message.get_msg_type();
    // raft-rs takes a message without a term as this node's own.
    let untermed = matches!(
        kind,
        MessageType::MsgReadIndex | MessageType::MsgTransferLeader
    );
    if message.term == 0 && !untermed {
        return garbled("it has no term");
    }
    match kind {
        MessageType::MsgPropose => garbled("proposals are the leader's own"),
        // raft-rs passes both on to the leader, and panics if they have the term that only it sets.
        MessageType::MsgReadIndex if message.term != 0 => {
            garbled("a read that is passed on has no term")
        }
        MessageType::MsgTransferLeader
            if message.term != 0 && raft.state == StateRole::Follower =>
        {
            garbled("only a leader hands over")
        }
        MessageType::MsgAppend if !follows(&message.entries, message) => {
            garbled("its entries do not follow each other")
        }
        MessageType::MsgAppendResponse
            if raft.state == StateRole::Leader
                && message.term == raft.term
                && message.index.max(message.commit) > raft.raft_log.last_index() =>
        {
            garbled("it acknowledges what this leader never sent")
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp if message.entries.len() != 1 => {
            garbled("it asks for no read, or several")
        }
        MessageType::MsgSnapshot => snapshot(message, raft).or_else(garbled),
        _ => Ok(()),
    }
}

/// Entries without gaps behind the message's index, of terms that do not fall.
fn follows(entries: &[Entry], message: &Message) -> bool {
    let mut term = message.log_term;
    message.log_term <= message.term
        && (message.index + 1..).zip(entries).all(|(index, entry)| {
            let fits = entry.index == index && (term..=message.term).contains(&entry.term);
            term = entry.term;
            fits
        })
}

/// A snapshot that can be installed: of one plain configuration, and not of another history than the one
/// that is committed here.
fn snapshot<S: Storage>(message: &Message, raft: &Raft<S>) -> Result<(), &'static str> {
    let meta = message.get_snapshot().get_metadata();
    if meta.index == 0 || meta.index >= BEYOND || meta.term == 0 || meta.term > message.term {
        return Err("its snapshot has no place in a log");
    }
    if meta.index == raft.raft_log.committed && !raft.raft_log.match_term(meta.index, meta.term) {
        return Err("its snapshot contradicts what is committed here");
    }
    if !is_plain(meta.get_conf_state()) {
        return Err("its snapshot has members that cannot be");
    }
    Ok(())
}

/// Some voters, each member once, and no change half made: members change one at a time here.
fn is_plain(conf: &ConfState) -> bool {
    let mut members: Vec<u64> = conf.voters.iter().chain(&conf.learners).copied().collect();
    let count = members.len();
    members.sort_unstable();
    members.dedup();
    members.len() == count
        && !members.contains(&0)
        && !conf.voters.is_empty()
        && conf.voters_outgoing.is_empty()
        && conf.learners_next.is_empty()
        && !conf.auto_leave
}
