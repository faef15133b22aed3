//! raft-rs as a sync machine: inputs in, [`Output`]s out; the shell persists and sends.
//!
//! [`carry`] is the order that a shell must keep for each [`Output`].

pub mod carry;
mod config;
mod guard;
mod hold;
mod output;
mod storage;

use std::collections::BTreeMap;

use raft::{
    GetEntriesContext, RawNode, SnapshotStatus, StateRole, Storage as _,
    eraftpb::{
        ConfChange, ConfChangeType, ConfChangeV2, ConfState, Entry, Message, MessageType, Snapshot,
    },
};

pub use config::{NodeConfig, Restored, snapshot_of};
pub use hold::Keep;
pub use output::{
    Committed, Leadership, LogSize, MemberProgress, Output, Payload, Persist, ReadState, Role,
    committed,
};
use storage::Log;

/// Why the node refused an input.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It does not lead, hands leadership over, or too much is uncommitted: try the leader, later.
    #[error("the proposal was dropped: no leader, a transfer of leadership, or too much in flight")]
    Dropped,
    /// What was read from disk, or the configuration, cannot be run.
    #[error("the node cannot start: {0}")]
    Unusable(String),
    /// The leader counts on entries that this node acknowledged and has no more: its disk lost what
    /// an fsync had covered. It must end, and come back as a new member.
    #[error(
        "the log ends at {last}, but this node had acknowledged {acknowledged}: its disk lost \
         entries, or an old copy of it was started"
    )]
    LogLost {
        /// The log's last index.
        last: u64,
        /// What the leader knows it to have held.
        acknowledged: u64,
    },
    /// A peer says what no member says: another program, or damaged bytes.
    #[error("a garbled message of node {from:016x}: {what}")]
    Garbled {
        /// Its sender, as it says.
        from: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A leader has another entry where this node holds a committed one.
    #[error(
        "entry {index} was committed here in term {mine}, and the leader has another one of term \
         {theirs}: a disk lost what was written, or an old copy of one was started"
    )]
    Diverged {
        /// Where.
        index: u64,
        /// Term of this node's entry.
        mine: u64,
        /// Term of the leader's.
        theirs: u64,
    },
    /// raft-rs refused.
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
}

/// A raft node without disk, network or clock.
pub struct Node {
    raw: RawNode<Log>,
    seed: u64,
    leadership: Leadership,
    /// Members that were sent a snapshot and have not reached it: its index.
    sent: BTreeMap<u64, u64>,
}

