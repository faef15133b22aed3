//! A coordinator: the node and state of the core, and a shell that carries out what they say in the
//! documented order. Writes take time: what comes meanwhile waits.

use std::collections::{BTreeMap, VecDeque};

use conclave_coordinator_core::{
    State, codec,
    lead::Leader,
    node::{Leadership, Node, NodeConfig, NodeError, carry::Written},
    snapshot,
};
use conclave_proto::{
    LOG_VERSION,
    v1::{Command, SetLogVersion, command::Command as Body},
};
use raft::eraftpb::{ConfState, MessageType, Snapshot};

use super::{
    blobs::BlobNet,
    clocks::Clocks,
    cx::{Addr, Cx, Event, Input, Told, Wire},
    disk::{Disk, Full, Unreadable},
    invariants::Held,
    sessions::Sessions,
    waiters::{MOST_READS, MOST_WAITERS, Reads, Waiter, Waiters},
    watching::Watches,
};

/// Period of a node's timer, ms.
pub(super) const TICK_MS: u64 = 100;
/// Shortest election timeout, ms.
pub(super) const ELECTION_MS: u64 = 10 * TICK_MS;

/// A running coordinator.
pub(super) struct Coordinator {
    pub id: u64,
    pub boot: u64,
    pub disk: Disk,
    pub node: Node,
    pub state: State,
    pub leader: Option<Leader>,
    pub leadership: Leadership,
    pub sessions: Sessions,
    pub(super) blobs: BlobNet,
    pub(super) watches: Watches,
    pub(super) waiters: Waiters,
    pub(super) reads: Reads,
    /// This clock minus an honest one, ms.
    pub skew_ms: i64,
    pub(super) clocks: Clocks,
    pub paused: bool,
    /// The newest log version that this program knows.
    pub speaks: u32,
    /// It dies when it comes to this.
    pub armed: Option<Moment>,
    pub(super) minted: u64,
    /// What waits for a write, and the snapshot that it holds.
    pub(super) writing: Option<(Written, Option<Snapshot>)>,
    pub(super) inbox: VecDeque<Input>,
    /// Of those, raft messages.
    queued_messages: usize,
    pub(super) snapshot_index: u64,
    pub(super) snapshot_every: u64,
    pub(super) saving: Option<(conclave_proto::v1::SnapshotManifest, Vec<u8>, ConfState)>,
    /// A snapshot could not be saved: the next is tried then.
    pub(super) save_after: u64,
}

/// The log version that a pretended next program speaks.
pub(super) const NEXT_VERSION: u32 = LOG_VERSION + 1;

/// A place where a process may die, chosen because little time is spent there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Written, not synced, and nobody was told.
    Written,
    /// Synced, and nobody was told.
    Synced,
    /// A received state is stored, and raft has not heard of it.
    Received,
    /// A received snapshot is written, not synced.
    Installing,
    /// Its own state is stored, and the log does not begin there.
    Saved,
    /// The log begins at its own snapshot, and what came before is still there.
    Compacted,
}

/// The process ends.
#[derive(Debug)]
pub(super) enum Stop {
    /// An fsync failed.
    Fsync,
    /// A write found no room.
    Full,
    /// It came to a moment that it was to die at.
    Killed(Moment),
    /// The log is a newer program's.
    TooNew(String),
    /// What it reads makes no sense.
    Broken(String),
}

impl From<Full> for Stop {
    fn from(_: Full) -> Stop {
        Stop::Full
    }
}

impl From<Unreadable> for Stop {
    fn from(unreadable: Unreadable) -> Stop {
        match unreadable {
            Unreadable::TooNew(why) => Stop::TooNew(why),
            Unreadable::Broken(why) => Stop::Broken(why),
        }
    }
}

