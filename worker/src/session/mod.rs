//! A worker's conversation with whoever leads.
//!
//! One task owns everything: `next` waits for an input, `apply` changes the state, `pump` fills what room
//! the stream has. What is decided is decided in [`desk`]; what is dialed next, in [`members`].
//! Losing the session changes nothing for the attempts: they decode on, and the next `Hello` names them.

pub mod blocking;
pub mod desk;
mod inbound;
mod journal;
pub mod link;
pub mod members;
mod outbound;
pub mod progress;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use conclave_proto::v1::{AttemptError, CoordinatorMessage, Prepared};
use conclave_traces::Traces;
use conclave_worker_core::fence::Fence;
use conclave_worker_core::{Request, SeqId};
use tokio::sync::mpsc;
use tonic::Status;

use crate::backend::{Backend, drained, transient};
use crate::engine_thread::{Command, EngineHandle, Step};
use crate::metrics::SessionMetrics;
use blocking::Blocking;
use desk::{Desk, Ended};
use journal::Journal;
use link::{Dialer, Link, LinkError};
use members::Members;

/// Until the leader says otherwise.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// Of the time to drain, so much is left for results to be acknowledged.
const ACK_SHARE: f64 = 0.25;

/// A worker without an engine delivers what results it has within so long, and ends.
const LEAVE_WITHOUT_ENGINE: Duration = Duration::from_secs(10);

/// Blocking jobs at a time: two, so that one slow grammar does not hold up all.
const BLOCKING_AT_A_TIME: usize = 2;

/// Jobs that wait to be checked; beyond, the coordinator asks another worker.
const PREPARE_QUEUE: usize = 64;

/// What the host asks of the session.
pub enum Control {
    /// Take nothing new, finish what runs, leave; at the latest after so long.
    Drain {
        /// The bound.
        within: Duration,
    },
}

/// What the session shows to others.
#[derive(Debug, Default)]
pub struct SessionStatus {
    up: AtomicBool,
    draining: AtomicBool,
}

impl SessionStatus {
    /// Whether a leader has welcomed us and the link is alive.
    pub fn up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether new attempts are turned away: the worker is about to leave.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// What a session is made of.
pub struct SessionParts<B: Backend> {
    /// Stable name of the worker.
    pub worker_id: String,
    /// This start of it.
    pub incarnation: String,
    /// One for each model served.
    pub backends: Vec<Arc<B>>,
    /// The engine.
    pub engine: EngineHandle<B::Plan>,
    /// Addresses of coordinators; at least one.
    pub coordinators: Vec<String>,
    /// How links are made.
    pub dialer: Dialer,
    /// Sequences that run side by side.
    pub max_sequences: u32,
    /// Attempts and kept results together.
    pub capacity: usize,
    /// Where spans go; `None`: nothing is traced.
    pub traces: Option<Traces>,
    /// What others see.
    pub status: Arc<SessionStatus>,
    /// What the host asks.
    pub control: mpsc::Receiver<Control>,
}

type Dial = Pin<Box<dyn Future<Output = Result<Link, LinkError>> + Send>>;

enum LinkState {
    /// Not before then.
    Waiting(Instant),
    Dialing(Dial),
    /// Hello is said; until then the leader must welcome us.
    Greeting(Box<Link>, Instant),
    Up(Box<Link>),
}

/// Results of blocking work.
enum Worked<P> {
    Planned(SeqId, usize, Result<(Request, P), AttemptError>),
    Prepared(Prepared),
}

enum Input<P> {
    Tick,
    Room,
    Dialed(Result<Link, LinkError>),
    Inbound(Result<Option<CoordinatorMessage>, Status>),
    Engine(Option<Step>),
    Worked(Worked<P>, Duration),
    Control(Control),
}

struct Draining {
    /// Then what still runs is given back.
    cut: Instant,
    /// Then the session ends, whatever is left.
    leave: Instant,
}

/// The task's state. [`Session::run`] consumes it.
pub struct Session<B: Backend> {
    parts: SessionParts<B>,
    metrics: SessionMetrics,
    journal: Journal,
    desk: Desk,
    members: Members,
    blocking: Blocking<Worked<B::Plan>>,
    link: LinkState,
    fence: Fence,
    heartbeat_every: Duration,
    heartbeat_at: Instant,
    progress_at: Instant,
    draining: Option<Draining>,
    engine_gone: bool,
}

impl<B: Backend> Session<B> {
    /// A session that has not dialed yet.
    pub fn new(mut parts: SessionParts<B>) -> Self {
        let models: Vec<_> = parts
            .backends
            .iter()
            .map(|backend| backend.model())
            .collect();
        let metrics = SessionMetrics::new(&parts.worker_id);
        for model in &models {
            metrics.model(&model.name, &model.numeric_class);
        }
        let names = models.into_iter().map(|model| model.name).collect();
        let now = Instant::now();
        Self {
            desk: Desk::new(&parts.incarnation, names, parts.capacity),
            members: Members::new(&parts.coordinators, &parts.incarnation),
            blocking: Blocking::new(BLOCKING_AT_A_TIME, PREPARE_QUEUE + parts.capacity),
            link: LinkState::Waiting(now),
            fence: Fence::default(),
            heartbeat_every: HEARTBEAT_EVERY,
            heartbeat_at: now,
            progress_at: now,
            draining: None,
            engine_gone: false,
            journal: Journal::new(&parts.worker_id, parts.traces.take()),
            metrics,
            parts,
        }
    }

