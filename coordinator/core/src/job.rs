//! One job: its agents, rounds, events and audit chain.

use conclave_proto::v1::{
    Answer, AuditEvent, JobEvent, JobRecord, JobState, Payload, Prepared, Replay, RoundRecord,
    audit_event, job_event,
};

use crate::{agent::Agent, audit::Chain, effect::Effect};

/// One question with its policy, and all that came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Minted by the coordinator that took the submission.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// The submission's key.
    pub idempotency_key: String,
    /// Encoded effective `JobSpec`.
    pub spec: Payload,
    /// Where it stands.
    pub state: JobState,
    /// The current round, from 0.
    pub round: u32,
    /// Moves with every change that a decision may depend on.
    pub revision: u64,
    /// By agent number: agent `n` is `agents[n - 1]`.
    pub agents: Vec<Agent>,
    /// What a worker found the prompt to be.
    pub prepared: Option<Prepared>,
    /// Rounds so far, each with its shared context and quorum.
    pub rounds: Vec<RoundRecord>,
    /// The answer, final or up for review.
    pub answer: Option<Answer>,
    /// Why FAILED, DEGRADED or CANCELLED.
    pub message: String,
    /// Accepted, on replicated time.
    pub submitted_unix_ms: i64,
    /// Reached a final state; 0 before.
    pub ended_unix_ms: i64,
    /// 0: none.
    pub deadline_unix_ms: i64,
    /// Gapless from 1.
    pub events: Vec<JobEvent>,
    /// Hash-chained record.
    pub audit: Chain,
    /// Whether all attempts ran in one numeric class.
    pub replay: Replay,
    /// The class of the first placement; the others follow it.
    pub numeric_class: String,
}

/// A state that no job leaves.
pub fn is_final(state: JobState) -> bool {
    matches!(
        state,
        JobState::Done | JobState::Degraded | JobState::Failed | JobState::Cancelled
    )
}

impl Job {
    /// It has ended.
    pub fn is_final(&self) -> bool {
        is_final(self.state)
    }

    /// Something may still happen to it: it runs, or an attempt has not reported.
    pub fn is_active(&self) -> bool {
        !self.is_final() || !self.audit.is_sealed()
    }

    /// Everything of it that may be a blob.
    pub fn payloads(&self) -> impl Iterator<Item = &Payload> {
        let drafts = self.agents.iter().filter_map(|a| a.draft.as_ref());
        let contexts = self.rounds.iter().filter_map(|r| r.context.as_ref());
        drafts.chain(contexts).chain([&self.spec])
    }

    /// Its prompt has not been validated yet.
    pub fn needs_prepare(&self) -> bool {
        self.state == JobState::Preparing && self.prepared.is_none()
    }

    /// The leader should ask [`crate::contemplate::next`] about it.
    pub fn needs_decision(&self) -> bool {
        !self.is_final() && self.state != JobState::AwaitingReview
    }

    /// The model that its agents run on: resolved by `Prepared`, else empty.
    pub fn model(&self) -> &str {
        self.prepared.as_ref().map_or("", |p| p.model.as_str())
    }

    /// The agent of this number.
    pub fn agent(&self, number: u32) -> Option<&Agent> {
        self.agents.get((number as usize).checked_sub(1)?)
    }

    pub(crate) fn agent_mut(&mut self, number: u32) -> Option<&mut Agent> {
        self.agents.get_mut((number as usize).checked_sub(1)?)
    }

    /// Agents of one round, in the order of their index.
    pub fn round_agents(&self, round: u32) -> impl Iterator<Item = &Agent> {
        self.agents.iter().filter(move |a| a.spec.round == round)
    }

    /// The record of one round.
    pub fn round_record(&self, round: u32) -> Option<&RoundRecord> {
        self.rounds.iter().find(|r| r.round == round)
    }

