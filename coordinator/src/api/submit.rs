//! `SubmitJob`, on the leader.

use std::{
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use conclave_coordinator_core::{Reply, State, payload, spec, view};
use conclave_proto::{
    INLINE_LIMIT,
    v1::{
        JobSpec, Payload, SubmitJobCommand, SubmitJobRequest, SubmitJobResponse,
        command::Command as Body,
    },
};
use prost::Message as _;
use tonic::{Status, metadata::MetadataMap};
use uuid::Uuid;

use super::{Api, contemplation::USERS, convert};
use crate::{
    metrics,
    node::{Input, NodeError, task::unix_ms},
};

/// Longest idempotency key, bytes.
const MAX_KEY: usize = 128;
/// When a refused submission may come again.
const LATER: Duration = Duration::from_secs(1);

/// What a key stands for.
enum Known {
    /// A job that was accepted before.
    Job(Box<SubmitJobResponse>),
    /// Nothing yet; the replicated clock, Unix milliseconds.
    Nothing { unix_ms: i64 },
}

/// A submission that may be proposed.
struct Checked {
    effective: JobSpec,
    /// Encoded.
    bytes: Vec<u8>,
}

impl Checked {
    /// Its payload needs no other member, and its deadline no replicated clock.
    fn is_plain(&self) -> bool {
        self.bytes.len() <= INLINE_LIMIT && deadline(&self.effective, 0) == 0
    }
}

impl Known {
    fn job(self) -> Option<SubmitJobResponse> {
        match self {
            Known::Job(response) => Some(*response),
            Known::Nothing { .. } => None,
        }
    }
}

impl Api {
    /// Accepts a job, once per (tenant, key).
    ///
    /// # Errors
    /// INVALID_ARGUMENT, ALREADY_EXISTS, RESOURCE_EXHAUSTED, UNAVAILABLE.
    pub async fn submit(
        &self,
        metadata: MetadataMap,
        request: SubmitJobRequest,
    ) -> Result<SubmitJobResponse, Status> {
        let caller = self.auth.require(&metadata, &USERS)?;
        let wait = self.patience(&metadata);
        let key = request.idempotency_key;
        check_key(&key)?;
        let asked = request
            .spec
            .ok_or_else(|| Status::invalid_argument("spec: is required"))?;
        let request_digest = blake3::hash(&asked.encode_to_vec()).as_bytes().to_vec();
        let _under_way = UnderWay::begin(&self.submitting);
        let checked = self.check(&asked);
        // Most keys are new, and applying the command finds those that are not: only what a known
        // key must not meet waits for a read first; and on a leader that may be cut off, what
        // would come to an unknown outcome.
        let plain = checked.as_ref().is_ok_and(Checked::is_plain);
        let known = if plain && self.node.status().borrow().hears_quorum() {
            Known::Nothing { unix_ms: 0 }
        } else {
            Box::pin(self.known(&caller.tenant, &key, &request_digest, wait)).await?
        };
        let replicated_ms = match known {
            Known::Job(response) => return Ok(*response),
            Known::Nothing { unix_ms } => unix_ms,
        };
        let Checked { effective, bytes } = checked?;
        let stored = self.stored(&caller.tenant, bytes, wait).await?;
        // Deadlines are met by the replicated clock, which never goes back: behind it, this
        // node's own would give away what the caller asked for (law 3).
        let unix_ms = unix_ms().max(replicated_ms);
        let command = SubmitJobCommand {
            // Ids ascend with time: lists go by them.
            job_id: Uuid::now_v7().to_string(),
            tenant: caller.tenant.clone(),
            idempotency_key: key.clone(),
            request_digest: request_digest.clone(),
            spec: Some(stored),
            unix_ms,
            deadline_unix_ms: deadline(&effective, unix_ms),
        };
        let (waits, reply) = self.propose_and_look(command, &effective.model, wait).await;
        let unless_known = match reply {
            // Two calls with one key at once: the first one's spec counts.
            Ok(Reply::Submitted { existing: true, .. }) => {
                Status::aborted("the job expired meanwhile")
            }
            Ok(Reply::Submitted { job_id, existing }) => {
                metrics::submitted(convert::mode_name(effective.mode()));
                let effective = Some(effective);
                return Ok(SubmitJobResponse {
                    job_id,
                    effective,
                    existing,
                    waits,
                });
            }
            // A key that this node has not heard of goes before a quota (law 7).
            Err(refusal @ NodeError::OverQuota(_)) => convert::node_error(refusal),
            Err(error) => return Err(convert::node_error(error)),
            Ok(other) => {
                convert::reply(other, "")?;
                return Err(Status::internal("a submission was applied without a job"));
            }
        };
        let known = Box::pin(self.known(&caller.tenant, &key, &request_digest, wait));
        known.await?.job().ok_or(unless_known)
    }

    /// The spec as the log carries it. A long one's key is known to be new, and nothing is stored for a
    /// tenant that may not submit.
    async fn stored(
        &self,
        tenant: &str,
        bytes: Vec<u8>,
        wait: Duration,
    ) -> Result<Payload, Status> {
        if bytes.len() > INLINE_LIMIT {
            let tenant = tenant.to_owned();
            let admitted = self.node.ask(wait, |_, done| Input::Admit { tenant, done });
            Box::pin(admitted).await.map_err(convert::node_error)?;
        }
        self.blobs.payload(bytes, wait).await
    }

    /// Beside the reply, why no worker could take the job now: looked at while it is committed, and never
    /// waited for.
    async fn propose_and_look(
        &self,
        command: SubmitJobCommand,
        model: &str,
        wait: Duration,
    ) -> (String, Result<Reply, NodeError>) {
        let model = model.to_owned();
        let look = move |state: &State| view::waits(state, &model).unwrap_or_default();
        let mut looked = pin!(self.node.read(false, wait, look));
        let mut proposed = pin!(self.propose_job(command, wait));
        let mut waits = None;
        loop {
            tokio::select! {
                biased;
                found = &mut looked, if waits.is_none() => waits = Some(found.unwrap_or_default()),
                reply = &mut proposed => return (waits.unwrap_or_default(), reply),
            }
        }
    }

    /// A leader that is lost meanwhile leaves the outcome unknown, and its caller not waiting.
    async fn propose_job(
        &self,
        command: SubmitJobCommand,
        wait: Duration,
    ) -> Result<Reply, NodeError> {
        tokio::select! {
            biased;
            reply = self.node.propose(Body::SubmitJob(command), wait) => reply,
            _ = self.cut_off() => Err(NodeError::Unknown),
        }
    }

    /// Is there room for it, and is it right?
    fn check(&self, asked: &JobSpec) -> Result<Checked, Status> {
        self.room()?;
        let seed = getrandom::u64().map_err(|e| Status::internal(format!("no seed: {e}")))?;
        let effective = spec::effective(asked, &spec::Defaults::new(seed))
            .map_err(|e| convert::spec_error(&e))?;
        let bytes = effective.encode_to_vec();
        Ok(Checked { effective, bytes })
    }

    /// The job that the key stands for already.
    async fn known(
        &self,
        tenant: &str,
        key: &str,
        digest: &[u8],
        wait: Duration,
    ) -> Result<Known, Status> {
        let (tenant, key, digest) = (tenant.to_owned(), key.to_owned(), digest.to_vec());
        let read = move |state: &State| {
            let known = state.key(&tenant, &key).ok_or(state.unix_ms())?;
            let job = state.job(&known.job_id).map(|job| job.spec.clone());
            Ok((
                known.job_id.to_string(),
                *known.request_digest == *digest,
                job,
            ))
        };
        let (job_id, same, stored) = match self.read(wait, read).await? {
            Ok(found) => found,
            Err(unix_ms) => return Ok(Known::Nothing { unix_ms }),
        };
        if !same {
            convert::reply(
                Reply::Conflict {
                    job_id: job_id.clone(),
                },
                "",
            )?;
        }
        let local = self.blobs.local.clone();
        let effective: Option<JobSpec> = match stored {
            Some(stored) => Some(
                self.with_blobs(wait, move || payload::decode(&stored, &local))
                    .await?,
            ),
            // The job has expired; its key lives on.
            None => None,
        };
        Ok(Known::Job(Box::new(SubmitJobResponse {
            job_id,
            effective,
            existing: true,
            waits: String::new(),
        })))
    }

    /// Refuses what there is no room for; what was accepted goes on.
    fn room(&self) -> Result<(), Status> {
        let (keys, most) = (self.node.status().borrow().keys, self.config.max_keys);
        if keys >= most {
            metrics::refused("max_keys");
            let why = format!(
                "{keys} idempotency keys are kept, at most {most} may be (max_keys): each is for a \
                 day, and as long as its job is"
            );
            return Err(convert::exhausted(why, LATER * 10));
        }
        // This one counts itself.
        let live = self.node.status().borrow().live_jobs
            + self.submitting.load(Ordering::Relaxed).saturating_sub(1);
        if live >= self.config.max_live_jobs {
            metrics::refused("max_live_jobs");
            return Err(convert::exhausted(
                format!(
                    "{live} jobs have not ended, at most {} may",
                    self.config.max_live_jobs
                ),
                LATER,
            ));
        }
        self.reserve.check().map_err(|short| {
            metrics::refused("disk_reserve");
            convert::exhausted(
                format!(
                    "the leader's disk is nearly full: {short}; they are kept for running jobs"
                ),
                LATER * 10,
            )
        })
    }
}

/// A submission between its look for room and its end.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn check_key(key: &str) -> Result<(), Status> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Status::invalid_argument(format!(
            "idempotency_key: required, 1 to {MAX_KEY} bytes"
        )));
    }
    Ok(())
}

/// When the job must have ended, Unix milliseconds; 0: never.
fn deadline(spec: &JobSpec, now_unix_ms: i64) -> i64 {
    match spec.budget.as_ref().map_or(0, |budget| budget.deadline_ms) {
        0 => 0,
        ms => now_unix_ms.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)),
    }
}