    /// Runs until it has drained, or until the host drops its end of the control channel.
    pub async fn run(mut self) {
        loop {
            let Some(input) = self.next().await else {
                break;
            };
            self.apply(input);
            let now = Instant::now();
            self.tick(now);
            self.pump(now);
            let (planning, kept) = (self.desk.planning(), self.desk.unacknowledged());
            self.metrics.standing(self.fence.term(), planning, kept);
            if self.has_left(now) {
                break;
            }
        }
        self.parts.status.up.store(false, Ordering::Relaxed);
        self.metrics.connected(false);
        self.stop_engine().await;
    }

    /// Ends the engine's thread and waits for it: at most for the step that it is in.
    async fn stop_engine(self) {
        let EngineHandle {
            commands,
            mut events,
            ..
        } = self.parts.engine;
        // Should the queue be full, the closed channel says the same, later.
        let _full = commands.try_send(Command::Stop);
        drop(commands);
        while events.recv().await.is_some() {}
    }

    /// Waits for the next input; `None`: the host is gone.
    async fn next(&mut self) -> Option<Input<B::Plan>> {
        let now = Instant::now();
        let deadline = self.deadline(now);
        let wants_room = now >= self.heartbeat_at
            || self.desk.has_message(now)
            || (self.desk.has_progress() && now >= self.progress_at);
        let parts = &mut self.parts;
        let link = next_of_link(&mut self.link, wants_room);
        tokio::select! {
            input = link => Some(input),
            events = parts.engine.events.recv(), if !self.engine_gone => Some(Input::Engine(events)),
            (worked, time) = self.blocking.next() => Some(Input::Worked(worked, time)),
            control = parts.control.recv() => control.map(Input::Control),
            () = sleep_until(deadline) => Some(Input::Tick),
        }
    }

