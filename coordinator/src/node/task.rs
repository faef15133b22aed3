//! The node's loop: one owner of raft, state and sessions, on a thread of its
//! own so that an fsync holds up nothing else.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use conclave_coordinator_core::{
    State, codec,
    lead::Leader,
    node::{Leadership, Node, NodeConfig, NodeError as CoreError, Role},
    quota::Quotas,
};
use raft::eraftpb::Message as RaftMessage;
use tokio::{sync::mpsc, sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    Handle, Input, NodeError, NodeStatus, Read,
    storage::{Fatal, Storage},
    waiters::{MOST_READS, MOST_WAITERS, Reads, Waiter, Waiters, Wanted},
    watchdog::Pulse,
};
use crate::{
    config::Config,
    disk::{self, identity::Identity},
    dispatch::Sessions,
    feed::Feeds,
    metrics,
    traces::JobTraces,
    transport::{Network, blobs::BlobNet, lanes::Lanes},
};

/// Inputs taken in one turn before raft is asked what to do: they share an fsync.
const TURN: usize = 256;

/// Everything the loop owns.
pub struct Task {
    pub(super) config: Config,
    pub(super) address: String,
    pub(super) storage: Storage,
    pub(super) raft_config: NodeConfig,
    pub(super) node: Node,
    pub(super) state: State,
    pub(super) waiters: Waiters,
    pub(super) reads: Reads,
    pub(super) sessions: Sessions,
    pub(super) feeds: Arc<Feeds>,
    pub(super) blobs: BlobNet,
    pub(super) network: Network,
    pub(super) lanes: Option<Lanes>,
    pub(super) leader: Option<Leader>,
    /// What tenants may have.
    pub(super) quotas: Quotas,
    /// The file says something else, and cannot be used: why.
    pub(super) quotas_refused: Option<String>,
    pub(super) leadership: Leadership,
    pub(super) handle: Handle,
    pub(super) status: watch::Sender<NodeStatus>,
    pub(super) pulse: Pulse,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) stop: CancellationToken,
    pub(super) saving: bool,
    /// Payloads that nothing names are to be removed.
    pub(super) sweep_due: bool,
    /// A snapshot failed: the next is tried then.
    pub(super) save_after: Option<Instant>,
    /// What the monotonic clock counts from.
    pub(super) started: Instant,
    /// When workers and jobs were last counted.
    pub(super) counted_at: Instant,
    /// What was committed here when a leader said that this node is no member any more.
    pub(super) removed: Option<u64>,
    pub(super) lost: super::lost::Lost,
    /// It is being shut down.
    pub(super) leaving: bool,
    /// The node's id, as metrics name it.
    pub(super) label: metrics::Label,
    /// `None`: nothing is traced.
    pub(super) traces: Option<JobTraces>,
    /// Derived from the state's seed, which never changes once it is there.
    pub(super) public_key: Vec<u8>,
    /// Last, so that the folder's lock goes when all else is closed.
    pub(super) identity: Identity,
}

/// What the loop is made of, besides the folder.
pub struct Parts {
    /// Settings.
    pub config: Config,
    /// Where this node listens, as others dial it.
    pub address: String,
    /// The folder's identity.
    pub identity: Identity,
    /// Log and snapshots, the raft node and the state that were read from them.
    pub storage: (Storage, Node, State),
    /// Settings of the raft node.
    pub raft_config: NodeConfig,
    /// What tenants may have.
    pub quotas: Quotas,
    /// Tells this start of the process from others.
    pub boot: u64,
    /// Watchers' feeds.
    pub feeds: Arc<Feeds>,
    /// Payloads.
    pub blobs: BlobNet,
    /// Channels and addresses.
    pub network: Network,
    /// The way to the loop itself.
    pub handle: Handle,
    /// What it says of jobs, if anybody wants it.
    pub traces: Option<JobTraces>,
    /// Where it says what it is.
    pub status: watch::Sender<NodeStatus>,
    /// Where it says that it moves.
    pub pulse: Pulse,
    /// Where its helpers run.
    pub runtime: tokio::runtime::Handle,
    /// Ends the loop.
    pub stop: CancellationToken,
}

/// What a turn begins with.
enum Woken {
    Message(RaftMessage),
    Input(Input),
    Clock,
}

/// A thread that ends by a panic (a log that cannot be written ends it so) says
/// that it is gone, too.
impl Drop for Task {
    fn drop(&mut self) {
        if self.status.borrow().stopped.is_none() {
            self.stopped("its thread ended");
        }
    }
}

