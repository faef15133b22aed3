//! Nodes in memory: what their disks hold, what is in flight, who hears whom; and the scenarios of
//! etcd raft's interaction tests, told anew on our node.
//!
//! | etcd's scenario | here |
//! |---|---|
//! | `campaign`, `single_node` | `a_single_voter_leads_commits_and_reads_alone` |
//! | `vote`, `prevote` | `a_log_that_is_behind_wins_no_votes`, `a_voter_that_restarts_does_not_vote_twice` |
//! | `prevote_checkquorum`, `checkquorum` | `a_node_that_was_cut_off_disturbs_nobody`, `votes_are_withheld_while_a_leader_is_heard`, `a_cut_off_leader_steps_down_and_its_proposals_are_lost` |
//! | `campaign_learner_must_vote` | `a_learner_that_does_not_know_of_its_promotion_votes` |
//! | `slow_follower_after_compaction` | `a_slow_follower_gets_the_snapshot_and_then_appends` |
//! | `snapshot_succeed_via_app_resp`, `.._behind` | `a_followers_answer_says_that_the_snapshot_arrived`, `a_follower_that_took_an_older_snapshot_goes_on_from_it` |
//! | `probe_and_replicate` | `a_new_leader_probes_each_log_and_overwrites_what_differs` |
//! | `replicate_pause` | `a_full_window_pauses_a_follower_and_its_answers_open_it` |
//! | `heartbeat_resp_recovers_from_probing` | `an_answered_heartbeat_wakes_a_follower_that_is_probed` |
//! | `lagging_commit` | `a_lost_commit_index_comes_again_with_the_heartbeat` |
//! | `commit_index_regression` | `a_log_that_lost_what_it_acknowledged_is_found_out` |
//! | `async_storage_writes`, `.._apply_nonlocally_committed` | `nothing_is_acknowledged_or_applied_before_it_is_written` |
//! | `async_storage_writes_append_aba_race` | `a_late_write_of_entries_since_replaced_acknowledges_nothing` |
//! | `confchange_v1_add_single`, `confchange_v2_add_single_auto` | `a_cluster_grows_from_one_voter_through_learners`, `a_learner_neither_votes_nor_counts` |
//! | `confchange_v1_remove_leader`, `.._stepdown` | `a_leader_that_is_removed_steps_down_and_the_others_go_on`, `a_lone_survivor_leads_on_though_the_last_word_was_lost`, `entries_behind_the_leaders_removal_need_the_new_quorum` |
//! | `confchange_disable_validation` | `members_change_one_at_a_time` |
//! | `forget_leader`, `.._prevote_checkquorum` | `followers_elect_another_once_their_leader_is_gone` (raft-rs has no call that makes a follower forget) |
//!
//! Not told: `confchange_v2_add_double_*`, `confchange_v2_add_single_explicit`,
//! `confchange_v2_replace_leader*` (joint configurations: [`Node::propose_conf_change`] changes one
//! member at a time, so none is ever written), `forget_leader_read_only_lease_based` and
//! `campaign_now_lease` (reads by lease: every read of ours asks a quorum).
//!
//! Every delivery checks, beside what a test asserts: one leader a term, and one entry an index
//! among all that was ever applied, over restarts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use conclave_proto::v1::SnapshotManifest;
use raft::eraftpb::{ConfChangeType, Entry, Message, MessageType};

use super::*;
use crate::{State, codec, snapshot};

mod basics;
mod elections;
mod logs;
mod members;
mod reads;
mod writes;

/// A node with its disk and the commands that it has applied.
struct Peer {
    node: Node,
    config: NodeConfig,
    disk: Restored,
    applied: Vec<Vec<u8>>,
    /// What the applied commands made of the genesis; texts that are no commands leave no mark.
    state: State,
    reads: Vec<ReadState>,
    snapshots: usize,
    /// Its disk takes its time: writes wait in `writes`.
    slow: bool,
    writes: VecDeque<Output>,
    /// Index, term and bytes of all that was applied since the last look.
    news: Vec<(u64, u64, Vec<u8>)>,
}

