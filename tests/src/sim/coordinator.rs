//! A coordinator: the node and state of the core, and a shell that carries out what they say in the
//! documented order. Writes take time: what comes meanwhile waits.

use std::collections::{BTreeMap, VecDeque};

use conclave_coordinator_core::{
    State, codec,
    node::{Leadership, Node, NodeConfig, NodeError, Output},
    snapshot,
};
use conclave_proto::v1::command::Command as Body;
use raft::eraftpb::{ConfState, MessageType};

use super::{
    cx::{Addr, Ask, Cx, Event, Input, Told, Wire},
    disk::Disk,
    leader::Lead,
    sessions::Sessions,
    waiters::{Reads, Waiter, Waiters, Wanted},
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
    pub lead: Option<Lead>,
    pub leadership: Leadership,
    pub sessions: Sessions,
    pub(super) waiters: Waiters,
    pub(super) reads: Reads,
    /// This clock minus an honest one, ms.
    pub skew_ms: i64,
    pub paused: bool,
    pub(super) minted: u64,
    pub(super) writing: Option<Output>,
    pub(super) inbox: VecDeque<Input>,
    pub(super) awake: u64,
    pub(super) snapshot_index: u64,
    pub(super) snapshot_every: u64,
    pub(super) saving: Option<(conclave_proto::v1::SnapshotManifest, Vec<u8>, ConfState)>,
}

/// The process ends: its disk failed, or what it reads makes no sense.
#[derive(Debug)]
pub(super) enum Stop {
    Fsync,
    Broken(String),
}

