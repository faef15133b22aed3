//! From what became of a job to spans. What people and models wrote is in none of them.

use std::collections::HashMap;

use conclave_coordinator_core::{
    job::Job,
    payload::{self, Payloads},
    timeline::{Attempt, Outcome, Timeline},
    view::role_name,
};
use conclave_proto::v1::{
    Aggregator, Answer, Draft, Job as Shown, JobState, Mode, Payload, Replay,
};
use conclave_traces::{Kind, Span, SpanId, TraceId, names, names::operation, span::nanos_of_ms};

use super::now;
use crate::api::convert::{job_state_name, mode_name};

/// When parts of a job began, ns of Unix time, by the clock of the leader that saw it. What it did not see has
/// the replicated time.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    /// By agent and attempt.
    pub attempts: HashMap<(u32, u32), u64>,
    phases: Vec<u64>,
    /// The whole job.
    ended: Option<u64>,
}

impl Times {
    /// Phases that are new began now.
    pub(super) fn begin_phases(&mut self, timeline: &Timeline) {
        while self.phases.len() < timeline.phases().len() {
            self.phases.push(now());
        }
    }

    /// The job ended now.
    pub(super) fn end(&mut self) {
        self.ended = Some(now());
    }

    /// What began before this node led.
    pub(super) fn remember(&mut self, timeline: &Timeline) {
        let began = timeline.phases().iter().map(|p| nanos_of_ms(p.began_ms));
        self.phases = began.collect();
        let began = timeline
            .attempts()
            .map(|a| (a.key(), nanos_of_ms(a.began_ms)));
        self.attempts = began.collect();
    }

    fn job_ended(&self, job: &Job) -> u64 {
        let last = self.phases.last().copied().unwrap_or(0);
        let ended = self.ended.unwrap_or(nanos_of_ms(job.ended_unix_ms));
        ended.max(last)
    }
}

/// The draft of an attempt that handed one in.
pub(super) fn draft_of<'a>(job: &'a Job, attempt: &Attempt) -> Option<&'a Payload> {
    let agent = job.agent(attempt.agent)?;
    let handed_in = attempt
        .end
        .is_some_and(|(_, outcome)| matches!(outcome, Outcome::Done | Outcome::Cut));
    agent
        .draft
        .as_ref()
        .filter(|_| handed_in && agent.attempt == attempt.attempt)
}

/// The span of an attempt that has ended, but for what its draft says. `seen`: its end was seen now.
pub(super) fn attempt(
    trace: TraceId,
    job: &Job,
    timeline: &Timeline,
    attempt: &Attempt,
    (times, seen): (&Times, Option<u64>),
) -> Span {
    let (ended_ms, outcome) = attempt.end.unwrap_or((attempt.began_ms, Outcome::Lost));
    let role = role_name(attempt.role);
    let began = times.attempts.get(&attempt.key()).copied();
    // That an attempt is lost is seen with the next one.
    let ended = seen
        .filter(|_| outcome != Outcome::Lost)
        .unwrap_or(nanos_of_ms(ended_ms));
    let agent = job.agent(attempt.agent);
    let span = Span::new(
        trace,
        SpanId::attempt(trace, attempt.agent, attempt.attempt),
        Kind::Client,
        format!("{} {role}", operation::AGENT),
        began.unwrap_or(nanos_of_ms(attempt.began_ms)),
        ended,
    );
    let phase = timeline.phase_of_round(attempt.round).unwrap_or(0);
    let span = span
        .below(SpanId::phase(trace, phase as u32))
        .with(names::OPERATION, operation::AGENT)
        .with(names::PROVIDER, names::PROVIDER_NAME)
        .with(names::REQUEST_MODEL, job.model())
        .with(names::AGENT_ID, format!("{}/{}", job.id, attempt.agent))
        .with(names::AGENT_NAME, role)
        .with_some(names::MAX_TOKENS, agent.map(|a| a.reserved_tokens()))
        .with(names::JOB, job.id.as_str())
        .with(names::TENANT, job.tenant.as_str())
        .with(names::AGENT, attempt.agent)
        .with(names::ATTEMPT, attempt.attempt)
        .with(names::ROUND, attempt.round)
        .with(names::WORKER, attempt.worker.as_str())
        .with(names::OUTCOME, outcome.name());
    match outcome {
        Outcome::Done | Outcome::Cut => span,
        Outcome::Lost => span.failed("attempt_lost"),
        Outcome::Failed => span.failed("agent_failed"),
    }
}

