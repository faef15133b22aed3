//! Whether an audit file holds: encoding, chain, payloads, signature.
use conclave_coordinator::audit::{self as chain, ChainError, signed_bytes, verify_chain};
use conclave_proto::v1::AuditHead;
use ed25519_dalek::{Signature, VerifyingKey};

use super::{AuditFile, FormatError, decode};

/// What was found to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The job that the record is of.
    pub job_id: String,
    /// Links in the chain.
    pub records: usize,
    /// Payloads or bodies that were erased; their digests still bind.
    pub erased: usize,
    /// Who vouches for the chain's end.
    pub anchor: Anchor,
}

/// Who vouches for the chain's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anchor {
    /// Nobody: whoever holds the file could have made it.
    None,
    /// The holder of this key.
    Signed {
        /// Ed25519 public key, 32 bytes.
        public_key: Vec<u8>,
        /// The caller named the key beforehand.
        pinned: bool,
        /// Nothing will be added to the record.
        sealed: bool,
    },
}

/// Why an audit file does not hold.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Not a file that this program wrote.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The chain is broken.
    #[error("the chain is broken: {0}")]
    Chain(#[from] ChainError),
    /// Parts were erased, and the caller wants all of them.
    #[error("parts were erased, which --allow-erased accepts: {0}")]
    Erased(ChainError),
    /// No record at all.
    #[error("the file holds no record")]
    Empty,
    /// A body whose record was erased: nothing binds it.
    #[error("record {seq}: has a body, but nothing left that names it")]
    StrayBody {
        /// Its place, from 0.
        seq: u64,
    },
    /// The key in the head is no key, or the signature none of it.
    #[error("the head's signature is not that of its key")]
    Signature,
    /// Signed, but by somebody else.
    #[error("the head is signed by {found}, not by the key that --public-key names")]
    OtherKey {
        /// The key in the file, hex.
        found: String,
    },
    /// A key was named, and there is nothing that it could have signed.
    #[error(
        "--public-key was given, but the file has no signed head (unanchored): export it anew from the cluster"
    )]
    NothingSigned,
}

/// Verifies a file's bytes; `public_key` pins the key that must have signed.
pub fn verify(
    bytes: &[u8],
    public_key: Option<&[u8]>,
) -> Result<(AuditFile, Verified), VerifyError> {
    let file = decode(bytes)?;
    let verified = verify_file(&file, public_key)?;
    Ok((file, verified))
}

/// Verifies what was read or received already.
pub fn verify_file(file: &AuditFile, public_key: Option<&[u8]>) -> Result<Verified, VerifyError> {
    let first = file.records.first().ok_or(VerifyError::Empty)?;
    verify_chain(&file.records, file.head.as_ref())?;
    if let Some(stray) = file
        .records
        .iter()
        .find(|r| r.payload.is_empty() && !r.body.is_empty())
    {
        return Err(VerifyError::StrayBody { seq: stray.seq });
    }
    let anchor = match (&file.head, public_key) {
        (Some(head), pinned) => {
            verify_head(&first.job_id, head, pinned)?;
            Anchor::Signed {
                public_key: head.public_key.clone(),
                pinned: pinned.is_some(),
                sealed: head.sealed,
            }
        }
        (None, Some(_)) => return Err(VerifyError::NothingSigned),
        (None, None) => Anchor::None,
    };
    let erased = file
        .records
        .iter()
        .filter(|record| is_erased(record))
        .count();
    Ok(Verified {
        job_id: first.job_id.clone(),
        records: file.records.len(),
        erased,
        anchor,
    })
}

/// Refuses a record that anything was erased from; the file must hold otherwise.
pub fn verify_complete(file: &AuditFile) -> Result<(), VerifyError> {
    chain::verify_complete(&file.records, file.head.as_ref()).map_err(VerifyError::Erased)
}

fn verify_head(job_id: &str, head: &AuditHead, pinned: Option<&[u8]>) -> Result<(), VerifyError> {
    if pinned.is_some_and(|pinned| pinned != head.public_key) {
        return Err(VerifyError::OtherKey {
            found: hex::encode(&head.public_key),
        });
    }
    let key = head
        .public_key
        .as_slice()
        .try_into()
        .ok()
        .and_then(|key| VerifyingKey::from_bytes(key).ok());
    let signature = Signature::from_slice(&head.signature).ok();
    let (Some(key), Some(signature)) = (key, signature) else {
        return Err(VerifyError::Signature);
    };
    // Strict: of the encodings of one signature exactly one is accepted.
    key.verify_strict(&signed_bytes(job_id, head), &signature)
        .map_err(|_| VerifyError::Signature)
}

/// Something that the record names is not in it any more.
fn is_erased(record: &conclave_proto::v1::AuditRecord) -> bool {
    record.payload.is_empty() || (record.body.is_empty() && super::names_a_body(record))
}

#[cfg(test)]
pub(crate) mod tests {
    use conclave_coordinator::audit::{kind, link_hash};
    use conclave_proto::v1::{
        AuditAssigned, AuditEvent, AuditRecord, AuditRound, AuditSealed, AuditSubmitted, JobSpec,
        audit_event::Event,
    };
    use ed25519_dalek::{Signer as _, SigningKey};
    use prost::Message as _;

