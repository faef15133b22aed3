//! What lies in the data folder.
//!
//! ```text
//! data_dir/
//!   LOCK            held while a process runs on the folder
//!   identity.json   node id, cluster id, format version
//!   raft/           log, hard state, snapshot metadata (raft-engine)
//!   snapshots/      replicated state, one file a snapshot
//!   blobs/ab/...    payloads above the inline limit, by blake3
//! ```

pub mod blobs;
pub mod identity;
pub mod log_store;
pub mod snapshots;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// Writes a file so that after a crash it is either whole or absent: a
/// temporary beside it, fsync, rename, fsync of the folder.
///
/// # Errors
/// What the file system says; the temporary may stay behind.
pub fn write_atomically(path: &Path, data: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    // The process id and a counter keep two writers of one name apart.
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let turn = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}-{turn}.tmp", std::process::id()));
    let temporary = folder.join(temporary);
    let mut file = File::create(&temporary)?;
    file.write_all(data)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(folder)
}

/// Makes the entries of a folder durable.
///
/// # Errors
/// What the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Free bytes that an unprivileged process may still write under `path`;
/// `None` where the system does not say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
