//! What a node told others that it holds, it holds after a restart: entries that it acknowledged, the
//! term that it spoke in, the vote that it gave. Unless all of it is durable before it is told, a
//! committed entry may be lost, or a term have two leaders.

use std::collections::BTreeMap;

use conclave_coordinator_core::node::Restored;
use raft::eraftpb::{Message, MessageType};

use super::Check;

#[derive(Debug, Clone, Copy, Default)]
struct Promise {
    term: u64,
    /// Acknowledged in that term: the log holds it at least.
    index: u64,
    /// Voted for in that term; 0: nobody.
    vote: u64,
}

#[derive(Debug, Default)]
pub(super) struct PromisesKept(BTreeMap<u64, Promise>);

impl PromisesKept {
    /// A node says this to another.
    pub(super) fn said(&mut self, node: u64, message: &Message) {
        let counts = match message.get_msg_type() {
            MessageType::MsgAppendResponse | MessageType::MsgRequestVoteResponse => !message.reject,
            MessageType::MsgRequestVote => true,
            _ => false,
        };
        let promise = self.0.entry(node).or_default();
        if !counts || message.term < promise.term {
            return;
        }
        if message.term > promise.term {
            *promise = Promise {
                term: message.term,
                ..Promise::default()
            };
        }
        match message.get_msg_type() {
            MessageType::MsgAppendResponse => promise.index = promise.index.max(message.index),
            MessageType::MsgRequestVoteResponse => promise.vote = message.to,
            _ => promise.vote = node,
        }
    }

    /// A node starts, and finds this on its disk.
    pub(super) fn woke(&self, node: u64, found: &Restored) -> Check {
        let Some(promise) = self.0.get(&node) else {
            return Ok(());
        };
        let hard_state = &found.hard_state;
        let snapshot = found.snapshot.as_ref();
        let behind = snapshot.map_or(0, |s| s.get_metadata().index);
        let last = found.entries.last().map_or(behind, |e| e.index.max(behind));
        if hard_state.term < promise.term {
            return Err(format!(
                "coordinator {node} spoke in term {} and wakes in {}",
                promise.term, hard_state.term
            ));
        }
        if hard_state.term > promise.term {
            // A later leader may have cut what was not committed.
            return Ok(());
        }
        if promise.vote != 0 && hard_state.vote != promise.vote {
            return Err(format!(
                "coordinator {node} voted for {} in term {} and remembers {}",
                promise.vote, promise.term, hard_state.vote
            ));
        }
        if last < promise.index {
            return Err(format!(
                "coordinator {node} acknowledged {} in term {} and its log ends at {last}",
                promise.index, promise.term
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::HardState;

    use super::*;

    fn said(kind: MessageType, index: u64) -> Message {
        let mut message = Message {
            to: 2,
            term: 5,
            index,
            ..Message::default()
        };
        message.set_msg_type(kind);
        message
    }

    fn found(term: u64, vote: u64, last: u64) -> Restored {
        let entry = raft::eraftpb::Entry {
            index: last,
            ..raft::eraftpb::Entry::default()
        };
        Restored {
            hard_state: HardState {
                term,
                vote,
                ..HardState::default()
            },
            entries: vec![entry],
            ..Restored::default()
        }
    }

    #[test]
    fn a_node_that_forgot_is_found() {
        let mut law = PromisesKept::default();
        law.said(1, &said(MessageType::MsgRequestVoteResponse, 0));
        law.said(1, &said(MessageType::MsgAppendResponse, 9));
        assert_eq!(law.woke(1, &found(5, 2, 9)), Ok(()));
        assert_eq!(
            law.woke(1, &found(6, 3, 4)),
            Ok(()),
            "a later leader cut it"
        );
        assert!(law.woke(1, &found(4, 0, 9)).is_err(), "the term");
        assert!(law.woke(1, &found(5, 3, 9)).is_err(), "the vote");
        assert!(law.woke(1, &found(5, 2, 8)).is_err(), "the entry");
        assert_eq!(law.woke(2, &found(0, 0, 0)), Ok(()), "it said nothing");
    }
}
