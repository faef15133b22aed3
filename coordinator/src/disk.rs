//! What lies in the data folder.
//!
//! ```text
//! data_dir/
//!   LOCK            held while a process runs on the folder
//!   identity.json   node id, cluster id, format version
//!   REPLACE         why this folder must not be used any more (see `condemn`)
//!   raft/           log, hard state, snapshot metadata (raft-engine)
//!   snapshots/      replicated state, one file a snapshot
//!   blobs/ab/...    payloads above the inline limit, by blake3
//! ```

pub mod blobs;
pub mod identity;
pub mod log_files;
mod log_scan;
pub mod log_store;
pub mod reserve;
pub mod snapshots;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// What to do about a folder that cannot be used: the end of every such message.
pub const REPLACE: &str = "the other members hold what was here: move the data folder away, start \
     this node on an empty one, and replace the member (`conclave cluster remove`, then `conclave \
     cluster add`); docs/OPERATIONS.md, \"Damaged or full disks\", says more";

/// What to do where two members hold other entries at the same place: which of them is right, neither can
/// know.
pub const KEEP: &str = "one of the two lost what was on its disk, and this folder may hold the only copy \
     of what was acknowledged from there on: stop every member and keep every folder; \
     docs/OPERATIONS.md, \"Two histories\", says how to choose";

/// Writes a file so that after a crash it is either whole or absent: a
/// temporary beside it, fsync, rename, fsync of the folder.
///
/// # Errors
/// What the file system says; the temporary is gone then, too.
pub fn write_atomically(path: &Path, data: &[u8]) -> io::Result<()> {
    write_synced(path, data, &mut File::sync_all)
}

fn write_synced(
    path: &Path,
    data: &[u8],
    sync: &mut dyn FnMut(&File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    // The process id and a counter keep two writers of one name apart.
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let turn = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}-{turn}.tmp", std::process::id()));
    let temporary = folder.join(temporary);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(data)?;
        sync(&file)?;
        fs::rename(&temporary, path)
    });
    if let Err(error) = written {
        // On a full disk, half a file is room that others need.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync(&File::open(folder)?)
}

/// Marks a folder as one that must not be used any more, whatever restarts the
/// process: it would vote and forget what it voted before.
///
/// # Errors
/// What the file system says.
pub fn condemn(folder: &Path, why: &str) -> io::Result<()> {
    write_atomically(&folder.join(CONDEMNED), why.as_bytes())
}

/// A condemned folder began a new cluster, which knows nothing of its old votes: it may be used again.
///
/// # Errors
/// What the file system says.
pub fn absolve(folder: &Path) -> io::Result<()> {
    match fs::remove_file(folder.join(CONDEMNED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_folder(folder),
    }
}

/// The file that [`condemn`] leaves.
const CONDEMNED: &str = "REPLACE";

/// Removes what a crash left of [`write_atomically`] in `folder`.
///
/// # Errors
/// What the file system says.
fn remove_temporaries(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "tmp") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vote");
        let mut synced = Vec::new();
        let mut sync = |file: &File| {
            let of = file.metadata()?;
            synced.push((of.is_dir(), of.len() == 4, path.exists()));
            Ok(())
        };
        write_synced(&path, b"data", &mut sync).unwrap();
        assert_eq!(synced.len(), 2, "the file, then its folder");
        assert_eq!(synced[0], (false, true, false));
        let (is_folder, _, named) = synced[1];
        assert!(is_folder && named);

        let mut fails = |_: &File| Err(io::ErrorKind::StorageFull.into());
        let other = folder.path().join("other");
        write_synced(&other, b"data", &mut fails).unwrap_err();
        let names = fs::read_dir(folder.path()).unwrap();
        let names: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["vote"], "what could not be synced was never there");
    }
}
