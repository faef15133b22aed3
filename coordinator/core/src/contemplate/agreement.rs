//! Early agreement, told of a job that ended: what it saved is counted by the shell.

use conclave_proto::v1::{AgentState, JobState};

use super::{Context, round, situation::Situation};
use crate::{
    job::Job,
    payload::{MissingBlob, Payloads},
};

/// The job was answered, and agreement ended its thinking before the plan did: agents were cancelled, or rounds left
/// out.
///
/// # Errors
/// A payload is a blob that is not here.
pub fn was_early(job: &Job, payloads: &dyn Payloads) -> Result<bool, MissingBlob> {
    if !matches!(job.state, JobState::Done | JobState::Degraded) {
        return Ok(false);
    }
    let now_unix_ms = job.ended_unix_ms;
    let cx = Context {
        payloads,
        now_unix_ms,
    };
    let s = Situation::load(job, &cx)?;
    let Some(last) = s.thinking_rounds().next_back() else {
        return Ok(false);
    };
    // What its deadline or its quorum ended did not end by agreement.
    if s.deadline_passed() || round::agreed(&s, last.round).is_none() {
        return Ok(false);
    }
    let cancelled = |round: u32| {
        let mut agents = job.round_agents(round);
        agents.any(|agent| agent.state == AgentState::Cancelled)
    };
    let by_quorum = s.accepted(last.round).len() as u32 >= last.quorum;
    let left_out = s.thinking_rounds().count() < 1 + s.policy.refine_rounds as usize;
    Ok(left_out || (cancelled(last.round) && !by_quorum))
}
