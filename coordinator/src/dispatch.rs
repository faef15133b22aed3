//! Worker sessions, as the node's loop keeps them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use conclave_coordinator_core::placement::Load;
use conclave_proto::v1::{
    AttemptError, AttemptKey, CoordinatorMessage, Hello, ModelInfo, Payload, Prepared,
    coordinator_message::Message as ToWorker,
};
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;
use tonic::Status;

/// Messages that wait for one worker; one that does not read them is cut off,
/// and reconciled when it comes back.
pub const OUTBOX: usize = 1024;

/// Where a session's messages go.
pub type Outbox = mpsc::Sender<Result<CoordinatorMessage, Status>>;

/// What an attempt came to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Encoded `Draft`; a blob is on a majority already.
    Draft(Payload),
    /// Why there is none.
    Error(AttemptError),
}

/// What a session tells the loop.
pub enum SessionInput {
    /// A worker said hello.
    Opened {
        /// Unique in this process.
        session: u64,
        /// Its first message.
        hello: Box<Hello>,
        /// The way back.
        outbox: Outbox,
        /// Ends the stream when the loop drops the session.
        guard: DropGuard,
    },
    /// A prompt was looked at.
    Prepared {
        /// The session.
        session: u64,
        /// The answer.
        prepared: Prepared,
    },
    /// An attempt ended.
    Finished {
        /// The session.
        session: u64,
        /// The attempt.
        key: AttemptKey,
        /// The process that ran it.
        incarnation: String,
        /// What came of it.
        outcome: Outcome,
    },
    /// A sign of life.
    Alive {
        /// The session.
        session: u64,
        /// Its load.
        load: Load,
        /// The lease is renewed: it is idle, or its steps moved.
        renew: bool,
    },
    /// It takes nothing new.
    Draining {
        /// The session.
        session: u64,
    },
    /// The stream ended.
    Closed {
        /// The session.
        session: u64,
    },
}

/// One worker's open stream.
pub struct Session {
    /// Unique in this process.
    pub id: u64,
    /// The worker.
    pub worker_id: String,
    /// Its process.
    pub incarnation: String,
    /// What it serves.
    pub models: Vec<ModelInfo>,
    /// Its own words about its load.
    pub load: Load,
    /// It is in the replicated state.
    pub registered: bool,
    /// What it said it runs: asked for again once it is registered.
    pub running: Vec<AttemptKey>,
    outbox: Outbox,
    _guard: DropGuard,
}

/// A prompt that a worker looks at.
struct Looking {
    session: u64,
    until: Instant,
}

/// The sessions of a leader.
#[derive(Default)]
pub struct Sessions {
    by_id: BTreeMap<u64, Session>,
    /// Prompts under way, by job.
    looking: BTreeMap<String, Looking>,
    /// Turns of the round-robin.
    turn: usize,
}

/// How long a worker may look at a prompt before another is asked.
const LOOK: Duration = Duration::from_secs(10);

/// What became of a prompt that is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Some worker looks at it.
    UnderWay,
    /// These models are served; the wanted one is not among them.
    NoModel(Vec<String>),
    /// No worker is connected, or none has room to look.
    NoWorker,
}

impl Sessions {
    /// Takes a new session; an older one of the same worker is dropped.
    pub fn open(&mut self, id: u64, hello: &Hello, outbox: Outbox, guard: DropGuard) {
        self.by_id.retain(|_, s| s.worker_id != hello.worker_id);
        let session = Session {
            id,
            worker_id: hello.worker_id.clone(),
            incarnation: hello.incarnation.clone(),
            models: hello.models.clone(),
            load: Load::default(),
            registered: false,
            running: hello.running.clone(),
            outbox,
            _guard: guard,
        };
        self.by_id.insert(id, session);
    }

    /// The session of this id.
    pub fn get(&self, id: u64) -> Option<&Session> {
        self.by_id.get(&id)
    }