/// What the draft says, added.
pub(super) fn with_draft(span: Span, draft: Option<&Payload>, blobs: &dyn Payloads) -> Span {
    let draft: Option<Draft> = draft.and_then(|draft| payload::decode(draft, blobs).ok());
    match draft {
        Some(draft) => span.with_draft(&draft),
        None => span,
    }
}

/// The span of phase `index`, if it has ended.
pub(super) fn phase(
    trace: TraceId,
    job: &Job,
    timeline: &Timeline,
    index: usize,
    times: &Times,
) -> Option<Span> {
    let phase = timeline.phases().get(index)?;
    timeline.phase_ended_ms(index)?;
    let next = times.phases.get(index + 1).copied();
    let began = times.phases.get(index).copied();
    let span = Span::new(
        trace,
        SpanId::phase(trace, index as u32),
        Kind::Internal,
        phase.name,
        began.unwrap_or(nanos_of_ms(phase.began_ms)),
        next.unwrap_or_else(|| times.job_ended(job)),
    );
    let span = span
        .below(SpanId::job(trace))
        .with(names::JOB, job.id.as_str())
        .with(names::TENANT, job.tenant.as_str());
    let Some(round) = phase.round else {
        return Some(span);
    };
    let quorum = job.round_record(round).map(|record| record.quorum);
    let agents = job.round_agents(round).count() as u64;
    Some(
        span.with(names::ROUND, round)
            .with(names::AGENTS, agents)
            .with_some(names::QUORUM, quorum),
    )
}

/// The span of a job that has ended; `shown` is the job as the API has it.
pub(super) fn job(
    trace: TraceId,
    job: &Job,
    shown: &Shown,
    timeline: &Timeline,
    times: &Times,
) -> Span {
    let spec = shown.spec.clone().unwrap_or_default();
    let mode = mode_name(Mode::try_from(spec.mode).unwrap_or_default());
    let sampling = spec.sampling.unwrap_or_default();
    let rounds = timeline.phases().iter().filter(|p| p.round.is_some());
    let span = Span::new(
        trace,
        SpanId::job(trace),
        Kind::Internal,
        format!("{} {mode}", operation::WORKFLOW),
        nanos_of_ms(job.submitted_unix_ms),
        times.job_ended(job),
    );
    let span = span
        .with(names::OPERATION, operation::WORKFLOW)
        .with(names::WORKFLOW, mode)
        .with(names::PROVIDER, names::PROVIDER_NAME)
        .with(names::REQUEST_MODEL, spec.model)
        .with_some(names::TEMPERATURE, sampling.temperature.map(f64::from))
        .with_some(names::TOP_P, sampling.top_p.map(f64::from))
        .with_some(names::TOP_K, sampling.top_k)
        .with(names::JOB, job.id.as_str())
        .with(names::TENANT, job.tenant.as_str())
        .with(names::MODE, mode)
        .with(names::OUTCOME, job_state_name(job.state))
        .with(names::ROUNDS, rounds.count() as u64)
        .with(names::AGENTS, job.agents.len() as u64)
        .with_some(names::REPLAY, replay_name(job.replay))
        .with_usage(&shown.usage.unwrap_or_default());
    let span = match &job.answer {
        Some(answer) => span
            .with_some(names::AGREEMENT, agreement(answer))
            .with_some(names::AGGREGATOR, aggregator_name(answer.aggregator())),
        None => span,
    };
    match job.state {
        JobState::Failed => span.failed("job_failed"),
        _ => span,
    }
}

/// The winning answer's share of the votes.
#[allow(clippy::cast_precision_loss, reason = "attributes are f64")]
fn agreement(answer: &Answer) -> Option<f64> {
    let all: i64 = answer.votes.iter().map(|vote| vote.weight_micro).sum();
    let won = answer
        .votes
        .iter()
        .find(|vote| vote.canonical == answer.canonical)?;
    (all > 0).then(|| won.weight_micro as f64 / all as f64)
}

fn aggregator_name(aggregator: Aggregator) -> Option<&'static str> {
    match aggregator {
        Aggregator::Unspecified => None,
        Aggregator::Majority => Some("majority"),
        Aggregator::ConfidenceWeighted => Some("confidence_weighted"),
        Aggregator::BestOf => Some("best_of"),
        Aggregator::Synthesis => Some("synthesis"),
    }
}

fn replay_name(replay: Replay) -> Option<&'static str> {
    match replay {
        Replay::Unspecified => None,
        Replay::Exact => Some("exact"),
        Replay::Inexact => Some("inexact"),
    }
}
