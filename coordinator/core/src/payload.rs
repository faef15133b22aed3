//! Bytes that travel by value when small and by hash when not (law 9).

use std::borrow::Cow;

use conclave_proto::v1::{BlobRef, Payload, payload::Body};
use prost::Message;

/// The replica's blobs, as the core sees them.
pub trait Payloads {
    /// The blob of this blake3 hash, or `None` if it is not here yet.
    fn blob(&self, hash: &[u8]) -> Option<Vec<u8>>;
}

/// No blobs: every payload is inline.
#[derive(Debug, Clone, Copy, Default)]
pub struct InlineOnly;

impl Payloads for InlineOnly {
    fn blob(&self, _hash: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// A payload cannot be read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MissingBlob {
    /// Fetch the blob, then ask again.
    #[error("blob {} is not here yet", hex(.hash))]
    Absent {
        /// blake3 of the blob.
        hash: Vec<u8>,
    },
    /// The bytes do not decode: a broken proposer.
    #[error("payload {} does not decode", hex(.hash))]
    Broken {
        /// blake3 of the payload.
        hash: Vec<u8>,
    },
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A payload by value.
pub fn inline(bytes: Vec<u8>) -> Payload {
    Payload {
        body: Some(Body::Inline(bytes)),
    }
}

/// A payload by hash; the blob must be durable on a majority before this is proposed.
pub fn blob(hash: [u8; 32], length: u64) -> Payload {
    Payload {
        body: Some(Body::Blob(BlobRef {
            hash: hash.to_vec(),
            length,
        })),
    }
}

/// blake3 of the payload's bytes, wherever they are.
pub fn digest(payload: &Payload) -> Vec<u8> {
    match &payload.body {
        Some(Body::Inline(bytes)) => blake3::hash(bytes).as_bytes().to_vec(),
        Some(Body::Blob(blob)) => blob.hash.clone(),
        None => blake3::hash(&[]).as_bytes().to_vec(),
    }
}

/// The payload's length, bytes.
pub fn length(payload: &Payload) -> u64 {
    match &payload.body {
        Some(Body::Inline(bytes)) => bytes.len() as u64,
        Some(Body::Blob(blob)) => blob.length,
        None => 0,
    }
}

/// The blob that the payload refers to, if it does.
pub fn blob_ref(payload: &Payload) -> Option<([u8; 32], u64)> {
    match &payload.body {
        Some(Body::Blob(blob)) => Some((blob.hash.as_slice().try_into().ok()?, blob.length)),
        _ => None,
    }
}

/// The payload's bytes.
///
/// # Errors
/// [`MissingBlob::Absent`] if they are a blob that is not here.
pub fn read<'a>(payload: &'a Payload, blobs: &dyn Payloads) -> Result<Cow<'a, [u8]>, MissingBlob> {
    match &payload.body {
        Some(Body::Inline(bytes)) => Ok(Cow::Borrowed(bytes)),
        Some(Body::Blob(blob)) => match blobs.blob(&blob.hash) {
            Some(bytes) => Ok(Cow::Owned(bytes)),
            None => Err(MissingBlob::Absent {
                hash: blob.hash.clone(),
            }),
        },
        None => Ok(Cow::Borrowed(&[])),
    }
}

/// The message that the payload holds.
///
/// # Errors
/// As [`read`], and [`MissingBlob::Broken`] if the bytes do not decode.
pub fn decode<M: Message + Default>(
    payload: &Payload,
    blobs: &dyn Payloads,
) -> Result<M, MissingBlob> {
    let bytes = read(payload, blobs)?;
    M::decode(bytes.as_ref()).map_err(|_| MissingBlob::Broken {
        hash: digest(payload),
    })
}
