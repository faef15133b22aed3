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
    let message = if command.reason.is_empty() {
        "cancelled".to_owned()
    } else {
        format!("cancelled: {}", command.reason)
    };
    let ending = Ending {
        state: JobState::Cancelled,
        answer: None,
        message,
    };
    Applied::ok(end(state, at, &command.job_id, ending))
}