impl Coordinator {
    /// Starts on what the disk holds.
    pub(super) fn boot(
        id: u64,
        disk: Disk,
        speaks: u32,
        cx: &mut Cx,
    ) -> Result<Coordinator, Box<(Disk, Stop)>> {
        let (restored, state) = match disk.open(speaks) {
            Ok(found) => found,
            Err(unreadable) => return Err(Box::new((disk, unreadable.into()))),
        };
        cx.ledger.woke(id, &restored);
        let snapshot_index = restored.applied;
        let config = NodeConfig {
            max_message_bytes: 16 << 10,
            max_inflight: 8,
            ..NodeConfig::new(id, cx.rng.next())
        };
        let node = match Node::new(&config, restored) {
            Ok(node) => node,
            Err(error) => return Err(Box::new((disk, Stop::Broken(error.to_string())))),
        };
        let boot = cx.number();
        let first = cx.rng.between(1, TICK_MS);
        cx.after(first, Event::Node(id, boot, Input::Tick));
        Ok(Coordinator {
            id,
            boot,
            disk,
            leadership: node.leadership(),
            node,
            state,
            leader: None,
            sessions: Sessions::new(),
            blobs: BlobNet::new(cx.now),
            watches: Watches::default(),
            waiters: Waiters::new(boot, MOST_WAITERS),
            reads: Reads::new(boot, MOST_READS),
            skew_ms: 0,
            clocks: Clocks::default(),
            paused: false,
            speaks,
            armed: None,
            minted: 0,
            writing: None,
            inbox: VecDeque::new(),
            queued_messages: 0,
            snapshot_index,
            snapshot_every: cx.rng.between(20, 200),
            saving: None,
            save_after: 0,
        })
    }

    pub(super) fn addr(&self) -> Addr {
        Addr::Node(self.id)
    }

    pub(super) fn unix_ms(&self, cx: &Cx) -> i64 {
        cx.unix_ms() + self.skew_ms
    }

    /// Dies here, if it was to.
    pub(super) fn reach(&mut self, moment: Moment) -> Result<(), Stop> {
        if self.armed == Some(moment) {
            return Err(Stop::Killed(moment));
        }
        Ok(())
    }

    /// Something happens; while the process stands still or writes, it waits.
    pub(super) fn take(&mut self, input: Input, cx: &mut Cx) -> Result<(), Stop> {
        let synced = matches!(input, Input::Synced);
        if self.paused || (self.writing.is_some() && !synced) {
            self.queue(input, cx);
            return Ok(());
        }
        self.handle(input, cx)?;
        self.catch_up(cx)
    }

    /// Takes in what must wait, as far as there is room.
    fn queue(&mut self, input: Input, cx: &mut Cx) {
        let others = self.inbox.len() - self.queued_messages;
        match &input {
            // The end of a write goes before everything.
            Input::Synced => return self.inbox.push_front(input),
            // Ticks that were missed are one.
            Input::Tick if self.inbox.iter().any(|i| matches!(i, Input::Tick)) => return,
            Input::Wire(_, Wire::Raft(..)) => {
                if self.queued_messages >= cx.room_to_wait {
                    return cx.fault("message dropped, queue full");
                }
                self.queued_messages += 1;
            }
            Input::Wire(from, wire) if others >= cx.room_to_wait => {
                cx.fault("request refused, queue full");
                if let Some(session) = wire.session() {
                    cx.cut(session, *from, self.addr());
                }
                return;
            }
            _ => {}
        }
        self.inbox.push_back(input);
    }

    /// What it holds, and the most it may.
    pub(super) fn held(&self, room_to_wait: usize) -> Held {
        let others = self.inbox.len() - self.queued_messages;
        let queue = room_to_wait as u64;
        Held::default()
            .with("raft messages waiting", self.queued_messages as u64, queue)
            // Ends of writes and of sessions, the timer and the operator come in besides.
            .with("inputs waiting", others as u64, queue + 32)
            .with(
                "proposals waiting",
                self.waiters.len() as u64,
                MOST_WAITERS as u64,
            )
            // The leader's own questions come in besides.
            .with(
                "reads waiting",
                self.reads.len() as u64,
                MOST_READS as u64 + 8,
            )
            .with("payloads under way", self.blobs.under_way() as u64, 512)
            .with("streams of watchers", self.watches.held().0 as u64, 256)
            .with("jobs whose text is kept", self.watches.held().1 as u64, 64)
    }