impl Node {
    /// A node as its disk left it.
    ///
    /// # Errors
    /// A configuration that raft-rs refuses, or a log with gaps.
    pub fn new(config: &NodeConfig, restored: Restored) -> Result<Node, NodeError> {
        let raft = raft::Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: restored.applied,
            max_size_per_msg: config.max_message_bytes,
            max_inflight_msgs: config.max_inflight,
            max_uncommitted_size: config.max_uncommitted_bytes,
            max_committed_size_per_ready: config.max_message_bytes,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            ..raft::Config::default()
        };
        raft.validate()?;
        let log = Log::new(restored).map_err(NodeError::Unusable)?;
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft, log, &logger)?;
        let leadership = Leadership {
            role: Role::Outside,
            term: 0,
            leader_id: 0,
        };
        let mut node = Node {
            raw,
            seed: config.seed,
            leadership,
            sent: BTreeMap::new(),
        };
        node.pin_timeout();
        Ok(node)
    }

    /// One period of the shell's timer passed.
    pub fn tick(&mut self) {
        self.raw.tick();
        self.pin_timeout();
    }

    /// A message of another member. Messages of strangers and stale ones are ignored.
    ///
    /// # Errors
    /// A local message came over the network, or [`NodeError::Garbled`]. [`NodeError::LogLost`] and
    /// [`NodeError::Diverged`] must end the node, and it may never start on this disk again.
    pub fn step(&mut self, message: Message) -> Result<(), NodeError> {
        guard::check(&message, &self.raw.raft)?;
        self.check_log(&message)?;
        let done = self.raw.step(message);
        self.pin_timeout();
        match done {
            Err(raft::Error::StepPeerNotFound) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Proposes a command; `context` comes back with it when it commits.
    ///
    /// # Errors
    /// [`NodeError::Dropped`] if this node does not lead now. Without an error the proposal may
    /// commit, or be lost with the leader.
    pub fn propose(&mut self, context: Vec<u8>, data: Vec<u8>) -> Result<(), NodeError> {
        if self.raw.raft.state != StateRole::Leader {
            return Err(NodeError::Dropped);
        }
        dropped(self.raw.propose(context, data))
    }

    /// Proposes to add, promote or remove one member.
    ///
    /// # Errors
    /// As [`Node::propose`]; raft-rs also turns a change into an empty entry while another one is
    /// not applied.
    pub fn propose_conf_change(
        &mut self,
        context: Vec<u8>,
        kind: ConfChangeType,
        node_id: u64,
    ) -> Result<(), NodeError> {
        if self.raw.raft.state != StateRole::Leader || self.raw.raft.has_pending_conf() {
            return Err(NodeError::Dropped);
        }
        let mut change = ConfChange {
            node_id,
            ..ConfChange::default()
        };
        change.set_change_type(kind);
        dropped(self.raw.propose_conf_change(context, change))
    }

    /// Asks for a linearizable read point; answered in [`Output::reads`], or never (no leader, a
    /// change of leader): the shell gives it a deadline.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.raw.read_index(context);
    }

    /// Hands leadership to a member; given up after an election timeout.
    pub fn transfer(&mut self, to: u64) {
        self.raw.transfer_leader(to);
        self.pin_timeout();
    }

    /// Leadership is being handed over: proposals are dropped until that ends.
    pub fn hands_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Campaigns now: the only voter of a new cluster need not wait.
    ///
    /// # Errors
    /// raft-rs refused.
    pub fn campaign(&mut self) -> Result<(), NodeError> {
        let done = self.raw.campaign();
        self.pin_timeout();
        Ok(done?)
    }

    /// The last send to this member failed.
    pub fn report_unreachable(&mut self, id: u64) {
        self.raw.report_unreachable(id);
    }

    /// This member's process has ended: nothing listens where it listened. If it led, this follower
    /// does not wait for its silence: it forgets it and campaigns soon, the voters in the order of
    /// their ids, two ticks apart, so that votes are not split. That elects nobody against a living
    /// leader, for a majority must have forgotten it.
    pub fn report_gone(&mut self, id: u64) {
        let raft = &mut self.raw.raft;
        if raft.state != StateRole::Follower || raft.leader_id != id || id == raft::INVALID_ID {
            return;
        }
        raft.become_follower(raft.term, raft::INVALID_ID);
        self.pin_timeout();
        let raft = &mut self.raw.raft;
        let before = |other: &u64| *other != id && *other < raft.id;
        let rank = raft.prs().conf().to_conf_state().voters.into_iter();
        let rank = rank.filter(before).count();
        // At least one tick, so that the others learn it too before they are asked.
        let wait = (1 + 2 * rank).min(raft.election_timeout());
        let timeout = raft.randomized_election_timeout();
        raft.election_elapsed = timeout.saturating_sub(wait);
    }

    /// A snapshot reached the member, or did not.
    pub fn report_snapshot(&mut self, id: u64, arrived: bool) {
        let status = if arrived {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.raw.report_snapshot(id, status);
    }

    /// Takes a snapshot of applied state as the one that members too far behind get, and drops
    /// entries below `keep_from` (at most the snapshot's index + 1).
    pub fn compact(&mut self, snapshot: Snapshot, keep_from: u64) {
        self.raw.mut_store().compact(snapshot, keep_from);
    }

    /// What must be carried out now; `None` if nothing.
    pub fn ready(&mut self) -> Option<Output> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
        let persist = Persist {
            hard_state: ready.hs().cloned(),
            entries: ready.take_entries(),
            snapshot,
            must_sync: ready.must_sync(),
        };
        let output = Output {
            number: ready.number(),
            messages: ready.take_messages(),
            after_persist: ready.take_persisted_messages(),
            committed: ready
                .take_committed_entries()
                .into_iter()
                .filter_map(committed)
                .collect(),
            reads: ready
                .take_read_states()
                .into_iter()
                .map(|r| ReadState {
                    context: r.request_ctx,
                    index: r.index,
                })
                .collect(),
            leadership: self.leadership_change(),
            persist,
        };
        self.note_snapshots(&output);
        self.raw.mut_store().take(&output.persist);
        self.raw.advance_append_async(ready);
        Some(output)
    }

    /// Everything up to this output has been written.
    pub fn persisted(&mut self, number: u64) {
        self.raw.on_persist_ready(number);
        self.pin_timeout();
    }

    /// Applies a committed change of configuration; returns the members from now on. A leader that
    /// it takes out steps down: raft-rs would lead on and miss itself among its members.
    ///
    /// # Errors
    /// raft-rs refuses the change: it changes nothing then.
    pub fn apply_conf(&mut self, change: &ConfChangeV2) -> Result<ConfState, NodeError> {
        let conf_state = self.raw.apply_conf_change(change)?;
        self.raw.mut_store().set_conf_state(conf_state.clone());
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !conf_state.voters.contains(&raft.id) {
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        self.pin_timeout();
        Ok(conf_state)
    }

    /// Entries up to here have been applied.
    pub fn applied(&mut self, index: u64) {
        self.raw.advance_apply_to(index);
    }

    /// This node's id.
    pub fn id(&self) -> u64 {
        self.raw.raft.id
    }

    /// Who leads now.
    pub fn leadership(&self) -> Leadership {
        let raft = &self.raw.raft;
        let conf = raft.prs().conf();
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if conf.learners().contains(&raft.id) => Role::Learner,
            StateRole::Follower if raft.promotable() => Role::Follower,
            StateRole::Follower => Role::Outside,
        };
        Leadership {
            role,
            term: raft.term,
            leader_id: raft.leader_id,
        }
    }

    /// Highest committed index.
    pub fn commit_index(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// What the log takes in memory.
    pub fn log_size(&self) -> LogSize {
        self.raw.store().size()
    }

    /// Index of the log's first entry.
    pub fn first_index(&self) -> u64 {
        self.raw.store().first()
    }

    /// Index of the log's last entry, written or not.
    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// An entry of this leader's own term is committed: its reads and `outstanding()` are current.
    pub fn leads_with_commit(&self) -> bool {
        self.raw.raft.state == StateRole::Leader && self.raw.raft.commit_to_current_term()
    }

    /// The configuration as of the last applied change.
    pub fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    /// Every member's progress, by id; empty unless this node leads.
    pub fn progress(&self) -> Vec<MemberProgress> {
        if self.raw.raft.state != StateRole::Leader {
            return Vec::new();
        }
        let prs = self.raw.raft.prs();
        let learners = prs.conf().learners();
        let mut members: Vec<_> = prs
            .iter()
            .map(|(&id, p)| MemberProgress {
                id,
                matched: p.matched,
                active: p.recent_active || id == self.id(),
                learner: learners.contains(&id),
            })
            .collect();
        members.sort_unstable_by_key(|m| m.id);
        members
    }

    /// Entries of the log from `low`, at most up to the last written one.
    pub fn entries_from(&self, low: u64) -> Vec<Entry> {
        let store = self.raw.store();
        let (first, last) = (store.first(), store.last());
        let low = low.max(first);
        if low > last {
            return Vec::new();
        }
        store
            .entries(low, last + 1, None, GetEntriesContext::empty(false))
            .unwrap_or_default()
    }

    /// Does what a leader says fit what this node remembers? raft-rs panics where it does not: a
    /// heartbeat carries no more than what this node has acknowledged to its sender, and no leader
    /// has another entry where one is committed.
    fn check_log(&self, message: &Message) -> Result<(), NodeError> {
        let log = &self.raw.raft.raft_log;
        if message.term < self.raw.raft.term {
            return Ok(());
        }
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if message.commit > log.last_index() => {
                Err(NodeError::LogLost {
                    last: log.last_index(),
                    acknowledged: message.commit,
                })
            }
            MessageType::MsgAppend => {
                // What is compacted cannot be compared: its term is 0.
                let mine = |index| log.term(index).unwrap_or(0);
                let committed = message.entries.iter().filter(|e| e.index <= log.committed);
                let mut other = committed.filter(|e| ![0, e.term].contains(&mine(e.index)));
                other.next().map_or(Ok(()), |theirs| {
                    Err(NodeError::Diverged {
                        index: theirs.index,
                        mine: mine(theirs.index),
                        theirs: theirs.term,
                    })
                })
            }
            _ => Ok(()),
        }
    }

    fn leadership_change(&mut self) -> Option<Leadership> {
        let now = self.leadership();
        if now == self.leadership {
            return None;
        }
        self.leadership = now;
        Some(now)
    }

    /// Replaces the timeout that raft-rs drew at random by one derived from seed, term and role
    /// (law 11). The draw lasts until term or role change, as in raft-rs.
    fn pin_timeout(&mut self) {
        let raft = &mut self.raw.raft;
        let spread = raft.election_timeout() as u64;
        let draw = mix(self.seed ^ mix(raft.term ^ mix(raft.state as u64 + 1)));
        let timeout = spread + draw % spread.max(1);
        if raft.randomized_election_timeout() as u64 != timeout {
            raft.set_randomized_election_timeout(timeout as usize);
        }
    }
}

fn dropped(done: raft::Result<()>) -> Result<(), NodeError> {
    match done {
        Err(raft::Error::ProposalDropped) => Err(NodeError::Dropped),
        other => Ok(other?),
    }
}

/// splitmix64's finalizer: spreads near inputs over all bits.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
