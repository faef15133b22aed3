//! The hash-chained record of a job (law 12).
//!
//! Large parts (spec, context, drafts) are named in the chain by digest and travel as the record's
//! *body*, so that they are stored once (beside the agent that they belong to), may be blobs, and
//! can be erased without breaking the chain.

use conclave_proto::v1::{AuditEvent, AuditHead, AuditRecord, Draft, JobSpec, audit_event::Event};
use prost::Message;

use crate::{
    job::Job,
    payload::{self, MissingBlob, Payloads},
};

/// Domain of the chain's hashes and of the head's signature.
pub const DOMAIN: &[u8] = b"conclave-audit-v1";

/// A job's chain; bodies left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chain {
    records: Vec<AuditRecord>,
    sealed: bool,
}

/// Why a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The first record that is not what the chain says.
    #[error("record {seq}: {what}")]
    Broken {
        /// Its place, from 0.
        seq: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The records do not end at the head.
    #[error("the chain ends at record {length} with another hash than the head says")]
    Head {
        /// Records in the chain.
        length: u64,
    },
}

/// The number of the field set in the event (proto `AuditEvent`).
pub fn kind(event: &Event) -> u32 {
    match event {
        Event::Submitted(_) => 1,
        Event::Prepared(_) => 2,
        Event::Round(_) => 3,
        Event::Assigned(_) => 4,
        Event::Draft(_) => 5,
        Event::AttemptEnded(_) => 6,
        Event::Decided(_) => 7,
        Event::Reviewed(_) => 8,
        Event::Ended(_) => 9,
        Event::Sealed(_) => 10,
    }
}

/// The hash of a link, as `audit.proto` defines it.
pub fn link_hash(
    prev: &[u8],
    seq: u64,
    log_index: u64,
    kind: u32,
    payload_digest: &[u8],
) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    hasher.update(prev);
    hasher.update(&seq.to_le_bytes());
    hasher.update(&log_index.to_le_bytes());
    hasher.update(&kind.to_le_bytes());
    hasher.update(payload_digest);
    *hasher.finalize().as_bytes()
}

/// The bytes that the cluster's key signs for a head (proto `AuditHead.signature`).
pub fn signed_bytes(job_id: &str, head: &AuditHead) -> Vec<u8> {
    let mut bytes = DOMAIN.to_vec();
    bytes.extend_from_slice(job_id.as_bytes());
    bytes.extend_from_slice(&head.length.to_le_bytes());
    bytes.extend_from_slice(&head.head);
    bytes.push(u8::from(head.sealed));
    bytes
}

impl Chain {
    pub(crate) fn from_records(records: Vec<AuditRecord>, sealed: bool) -> Chain {
        Chain { records, sealed }
    }

    /// The links, in order, without bodies.
    pub fn records(&self) -> &[AuditRecord] {
        &self.records
    }

    /// Nothing will be added.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Length and head; not signed.
    pub fn head(&self) -> AuditHead {
        AuditHead {
            length: self.records.len() as u64,
            head: self
                .records
                .last()
                .map_or_else(|| vec![0; 32], |r| r.hash.clone()),
            signature: Vec::new(),
            public_key: Vec::new(),
            sealed: self.sealed,
        }
    }

    /// Gives back the room to grow.
    pub(crate) fn shrink_to_fit(&mut self) {
        self.records.shrink_to_fit();
    }

    pub(crate) fn append(&mut self, job_id: &str, log_index: u64, event: &AuditEvent) {
        let Some(body) = &event.event else { return };
        debug_assert!(!self.sealed, "a sealed chain takes nothing more");
        let payload = event.encode_to_vec();
        let payload_digest = blake3::hash(&payload).as_bytes().to_vec();
        let seq = self.records.len() as u64;
        let prev_hash = self.head().head;
        let kind = kind(body);
        let hash = link_hash(&prev_hash, seq, log_index, kind, &payload_digest).to_vec();
        self.sealed = matches!(body, Event::Sealed(_));
        self.records.push(AuditRecord {
            job_id: job_id.to_owned(),
            seq,
            log_index,
            kind,
            payload_digest,
            prev_hash,
            hash,
            payload,
            body: Vec::new(),
        });
    }
}

/// The job's records with their bodies, for export.
///
/// # Errors
/// A body is a blob that is not here.
pub fn export(job: &Job, blobs: &dyn Payloads) -> Result<Vec<AuditRecord>, MissingBlob> {
    export_part(job, blobs, 0, usize::MAX)
}

/// A part of [`export`]: from the `from`th record (0 is the first) on, until what they bring takes `bytes`; at
/// least one, and none only behind the last.
///
/// # Errors
/// As [`export`].
pub fn export_part(
    job: &Job,
    blobs: &dyn Payloads,
    from: usize,
    bytes: usize,
) -> Result<Vec<AuditRecord>, MissingBlob> {
    let mut part = Vec::new();
    let mut taken = 0;
    for record in job.audit.records().iter().skip(from) {
        let body = body(job, record, blobs)?;
        taken += record.payload.len() + body.len();
        part.push(AuditRecord {
            body,
            ..record.clone()
        });
        if taken >= bytes {
            break;
        }
    }
    Ok(part)
}

