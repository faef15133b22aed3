//! What applying a command answers and asks for.

use conclave_proto::v1::AttemptKey;

/// The outcome of one applied command.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// For the proposer.
    pub reply: Reply,
    /// For the leader's shell ([`Effect::FetchBlob`]: for every replica's).
    pub effects: Vec<Effect>,
}

impl Applied {
    /// A reply without effects.
    pub(crate) fn only(reply: Reply) -> Applied {
        Applied {
            reply,
            effects: Vec::new(),
        }
    }

    /// Success with effects.
    pub(crate) fn ok(effects: Vec<Effect>) -> Applied {
        Applied {
            reply: Reply::Ok,
            effects,
        }
    }
}

/// What the proposer of a command is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done as asked (or done already).
    Ok,
    /// A submission's job; `existing` if its key was known with the same digest.
    Submitted {
        /// The job.
        job_id: String,
        /// The key was known already.
        existing: bool,
    },
    /// The idempotency key is known with another request (ALREADY_EXISTS).
    Conflict {
        /// The job that the key belongs to.
        job_id: String,
    },
    /// The command was made on a state that has moved on; nothing changed.
    Stale(Stale),
    /// There is no such job, agent or worker.
    NotFound,
    /// The command does not fit the state (FAILED_PRECONDITION); nothing changed.
    Rejected {
        /// What does not fit, for people.
        why: String,
    },
}

/// Why a command came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// The job's revision is another.
    Revision,
    /// The agent's current attempt is another, or has ended.
    Attempt,
    /// The worker's incarnation is another, or its lease ran out.
    Incarnation,
}

/// Something that the leader's shell must carry out. Effects may be carried out twice (after a
/// change of leader): each is harmless then.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask a worker to validate and count the job's prompt ([`crate::view::prepare`]).
    Prepare {
        /// The job.
        job_id: String,
    },
    /// Agents wait for a worker: call [`crate::placement::place`], propose what it returns.
    Place,
    /// Send `Start` ([`crate::view::start`]).
    Start {
        /// Where the attempt was placed.
        worker_id: String,
        /// The process it was placed on.
        incarnation: String,
        /// The attempt.
        key: AttemptKey,
    },
    /// Send `Cancel`.
    Cancel {
        /// Where the attempt runs.
        worker_id: String,
        /// The process it runs on.
        incarnation: String,
        /// The attempt.
        key: AttemptKey,
        /// For the worker's log.
        reason: String,
    },
    /// Send `Ack`: the results are committed (or will never be wanted).
    Ack {
        /// Whose results.
        worker_id: String,
        /// The attempts.
        keys: Vec<AttemptKey>,
    },
    /// Wake the job's watchers and ask [`crate::contemplate::next`] what it does now.
    JobChanged {
        /// The job.
        job_id: String,
    },
    /// The job reached a final state: watchers get `done` and their streams end.
    JobEnded {
        /// The job.
        job_id: String,
    },
    /// A payload travels by hash: fetch it if it is not here. On every replica.
    FetchBlob {
        /// blake3 of the blob.
        hash: [u8; 32],
        /// Its length, bytes.
        length: u64,
    },
}