    /// Nothing waits in it, and nobody is spoken to but workers.
    pub(super) fn is_quiet(&self) -> bool {
        self.inbox.is_empty()
            && self.waiters.is_empty()
            && self.reads.is_empty()
            && self.blobs.under_way() == 0
            && self.watches.held() == (0, 0)
    }

    /// Goes through what waited, as far as it can.
    pub(super) fn catch_up(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        while !self.paused {
            let blocked = self.writing.is_some();
            let front = matches!(self.inbox.front(), Some(Input::Synced));
            if blocked && !front {
                break;
            }
            let Some(input) = self.inbox.pop_front() else {
                break;
            };
            if matches!(input, Input::Wire(_, Wire::Raft(..))) {
                self.queued_messages -= 1;
            }
            self.handle(input, cx)?;
        }
        Ok(())
    }

    fn handle(&mut self, input: Input, cx: &mut Cx) -> Result<(), Stop> {
        self.look_at_clock(cx);
        match input {
            Input::Tick => self.tick(cx),
            Input::Wire(from, wire) => self.receive(from, wire, cx)?,
            Input::Lost(session) => {
                self.lost_session(session);
                self.end_watch(session, cx);
            }
            Input::Stored(id) => self.blob_stored(id, cx),
            Input::Synced => {
                if std::mem::take(&mut self.disk.fails) {
                    return Err(Stop::Fsync);
                }
                self.disk.sync();
                self.reach(Moment::Synced)?;
                if let Some((written, snapshot)) = self.writing.take() {
                    self.finish(written, snapshot, cx)?;
                }
            }
            Input::Saved => self.saved(cx)?,
            Input::Change(kind, node_id) => {
                let _ = self.node.propose_conf_change(Vec::new(), kind, node_id);
            }
            Input::Transfer(to) => self.node.transfer(to),
            Input::Raise(log_version) => {
                let raise = SetLogVersion { log_version };
                self.propose(Body::SetLogVersion(raise), Waiter::Nobody, 5_000, cx);
            }
        }
        self.settle(cx)
    }

    fn receive(&mut self, from: Addr, wire: Wire, cx: &mut Cx) -> Result<(), Stop> {
        match wire {
            Wire::Raft(message, bytes) => {
                if message.get_msg_type() == MessageType::MsgSnapshot {
                    let data = message.get_snapshot().get_data();
                    let manifest =
                        snapshot::manifest_up_to(data, self.speaks).map_err(Unreadable::from)?;
                    let Some(bytes) = bytes else { return Ok(()) };
                    if manifest.index > self.snapshot_index {
                        if self.disk.put(manifest, bytes).is_err() {
                            // It is sent again.
                            cx.fault("no room for a received snapshot");
                            return Ok(());
                        }
                        self.reach(Moment::Received)?;
                    } else if self.disk.get(&manifest).is_none() {
                        return Ok(());
                    }
                }
                // A peer's mistake is no reason to go.
                let stepped = self.node.step(*message);
                if let Err(lost @ (NodeError::LogLost { .. } | NodeError::Diverged { .. })) =
                    stepped
                {
                    panic!("the disk model loses nothing that was synced: {lost}");
                }
            }
            Wire::Hello(id, hello) => self.hello(id, from, *hello, cx),
            Wire::Up(id, message) => self.hear(id, *message, cx),
            Wire::Close(id) => {
                self.lost_session(id);
                self.end_watch(id, cx);
            }
            Wire::Watch(stream, job_id, cursor) => self.watch(stream, from, job_id, &cursor, cx),
            Wire::Read(stream) => self.watch_read(stream, cx),
            wire @ (Wire::Update(stream, _) | Wire::NoJob(stream)) => {
                self.passed_on(stream, wire, cx);
            }
            Wire::PutBlob(..) | Wire::HasBlob(_) | Wire::GetBlob(_) | Wire::Blob(..) => {
                if let Addr::Node(peer) = from {
                    self.hear_of_blob(peer, wire, cx);
                }
            }
            Wire::AskClock(question) => {
                let clock = Wire::Clock(question, self.unix_ms(cx));
                cx.send(self.addr(), from, clock);
            }
            Wire::Clock(question, unix_ms) => {
                if let Addr::Node(peer) = from {
                    self.clock_told(peer, question, unix_ms, cx);
                }
            }
            Wire::Call(number, ask) => self.asked(from, number, *ask, cx),
            Wire::Down(..) | Wire::Told(..) => {}
        }
        Ok(())
    }

