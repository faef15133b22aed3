//! Agents: one generation by one role, tried by numbered attempts.

use conclave_proto::v1::{AgentRecord, AgentSpec, AgentState, AgentStatus, AttemptKey, Payload};

/// Attempts that may fail before the agent does (law 6). Part of log version 1.
pub const MAX_FAILURES: u32 = 3;

/// The first log version in which attempts lost with a worker that drained do not count towards
/// [`MAX_FAILURES`]. Before it they did, as with any worker: replicas apply one log alike (law 1).
pub const KILLED_DRAINS_VERSION: u32 = 3;

/// Where an attempt was placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The worker.
    pub worker_id: String,
    /// The process of the worker.
    pub incarnation: String,
}

/// One agent of a job. One attempt is current; one result is ever accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Everything a worker needs to run it.
    pub spec: AgentSpec,
    /// Where it stands.
    pub state: AgentState,
    /// The current attempt, from 1; 0 before the first placement.
    pub attempt: u32,
    /// Attempts that count against [`MAX_FAILURES`].
    pub failures: u32,
    /// Where the current attempt runs, or last ran.
    pub placement: Option<Placement>,
    /// Encoded `Draft`: accepted (DONE), or where it was cut (CANCELLED).
    pub draft: Option<Payload>,
    /// Why the last attempt failed.
    pub error: String,
    /// The current attempt was told to stop and has not reported yet.
    pub stopping: bool,
    /// Numeric class of the current attempt's worker.
    pub numeric_class: String,
}

impl Agent {
    /// An agent that waits for a worker.
    pub fn new(spec: AgentSpec) -> Agent {
        Agent {
            spec,
            state: AgentState::Queued,
            attempt: 0,
            failures: 0,
            placement: None,
            draft: None,
            error: String::new(),
            stopping: false,
            numeric_class: String::new(),
        }
    }

    /// Nothing more will be tried.
    pub fn is_final(&self) -> bool {
        matches!(
            self.state,
            AgentState::Done | AgentState::Cancelled | AgentState::Failed
        )
    }

    /// An attempt of it may still be decoding somewhere.
    pub fn holds_worker(&self) -> bool {
        self.state == AgentState::Running || self.stopping
    }

    /// The current attempt's key.
    pub fn key(&self, job_id: &str) -> AttemptKey {
        AttemptKey {
            job_id: job_id.to_owned(),
            agent: self.spec.agent,
            attempt: self.attempt,
        }
    }

    /// Tokens reserved for it: the most it may generate.
    pub fn reserved_tokens(&self) -> u64 {
        u64::from(self.spec.thought_tokens) + u64::from(self.spec.answer_tokens)
    }

    /// Forgets what only a running agent needs. The audit's round keeps the whole spec.
    pub(crate) fn retire(&mut self) {
        let spec = std::mem::take(&mut self.spec);
        self.spec = AgentSpec {
            agent: spec.agent,
            role: spec.role,
            round: spec.round,
            index: spec.index,
            seed: spec.seed,
            thought_tokens: spec.thought_tokens,
            answer_tokens: spec.answer_tokens,
            sources: spec.sources,
            ..AgentSpec::default()
        };
    }

    /// As the API shows it, without the draft. An agent that waits is on no worker, whoever had
    /// it before; one that runs has not failed, whatever befell its last attempt.
    pub fn status(&self) -> AgentStatus {
        let placement = self
            .placement
            .as_ref()
            .filter(|_| self.state != AgentState::Queued);
        let error = match self.state {
            AgentState::Running | AgentState::Done => String::new(),
            _ => self.error.clone(),
        };
        AgentStatus {
            agent: self.spec.agent,
            role: self.spec.role,
            round: self.spec.round,
            state: self.state as i32,
            attempt: self.attempt,
            worker: placement.map_or_else(String::new, |p| p.worker_id.clone()),
            draft: None,
            error,
        }
    }

    pub(crate) fn to_record(&self) -> AgentRecord {
        let placement = self.placement.clone();
        let (worker_id, incarnation) =
            placement.map_or_else(Default::default, |p| (p.worker_id, p.incarnation));
        AgentRecord {
            spec: Some(self.spec.clone()),
            state: self.state as i32,
            attempt: self.attempt,
            failures: self.failures,
            worker_id,
            incarnation,
            draft: self.draft.clone(),
            error: self.error.clone(),
            stopping: self.stopping,
            numeric_class: self.numeric_class.clone(),
        }
    }

    pub(crate) fn from_record(record: AgentRecord) -> Option<Agent> {
        let placement = (!record.worker_id.is_empty()).then_some(Placement {
            worker_id: record.worker_id,
            incarnation: record.incarnation,
        });
        Some(Agent {
            spec: record.spec?,
            state: AgentState::try_from(record.state).ok()?,
            attempt: record.attempt,
            failures: record.failures,
            placement,
            draft: record.draft,
            error: record.error,
            stopping: record.stopping,
            numeric_class: record.numeric_class,
        })
    }
}