impl Task {
    /// The loop, ready to run.
    pub fn new(parts: Parts) -> Self {
        let (storage, node, state) = parts.storage;
        let label = metrics::label(parts.identity.node_id());
        let mut task = Self {
            leadership: node.leadership(),
            config: parts.config,
            address: parts.address,
            identity: parts.identity,
            storage,
            raft_config: parts.raft_config,
            node,
            state,
            waiters: Waiters::new(parts.boot, MOST_WAITERS),
            reads: Reads::new(parts.boot, MOST_READS),
            sessions: Sessions::default(),
            feeds: parts.feeds,
            blobs: parts.blobs,
            network: parts.network,
            lanes: None,
            leader: None,
            quotas: parts.quotas,
            quotas_refused: None,
            handle: parts.handle,
            status: parts.status,
            pulse: parts.pulse,
            runtime: parts.runtime,
            stop: parts.stop,
            saving: false,
            sweep_due: false,
            save_after: None,
            started: Instant::now(),
            counted_at: Instant::now(),
            removed: None,
            lost: super::lost::Lost::default(),
            leaving: false,
            label,
            traces: parts.traces,
            public_key: Vec::new(),
        };
        task.begin_tenants();
        task.learn_members();
        task.open_lanes();
        task.fetch_missing();
        task
    }

