//! Replicated state on disk: one file a snapshot, named by index and digest.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use conclave_proto::v1::SnapshotManifest;

use super::{remove_temporaries, write_atomically};

/// Why a snapshot's state cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The state behind a manifest is not here.
    #[error("the state of the snapshot at entry {0} is not here")]
    Missing(u64),
    /// The bytes differ from what the manifest says.
    #[error("the state of the snapshot at entry {index} is damaged ({length} bytes)")]
    Damaged {
        /// Index of the manifest.
        index: u64,
        /// Bytes found.
        length: usize,
    },
    /// The file system refuses.
    #[error("snapshots: {0}")]
    Io(#[from] io::Error),
}

/// The snapshot files of one data folder.
#[derive(Clone, Debug)]
pub struct Snapshots {
    folder: PathBuf,
}

impl Snapshots {
    /// Opens `data_dir/snapshots`, making it if absent, and removes what a
    /// crash left half-written.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let folder = data_dir.join("snapshots");
        fs::create_dir_all(&folder)?;
        remove_temporaries(&folder)?;
        Ok(Self { folder })
    }

    /// Stores the encoded state that `manifest` describes.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] if the bytes do not match, or IO.
    pub fn put(&self, manifest: &SnapshotManifest, state: &[u8]) -> Result<(), SnapshotError> {
        check(manifest, state)?;
        write_atomically(&self.path(manifest.index, &manifest.digest), state)?;
        Ok(())
    }

    /// Reads and checks the state behind `manifest`.
    ///
    /// # Errors
    /// [`SnapshotError`]: missing, damaged, or IO.
    pub fn get(&self, manifest: &SnapshotManifest) -> Result<Vec<u8>, SnapshotError> {
        match fs::read(self.path(manifest.index, &manifest.digest)) {
            Ok(state) => check(manifest, &state).map(|()| state),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(SnapshotError::Missing(manifest.index))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Reads the state of `index` and `digest` and checks it against the digest.
    ///
    /// # Errors
    /// [`SnapshotError`]: missing, damaged, or IO.
    pub fn find(&self, index: u64, digest: &[u8]) -> Result<Vec<u8>, SnapshotError> {
        let path = self.path(index, digest);
        let length = match fs::metadata(&path) {
            Ok(data) => data.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(SnapshotError::Missing(index));
            }
            Err(e) => return Err(e.into()),
        };
        let digest = digest.to_vec();
        self.get(&SnapshotManifest {
            index,
            digest,
            length,
            ..SnapshotManifest::default()
        })
    }

    /// Removes every snapshot older than `index`, except the `spare` newest of
    /// them (a peer may be fetching one).
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove_before(&self, index: u64, spare: usize) -> io::Result<()> {
        let mut old: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            let at = name
                .split('-')
                .next()
                .and_then(|n| u64::from_str_radix(n, 16).ok());
            if let Some(at) = at.filter(|at| *at < index) {
                old.push((at, path));
            }
        }
        old.sort();
        let remove = old.len().saturating_sub(spare);
        old.truncate(remove);
        old.into_iter()
            .try_for_each(|(_, path)| fs::remove_file(path))
    }

    fn path(&self, index: u64, digest: &[u8]) -> PathBuf {
        let short = digest.get(..8).unwrap_or(digest);
        self.folder
            .join(format!("{index:016x}-{}.state", hex::encode(short)))
    }
}

fn check(manifest: &SnapshotManifest, state: &[u8]) -> Result<(), SnapshotError> {
    let whole = manifest.length == state.len() as u64
        && manifest.digest == blake3::hash(state).as_bytes().as_slice();
    if whole {
        return Ok(());
    }
    Err(SnapshotError::Damaged {
        index: manifest.index,
        length: state.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(index: u64, state: &[u8]) -> SnapshotManifest {
        SnapshotManifest {
            index,
            digest: blake3::hash(state).as_bytes().to_vec(),
            length: state.len() as u64,
            ..SnapshotManifest::default()
        }
    }

    #[test]
    fn a_damaged_snapshot_is_never_handed_out() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(folder.path()).unwrap();
        let manifest = manifest(9, b"state");
        assert!(matches!(
            snapshots.get(&manifest),
            Err(SnapshotError::Missing(9))
        ));
        assert!(matches!(
            snapshots.put(&manifest, b"other"),
            Err(SnapshotError::Damaged { .. })
        ));
        snapshots.put(&manifest, b"state").unwrap();
        assert_eq!(snapshots.get(&manifest).unwrap(), b"state");
        fs::write(snapshots.path(9, &manifest.digest), b"stale").unwrap();
        assert!(matches!(
            snapshots.get(&manifest),
            Err(SnapshotError::Damaged { .. })
        ));
    }

    #[test]
    fn old_snapshots_go_and_the_spare_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(folder.path()).unwrap();
        let all: Vec<_> = (1..=4_u64)
            .map(|i| (i, [u8::try_from(i).unwrap()]))
            .collect();
        for (index, state) in &all {
            snapshots.put(&manifest(*index, state), state).unwrap();
        }
        snapshots.remove_before(4, 1).unwrap();
        let here: Vec<_> = all
            .iter()
            .filter(|(i, s)| snapshots.get(&manifest(*i, s)).is_ok())
            .map(|x| x.0)
            .collect();
        assert_eq!(here, [3, 4]);
    }
}
