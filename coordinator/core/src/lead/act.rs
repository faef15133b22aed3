//! What a leader has its shell do.

use conclave_proto::v1::{
    AttemptKey, Decide, command::Command as Body, coordinator_message::Message as ToWorker,
};

/// Something that the shell carries out. Acts may be carried out twice, by two terms: each is
/// harmless then.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Propose a command, and say what became of it within [`super::PROPOSAL_MS`]:
    /// [`super::Leader::applied`] or [`super::Leader::failed`].
    Propose {
        /// What is to be applied.
        body: Body,
        /// Handed back with the outcome.
        purpose: Purpose,
    },
    /// Send on a session, with the leader's term. A session that does not take it is closed.
    Send {
        /// The session.
        session: u64,
        /// The message.
        message: ToWorker,
    },
    /// Welcome a worker: only the shell knows where members listen.
    Welcome {
        /// The session.
        session: u64,
    },
    /// Close a session; the worker says hello again.
    Close {
        /// The session.
        session: u64,
    },
    /// A payload is missing here: get it from another member, then
    /// [`super::Leader::blob_arrived`].
    Fetch {
        /// blake3 of the blob.
        hash: [u8; 32],
    },
    /// A payload does not decode: only people can help.
    Broken {
        /// Its hash.
        hash: Vec<u8>,
    },
    /// A round's context is too long for the log: store it on a majority, put its hash in its
    /// place, then [`super::Leader::context_stored`].
    StoreContext {
        /// The job.
        job_id: String,
        /// The decision that it belongs to.
        decide: Box<Decide>,
        /// The context.
        bytes: Vec<u8>,
    },
    /// An attempt begins: watchers' text of earlier ones is void.
    AttemptBegins {
        /// The attempt.
        key: AttemptKey,
    },
    /// Wake the job's watchers.
    JobChanged {
        /// The job.
        job_id: String,
    },
    /// The job's watchers get their end.
    JobEnded {
        /// The job.
        job_id: String,
    },
    /// Propose the addresses of members that listen elsewhere than the state says.
    NoteMembers,
    /// Ask every voter for its wall clock, then [`super::Leader::clocks`] with what
    /// [`super::reached`] makes of the answers.
    AskClocks,
    /// Confirm the leadership with a quorum (ReadIndex), then [`super::Leader::confirmed`].
    Confirm {
        /// Which gap of the clock this is about.
        pause: u64,
    },
}

/// What a proposal of the leader's own is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// The cluster's first words.
    Found,
    /// A full time to live for every lease.
    FullLeases,
    /// A decision.
    Decide {
        /// About this job.
        job_id: String,
    },
    /// One of a placement's assignments.
    Place,
    /// A worker's registration.
    Register {
        /// Its session.
        session: u64,
    },
    /// A worker's result.
    Result {
        /// Whose.
        worker_id: String,
        /// The attempt.
        key: AttemptKey,
    },
    /// Replicated time moves; by one of this leader's ticks.
    Tick {
        /// Counted from 1.
        number: u64,
    },
    /// What it does shows in the state.
    Nothing,
}
