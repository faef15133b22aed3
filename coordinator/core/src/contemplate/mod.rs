//! What a job does next. Asked by the leader; the answer is proposed as `Decide`.
//!
//! One pure function, [`next`]. Rounds follow each other as
//! propose → (distill → refine)* → (distill →) aggregate → (expand); a round ends when its quorum of drafts is
//! in, when enough drafts agree early, when nothing more can come, or at the deadline. Drafts are
//! read in the order of their agents, never of their arrival.

mod aggregate;
pub mod agreement;
mod budget;
mod confidence;
mod distill;
pub mod expand;
mod prompt;
mod propose;
mod refine;
mod round;
mod situation;

use conclave_proto::v1::{Decide, Vote, decide::Next};

use crate::{
    job::Job,
    payload::{MissingBlob, Payloads},
};
use round::Progress;
use situation::Situation;

/// What the decision may look at besides the job.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Blobs of this replica.
    pub payloads: &'a dyn Payloads,
    /// max(replicated wall time, the leader's clock), Unix ms; deadlines compare with it.
    pub now_unix_ms: i64,
}

/// A decision before it is addressed to a job's revision.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    /// Why, for the audit.
    reason: String,
    /// The vote so far, for the audit.
    votes: Vec<Vote>,
    next: Next,
}

/// What the job does now; `None` if it waits (for agents, a reviewer, a worker), or has ended.
///
/// A round context above `INLINE_LIMIT` comes inline: the shell turns it into a blob (durable on a
/// majority) before it proposes.
///
/// # Errors
/// A payload is a blob that is not here: fetch it, ask again.
pub fn next(job: &Job, cx: &Context<'_>) -> Result<Option<Decide>, MissingBlob> {
    // Nothing is read for a job that only waits to be looked at, however many there are.
    let overdue = job.deadline_unix_ms > 0 && cx.now_unix_ms >= job.deadline_unix_ms;
    if !job.needs_decision() || (job.prepared.is_none() && !overdue) {
        return Ok(None);
    }
    let situation = Situation::load(job, cx)?;
    Ok(decide(&situation).map(|step| Decide {
        job_id: job.id.clone(),
        revision: job.revision,
        // Whatever still runs belongs to a round that is over.
        cancel: job
            .agents
            .iter()
            .filter(|a| !a.is_final())
            .map(|a| a.spec.agent)
            .collect(),
        reason: step.reason,
        votes: step.votes,
        next: Some(step.next),
    }))
}

fn decide(s: &Situation<'_>) -> Option<Step> {
    if s.deadline_passed() {
        return Some(aggregate::cut_short(s, "the deadline passed"));
    }
    s.job.prepared.as_ref()?;
    let Some(round) = s.last_round() else {
        return Some(propose::start(s));
    };
    match round::progress(s, round) {
        Progress::Waiting => None,
        Progress::Hopeless { why } => Some(aggregate::failed(why)),
        Progress::Over { why } => {
            let mut step = after(s);
            if step.reason.is_empty() && !matches!(step.next, Next::AwaitReview(_)) {
                step.reason = why;
            }
            Some(step)
        }
    }
}

/// What follows the last round, now that it is over.
fn after(s: &Situation<'_>) -> Step {
    use conclave_proto::v1::JobState;
    let state = s.last_round().map_or(JobState::Unspecified, |r| r.state());
    if state == JobState::Aggregating {
        return expand_or_finish(s);
    }
    let distilled = state == JobState::Distilling;
    if refine::is_due(s) {
        if !distilled && let Some(step) = distill::start(s) {
            return step;
        }
        return refine::start(s);
    }
    if aggregate::chair_is_due(s) {
        if !distilled && let Some(step) = distill::start(s) {
            return step;
        }
        return aggregate::start_chair(s);
    }
    expand_or_finish(s)
}

/// The end, unless the answer is uncertain and the job asked for a closer look then.
fn expand_or_finish(s: &Situation<'_>) -> Step {
    expand::start(s).unwrap_or_else(|| aggregate::finish(s))
}

#[cfg(test)]
mod tests;