    /// The session of this id.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Session> {
        self.by_id.get_mut(&id)
    }

    /// Drops a session; its prompts are looked at by others.
    pub fn close(&mut self, id: u64) {
        self.by_id.remove(&id);
        self.looking.retain(|_, l| l.session != id);
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// None is open.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// True if a registered session of this process of a worker is open.
    pub fn connected(&self, worker_id: &str, incarnation: &str) -> bool {
        self.by_id
            .values()
            .any(|s| s.registered && s.worker_id == worker_id && s.incarnation == incarnation)
    }

    /// Loads of the registered workers, by worker id: those that placement may use.
    pub fn loads(&self) -> BTreeMap<String, Load> {
        let registered = self.by_id.values().filter(|s| s.registered);
        registered.map(|s| (s.worker_id.clone(), s.load)).collect()
    }

    /// Sends to one process of a worker; without a session nothing is sent,
    /// and the worker is reconciled when it says hello.
    pub fn send(&mut self, worker_id: &str, incarnation: &str, term: u64, message: ToWorker) {
        let found = self
            .by_id
            .values()
            .find(|s| s.worker_id == worker_id && s.incarnation == incarnation && s.registered)
            .map(|s| s.id);
        if let Some(id) = found {
            self.send_to(id, term, message);
        }
    }

    /// Sends to a worker whatever process it is.
    pub fn send_any(&mut self, worker_id: &str, term: u64, message: ToWorker) {
        let found = self
            .by_id
            .values()
            .find(|s| s.worker_id == worker_id)
            .map(|s| s.id);
        if let Some(id) = found {
            self.send_to(id, term, message);
        }
    }

    /// Sends on one session; a full outbox ends it.
    pub fn send_to(&mut self, id: u64, term: u64, message: ToWorker) {
        let Some(session) = self.by_id.get(&id) else {
            return;
        };
        let message = CoordinatorMessage {
            term,
            message: Some(message),
        };
        if session.outbox.try_send(Ok(message)).is_err() {
            tracing::warn!(
                worker = session.worker_id,
                "a worker does not read: session dropped"
            );
            self.close(id);
        }
    }

    /// False while a worker looks at the job's prompt, and without any worker.
    pub fn may_look(&self, job_id: &str, now: Instant) -> bool {
        self.by_id.values().any(|s| s.registered)
            && self.looking.get(job_id).is_none_or(|l| l.until <= now)
    }

    /// Has a worker that serves `model` (empty: its only one) look at a job's
    /// prompt, in turn; nothing happens while one does.
    pub fn look(
        &mut self,
        job_id: &str,
        model: &str,
        term: u64,
        now: Instant,
        message: impl FnOnce() -> Option<ToWorker>,
    ) -> Look {
        if self.looking.get(job_id).is_some_and(|l| l.until > now) {
            return Look::UnderWay;
        }
        let registered = || self.by_id.values().filter(|s| s.registered);
        let serves = |s: &&Session| {
            (model.is_empty() && s.models.len() == 1) || s.models.iter().any(|m| m.name == model)
        };
        let able: Vec<u64> = registered().filter(serves).map(|s| s.id).collect();
        if able.is_empty() {
            let mut served: Vec<String> = registered()
                .flat_map(|s| &s.models)
                .map(|m| m.name.clone())
                .collect();
            served.sort();
            served.dedup();
            return if served.is_empty() {
                Look::NoWorker
            } else {
                Look::NoModel(served)
            };
        }
        let Some(message) = message() else {
            return Look::NoWorker;
        };
        let id = able[self.turn % able.len()];
        self.turn = self.turn.wrapping_add(1);
        self.looking.insert(
            job_id.to_owned(),
            Looking {
                session: id,
                until: now + LOOK,
            },
        );
        self.send_to(id, term, message);
        Look::UnderWay
    }

    /// A worker answered (or could not look): another may be asked at `again`.
    pub fn looked(&mut self, job_id: &str, again: Option<Instant>) {
        match (again, self.looking.get_mut(job_id)) {
            (Some(at), Some(looking)) => looking.until = at,
            _ => {
                self.looking.remove(job_id);
            }
        }
    }

    /// Forgets prompts of jobs that need no look any more.
    pub fn retain_looks(&mut self, needed: &dyn Fn(&str) -> bool) {
        self.looking.retain(|job_id, _| needed(job_id));
    }

    /// Tells every worker who leads now, and closes.
    pub fn dismiss(&mut self, term: u64, message: &ToWorker) {
        for session in std::mem::take(&mut self.by_id).into_values() {
            let message = CoordinatorMessage {
                term,
                message: Some(message.clone()),
            };
            // A worker that does not hear it learns by its closed stream.
            let _ = session.outbox.try_send(Ok(message));
        }
        self.looking.clear();
    }
}