    /// A copy to show: all but the events, which watchers read for themselves, and the prompt's
    /// checkpoints.
    pub fn without_events(&self) -> Job {
        Job {
            id: self.id.clone(),
            tenant: self.tenant.clone(),
            idempotency_key: self.idempotency_key.clone(),
            spec: self.spec.clone(),
            agents: self.agents.clone(),
            prepared: self.prepared.as_ref().map(|p| Prepared {
                checkpoints: Vec::new(),
                ..p.clone()
            }),
            rounds: self.rounds.clone(),
            answer: self.answer.clone(),
            message: self.message.clone(),
            events: Vec::new(),
            audit: self.audit.clone(),
            numeric_class: self.numeric_class.clone(),
            ..*self
        }
    }

    /// Appends a state event with the next index.
    pub(crate) fn emit(&mut self, unix_ms: i64, event: job_event::Event) {
        let index = self.events.len() as u64 + 1;
        self.events.push(JobEvent {
            index,
            unix_ms,
            event: Some(event),
        });
    }

    /// Emits the agent's status as it is now.
    pub(crate) fn emit_agent(&mut self, unix_ms: i64, number: u32) {
        if let Some(status) = self.agent(number).map(Agent::status) {
            self.emit(unix_ms, job_event::Event::Agent(status));
        }
    }

    /// Moves to another state, with its event.
    pub(crate) fn enter(&mut self, unix_ms: i64, state: JobState) {
        if self.state != state {
            self.state = state;
            self.emit(unix_ms, job_event::Event::State(state as i32));
        }
    }

    /// Appends a link to the audit chain.
    pub(crate) fn record(&mut self, log_index: u64, event: audit_event::Event) {
        self.audit
            .append(&self.id, log_index, &AuditEvent { event: Some(event) });
    }

    /// Ends the effects of a change: watchers wake, and `next` is asked.
    pub(crate) fn changed(&mut self) -> Effect {
        self.revision += 1;
        Effect::JobChanged {
            job_id: self.id.clone(),
        }
    }

    /// Forgets what neither `GetJob` nor the audit needs, once nothing more can happen, and gives back the
    /// room to grow: ended jobs are most of what a coordinator holds.
    pub(crate) fn retire(&mut self) {
        self.agents.iter_mut().for_each(Agent::retire);
        self.agents.shrink_to_fit();
        self.events.shrink_to_fit();
        self.rounds.shrink_to_fit();
        self.audit.shrink_to_fit();
        if let Some(prepared) = &mut self.prepared {
            prepared.checkpoints.clear();
        }
    }

    pub(crate) fn to_record(&self) -> JobRecord {
        JobRecord {
            job_id: self.id.clone(),
            tenant: self.tenant.clone(),
            spec: Some(self.spec.clone()),
            state: self.state as i32,
            round: self.round,
            revision: self.revision,
            agents: self.agents.iter().map(Agent::to_record).collect(),
            answer: self.answer.clone(),
            message: self.message.clone(),
            submitted_unix_ms: self.submitted_unix_ms,
            ended_unix_ms: self.ended_unix_ms,
            deadline_unix_ms: self.deadline_unix_ms,
            prepared: self.prepared.clone(),
            rounds: self.rounds.clone(),
            events: self.events.clone(),
            audit: self.audit.records().to_vec(),
            sealed: self.audit.is_sealed(),
            replay: self.replay as i32,
            idempotency_key: self.idempotency_key.clone(),
            numeric_class: self.numeric_class.clone(),
        }
    }

    pub(crate) fn from_record(record: JobRecord) -> Option<Job> {
        Some(Job {
            id: record.job_id,
            tenant: record.tenant,
            idempotency_key: record.idempotency_key,
            spec: record.spec?,
            state: JobState::try_from(record.state).ok()?,
            round: record.round,
            revision: record.revision,
            agents: record
                .agents
                .into_iter()
                .map(Agent::from_record)
                .collect::<Option<_>>()?,
            prepared: record.prepared,
            rounds: record.rounds,
            answer: record.answer,
            message: record.message,
            submitted_unix_ms: record.submitted_unix_ms,
            ended_unix_ms: record.ended_unix_ms,
            deadline_unix_ms: record.deadline_unix_ms,
            events: record.events,
            audit: Chain::from_records(record.audit, record.sealed),
            replay: Replay::try_from(record.replay).ok()?,
            numeric_class: record.numeric_class,
        })
    }
}