    /// When something is due by the clock alone. What is due and waits for room on the stream is not.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let link = match &self.link {
            LinkState::Waiting(until) | LinkState::Greeting(_, until) => Some(*until),
            LinkState::Dialing(_) => None,
            LinkState::Up(_) => {
                let progress = self.desk.has_progress().then_some(self.progress_at);
                let due = [Some(self.heartbeat_at), progress, self.desk.next_due()];
                due.into_iter().flatten().filter(|at| *at > now).min()
            }
        };
        // Attempts decode on without a session, and end on time without one.
        let overdue = self.desk.next_deadline();
        let drain = self.draining.as_ref();
        let drain = drain.map(|drain| {
            if now < drain.cut {
                drain.cut
            } else {
                drain.leave
            }
        });
        [link, overdue, drain].into_iter().flatten().min()
    }

    fn apply(&mut self, input: Input<B::Plan>) {
        match input {
            Input::Tick | Input::Room => {}
            Input::Dialed(Ok(link)) => {
                let until = Instant::now() + self.parts.dialer.timeout;
                self.link = LinkState::Greeting(Box::new(link), until);
            }
            Input::Dialed(Err(error)) => {
                let reason = match error {
                    LinkError::Refused { .. } => "refused",
                    LinkError::Address { .. }
                    | LinkError::Unreachable { .. }
                    | LinkError::Timeout { .. } => "unreachable",
                };
                self.lose(reason);
                let failures = self.members.failures();
                if failures.is_power_of_two() && error.is_token() {
                    tracing::error!(%error, failures, "this worker is not let in: it shows a token of role `worker`, and a certificate where coordinators use TLS");
                } else if failures.is_power_of_two() {
                    tracing::warn!(%error, failures, "no session with a coordinator; trying on");
                }
            }
            Input::Inbound(Ok(Some(message))) => self.message(message),
            Input::Inbound(Ok(None)) => self.lose("closed"),
            Input::Inbound(Err(status)) => {
                tracing::info!(code = ?status.code(), message = status.message(), "the session broke");
                self.lose("broken");
            }
            Input::Engine(Some(step)) => {
                self.journal.stepped(&step);
                for event in step.events {
                    let ended = self.desk.engine(event);
                    self.tell(ended);
                }
            }
            Input::Engine(None) => self.lose_engine(),
            Input::Worked(worked, time) => {
                self.metrics.prepared(time);
                self.worked(worked);
            }
            Input::Control(Control::Drain { within }) => self.drain(within),
        }
    }

    /// What the clock alone brings about.
    fn tick(&mut self, now: Instant) {
        for action in self.desk.overdue(now) {
            self.act(action);
        }
        match &self.link {
            LinkState::Waiting(until) if now >= *until => self.dial(now),
            LinkState::Greeting(link, until) if now >= *until => {
                tracing::info!(address = link.address, "no welcome");
                self.lose("silent");
            }
            LinkState::Waiting(_)
            | LinkState::Greeting(..)
            | LinkState::Dialing(_)
            | LinkState::Up(_) => {}
        }
        if self
            .draining
            .as_ref()
            .is_some_and(|draining| now >= draining.cut)
        {
            for ended in self.desk.end_all(&drained()) {
                self.tell(Some(ended));
            }
        }
    }

    fn dial(&mut self, now: Instant) {
        let address = self.members.choose();
        let hello = self.hello(now);
        self.link = LinkState::Dialing(Box::pin(self.parts.dialer.clone().dial(address, hello)));
    }

    /// The session, or the try of one, is over; the next follows.
    fn lose(&mut self, reason: &'static str) {
        self.metrics.session_ended(reason);
        if matches!(self.link, LinkState::Up(_)) {
            tracing::info!(reason, "the session is over");
        }
        match &self.link {
            // Whom to dial next was said.
            _ if matches!(reason, "not_leader" | "another_cluster") => {}
            LinkState::Up(link) | LinkState::Greeting(link, _) => self.members.lost(&link.address),
            _ => self.members.failed(),
        }
        self.parts.status.up.store(false, Ordering::Relaxed);
        self.metrics.connected(false);
        self.link = LinkState::Waiting(Instant::now() + self.members.wait());
    }

    /// The engine's thread ended: everything is given back, and nothing new is taken.
    fn lose_engine(&mut self) {
        self.engine_gone = true;
        for ended in self.desk.end_all(&transient("the worker's engine is gone")) {
            self.tell(Some(ended));
        }
        self.drain(LEAVE_WITHOUT_ENGINE);
    }

    fn drain(&mut self, within: Duration) {
        let now = Instant::now();
        self.parts.status.draining.store(true, Ordering::Relaxed);
        self.desk.drain();
        self.draining = Some(Draining {
            cut: now + within.mul_f64(1.0 - ACK_SHARE),
            leave: now + within,
        });
    }

    fn has_left(&self, now: Instant) -> bool {
        let Some(draining) = &self.draining else {
            return false;
        };
        let told = self.desk.running() == 0
            && self.desk.unacknowledged() == 0
            && !self.desk.has_message(now);
        told || now >= draining.leave
    }

    fn tell(&mut self, ended: Option<Ended>) {
        if let Some(ended) = ended {
            self.journal.ended(&self.metrics, &ended);
        }
    }
}

async fn next_of_link<P>(state: &mut LinkState, wants_room: bool) -> Input<P> {
    match state {
        LinkState::Waiting(_) => std::future::pending().await,
        LinkState::Dialing(dial) => Input::Dialed(dial.await),
        LinkState::Greeting(link, _) => Input::Inbound(link.inbound.message().await),
        LinkState::Up(link) => {
            let outbound = link.outbound.clone();
            tokio::select! {
                message = link.inbound.message() => Input::Inbound(message),
                _room = outbound.reserve(), if wants_room => Input::Room,
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
