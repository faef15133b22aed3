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

/// What the message of a rejected job begins with.
pub(crate) const REJECTED: &str = "rejected in review";

fn rejection(note: &str) -> String {
    if note.is_empty() {
        REJECTED.into()
    } else {
        format!("{REJECTED}: {note}")
    }
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{ContemplationPolicy, command::Command as Body};

    use super::*;
    use crate::testkit::{World, choice, width};

    fn reviewed(verdict: Verdict) -> World {
        let policy = ContemplationPolicy {
            review: true,
            ..width(1)
        };
        let mut world = World::with_job(&choice(policy));
        world.go("j");
        world.all_answer("j", "yes");
        world.go("j");
        assert!(
            !world.state.needs_ticks(),
            "a reviewer may take days: no entry of the log counts them"
        );
        let review = ReviewJobCommand {
            job_id: "j".into(),
            verdict: verdict as i32,
            text: "no".into(),
            note: "wrong".into(),
            reviewer: "ann".into(),
            unix_ms: 0,
        };
        assert_eq!(
            world.apply(Body::ReviewJob(review.clone())).reply,
            Reply::Ok
        );
        let again = world.apply(Body::ReviewJob(review));
        assert!(
            matches!(again.reply, Reply::Rejected { .. }),
            "a verdict is given once"
        );
        world
    }

    #[test]
    fn verdicts_approve_edit_or_reject() {
        let text = |world: &World| world.job("j").answer.clone().map(|a| (a.text, a.edited));
        let approved = reviewed(Verdict::Approve);
        assert_eq!(approved.job("j").state, JobState::Done);
        assert_eq!(text(&approved), Some(("yes".into(), false)));
        let edited = reviewed(Verdict::Edit);
        assert_eq!(edited.job("j").state, JobState::Done);
        assert_eq!(text(&edited), Some(("no".into(), true)));
        let rejected = reviewed(Verdict::Reject);
        assert_eq!(rejected.job("j").state, JobState::Failed);
        assert_eq!(rejected.job("j").message, "rejected in review: wrong");
        let shown = |world: &World| {
            crate::view::job(world.job("j"), &crate::payload::InlineOnly, None).expect("inline")
        };
        assert!(crate::view::was_rejected(&shown(&rejected)));
        assert!(!crate::view::was_rejected(&shown(&edited)));
    }
}