impl Peer {
    fn start(config: NodeConfig, disk: Restored) -> Peer {
        let node = Node::new(&config, disk.clone()).expect("starts");
        Peer {
            node,
            config,
            disk,
            applied: Vec::new(),
            state: genesis_state(),
            reads: Vec::new(),
            snapshots: 0,
            slow: false,
            writes: VecDeque::new(),
            news: Vec::new(),
        }
    }

    /// Carries out all that the node wants; returns what it sends.
    fn drain(&mut self) -> Vec<Message> {
        let mut sent = Vec::new();
        while let Some(mut output) = self.node.ready() {
            sent.append(&mut output.messages);
            self.writes.push_back(output);
            if !self.slow {
                sent.extend(self.write());
            }
        }
        sent
    }

    /// The oldest write reaches the disk, and what waited for it is done.
    fn write(&mut self) -> Vec<Message> {
        let output = self.writes.pop_front().expect("a write waits");
        self.persist(&output.persist);
        self.node.persisted(output.number);
        let last = output.committed.last().map(|c| c.index);
        for committed in output.committed {
            self.apply(committed);
        }
        if let Some(index) = last {
            self.node.applied(index);
            self.disk.applied = index;
        }
        self.reads.extend(output.reads);
        output.after_persist
    }

    fn apply(&mut self, committed: Committed) {
        let Committed {
            index,
            term,
            payload,
        } = committed;
        let mut bytes = Vec::new();
        match payload {
            Payload::Empty => self.state.skip(index, term),
            Payload::Command { data, .. } => {
                match codec::decode(&data) {
                    Ok(command) => drop(self.state.apply(index, term, &command)),
                    Err(_) => self.state.skip(index, term),
                }
                bytes.clone_from(&data);
                self.applied.push(data);
            }
            Payload::Conf { change, .. } => {
                self.state.skip(index, term);
                self.disk.conf_state = self.node.apply_conf(&change).expect("applies");
            }
        }
        self.news.push((index, term, bytes));
    }

    fn persist(&mut self, persist: &Persist) {
        if let Some(snapshot) = &persist.snapshot {
            let meta = snapshot.get_metadata();
            self.disk.entries.clear();
            self.disk.applied = meta.index;
            self.disk.conf_state = meta.get_conf_state().clone();
            self.disk.snapshot = Some(snapshot.clone());
            self.snapshots += 1;
        }
        if let Some(first) = persist.entries.first() {
            self.disk.entries.retain(|e| e.index < first.index);
            self.disk.entries.extend_from_slice(&persist.entries);
        }
        if let Some(hard_state) = &persist.hard_state {
            self.disk.hard_state = hard_state.clone();
        }
    }
}

fn genesis_state() -> State {
    let (manifest, bytes) = snapshot::genesis();
    snapshot::decode(&manifest, &bytes).expect("decodes")
}

/// Some nodes and the network between them.
struct Net {
    peers: BTreeMap<u64, Peer>,
    /// Nodes that nobody hears and that hear nobody.
    cut: BTreeSet<u64>,
    /// Sent and not yet delivered, in order.
    flight: Vec<Message>,
    /// Leaders tell their node how a snapshot's journey ended, as the shell does.
    report: bool,
    /// Whoever led, by term.
    leaders: BTreeMap<u64, u64>,
    /// Whatever was applied, by index.
    history: BTreeMap<u64, (u64, Vec<u8>)>,
}

impl Net {
    /// One voter that leads, and blank nodes.
    fn new(ids: &[u64]) -> Net {
        let genesis = snapshot::genesis().0;
        let mut disks = vec![Restored::genesis(ids[0], &genesis)];
        disks.resize(ids.len(), Restored::default());
        let mut net = Net::of(ids.iter().copied().zip(disks));
        net.node(ids[0]).campaign().expect("may campaign");
        net.settle();
        net
    }

    /// All of these are voters; the first leads.
    fn voters(ids: &[u64]) -> Net {
        let mut net = Net::new(ids);
        for &id in &ids[1..] {
            net.change(ConfChangeType::AddLearnerNode, id);
            net.ticks(4);
            net.change(ConfChangeType::AddNode, id);
        }
        net
    }

