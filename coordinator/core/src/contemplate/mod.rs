//! What a job does next. Asked by the leader; the answer is proposed as `Decide`.

use conclave_proto::v1::Decide;

use crate::{
    job::Job,
    payload::{MissingBlob, Payloads},
};

/// What the decision may look at besides the job.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Blobs of this replica.
    pub payloads: &'a dyn Payloads,
    /// max(replicated wall time, the leader's clock), Unix ms; deadlines compare with it.
    pub now_unix_ms: i64,
}

/// What the job does now; `None` if it waits (for agents, a reviewer, a worker), or has ended.
///
/// A round context above `INLINE_LIMIT` comes inline: the shell turns it into a blob (durable on a
/// majority) before it proposes.
///
/// # Errors
/// A payload is a blob that is not here: fetch it, ask again.
pub fn next(job: &Job, cx: &Context<'_>) -> Result<Option<Decide>, MissingBlob> {
    let _ = (job, cx);
    Ok(None)
}
