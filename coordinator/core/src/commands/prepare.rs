//! `PrepareDone`: a worker has validated and counted the prompt.

use conclave_proto::v1::{AuditPrepared, PrepareDone, audit_event};

use super::{At, Ending, end};
use crate::{
    effect::{Applied, Effect, Reply},
    state::State,
};

pub(crate) fn apply(state: &mut State, at: At, command: &PrepareDone) -> Applied {
    let Some(prepared) = command.prepared.as_ref().filter(|p| !p.retry) else {
        return Applied::only(Reply::Rejected {
            why: "nothing was prepared".into(),
        });
    };
    let Some(job) = state.jobs.get_mut(&prepared.job_id) else {
        return Applied::only(Reply::NotFound);
    };
    if !job.needs_prepare() {
        return Applied::only(Reply::Stale(crate::effect::Stale::Revision));
    }
    let event = AuditPrepared {
        model: prepared.model.clone(),
        model_digest: prepared.model_digest.clone(),
        numeric_class: prepared.numeric_class.clone(),
        prompt_tokens: prepared.prompt_tokens,
        error: prepared.error.clone(),
    };
    job.record(at.index, audit_event::Event::Prepared(event));
    job.prepared = Some(prepared.clone());
    if prepared.error.is_empty() {
        let changed: Effect = job.changed();
        return Applied::ok(vec![changed]);
    }
    let id = prepared.job_id.clone();
    Applied::ok(end(state, at, &id, Ending::failed(prepared.error.clone())))
}
