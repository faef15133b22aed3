//! Audit files: a job's whole record, readable without any cluster.
//!
//! ```text
//! magic            16 bytes  "conclave-audit\0" and the format's number
//! items            length-delimited `ExportJobResponse`: the records in order,
//!                  then the signed head, if the cluster gave one
//! checksum         32 bytes  blake3 of all before
//! ```
//!
//! There is exactly one encoding of a record, and [`decode`] accepts no other:
//! a byte that changes nothing in the decoded message is a changed byte still.
pub mod recording;
pub mod verify;

use conclave_proto::v1::{
    AuditEvent, AuditHead, AuditRecord, ExportJobResponse, audit_event::Event,
    export_job_response::Item,
};
use prost::Message as _;

/// First bytes of every audit file; the last one counts formats.
pub const MAGIC: &[u8; 16] = b"conclave-audit\0\x01";
const CHECKSUM: usize = 32;

/// A job's record.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AuditFile {
    /// The chain, in order.
    pub records: Vec<AuditRecord>,
    /// Its signed head; without one the chain is unanchored.
    pub head: Option<AuditHead>,
}

/// Why bytes are no audit file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Something else.
    #[error("this is no audit file: `conclave audit export JOB -o FILE` writes one")]
    NotAudit,
    /// A newer format.
    #[error("audit file of format {0}, and this program reads format 1: use a newer one")]
    Newer(u8),
    /// The bytes are not those that were written.
    #[error("the file was changed or cut: its checksum does not match")]
    Checksum,
    /// An item that does not decode.
    #[error("item {index} at byte {offset} does not decode")]
    Item {
        /// Which, from 0.
        index: usize,
        /// Where it begins.
        offset: usize,
    },
    /// An item in another encoding than the one that this program writes.
    #[error("item {index} at byte {offset} is not in its canonical encoding: the file was edited")]
    Encoding {
        /// Which, from 0.
        index: usize,
        /// Where it begins.
        offset: usize,
    },
    /// Items after the head, or two heads.
    #[error("item {index} follows the head, which must be last")]
    AfterHead {
        /// Which, from 0.
        index: usize,
    },
}

/// The file's bytes.
pub fn encode(file: &AuditFile) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let records = file.records.iter().cloned().map(Item::Record);
    for item in records.chain(file.head.clone().map(Item::Head)) {
        bytes.extend(ExportJobResponse { item: Some(item) }.encode_length_delimited_to_vec());
    }
    let checksum = blake3::hash(&bytes);
    bytes.extend(checksum.as_bytes());
    bytes
}

/// Reads a file's bytes. Says nothing about the chain: see [`verify`].
pub fn decode(bytes: &[u8]) -> Result<AuditFile, FormatError> {
    let (name, format) = (&MAGIC[..15], MAGIC[15]);
    match bytes.get(..16) {
        Some(magic) if magic == MAGIC => {}
        Some(magic) if &magic[..15] == name && magic[15] > format => {
            return Err(FormatError::Newer(magic[15]));
        }
        _ => return Err(FormatError::NotAudit),
    }
    let end = bytes
        .len()
        .checked_sub(CHECKSUM)
        .filter(|end| *end >= MAGIC.len())
        .ok_or(FormatError::Checksum)?;
    if blake3::hash(&bytes[..end]).as_bytes() != &bytes[end..] {
        return Err(FormatError::Checksum);
    }
    items(&bytes[..end])
}

fn items(bytes: &[u8]) -> Result<AuditFile, FormatError> {
    let mut file = AuditFile::default();
    let mut offset = MAGIC.len();
    for index in 0.. {
        if offset == bytes.len() {
            break;
        }
        let mut rest = &bytes[offset..];
        let response = ExportJobResponse::decode_length_delimited(&mut rest)
            .map_err(|_| FormatError::Item { index, offset })?;
        let next = bytes.len() - rest.len();
        if response.encode_length_delimited_to_vec() != bytes[offset..next] {
            return Err(FormatError::Encoding { index, offset });
        }
        match response.item {
            _ if file.head.is_some() => return Err(FormatError::AfterHead { index }),
            Some(Item::Record(record)) => file.records.push(record),
            Some(Item::Head(head)) => file.head = Some(head),
            None => return Err(FormatError::Item { index, offset }),
        }
        offset = next;
    }
    Ok(file)
}

/// Whether the record's event names a body by its digest.
pub fn names_a_body(record: &AuditRecord) -> bool {
    let event = AuditEvent::decode(record.payload.as_slice())
        .ok()
        .and_then(|event| event.event);
    match event {
        Some(Event::Submitted(event)) => !event.spec_digest.is_empty(),
        Some(Event::Round(event)) => !event.context_digest.is_empty(),
        Some(Event::Draft(event)) => !event.draft_digest.is_empty(),
        Some(Event::AttemptEnded(event)) => !event.cut_digest.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::verify::tests::signed;

    #[test]
    fn a_file_reads_back_as_it_was_written() {
        let file = signed();
        assert_eq!(decode(&encode(&file)), Ok(file));
    }

    #[test]
    fn other_files_are_told_apart_from_damaged_ones() {
        assert_eq!(
            decode(b"GGUF\x03 something else entirely"),
            Err(FormatError::NotAudit)
        );
        assert_eq!(decode(b""), Err(FormatError::NotAudit));
        let mut bytes = encode(&signed());
        assert_eq!(decode(&bytes[..20]), Err(FormatError::Checksum));
        assert_eq!(
            decode(&bytes[..bytes.len() - 1]),
            Err(FormatError::Checksum)
        );
        bytes[15] = 2;
        assert_eq!(decode(&bytes), Err(FormatError::Newer(2)));
    }

    #[test]
    fn nothing_may_follow_the_head() {
        let file = signed();
        let mut bytes = encode(&file);
        bytes.truncate(bytes.len() - CHECKSUM);
        let again = ExportJobResponse {
            item: file.head.map(Item::Head),
        };
        bytes.extend(again.encode_length_delimited_to_vec());
        let checksum = blake3::hash(&bytes);
        bytes.extend(checksum.as_bytes());
        assert!(matches!(decode(&bytes), Err(FormatError::AfterHead { .. })));
    }
}
