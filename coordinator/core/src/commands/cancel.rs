//! `CancelJob`: the caller, or an operator, ends a job.

use conclave_proto::v1::{CancelJobCommand, JobState};

use super::{At, Ending, end};
use crate::{
    effect::{Applied, Reply},
    state::State,
};

pub(crate) fn apply(state: &mut State, at: At, command: &CancelJobCommand) -> Applied {
    state.advance_unix(command.unix_ms);
    let Some(job) = state.jobs.get(&command.job_id) else {
        return Applied::only(Reply::NotFound);
    };
    if job.is_final() {
        return Applied::only(Reply::Ok);
    }
    // The state says that it was cancelled; the message says why.
    let message = if command.reason.is_empty() {
        "no reason was given".to_owned()
    } else {
        command.reason.clone()
    };
    let ending = Ending {
        state: JobState::Cancelled,
        answer: None,
        message,
    };
    Applied::ok(end(state, at, &command.job_id, ending))
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::command::Command as Body;

    use super::*;
    use crate::testkit::{World, cancels, choice, width};

    fn cancel(world: &mut World) -> Applied {
        let job_id = "j".into();
        let reason = "Ctrl-C".into();
        world.apply(Body::CancelJob(CancelJobCommand {
            job_id,
            reason,
            unix_ms: 0,
        }))
    }

    #[test]
    fn cancelling_reaches_every_attempt_and_may_be_repeated() {
        let mut world = World::with_job(&choice(width(3)));
        world.go("j");
        let applied = cancel(&mut world);
        assert_eq!(cancels(&applied.effects), [1, 2, 3]);
        assert!(world.is_in("j", JobState::Cancelled));
        assert_eq!(world.job("j").message, "Ctrl-C");
        assert_eq!(cancel(&mut world), Applied::only(Reply::Ok));
        assert_eq!(
            cancels(&world.state.outstanding()),
            [1, 2, 3],
            "a new leader repeats them"
        );
    }
}