    use super::super::encode;
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn chain() -> Vec<AuditRecord> {
        let spec = JobSpec {
            model: "m".into(),
            seed: Some(3),
            ..Default::default()
        }
        .encode_to_vec();
        let context = b"context".to_vec();
        let submitted = AuditSubmitted {
            tenant: "local".into(),
            unix_ms: 5,
            spec_digest: blake3::hash(&spec).as_bytes().to_vec(),
            ..Default::default()
        };
        let round = AuditRound {
            round: 1,
            context_digest: blake3::hash(&context).as_bytes().to_vec(),
            ..Default::default()
        };
        let assigned = AuditAssigned {
            agent: 1,
            attempt: 1,
            worker: "w".into(),
            ..Default::default()
        };
        let events = [
            (Event::Submitted(submitted), spec),
            (Event::Round(round), context),
            (Event::Assigned(assigned), Vec::new()),
            (Event::Sealed(AuditSealed {}), Vec::new()),
        ];
        let mut records: Vec<AuditRecord> = Vec::new();
        for (seq, (event, body)) in (0u64..).zip(events) {
            let prev_hash = records
                .last()
                .map_or_else(|| vec![0; 32], |record| record.hash.clone());
            let (log_index, kind) = (10 + seq, kind(&event));
            let payload = AuditEvent { event: Some(event) }.encode_to_vec();
            let payload_digest = blake3::hash(&payload).as_bytes().to_vec();
            let hash = link_hash(&prev_hash, seq, log_index, kind, &payload_digest).to_vec();
            let job_id = "j1".to_owned();
            records.push(AuditRecord {
                job_id,
                seq,
                log_index,
                kind,
                payload_digest,
                prev_hash,
                hash,
                payload,
                body,
            });
        }
        records
    }

    /// A small record with a signed head.
    pub fn signed() -> AuditFile {
        let records = chain();
        let mut head = AuditHead {
            length: records.len() as u64,
            head: records[records.len() - 1].hash.clone(),
            signature: Vec::new(),
            public_key: key().verifying_key().to_bytes().to_vec(),
            sealed: true,
        };
        head.signature = key().sign(&signed_bytes("j1", &head)).to_bytes().to_vec();
        AuditFile {
            records,
            head: Some(head),
        }
    }

    /// Every byte of `file` changed in turn, with a checksum that fits again:
    /// what an editor could do, who knows the format but not the key.
    fn survivors(file: &AuditFile) -> Vec<usize> {
        let good = encode(file);
        let end = good.len() - 32;
        let mut survivors = Vec::new();
        for at in 0..end {
            for bit in 0..8 {
                let mut bytes = good[..end].to_vec();
                bytes[at] ^= 1 << bit;
                let checksum = blake3::hash(&bytes);
                bytes.extend(checksum.as_bytes());
                if verify(&bytes, None).is_ok() {
                    survivors.push(at);
                }
            }
        }
        survivors
    }

    #[test]
    fn a_signed_file_holds_and_says_by_whom() {
        let bytes = encode(&signed());
        let (_, verified) = verify(&bytes, None).unwrap();
        let public_key = key().verifying_key().to_bytes().to_vec();
        assert_eq!(
            (verified.records, verified.erased, verified.job_id.as_str()),
            (4, 0, "j1")
        );
        assert_eq!(
            verified.anchor,
            Anchor::Signed {
                public_key: public_key.clone(),
                pinned: false,
                sealed: true
            }
        );
        let (_, pinned) = verify(&bytes, Some(&public_key)).unwrap();
        assert!(matches!(pinned.anchor, Anchor::Signed { pinned: true, .. }));
    }

    #[test]
    fn any_changed_byte_is_found_even_under_a_fresh_checksum() {
        assert_eq!(survivors(&signed()), [] as [usize; 0]);
    }

    #[test]
    fn any_changed_byte_is_found_without_a_head_too() {
        assert_eq!(
            survivors(&AuditFile {
                head: None,
                ..signed()
            }),
            [] as [usize; 0]
        );
    }

    #[test]
    fn any_flipped_byte_of_the_file_as_it_lies_on_disk_is_found() {
        let good = encode(&signed());
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0xff;
            assert!(verify(&bytes, None).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_cut_chain_is_found_by_its_head() {
        let mut file = signed();
        file.records.pop();
        assert!(matches!(
            verify_file(&file, None),
            Err(VerifyError::Chain(ChainError::Head { .. }))
        ));
    }

    #[test]
    fn without_a_head_the_chain_is_unanchored() {
        let file = AuditFile {
            head: None,
            ..signed()
        };
        assert_eq!(verify_file(&file, None).unwrap().anchor, Anchor::None);
        assert!(matches!(
            verify_file(&file, Some(&[1; 32])),
            Err(VerifyError::NothingSigned)
        ));
    }

    #[test]
    fn a_pinned_key_refuses_another_signer() {
        assert!(matches!(
            verify_file(&signed(), Some(&[1; 32])),
            Err(VerifyError::OtherKey { .. })
        ));
    }

    #[test]
    fn a_signature_over_another_job_is_refused() {
        let mut file = signed();
        for record in &mut file.records {
            record.job_id = "j2".into();
        }
        assert!(matches!(
            verify_file(&file, None),
            Err(VerifyError::Signature)
        ));
    }

    #[test]
    fn erased_parts_are_counted_and_still_bound() {
        let mut file = signed();
        file.records[0].body.clear();
        file.records[2].payload.clear();
        assert_eq!(verify_file(&file, None).unwrap().erased, 2);
        assert!(matches!(
            verify_complete(&file),
            Err(VerifyError::Erased(_))
        ));
        assert!(verify_complete(&signed()).is_ok());
        file.records[2].payload_digest[0] ^= 1;
        assert!(matches!(
            verify_file(&file, None),
            Err(VerifyError::Chain(_))
        ));
    }

    #[test]
    fn an_empty_file_proves_nothing() {
        assert!(matches!(
            verify_file(&AuditFile::default(), None),
            Err(VerifyError::Empty)
        ));
    }
}
