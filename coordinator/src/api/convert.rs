//! Closed errors to gRPC codes, exhaustively; counters of jobs.

use std::time::Duration;

use conclave_coordinator_core::{MissingBlob, Reply, Stale, State, spec::SpecError, view};
use conclave_proto::v1::{AgentState, Job, JobState, Mode};
use tonic::{Status, metadata::AsciiMetadataValue};

use crate::{metrics, node::NodeError};

/// When to come again, milliseconds.
const RETRY_AFTER: &str = "retry-after-ms";

/// A metadata value of a literal.
pub fn ascii(text: &'static str) -> AsciiMetadataValue {
    AsciiMetadataValue::from_static(text)
}

/// What the node did not do.
pub fn node_error(error: NodeError) -> Status {
    let text = error.to_string();
    match error {
        NodeError::NotLeader => {
            let mut status = Status::unavailable(text);
            status
                .metadata_mut()
                .insert(super::NOT_LEADER, ascii("true"));
            status
        }
        NodeError::OverQuota(refusal) => exhausted(text, Duration::from_millis(refusal.retry_ms())),
        NodeError::Refused(_) => Status::failed_precondition(text),
        // Another endpoint may be a member of a cluster, and this one become it: a client that balances goes on.
        NodeError::Blank | NodeError::NoQuorum(_) | NodeError::Stopped => Status::unavailable(text),
        NodeError::Unknown => {
            let mut status = Status::unavailable(text);
            status.metadata_mut().insert("outcome", ascii("unknown"));
            status
        }
        NodeError::Busy => exhausted(text, Duration::from_millis(200)),
    }
}

/// RESOURCE_EXHAUSTED, with when to come again: in our word, and in the one that gRPC's own retries heed.
pub fn exhausted(text: String, after: Duration) -> Status {
    let mut status = later(Status::resource_exhausted(text), after);
    if let Some(after) = status.metadata().get(RETRY_AFTER).cloned() {
        status
            .metadata_mut()
            .insert("grpc-retry-pushback-ms", after);
    }
    status
}

/// Says when to come again, unless that was said. In our word only: gRPC's would replace a client's growing
/// pauses, and its few tries would not outlast an election.
pub fn later(mut status: Status, after: Duration) -> Status {
    let text = after.as_millis().to_string();
    let metadata = status.metadata_mut();
    if !metadata.contains_key(RETRY_AFTER)
        && let Ok(value) = text.parse::<AsciiMetadataValue>()
    {
        metadata.insert(RETRY_AFTER, value);
    }
    status
}

/// A spec that cannot be run.
pub fn spec_error(error: &SpecError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// A payload that is not here.
pub fn missing(error: &MissingBlob) -> Status {
    match error {
        MissingBlob::Absent { .. } => Status::unavailable(error.to_string()),
        MissingBlob::Broken { .. } => Status::data_loss(error.to_string()),
    }
}

/// No such job, or another tenant's: the caller cannot tell.
pub fn no_job(job_id: &str) -> Status {
    Status::not_found(format!("there is no job `{job_id}`"))
}

/// What applying a command that names a job answered.
///
/// # Errors
/// Every reply but success.
pub fn reply(reply: Reply, job_id: &str) -> Result<(), Status> {
    match reply {
        Reply::Ok | Reply::Submitted { .. } => Ok(()),
        Reply::Conflict { job_id } => Err(Status::already_exists(format!(
            "the idempotency key belongs to job `{job_id}`, with another request"
        ))),
        Reply::Stale(Stale::Revision | Stale::Attempt | Stale::Incarnation) => Err(
            Status::aborted("the state moved on while the command was on its way"),
        ),
        Reply::NotFound => Err(no_job(job_id)),
        Reply::Rejected { why } => Err(Status::failed_precondition(why)),
    }
}

/// The label of a mode.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Unspecified => "unspecified",
        Mode::Instant => "instant",
        Mode::Thinking => "thinking",
        Mode::Contemplating => "contemplating",
    }
}

/// The label of a job's state.
pub fn job_state_name(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unspecified",
        JobState::Preparing => "preparing",
        JobState::Proposing => "proposing",
        JobState::Distilling => "distilling",
        JobState::Refining => "refining",
        JobState::Aggregating => "aggregating",
        JobState::AwaitingReview => "awaiting_review",
        JobState::Done => "done",
        JobState::Degraded => "degraded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

fn agent_state_name(state: AgentState) -> &'static str {
    match state {
        AgentState::Unspecified => "unspecified",
        AgentState::Queued => "queued",
        AgentState::Running => "running",
        AgentState::Done => "done",
        AgentState::Cancelled => "cancelled",
        AgentState::Failed => "failed",
    }
}

/// Counts a job that ended.
pub fn count_ended(job: &Job) {
    let mode = job.spec.as_ref().map_or(Mode::Unspecified, |s| s.mode());
    let took = u64::try_from(job.ended_unix_ms - job.submitted_unix_ms).unwrap_or(0);
    // Not the cluster's failure: it is in no error budget.
    let outcome = if view::was_rejected(job) {
        "rejected"
    } else {
        job_state_name(job.state())
    };
    metrics::job_ended(outcome, mode_name(mode), Duration::from_millis(took));
    let usage = job.usage.unwrap_or_default();
    metrics::tokens("prompt", usage.prompt_tokens);
    metrics::tokens("cached", usage.cached_tokens);
    metrics::tokens("thought", usage.thought_tokens);
    metrics::tokens("answer", usage.answer_tokens);
    for (role, count) in &job.tokens_by_role {
        metrics::tokens_by_role(role.clone(), *count);
    }
}

/// Shows how many live jobs and agents are in each state, as this leader sees it.
pub fn count_live(node: &metrics::Label, state: &State) {
    const JOBS: [JobState; 6] = [
        JobState::Preparing,
        JobState::Proposing,
        JobState::Distilling,
        JobState::Refining,
        JobState::Aggregating,
        JobState::AwaitingReview,
    ];
    for state_of_job in JOBS {
        let count = state.jobs_in(state_of_job);
        metrics::in_state(node, "conclave_jobs", job_state_name(state_of_job), count);
    }
    let (queued, running) = state.agents_at_work();
    for (state, count) in [(AgentState::Queued, queued), (AgentState::Running, running)] {
        metrics::in_state(node, "conclave_agents", agent_state_name(state), count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_come_again_is_said_once() {
        let first = exhausted("full".to_owned(), Duration::from_secs(10));
        let status = later(first, Duration::from_millis(250));
        for key in [RETRY_AFTER, "grpc-retry-pushback-ms"] {
            assert_eq!(status.metadata().get(key).unwrap(), "10000");
        }
        let status = later(Status::unavailable("no leader"), Duration::from_secs(1));
        assert_eq!(status.metadata().get(RETRY_AFTER).unwrap(), "1000");
        assert!(!status.metadata().contains_key("grpc-retry-pushback-ms"));
    }

    #[test]
    fn a_proposal_that_may_yet_commit_says_that_its_outcome_is_unknown() {
        let outcome = |error| {
            let status = node_error(error);
            assert_eq!(status.code(), tonic::Code::Unavailable);
            let outcome = status.metadata().get("outcome");
            outcome.map(|value| value.as_bytes().to_vec())
        };
        assert_eq!(outcome(NodeError::Unknown), Some(b"unknown".to_vec()));
        assert_eq!(outcome(NodeError::NotLeader), None, "nothing was proposed");
        assert_eq!(outcome(NodeError::NoQuorum(String::new())), None);
    }
}