    fn tick(&mut self, cx: &mut Cx) {
        self.node.tick();
        for waiter in self.waiters.expired(cx.now) {
            self.fail(waiter, Told::Unknown, cx);
        }
        for wanted in self.reads.expired(cx.now) {
            self.refuse(wanted, cx);
        }
        self.lead_tick(cx);
        self.tick_blobs(cx);
    }

    /// Proposes a command; whoever waits is told at once if it is not taken.
    pub(super) fn propose(&mut self, body: Body, waiter: Waiter, wait_ms: u64, cx: &mut Cx) {
        let command = self.spoken(body);
        let voters = || self.node.conf_state().voters;
        cx.ledger.proposes(self.id, voters, &command);
        let context = match self.waiters.add(waiter, cx.now, cx.now + wait_ms) {
            Ok(context) => context,
            Err(waiter) => return self.fail(waiter, Told::Busy, cx),
        };
        let taken = codec::may_propose(&command, self.state.log_version())
            && codec::needs(&command) <= self.speaks
            && self
                .node
                .propose(context.clone(), codec::encode(&command))
                .is_ok();
        if !taken && let Some((waiter, _)) = self.waiters.take(&context) {
            self.fail(waiter, Told::Busy, cx);
        }
    }

    /// A command as this program writes it: in the pretended next version `Tick` means more.
    fn spoken(&self, body: Body) -> Command {
        let mut command = codec::command(body);
        let may = self.speaks.min(self.state.log_version());
        if matches!(command.command, Some(Body::Tick(_))) && may >= NEXT_VERSION {
            command.log_version = NEXT_VERSION;
        }
        command
    }

    fn fail(&mut self, waiter: Waiter, told: Told, cx: &mut Cx) {
        match waiter {
            Waiter::Call(from, number) => {
                if matches!(told, Told::Unknown) {
                    cx.coverage.hit("deeds", "an outcome unknown");
                }
                cx.send(self.addr(), from, Wire::Told(number, Box::new(told)));
            }
            Waiter::Nobody => {}
            Waiter::Leader(term, purpose) => {
                if let Some(leader) = self.leader_of(term) {
                    leader.failed(purpose);
                }
            }
        }
    }

    /// Carries out everything that follows from what was taken in.
    pub(super) fn settle(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        if self.writing.is_some() {
            return Ok(());
        }
        loop {
            let mut moved = false;
            while let Some(output) = self.node.ready() {
                moved = true;
                if !self.carry(output, cx)? {
                    return Ok(());
                }
            }
            moved |= self.serve_reads(cx);
            if let Some(context) = self.reads.ask(cx.now, cx.now + ELECTION_MS) {
                self.node.read_index(context);
                moved = true;
            }
            if !self.lead_on(cx) && !moved {
                break;
            }
        }
        self.save_when_due(cx);
        self.drop_dead_blobs_when_due(cx);
        Ok(())
    }

    /// The process is gone.
    pub(super) fn die(mut self, cx: &mut Cx) -> Disk {
        let waiting = self.inbox.iter().filter_map(|input| match input {
            Input::Wire(from, wire) => Some((wire.session()?, *from)),
            _ => None,
        });
        for (session, peer) in self.sessions.iter().map(|(s, p)| (*s, *p)).chain(waiting) {
            cx.cut(session, Addr::Node(self.id), peer);
        }
        for (stream, peer) in self.watches.streams().collect::<Vec<_>>() {
            cx.cut(stream, Addr::Node(self.id), peer);
        }
        for (stream, node) in self.watches.upstreams().collect::<Vec<_>>() {
            cx.cut(stream, Addr::Node(self.id), Addr::Node(node));
        }
        self.lose_blobs(cx);
        let damage = self.disk.crash(&mut cx.rng);
        cx.damage(damage);
        self.disk
    }
}

/// Running coordinators by id.
pub(super) type Book = BTreeMap<u64, Coordinator>;
