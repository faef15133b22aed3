//! Audit export: a job's chain, then its head signed with the cluster's key.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use conclave_coordinator_core::{MissingBlob, audit, job::Job};
use conclave_proto::v1::{
    AuditHead, ExportJobRequest, ExportJobResponse, audit_server::Audit, export_job_response::Item,
};
use ed25519_dalek::{Signer as _, SigningKey};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tonic::{Request, Response, Status};

use super::{Api, contemplation::Seen, convert};
use crate::auth::Role;

/// Records of an export that are made at a time, bytes; one more record may be over it.
const PART: usize = 256 << 10;
/// How long the disk may take for one view, whatever the caller's wait.
const DISK: Duration = Duration::from_secs(5);

/// Serves `conclave.v1.Audit`.
#[derive(Clone)]
pub struct AuditService(pub Arc<Api>);

/// The public half of a cluster's key; empty without one.
pub fn public_key(seed: &[u8]) -> Vec<u8> {
    key(seed)
        .map(|key| key.verifying_key().to_bytes().to_vec())
        .unwrap_or_default()
}

fn key(seed: &[u8]) -> Option<SigningKey> {
    seed.try_into()
        .ok()
        .map(|seed: [u8; 32]| SigningKey::from_bytes(&seed))
}

/// Signs a head, as `contemplation.proto` words it; without a key the head
/// stays unsigned, which verification calls *unanchored*.
pub fn sign(seed: &[u8], job_id: &str, mut head: AuditHead) -> AuditHead {
    if let Some(key) = key(seed) {
        head.signature = key
            .sign(&audit::signed_bytes(job_id, &head))
            .to_bytes()
            .to_vec();
        head.public_key = key.verifying_key().to_bytes().to_vec();
    }
    head
}

type Items = Pin<Box<dyn Stream<Item = Result<ExportJobResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Audit for AuditService {
    type ExportJobStream = Items;

    async fn export_job(
        &self,
        request: Request<ExportJobRequest>,
    ) -> Result<Response<Items>, Status> {
        let roles = [Role::Submitter, Role::Reviewer, Role::Operator];
        let caller = self.0.auth.require(request.metadata(), &roles)?;
        let wait = self.0.patience(request.metadata());
        let job_id = request.into_inner().job_id;
        let Seen { job, seed, .. } = self.0.job(&caller, &job_id, wait).await?;
        let head = sign(&seed, &job_id, job.audit.head());
        let export = Export {
            api: Arc::clone(&self.0),
            job: Arc::new(job),
            head,
            wait,
        };
        // Before the answer begins, so that most of what can be missing is told as its status.
        let (first, next) = export.part(0).await?;
        let rest = stream::try_unfold((export, next), async |(export, next)| {
            let Some(from) = next else { return Ok(None) };
            let (items, next) = export.part(from).await?;
            Ok(Some((items, (export, next))))
        });
        let parts = stream::iter([Ok::<_, Status>(first)]).chain(rest);
        let items = parts.map_ok(|items: Vec<Item>| {
            let item = |item| Ok(ExportJobResponse { item: Some(item) });
            stream::iter(items.into_iter().map(item))
        });
        Ok(Response::new(Box::pin(items.try_flatten())))
    }
}

/// An export under way: a part of the records is in memory at a time, however long the job.
struct Export {
    api: Arc<Api>,
    job: Arc<Job>,
    head: AuditHead,
    /// For payloads that have to be fetched for a part.
    wait: Duration,
}

impl Export {
    /// Records from `from` on, the head behind the last of them; and where the next part begins.
    async fn part(&self, from: usize) -> Result<(Vec<Item>, Option<usize>), Status> {
        let (job, local) = (Arc::clone(&self.job), self.api.blobs.local.clone());
        let view = move || audit::export_part(&job, &local, from, PART);
        let records = self.api.with_blobs(self.wait, view).await?;
        let next = from + records.len();
        let mut items: Vec<Item> = records.into_iter().map(Item::Record).collect();
        if next < self.job.audit.records().len() {
            return Ok((items, Some(next)));
        }
        items.push(Item::Head(self.head.clone()));
        Ok((items, None))
    }
}

impl Api {
    /// Runs a view that may need payloads; fetches what is missing and runs it
    /// again. Ends within `wait`, and fetches nothing twice.
    ///
    /// # Errors
    /// UNAVAILABLE for a payload that no member has now or for a disk that hangs, DATA_LOSS for one that
    /// does not decode.
    pub async fn with_blobs<T: Send + 'static>(
        &self,
        wait: Duration,
        view: impl Fn() -> Result<T, MissingBlob> + Send + Sync + 'static,
    ) -> Result<T, Status> {
        let view = Arc::new(view);
        let mut fetches = Fetches::new(wait);
        loop {
            let run = view.clone();
            let run = tokio::task::spawn_blocking(move || run());
            let result = tokio::time::timeout(wait.max(DISK), run)
                .await
                .map_err(|_| {
                    Status::unavailable("this node's disk takes too long: ask another member")
                })?
                .map_err(|e| Status::internal(e.to_string()))?;
            match result {
                Ok(value) => return Ok(value),
                Err(missing) => fetches.fetch(self, &missing).await?,
            }
        }
    }
}

/// The payloads that one call fetched.
pub struct Fetches {
    until: Instant,
    tried: BTreeSet<Vec<u8>>,
}

impl Fetches {
    /// None yet; all of them take `wait` at most.
    pub fn new(wait: Duration) -> Self {
        Self {
            until: Instant::now() + wait,
            tried: BTreeSet::new(),
        }
    }

    /// Fetches what a view found missing.
    ///
    /// # Errors
    /// UNAVAILABLE for a payload that no member has in time or that was fetched
    /// and cannot be read all the same (a failing disk), DATA_LOSS for one that
    /// does not decode.
    pub async fn fetch(&mut self, api: &Api, missing: &MissingBlob) -> Result<(), Status> {
        let MissingBlob::Absent { hash } = missing else {
            return Err(convert::missing(missing));
        };
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() || !self.tried.insert(hash.clone()) {
            return Err(convert::missing(missing));
        }
        let hash = hash
            .as_slice()
            .try_into()
            .map_err(|_| Status::data_loss("a payload's hash has not 32 bytes"))?;
        api.blobs.fetch(hash, left).await
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signature, VerifyingKey};

    use super::*;

    #[test]
    fn a_signed_head_verifies_and_a_changed_one_does_not() {
        let head = AuditHead {
            length: 3,
            head: vec![7; 32],
            ..AuditHead::default()
        };
        let mut head = sign(&[9; 32], "job", head);
        let key: [u8; 32] = head.public_key.as_slice().try_into().unwrap();
        let key = VerifyingKey::from_bytes(&key).unwrap();
        let signature = Signature::from_slice(&head.signature).unwrap();
        key.verify_strict(&audit::signed_bytes("job", &head), &signature)
            .unwrap();
        assert!(
            key.verify_strict(&audit::signed_bytes("jobs", &head), &signature)
                .is_err()
        );
        head.length = 4;
        assert!(
            key.verify_strict(&audit::signed_bytes("job", &head), &signature)
                .is_err()
        );
    }
}
