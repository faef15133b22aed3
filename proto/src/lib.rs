//! The wire and the log format of Conclave, and nothing else.
//!
//! Messages are generated from `proto/conclave/v1/*.proto`; their documentation
//! stands there. `log.proto` is durable: its fields are only ever added.

/// Package `conclave.v1`.
#[allow(missing_docs, clippy::all, rustdoc::all, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("conclave.v1");
}

/// Encoded `FileDescriptorSet` of every proto, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The newest log version that this build writes and reads.
///
/// 1: the first. 2: the state holds its lineage (restored and recovered clusters). 3: attempts lost
/// with a worker that drained are no failures.
pub const LOG_VERSION: u32 = 3;

/// Longest payload that travels inside the log, bytes; longer ones are blobs.
pub const INLINE_LIMIT: usize = 16 * 1024;
