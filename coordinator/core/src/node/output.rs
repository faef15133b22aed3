//! What a node asks its shell to do, and what it says about itself.

use raft::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeV2, Entry, EntryType, HardState, Message, Snapshot,
};

/// The node's part in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows, or waits to be added.
    Follower,
    /// Votes are being asked for.
    Candidate,
    /// Leads.
    Leader,
    /// Follows without a vote.
    Learner,
    /// Not (or no longer) in the configuration.
    Outside,
}

/// What the log takes in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogSize {
    /// Entries held.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of those that no snapshot stands for yet.
    pub bytes_since_snapshot: u64,
}

/// Who leads, as far as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    /// This node's part.
    pub role: Role,
    /// The term.
    pub term: u64,
    /// 0: none known.
    pub leader_id: u64,
}

/// What must reach the disk before the rest may go on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Persist {
    /// Replaces the last one.
    pub hard_state: Option<HardState>,
    /// Appended; entries at and above the first one's index are replaced.
    pub entries: Vec<Entry>,
    /// Replaces state and log. Its data is a `SnapshotManifest`.
    pub snapshot: Option<Snapshot>,
    /// Fsync before [`Node::persisted`](super::Node::persisted).
    pub must_sync: bool,
}

impl Persist {
    /// There is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.hard_state.is_none() && self.entries.is_empty() && self.snapshot.is_none()
    }
}

/// What a committed entry holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// A new leader's empty entry: [`crate::State::skip`].
    Empty,
    /// An encoded command, with the proposer's context.
    Command {
        /// As given to [`Node::propose`](super::Node::propose).
        context: Vec<u8>,
        /// For [`crate::codec::decode`].
        data: Vec<u8>,
    },
    /// A change of configuration, with the proposer's context: [`Node::apply_conf`](super::Node::apply_conf) and
    /// [`crate::State::skip`].
    Conf {
        /// As given to [`Node::propose_conf_change`](super::Node::propose_conf_change).
        context: Vec<u8>,
        /// The change.
        change: ConfChangeV2,
    },
}

/// A committed entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// Its index.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// What it holds.
    pub payload: Payload,
}

/// A confirmed read: once `index` is applied, the read that `context` names may be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadState {
    /// As given to [`Node::read_index`](super::Node::read_index).
    pub context: Vec<u8>,
    /// What must be applied first.
    pub index: u64,
}

/// What the shell must carry out now, in the order that the module's words give.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// For [`Node::persisted`](super::Node::persisted).
    pub number: u64,
    /// Send now.
    pub messages: Vec<Message>,
    /// Write.
    pub persist: Persist,
    /// Send after the write.
    pub after_persist: Vec<Message>,
    /// Apply, in order.
    pub committed: Vec<Committed>,
    /// Confirmed reads.
    pub reads: Vec<ReadState>,
    /// Set when role, term or leader changed.
    pub leadership: Option<Leadership>,
}

/// How far a member is, as the leader knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberProgress {
    /// The member.
    pub id: u64,
    /// Its log agrees with the leader's up to here.
    pub matched: u64,
    /// Heard of within the last election timeout.
    pub active: bool,
    /// Without a vote.
    pub learner: bool,
}

/// The entry by what it holds; `None` for a change of configuration that does not decode, which
/// raft-rs never writes.
pub fn committed(mut entry: Entry) -> Option<Committed> {
    let context = entry.take_context().to_vec();
    let data = entry.take_data().to_vec();
    let payload = match entry.get_entry_type() {
        EntryType::EntryNormal if data.is_empty() => Payload::Empty,
        EntryType::EntryNormal => Payload::Command { context, data },
        EntryType::EntryConfChange => {
            let change: ConfChange = protobuf::Message::parse_from_bytes(&data).ok()?;
            Payload::Conf {
                context,
                change: as_v2(&change),
            }
        }
        EntryType::EntryConfChangeV2 => Payload::Conf {
            context,
            change: protobuf::Message::parse_from_bytes(&data).ok()?,
        },
    };
    Some(Committed {
        index: entry.index,
        term: entry.term,
        payload,
    })
}

/// A change of one member in the form that takes several.
fn as_v2(change: &ConfChange) -> ConfChangeV2 {
    let mut single = ConfChangeSingle {
        node_id: change.node_id,
        ..ConfChangeSingle::default()
    };
    single.set_change_type(change.get_change_type());
    let mut v2 = ConfChangeV2::default();
    v2.mut_changes().push(single);
    v2
}
