//! Workers and their leases, on replicated time (laws 3 and 4).

use conclave_proto::v1::{ModelInfo, WorkerRecord};

/// How long a lease lasts after its renewal, ms of lease time. Part of log version 1.
pub const LEASE_TTL_MS: u64 = 6_000;

/// A worker process that holds a lease.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Stable across restarts.
    pub worker_id: String,
    /// One start of the process; the lease belongs to it.
    pub incarnation: String,
    /// What it serves.
    pub models: Vec<ModelInfo>,
    /// Sequences that run side by side.
    pub max_sequences: u32,
    /// KV blocks of 16 tokens.
    pub kv_blocks: u32,
    /// Its program's version.
    pub version: String,
    /// When the lease ends, on the lease clock.
    pub expires_ms: u64,
    /// Takes nothing new.
    pub draining: bool,
}

impl Worker {
    /// The model of this name (empty: its only model).
    pub fn model(&self, name: &str) -> Option<&ModelInfo> {
        match self.models.as_slice() {
            [only] if name.is_empty() => Some(only),
            models => models.iter().find(|m| m.name == name),
        }
    }

    pub(crate) fn to_record(&self) -> WorkerRecord {
        WorkerRecord {
            worker_id: self.worker_id.clone(),
            incarnation: self.incarnation.clone(),
            models: self.models.clone(),
            max_sequences: self.max_sequences,
            kv_blocks: self.kv_blocks,
            version: self.version.clone(),
            expires_ms: self.expires_ms,
            draining: self.draining,
        }
    }

    pub(crate) fn from_record(record: WorkerRecord) -> Worker {
        Worker {
            worker_id: record.worker_id,
            incarnation: record.incarnation,
            models: record.models,
            max_sequences: record.max_sequences,
            kv_blocks: record.kv_blocks,
            version: record.version,
            expires_ms: record.expires_ms,
            draining: record.draining,
        }
    }
}
