//! `ReviewJob`: a person approves, edits or rejects the answer.

use conclave_proto::v1::{AuditReviewed, JobState, ReviewJobCommand, Verdict, audit_event};

use super::{At, Ending, end};
use crate::{
    effect::{Applied, Reply},
    state::State,
};

pub(crate) fn apply(state: &mut State, at: At, command: &ReviewJobCommand) -> Applied {
    state.advance_unix(command.unix_ms);
    let Some(job) = state.jobs.get_mut(&command.job_id) else {
        return Applied::only(Reply::NotFound);
    };
    if job.state != JobState::AwaitingReview {
        return Applied::only(Reply::Rejected {
            why: "the job does not await review".into(),
        });
    }
    let mut answer = job.answer.clone();
    let passed = if job.message.is_empty() {
        JobState::Done
    } else {
        JobState::Degraded
    };
    let (end_state, message) = match command.verdict() {
        Verdict::Approve => (passed, job.message.clone()),
        Verdict::Edit => {
            if let Some(answer) = &mut answer {
                answer.text.clone_from(&command.text);
                answer.canonical.clone_from(&command.text);
                answer.edited = true;
            }
            (passed, job.message.clone())
        }
        Verdict::Reject => (JobState::Failed, rejection(&command.note)),
        Verdict::Unspecified => {
            return Applied::only(Reply::Rejected {
                why: "a review without a verdict".into(),
            });
        }
    };
    let reviewed = AuditReviewed {
        reviewer: command.reviewer.clone(),
        verdict: command.verdict,
        text: command.text.clone(),
        note: command.note.clone(),
    };
    job.record(at.index, audit_event::Event::Reviewed(reviewed));
    Applied::ok(end(
        state,
        at,
        &command.job_id,
        Ending {
            state: end_state,
            answer,
            message,
        },
    ))
}

fn rejection(note: &str) -> String {
    if note.is_empty() {
        "rejected in review".into()
    } else {
        format!("rejected in review: {note}")
    }
}