    /// Runs until stopped or until the disk fails; says why in the status.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut messages: mpsc::Receiver<RaftMessage>,
    ) {
        let stop = self.stop.clone();
        let result = tokio::select! {
            result = self.turns(&mut inputs, &mut messages) => result,
            () = stop.cancelled() => Ok(()),
        };
        let why = match result {
            Ok(()) => "it was told to".to_owned(),
            Err(error) => {
                tracing::error!(%error, "the node stops");
                error.to_string()
            }
        };
        self.dismiss_workers();
        self.stopped(&why);
    }

    fn stopped(&self, why: &str) {
        self.status.send_modify(|s| {
            s.stopped = Some(why.to_owned());
            s.serving = false;
        });
        self.feeds.close();
    }

    async fn turns(
        &mut self,
        inputs: &mut mpsc::Receiver<Input>,
        messages: &mut mpsc::Receiver<RaftMessage>,
    ) -> Result<(), Fatal> {
        let mut clock = tokio::time::interval(self.config.tick());
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.settle()?;
        loop {
            let woken = tokio::select! {
                Some(message) = messages.recv() => Woken::Message(message),
                Some(input) = inputs.recv() => Woken::Input(input),
                _ = clock.tick() => Woken::Clock,
            };
            // Before anything is done with what came: it may have come to a
            // process that stood still while another was elected.
            self.look_at_clock();
            match woken {
                Woken::Message(message) => self.step(message)?,
                Woken::Input(input) => self.take(input)?,
                Woken::Clock => self.tick()?,
            }
            for _ in 0..TURN {
                if let Ok(message) = messages.try_recv() {
                    self.step(message)?;
                } else if let Ok(input) = inputs.try_recv() {
                    self.take(input)?;
                } else {
                    break;
                }
            }
            self.settle()?;
        }
    }

    /// Carries out everything that follows from what was taken in.
    fn settle(&mut self) -> Result<(), Fatal> {
        loop {
            let moved = self.carry_out()?;
            // Answers that this turn took in come first: with them there may be
            // nothing left to ask.
            let asked = self.ask_reads();
            let proposed = self.lead_on();
            if !moved && !asked && !proposed {
                break;
            }
        }
        self.save_when_due();
        self.drop_dead_blobs_when_due();
        self.publish();
        Ok(())
    }

    fn step(&mut self, message: RaftMessage) -> Result<(), Fatal> {
        if self.identity.cluster_id().is_none() {
            return Ok(());
        }
        let from = message.from;
        match self.node.step(message) {
            Ok(()) => {}
            Err(error @ (CoreError::LogLost { .. } | CoreError::Diverged { .. })) => {
                // Its votes may be forgotten, too: not even a restart may use them.
                let fatal = Fatal::Raft(error);
                if let Err(error) = disk::condemn(&self.config.data_dir, &fatal.to_string()) {
                    tracing::error!(%error, "the folder could not be marked: do not start it again");
                }
                return Err(fatal);
            }
            // A peer's mistake is no reason to go.
            Err(error) => {
                tracing::warn!(from = format!("{from:016x}"), %error, "a raft message was refused");
            }
        }
        Ok(())
    }

    fn take(&mut self, input: Input) -> Result<(), Fatal> {
        match input {
            Input::Propose(proposal) => self.take_proposal(proposal),
            Input::Admit { tenant, done } => {
                let _ = done.send(self.admit(&tenant));
            }
            Input::Quotas(quotas) => self.set_quotas(quotas),
            Input::Read(read) => self.read(read),
            Input::Session(input) => self.session(input),
            Input::Init { cluster_id, done } => {
                let result = self.init(&cluster_id)?;
                self.publish();
                let _ = done.send(result);
            }
            Input::Bind { cluster_id, done } => {
                let result = self.bind(&cluster_id);
                // Whoever waits reads the status next.
                self.publish();
                let _ = done.send(result);
            }
            Input::Change {
                node_id,
                change,
                checked,
                deadline,
                done,
            } => {
                let voters = || self.node.conf_state().voters.into_iter().collect();
                if checked.is_some_and(|checked| checked != voters()) {
                    // Another change came between: it is to be checked anew.
                    let _ = done.send(Err(NodeError::Busy));
                } else {
                    self.change(node_id, change, deadline, done);
                }
            }
            Input::Transfer {
                node_id,
                force,
                done,
            } => {
                let _ = done.send(self.transfer(node_id, force));
            }
            Input::Progress(reply) => {
                let _ = reply.send(self.progress());
            }
            Input::BlobArrived => {
                if let Some(leader) = &mut self.leader {
                    leader.blob_arrived(&self.state);
                }
            }
            Input::ContextStored {
                term,
                job_id,
                decide,
            } => {
                if let Some(leader) = self.leader_of(term) {
                    leader.context_stored(job_id, decide);
                }
            }
            Input::Clocks { term, reached_ms } => self.clocks(term, reached_ms),
            Input::Unreachable(node_id) => self.node.report_unreachable(node_id),
            Input::Gone(node_id) => self.node.report_gone(node_id),
            Input::Removed => self.removed = Some(self.node.commit_index()),
            Input::Leaving => self.leaving = true,
            Input::SnapshotSaved(saved) => self.snapshot_saved(saved)?,
        }
        Ok(())
    }

    fn read(&mut self, read: Read) {
        if self.identity.cluster_id().is_none() {
            (read.run)(Err(NodeError::Blank));
        } else if read.linear {
            let deadline = read.deadline;
            if let Err(refused) = self.reads.add(Wanted::Caller(read), deadline) {
                refuse(refused, NodeError::Busy);
            }
        } else {
            (read.run)(Ok(&self.state));
        }
    }

    /// Asks for a read point if reads wait for one; true if raft was asked.
    fn ask_reads(&mut self) -> bool {
        let now = Instant::now();
        let context = self.reads.ask(now, now + self.config.election());
        let asked = context.is_some();
        if let Some(context) = context {
            self.node.read_index(context);
        }
        asked
    }

    /// Proposes a command; whoever waits is told at once if it is not taken.
    pub(super) fn propose(
        &mut self,
        body: conclave_proto::v1::command::Command,
        waiter: Waiter,
        deadline: Instant,
    ) {
        let command = codec::command(body);
        let context = match self.waiters.add(waiter, Instant::now(), deadline) {
            Ok(context) => context,
            Err(waiter) => {
                metrics::proposals_failed(1);
                return self.fail(waiter, NodeError::Busy);
            }
        };
        let taken = codec::may_propose(&command, self.state.log_version())
            && self
                .node
                .propose(context.clone(), codec::encode(&command))
                .is_ok();
        if command.log_version > self.state.log_version()
            && let Some((waiter, _)) = self.waiters.take(&context)
        {
            metrics::proposals_failed(1);
            let why = format!(
                "this needs log version {}, the cluster uses {}: `conclave cluster upgrade` once \
                 every member runs the newer program",
                command.log_version,
                self.state.log_version()
            );
            return self.fail(waiter, NodeError::Refused(why));
        }
        if !taken && let Some((waiter, _)) = self.waiters.take(&context) {
            metrics::proposals_failed(1);
            let error = if self.identity.cluster_id().is_none() {
                NodeError::Blank
            } else if self.node.leadership().role == Role::Leader && !self.node.hands_over() {
                // Too much is proposed and not yet committed.
                NodeError::Busy
            } else {
                NodeError::NotLeader
            };
            self.fail(waiter, error);
        }
    }

    /// Tells a waiter that its entry was not applied (yet).
    pub(super) fn fail(&mut self, waiter: Waiter, error: NodeError) {
        match waiter {
            Waiter::Call(reply) => {
                let _ = reply.send(Err(error));
            }
            Waiter::Change(done) => {
                let _ = done.send(Err(error));
            }
            Waiter::Leader { term, purpose } => {
                if let Some(leader) = self.leader_of(term) {
                    leader.failed(purpose);
                }
            }
            Waiter::Nobody => {}
        }
    }

    /// Was this process standing still? Then the leader says nothing until it
    /// is confirmed (law 5). The clock's ticks bound the time between two looks
    /// otherwise.
    pub(super) fn look_at_clock(&mut self) {
        let now_ms = self.now_ms();
        let Some(leader) = &mut self.leader else {
            return;
        };
        if let Some(gap_ms) = leader.look_at_clock(now_ms) {
            tracing::warn!(gap_ms, "the clock stood still: confirming leadership");
        }
    }

    fn tick(&mut self) -> Result<(), Fatal> {
        let now = Instant::now();
        if self.identity.cluster_id().is_some() {
            self.node.tick();
        }
        let lost = self.waiters.expired(now);
        if !lost.is_empty() {
            metrics::proposals_failed(lost.len());
        }
        for waiter in lost {
            self.fail(waiter, NodeError::Unknown);
        }
        for wanted in self.reads.expired(now) {
            refuse(wanted, NodeError::NoQuorum(self.missing()));
        }
        self.lead_tick(now);
        self.gauges();
        self.storage.settle()
    }
}

/// Tells a caller that there is no read point for it; the leader's own question
/// stands.
fn refuse(wanted: Wanted, error: NodeError) {
    if let Wanted::Caller(read) = wanted {
        (read.run)(Err(error));
    }
}

/// The wall clock, Unix milliseconds.
pub fn unix_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