    /// Voters without a leader whose logs hold entries of these terms behind the genesis.
    fn with_logs(logs: &[(u64, &[u64])]) -> Net {
        let genesis = snapshot::genesis().0;
        let voters: Vec<u64> = logs.iter().map(|(id, _)| *id).collect();
        Net::of(logs.iter().map(|(id, terms)| {
            let mut disk = Restored::genesis(*id, &genesis);
            disk.conf_state.voters.clone_from(&voters);
            disk.snapshot = Some(snapshot_of(&genesis, disk.conf_state.clone()));
            disk.entries = (2..)
                .zip(*terms)
                .map(|(index, &term)| Entry {
                    index,
                    term,
                    data: format!("{index} of {term}").into_bytes().into(),
                    ..Entry::default()
                })
                .collect();
            disk.hard_state.term = terms.last().copied().unwrap_or(1);
            (*id, disk)
        }))
    }

    fn of(disks: impl IntoIterator<Item = (u64, Restored)>) -> Net {
        let peer = |(id, disk)| (id, Peer::start(NodeConfig::new(id, id * 77), disk));
        Net {
            peers: disks.into_iter().map(peer).collect(),
            cut: BTreeSet::new(),
            flight: Vec::new(),
            report: true,
            leaders: BTreeMap::new(),
            history: BTreeMap::new(),
        }
    }

    fn peer(&mut self, id: u64) -> &mut Peer {
        self.peers.get_mut(&id).expect("exists")
    }

    fn node(&mut self, id: u64) -> &mut Node {
        &mut self.peer(id).node
    }

    /// Every node does what it wants; what they send is in flight.
    fn pump(&mut self) {
        let ids: Vec<u64> = self.peers.keys().copied().collect();
        for id in ids {
            let sent = self.peer(id).drain();
            self.flight.extend(sent);
            self.check(id);
        }
    }

    /// The oldest write of a node with a slow disk is done.
    fn write(&mut self, id: u64) {
        let sent = self.peer(id).write();
        self.flight.extend(sent);
        self.check(id);
    }

    /// What must hold whatever happens.
    fn check(&mut self, id: u64) {
        let peer = self.peers.get_mut(&id).expect("exists");
        let Leadership { role, term, .. } = peer.node.leadership();
        if role == Role::Leader {
            let first = *self.leaders.entry(term).or_insert(id);
            assert_eq!(first, id, "two leaders in term {term}");
        }
        for (index, term, bytes) in std::mem::take(&mut peer.news) {
            let entry = (term, bytes);
            let first = self.history.entry(index).or_insert_with(|| entry.clone());
            assert_eq!(*first, entry, "{id} applied another entry at {index}");
        }
    }

    /// Delivers those messages in flight that are picked and not cut off; the receivers have not
    /// acted yet. Returns how many there were.
    fn deliver(&mut self, pick: impl Fn(&Message) -> bool) -> usize {
        let (picked, rest): (Vec<_>, Vec<_>) = self.flight.drain(..).partition(|m| pick(m));
        self.flight = rest;
        let count = picked.len();
        for message in picked {
            let lost = self.cut.contains(&message.from) || self.cut.contains(&message.to);
            if self.report && message.get_msg_type() == MessageType::MsgSnapshot {
                let (from, to) = (message.from, message.to);
                self.node(from).report_snapshot(to, !lost);
            }
            if let Some(peer) = self.peers.get_mut(&message.to).filter(|_| !lost) {
                peer.node.step(message).expect("steps");
            }
        }
        count
    }

    /// Loses those messages in flight that are picked; returns them.
    fn lose(&mut self, pick: impl Fn(&Message) -> bool) -> Vec<Message> {
        let (lost, rest) = self.flight.drain(..).partition(|m| pick(m));
        self.flight = rest;
        lost
    }

    /// Delivers until nothing moves.
    fn settle(&mut self) {
        self.settle_without(|_| false);
    }