impl Coordinator {
    /// Starts on what the disk holds.
    pub(super) fn boot(id: u64, disk: Disk, cx: &mut Cx) -> Result<Coordinator, String> {
        let (restored, state) = disk.open()?;
        let snapshot_index = restored.applied;
        let config = NodeConfig {
            max_message_bytes: 16 << 10,
            max_inflight: 8,
            ..NodeConfig::new(id, cx.rng.next())
        };
        let node = Node::new(&config, restored).map_err(|error| error.to_string())?;
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
            lead: None,
            sessions: Sessions::default(),
            waiters: Waiters::new(boot),
            reads: Reads::new(boot),
            skew_ms: 0,
            paused: false,
            minted: 0,
            writing: None,
            inbox: VecDeque::new(),
            awake: cx.now,
            snapshot_index,
            snapshot_every: cx.rng.between(20, 200),
            saving: None,
        })
    }

    pub(super) fn addr(&self) -> Addr {
        Addr::Node(self.id)
    }

    pub(super) fn unix_ms(&self, cx: &Cx) -> i64 {
        cx.unix_ms() + self.skew_ms
    }

    /// Something happens; while the process stands still or writes, it waits.
    pub(super) fn take(&mut self, input: Input, cx: &mut Cx) -> Result<(), Stop> {
        let synced = matches!(input, Input::Synced);
        if self.paused || (self.writing.is_some() && !synced) {
            let ticks = matches!(input, Input::Tick);
            if !(ticks && self.inbox.iter().any(|i| matches!(i, Input::Tick))) {
                if synced {
                    self.inbox.push_front(input);
                } else {
                    self.inbox.push_back(input);
                }
            }
            return Ok(());
        }
        self.handle(input, cx)?;
        self.catch_up(cx)
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
            self.handle(input, cx)?;
        }
        Ok(())
    }

    fn handle(&mut self, input: Input, cx: &mut Cx) -> Result<(), Stop> {
        self.look_at_clock(cx);
        match input {
            Input::Tick => self.tick(cx),
            Input::Wire(from, wire) => self.receive(from, wire, cx)?,
            Input::Lost(session) => self.sessions.close(session),
            Input::Synced => {
                if std::mem::take(&mut self.disk.fails) {
                    return Err(Stop::Fsync);
                }
                self.disk.sync();
                if let Some(output) = self.writing.take() {
                    self.finish(output, cx)?;
                }
            }
            Input::Saved => self.saved(),
            Input::Change(kind, node_id) => {
                let _ = self.node.propose_conf_change(Vec::new(), kind, node_id);
            }
            Input::Transfer(to) => self.node.transfer(to),
        }
        self.settle(cx)
    }

    fn receive(&mut self, from: Addr, wire: Wire, cx: &mut Cx) -> Result<(), Stop> {
        match wire {
            Wire::Raft(message, bytes) => {
                if message.get_msg_type() == MessageType::MsgSnapshot {
                    let data = message.get_snapshot().get_data();
                    let manifest =
                        snapshot::manifest(data).map_err(|e| Stop::Broken(e.to_string()))?;
                    let Some(bytes) = bytes else { return Ok(()) };
                    if manifest.index > self.snapshot_index {
                        self.disk.put(manifest, bytes);
                    } else if self.disk.get(&manifest).is_none() {
                        return Ok(());
                    }
                }
                // A peer's mistake is no reason to go.
                if let Err(lost @ NodeError::LogLost { .. }) = self.node.step(*message) {
                    panic!("the disk model loses nothing that was synced: {lost}");
                }
            }
            Wire::Hello(id, hello) => self.hello(id, from, *hello, cx),
            Wire::Up(id, message) => self.hear(id, *message, cx),
            Wire::Close(id) => self.sessions.close(id),
            Wire::Call(number, ask) => self.asked(from, number, *ask, cx),
            Wire::Down(..) | Wire::Told(..) => {}
        }
        Ok(())
    }

    fn asked(&mut self, from: Addr, number: u64, ask: Ask, cx: &mut Cx) {
        let serving = self.lead.as_ref().is_some_and(|l| l.serving);
        if !serving {
            let hint = Told::NotLeader(self.leadership.leader_id);
            return cx.send(self.addr(), from, Wire::Told(number, Box::new(hint)));
        }
        let waiter = Waiter::Call(from, number);
        match ask {
            Ask::Propose(body) => {
                let body = self.stamped(body, cx);
                self.propose(body, waiter, 5_000, cx);
            }
            Ask::Get(job_id) => self.reads.add(Wanted::Job(from, number, job_id)),
        }
    }

    /// What the API adds to a caller's words: ids and times.
    fn stamped(&mut self, body: Body, cx: &Cx) -> Body {
        let now = self.unix_ms(cx);
        match body {
            Body::SubmitJob(mut c) => {
                self.minted += 1;
                c.job_id = format!("{:08x}-{}-{}", cx.now, self.id, self.minted);
                c.unix_ms = now;
                if c.deadline_unix_ms > 0 {
                    c.deadline_unix_ms += now;
                }
                Body::SubmitJob(c)
            }
            Body::CancelJob(c) => {
                Body::CancelJob(conclave_proto::v1::CancelJobCommand { unix_ms: now, ..c })
            }
            other => other,
        }
    }

    fn tick(&mut self, cx: &mut Cx) {
        self.node.tick();
        for waiter in self.waiters.expired(cx.now) {
            self.fail(waiter, Told::Unknown, cx);
        }
        self.lead_tick(cx);
    }

    /// Was this process standing still? Then a leader says nothing until it is confirmed (law 5).
    fn look_at_clock(&mut self, cx: &mut Cx) {
        let gap = cx.now - std::mem::replace(&mut self.awake, cx.now);
        if gap > ELECTION_MS
            && let Some(lead) = &mut self.lead
        {
            cx.coverage
                .hit("deeds", "a leader that stood still asks first");
            lead.paused = true;
            self.reads.add(Wanted::Resume);
        }
    }

    /// Proposes a command; whoever waits is told at once if it is not taken.
    pub(super) fn propose(&mut self, body: Body, waiter: Waiter, wait_ms: u64, cx: &mut Cx) {
        let command = codec::command(body);
        let context = self.waiters.add(waiter, cx.now + wait_ms);
        let taken = command.log_version <= self.state.log_version()
            && self
                .node
                .propose(context.clone(), codec::encode(&command))
                .is_ok();
        if !taken && let Some(waiter) = self.waiters.take(&context) {
            self.fail(waiter, Told::Busy, cx);
        }
    }

    fn fail(&mut self, waiter: Waiter, told: Told, cx: &mut Cx) {
        match waiter {
            Waiter::Call(from, number) => {
                if matches!(told, Told::Unknown) {
                    cx.coverage.hit("deeds", "an outcome unknown");
                }
                cx.send(self.addr(), from, Wire::Told(number, Box::new(told)));
            }
            Waiter::Decide(term, job_id) => {
                if let Some(lead) = self.lead_of(term) {
                    lead.decision_failed(job_id);
                }
            }
            Waiter::Place(term) => {
                if let Some(lead) = self.lead_of(term) {
                    lead.placement_failed();
                }
            }
            Waiter::Hello(session) => self.close_session(session, cx),
            Waiter::Result(..) | Waiter::Nobody => {}
        }
    }

    pub(super) fn lead_of(&mut self, term: u64) -> Option<&mut Lead> {
        self.lead.as_mut().filter(|lead| lead.term == term)
    }

    /// Carries out everything that follows from what was taken in.
    pub(super) fn settle(&mut self, cx: &mut Cx) -> Result<(), Stop> {
        if self.writing.is_some() {
            return Ok(());
        }
        loop {
            if let Some(context) = self.reads.ask(cx.now) {
                self.node.read_index(context);
            }
            let mut moved = false;
            while let Some(output) = self.node.ready() {
                moved = true;
                if !self.carry(output, cx)? {
                    return Ok(());
                }
            }
            moved |= self.serve_reads(cx);
            if !self.lead_on(cx) && !moved {
                break;
            }
        }
        self.save_when_due(cx);
        Ok(())
    }

    fn serve_reads(&mut self, cx: &mut Cx) -> bool {
        let mut moved = false;
        for wanted in self.reads.ready(self.state.applied_index()) {
            match wanted {
                Wanted::Job(from, number, job_id) => {
                    let job = self.state.job(&job_id).map(|j| (j.state, j.events.len()));
                    cx.send(
                        self.addr(),
                        from,
                        Wire::Told(number, Box::new(Told::Job(job))),
                    );
                }
                Wanted::Resume => {
                    if let Some(lead) = &mut self.lead {
                        lead.paused = false;
                        moved = true;
                    }
                }
            }
        }
        moved
    }

    /// The process is gone.
    pub(super) fn die(mut self, cx: &mut Cx) -> Disk {
        let waiting = self.inbox.iter().filter_map(|input| match input {
            Input::Wire(from, wire) => Some((wire.session()?, *from)),
            _ => None,
        });
        for (session, peer) in self.sessions.all().into_iter().chain(waiting) {
            cx.cut(session, Addr::Node(self.id), peer);
        }
        let damage = self.disk.crash(&mut cx.rng);
        cx.damage(damage);
        self.disk
    }
}

/// Running coordinators by id.
pub(super) type Book = BTreeMap<u64, Coordinator>;
