//! What members that lag still need of the log.

use raft::eraftpb::{Message, MessageType};

use super::{Node, Output};

/// How much of the log to keep: the lesser of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Entries.
    pub entries: u64,
    /// Bytes of entries in memory.
    pub bytes: u64,
}

impl Keep {
    /// So many entries, however large.
    pub fn entries(entries: u64) -> Keep {
        let bytes = u64::MAX;
        Keep { entries, bytes }
    }
}

impl Node {
    /// Notes which members are sent a snapshot. The oldest that a member has not reached counts: that
    /// is what it is fetching, whatever it is sent meanwhile.
    pub(super) fn note_snapshots(&mut self, output: &Output) {
        let sends = |m: &&Message| m.get_msg_type() == MessageType::MsgSnapshot;
        let messages = output.messages.iter().chain(&output.after_persist);
        for message in messages.filter(sends) {
            let index = message.get_snapshot().get_metadata().index;
            let matched = self.raw.raft.prs().get(message.to).map_or(0, |p| p.matched);
            let sent = self.sent.entry(message.to).or_insert(index);
            if matched >= *sent {
                *sent = index;
            }
        }
    }

    /// The first entry to keep when the log is to begin at a snapshot of `index`: the last `keep`
    /// before it, for members that lag a little; on a leader also what members that answer still lack,
    /// up to the last `most`. A member that fetched a snapshot while others were taken would else find
    /// its next entry gone, and begin anew.
    pub fn keep_from(&mut self, index: u64, keep: Keep, most: Keep) -> u64 {
        let members = self.progress();
        let (first, me) = (self.first_index(), self.id());
        self.sent
            .retain(|id, at| members.iter().any(|m| m.id == *id && m.matched < *at));
        let needs = members
            .iter()
            .filter(|m| m.active && m.id != me)
            .filter_map(|m| {
                let next = m.matched + 1;
                let sent = self.sent.get(&m.id).map(|at| at + 1);
                if next >= first { Some(next) } else { sent }
            });
        let log = self.raw.store();
        let (usual, most) = (log.last_before(index, keep), log.last_before(index, most));
        let wanted = needs.min().map_or(usual, |need| need.min(usual));
        wanted.max(most).max(first)
    }
}