    /// Delivers until nothing moves, and loses what is picked.
    fn settle_without(&mut self, lose: impl Fn(&Message) -> bool) {
        loop {
            self.pump();
            self.lose(&lose);
            if self.deliver(|_| true) == 0 {
                return;
            }
        }
    }

    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.peers.values_mut().for_each(|p| p.node.tick());
            self.settle();
        }
    }

    /// Time passes for one node only.
    fn ticks_of(&mut self, id: u64, count: usize) {
        for _ in 0..count {
            self.node(id).tick();
            self.settle();
        }
    }

    fn leader(&self) -> u64 {
        let leads = |(id, peer): (&u64, &Peer)| {
            (peer.node.leadership().role == Role::Leader && !self.cut.contains(id)).then_some(*id)
        };
        let leaders: Vec<u64> = self.peers.iter().filter_map(leads).collect();
        assert_eq!(leaders.len(), 1, "one leader: {leaders:?}");
        leaders[0]
    }

    fn role(&self, id: u64) -> Role {
        self.peers[&id].node.leadership().role
    }

    fn term(&self, id: u64) -> u64 {
        self.peers[&id].node.leadership().term
    }

    /// The leader proposes; nothing is sent yet.
    fn hand_in(&mut self, data: &str) {
        let leader = self.leader();
        let taken = self.node(leader).propose(vec![1], data.into());
        taken.expect("leads");
    }

    fn propose(&mut self, data: &str) {
        self.hand_in(data);
        self.settle();
    }

    fn change(&mut self, kind: ConfChangeType, id: u64) {
        let leader = self.leader();
        let taken = self.node(leader).propose_conf_change(vec![2], kind, id);
        taken.expect("leads");
        self.settle();
    }

    fn applied(&self, id: u64) -> Vec<String> {
        let text = |data: &Vec<u8>| String::from_utf8_lossy(data).into_owned();
        self.peers[&id].applied.iter().map(text).collect()
    }

    /// What the leader knows of a member's log.
    fn matched(&self, leader: u64, id: u64) -> u64 {
        let progress = self.peers[&leader].node.progress();
        let member = progress.iter().find(|p| p.id == id);
        member.expect("a member").matched
    }

    /// Snapshots the node's state and drops the log behind it.
    fn compact(&mut self, id: u64) {
        self.compact_keeping(id, 0);
    }

    /// The same, but the last `keep` entries stay for members that lag a little.
    fn compact_keeping(&mut self, id: u64, keep: u64) {
        let peer = self.peer(id);
        let index = peer.disk.applied;
        let entry = peer.disk.entries.iter().find(|e| e.index == index);
        let manifest = SnapshotManifest {
            index,
            term: entry.map_or(1, |e| e.term),
            ..SnapshotManifest::default()
        };
        let snapshot = snapshot_of(&manifest, peer.node.conf_state());
        let keep_from = (index + 1).saturating_sub(keep);
        peer.node.compact(snapshot.clone(), keep_from);
        peer.disk.snapshot = Some(snapshot);
        peer.disk.entries.retain(|e| e.index >= keep_from);
    }

    /// The process ends and starts again; writes that had not reached the disk are lost.
    fn restart(&mut self, id: u64) {
        let peer = self.peers.remove(&id).expect("exists");
        let mut again = Peer::start(peer.config, peer.disk);
        again.applied = peer.applied;
        again.state = peer.state;
        self.peers.insert(id, again);
    }

    /// The same as the shell does it: state and members as of the newest snapshot (here: the
    /// genesis), everything behind it applied anew.
    fn restart_from_genesis(&mut self, id: u64) {
        let peer = self.peers.remove(&id).expect("exists");
        let mut disk = peer.disk;
        let meta = disk.snapshot.clone().unwrap_or_default().take_metadata();
        assert_eq!(meta.index, 1, "only the genesis is without commands");
        disk.applied = meta.index;
        disk.conf_state = meta.get_conf_state().clone();
        self.peers.insert(id, Peer::start(peer.config, disk));
    }
}

fn is(kind: MessageType) -> impl Fn(&Message) -> bool {
    move |m| m.get_msg_type() == kind
}

fn to(id: u64) -> impl Fn(&Message) -> bool {
    move |m| m.to == id
}