/// The body of one record: found by what the event names.
fn body(job: &Job, record: &AuditRecord, blobs: &dyn Payloads) -> Result<Vec<u8>, MissingBlob> {
    let event = AuditEvent::decode(record.payload.as_slice())
        .ok()
        .and_then(|e| e.event);
    let (source, digest) = match event {
        Some(Event::Submitted(e)) => (Some(&job.spec), e.spec_digest),
        Some(Event::Round(e)) => (
            job.round_record(e.round).and_then(|r| r.context.as_ref()),
            e.context_digest,
        ),
        Some(Event::Draft(e)) => (
            job.agent(e.agent).and_then(|a| a.draft.as_ref()),
            e.draft_digest,
        ),
        Some(Event::AttemptEnded(e)) => (
            job.agent(e.agent).and_then(|a| a.draft.as_ref()),
            e.cut_digest,
        ),
        _ => (None, Vec::new()),
    };
    match source {
        Some(source) if payload::digest(source) == digest => {
            Ok(payload::read(source, blobs)?.into_owned())
        }
        _ => Ok(Vec::new()),
    }
}

/// The event of an exported record with its body put back in; `None` if either was erased in part
/// that cannot be decoded.
pub fn open(record: &AuditRecord) -> Option<AuditEvent> {
    let mut event = AuditEvent::decode(record.payload.as_slice()).ok()?;
    if record.body.is_empty() {
        return Some(event);
    }
    match event.event.as_mut()? {
        Event::Submitted(e) => e.spec = Some(JobSpec::decode(record.body.as_slice()).ok()?),
        Event::Round(e) => e.context = String::from_utf8(record.body.clone()).ok()?,
        Event::Draft(e) => e.draft = Some(Draft::decode(record.body.as_slice()).ok()?),
        Event::AttemptEnded(e) => e.cut = Some(Draft::decode(record.body.as_slice()).ok()?),
        _ => {}
    }
    Some(event)
}

/// Checks every link, payload and body, and that the chain ends at `head` (if there is one). What was
/// erased is passed over: its digest still binds. Without a head the end may have been cut off.
///
/// # Errors
/// The first record that does not hold.
pub fn verify_chain(records: &[AuditRecord], head: Option<&AuditHead>) -> Result<(), ChainError> {
    verify(records, head, true)
}

/// As [`verify_chain`], and nothing may have been erased.
///
/// # Errors
/// The first record that does not hold, or is not whole.
pub fn verify_complete(
    records: &[AuditRecord],
    head: Option<&AuditHead>,
) -> Result<(), ChainError> {
    verify(records, head, false)
}

fn verify(
    records: &[AuditRecord],
    head: Option<&AuditHead>,
    erased: bool,
) -> Result<(), ChainError> {
    let mut prev = vec![0; 32];
    for (at, record) in records.iter().enumerate() {
        let seq = at as u64;
        let broken = |what| ChainError::Broken { seq, what };
        if record.job_id != records[0].job_id {
            return Err(broken("belongs to another job"));
        }
        verify_link(record, seq, &prev).map_err(broken)?;
        verify_payload(record, erased).map_err(broken)?;
        prev.clone_from(&record.hash);
    }
    match head {
        Some(head) if head.length != records.len() as u64 || head.head != prev => {
            Err(ChainError::Head {
                length: records.len() as u64,
            })
        }
        _ => Ok(()),
    }
}

fn verify_link(record: &AuditRecord, seq: u64, prev: &[u8]) -> Result<(), &'static str> {
    if record.seq != seq {
        return Err("is out of order");
    }
    if record.prev_hash != prev {
        return Err("does not follow the record before it");
    }
    let hash = link_hash(
        prev,
        record.seq,
        record.log_index,
        record.kind,
        &record.payload_digest,
    );
    if record.hash == hash {
        Ok(())
    } else {
        Err("hash does not match its fields")
    }
}

fn verify_payload(record: &AuditRecord, erased: bool) -> Result<(), &'static str> {
    if erased && record.payload.is_empty() {
        return Ok(());
    }
    if blake3::hash(&record.payload).as_bytes().as_slice() != record.payload_digest {
        return Err("payload was changed");
    }
    let event = AuditEvent::decode(record.payload.as_slice())
        .ok()
        .and_then(|e| e.event);
    let Some(event) = event else {
        return Err("payload does not decode");
    };
    if kind(&event) != record.kind {
        return Err("kind does not match its payload");
    }
    let digest = body_digest(&event);
    let named = if digest.is_empty() {
        record.body.is_empty()
    } else {
        blake3::hash(&record.body).as_bytes() == digest || (erased && record.body.is_empty())
    };
    if named {
        Ok(())
    } else {
        Err("body was changed")
    }
}

/// The digest by which the event names its body.
fn body_digest(event: &Event) -> &[u8] {
    match event {
        Event::Submitted(e) => &e.spec_digest,
        Event::Round(e) => &e.context_digest,
        Event::Draft(e) => &e.draft_digest,
        Event::AttemptEnded(e) => &e.cut_digest,
        _ => &[],
    }
}

#[cfg(test)]
mod tests;
