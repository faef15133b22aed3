//! `snapshot restore`: a saved snapshot becomes the first member of a new
//! cluster.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use conclave_coordinator_core::refound::Refounding;
use conclave_proto::v1::{LineageKind, SnapshotHeader};

use super::{WriteError, mint_cluster, write_founding};
use crate::{
    disk::{
        blobs::Blobs,
        identity::{Identity, IdentityError},
        log_store::{LogError, LogStore},
        snapshots::Snapshots,
    },
    node::task::unix_ms,
    snapshot_file::{self, Contents, SnapshotFileError},
};

/// Why nothing was restored. The folder is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: SnapshotFileError,
    },
    /// Something lies in the folder.
    #[error(
        "{folder} is not empty ({found} is in it): a snapshot is restored into an empty folder \
         only, so that nothing is overwritten"
    )]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
        /// Something in it.
        found: String,
    },
    /// The file system refuses.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// The folder's identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The folder's log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log or the state could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What was restored.
#[derive(Debug)]
pub struct RestoredCluster {
    /// The snapshot's header.
    pub header: SnapshotHeader,
    /// The cluster that it was saved from.
    pub from_cluster_id: String,
    /// The new cluster.
    pub cluster_id: String,
    /// Its only voter.
    pub node_id: u64,
    /// Index and term that it begins at.
    pub index: u64,
    /// See `index`.
    pub term: u64,
    /// When the oldest ended job ended, Unix ms; `None` without one.
    pub oldest_ended_unix_ms: Option<i64>,
}

/// A file that is whole.
#[derive(Debug)]
pub struct Checked {
    /// What it holds.
    pub contents: Contents,
    /// Its length.
    pub bytes: u64,
    /// blake3 of the file.
    pub blake3: [u8; 32],
}

/// Counts and hashes what is read.
struct Hashing {
    file: File,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.bytes += count as u64;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Reads a snapshot and checks every byte of it.
///
/// # Errors
/// [`RestoreError::File`].
pub fn check(path: &Path) -> Result<Checked, RestoreError> {
    read(path, &mut |_, _| Ok(()))
}

fn read(
    path: &Path,
    payload: &mut dyn FnMut([u8; 32], Vec<u8>) -> io::Result<()>,
) -> Result<Checked, RestoreError> {
    let at = |source: SnapshotFileError| RestoreError::File {
        path: path.to_owned(),
        source,
    };
    let mut file = Hashing {
        file: File::open(path).map_err(|e| at(e.into()))?,
        bytes: 0,
        hasher: blake3::Hasher::new(),
    };
    let contents = snapshot_file::read(&mut file, payload).map_err(at)?;
    Ok(Checked {
        contents,
        bytes: file.bytes,
        blake3: *file.hasher.finalize().as_bytes(),
    })
}

/// Restores the snapshot at `path` into `folder`, which is empty or absent, as
/// a new cluster with one voter. The file is read twice: nothing is written
/// before all of it was found whole.
///
/// # Errors
/// [`RestoreError`]; what was written is removed again.
pub fn restore(path: &Path, folder: &Path) -> Result<RestoredCluster, RestoreError> {
    refuse_used(folder)?;
    let contents = check(path)?.contents;
    let existed = folder.exists();
    let result = write(path, folder, contents);
    if result.is_err() {
        // It was empty: whatever lies in it now is of this attempt.
        if let Ok(entries) = fs::read_dir(folder) {
            for entry in entries.flatten() {
                let path = entry.path();
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            }
        }
        if !existed {
            let _ = fs::remove_dir(folder);
        }
    }
    result
}

fn refuse_used(folder: &Path) -> Result<(), RestoreError> {
    let io = |e| RestoreError::Io(folder.to_owned(), e);
    let mut entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io(e)),
    };
    match entries.next().transpose().map_err(io)? {
        None => Ok(()),
        Some(found) => Err(RestoreError::NotEmpty {
            folder: folder.to_owned(),
            found: found.file_name().to_string_lossy().into_owned(),
        }),
    }
}

fn write(path: &Path, folder: &Path, contents: Contents) -> Result<RestoredCluster, RestoreError> {
    let io = |e| RestoreError::Io(folder.to_owned(), e);
    let mut identity = Identity::open(folder)?;
    let snapshots = Snapshots::open(folder).map_err(io)?;
    let blobs = Blobs::open(folder).map_err(io)?;
    let again = read(path, &mut |_, data| blobs.put(&data).map(|_| ()))?;
    let (log, _) = LogStore::open(folder, false)?;
    log.claim(identity.node_id())?;
    let mut state = again.contents.state;
    let new = Refounding {
        kind: LineageKind::Restored,
        cluster_id: mint_cluster(),
        node_id: identity.node_id(),
        term: contents.manifest.term,
        unix_ms: unix_ms(),
        unconfirmed: 0,
    };
    state.refound(&new);
    write_founding(&log, &snapshots, new.node_id, &state)?;
    // Last: until then the folder is a blank node's, and its log goes.
    identity.bind(&new.cluster_id)?;
    Ok(RestoredCluster {
        header: contents.header,
        from_cluster_id: contents.manifest.cluster_id,
        cluster_id: new.cluster_id,
        node_id: new.node_id,
        index: state.applied_index(),
        term: state.applied_term(),
        oldest_ended_unix_ms: state
            .all_jobs()
            .filter(|job| job.is_final())
            .map(|job| job.ended_unix_ms)
            .min(),
    })
}
