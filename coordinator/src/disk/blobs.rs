//! Payloads above the inline limit, stored by hash.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::{remove_temporaries, sync_folder, write_atomically};

/// A blake3 hash.
pub type Hash = [u8; 32];

/// Why a blob cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// No such blob here.
    #[error("blob {0} is not here")]
    Missing(String),
    /// The bytes on disk are not those that were stored.
    #[error("blob {0} is damaged")]
    Damaged(String),
    /// The file system refuses.
    #[error("blobs: {0}")]
    Io(#[from] io::Error),
}

impl conclave_coordinator_core::Payloads for Blobs {
    fn blob(&self, hash: &[u8]) -> Option<Vec<u8>> {
        self.get(hash.try_into().ok()?).ok()
    }
}

/// Blobs of one data folder, `blobs/ab/abcd...`: written once, never changed.
#[derive(Clone, Debug)]
pub struct Blobs {
    folder: PathBuf,
    /// Held while a blob's age is looked at or renewed, and while a shard is
    /// made: what one writer found is not removed before it is young again.
    gate: Arc<Mutex<()>>,
    /// No blob is older than this: entries that a process which was down for long
    /// has not heard of may name what it holds.
    opened: Instant,
}

impl Blobs {
    /// Opens `data_dir/blobs`, making it if absent, and removes what a crash left
    /// half-written.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let folder = data_dir.join("blobs");
        fs::create_dir_all(&folder)?;
        for shard in fs::read_dir(&folder)? {
            let shard = shard?.path();
            if shard.is_dir() {
                remove_temporaries(&shard)?;
            }
        }
        Ok(Self {
            folder,
            gate: Arc::default(),
            opened: Instant::now(),
        })
    }

    /// Stores `data` durably and returns its hash. A blob that is there already
    /// becomes as young as a new one, since it too may be on its way into the
    /// log; one that is damaged is replaced.
    ///
    /// # Errors
    /// What the file system says.
    pub fn put(&self, data: &[u8]) -> io::Result<Hash> {
        let hash = *blake3::hash(data).as_bytes();
        let path = self.path(&hash);
        let shard = path.parent().unwrap_or(&self.folder);
        {
            let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            if !shard.exists() {
                fs::create_dir_all(shard)?;
                sync_folder(&self.folder)?;
            }
        }
        if self.renew(&hash) {
            // Another writer may have renamed it and not yet synced the folder.
            sync_folder(shard)?;
        } else {
            write_atomically(&path, data)?;
        }
        Ok(hash)
    }

    /// Makes a blob young; false if there is no whole one. What is about to be named
    /// is renewed, not only read: it may be old, and on the point of being removed.
    pub fn renew(&self, hash: &Hash) -> bool {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.get(hash).is_ok()
            && File::open(self.path(hash))
                .and_then(|file| file.set_modified(SystemTime::now()))
                .is_ok()
    }

    /// Reads a blob and checks it against its name.
    ///
    /// # Errors
    /// [`BlobError`]: missing, damaged, or IO.
    pub fn get(&self, hash: &Hash) -> Result<Vec<u8>, BlobError> {
        let data = match fs::read(self.path(hash)) {
            Ok(data) => data,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(BlobError::Missing(hex::encode(hash)));
            }
            Err(e) => return Err(e.into()),
        };
        if blake3::hash(&data).as_bytes() != hash {
            return Err(BlobError::Damaged(hex::encode(hash)));
        }
        Ok(data)
    }

    /// True if the blob is here (unread).
    pub fn has(&self, hash: &Hash) -> bool {
        self.path(hash).exists()
    }

    /// Removes every blob that `live` does not name and that was put or renewed
    /// longer than `age` ago (younger ones may be on their way into the log), but
    /// none until they have been open for so long; returns how many.
    ///
    /// # Errors
    /// What the file system says.
    pub fn retain(&self, age: Duration, live: &dyn Fn(&Hash) -> bool) -> io::Result<usize> {
        let mut removed = 0;
        if self.opened.elapsed() < age {
            return Ok(removed);
        }
        for shard in fs::read_dir(&self.folder)? {
            let shard = shard?.path();
            if !shard.is_dir() {
                continue;
            }
            for entry in fs::read_dir(shard)? {
                let path = entry?.path();
                let mut hash = [0_u8; 32];
                let name = path
                    .file_name()
                    .and_then(|n| n.to_str())
                    .unwrap_or_default();
                if hex::decode_to_slice(name, &mut hash).is_err() || live(&hash) {
                    continue;
                }
                let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
                if old(&path, age) {
                    fs::remove_file(&path)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    fn path(&self, hash: &Hash) -> PathBuf {
        let name = hex::encode(hash);
        self.folder.join(&name[..2]).join(name)
    }
}

fn old(path: &Path, age: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|data| data.modified()).ok();
    // A clock that was set back makes a blob look young: it stays.
    modified
        .and_then(|at| at.elapsed().ok())
        .is_some_and(|elapsed| elapsed >= age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_comes_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let data = vec![7_u8; 100_000];
        let hash = blobs.put(&data).unwrap();
        assert_eq!(blobs.put(&data).unwrap(), hash);
        assert_eq!(blobs.get(&hash).unwrap(), data);
        assert!(matches!(blobs.get(&[0; 32]), Err(BlobError::Missing(_))));
        fs::write(blobs.path(&hash), b"other").unwrap();
        assert!(matches!(blobs.get(&hash), Err(BlobError::Damaged(_))));
        blobs.put(&data).unwrap();
        assert_eq!(
            blobs.get(&hash).unwrap(),
            data,
            "what is damaged is replaced"
        );
    }

    #[test]
    fn a_blob_that_is_put_again_is_young_again() {
        let folder = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let blobs = opened_before(2 * hour, folder.path());
        let hash = blobs.put(b"again").unwrap();
        let long_ago = SystemTime::now() - 2 * hour;
        let file = File::open(blobs.path(&hash)).unwrap();
        file.set_modified(long_ago).unwrap();
        blobs.put(b"again").unwrap();
        assert_eq!(blobs.retain(hour, &|_| false).unwrap(), 0);
        file.set_modified(long_ago).unwrap();
        assert_eq!(blobs.retain(hour, &|_| false).unwrap(), 1);
    }

    /// Blobs of a process that has run for `time`.
    fn opened_before(time: Duration, folder: &Path) -> Blobs {
        Blobs {
            opened: Instant::now() - time,
            ..Blobs::open(folder).unwrap()
        }
    }

    #[test]
    fn a_process_that_was_down_for_long_removes_nothing_until_it_has_run_for_as_long() {
        let folder = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3600);
        let blobs = Blobs::open(folder.path()).unwrap();
        let hash = blobs.put(b"named by entries to come").unwrap();
        let file = File::open(blobs.path(&hash)).unwrap();
        file.set_modified(SystemTime::now() - 48 * hour).unwrap();
        let fresh = Blobs::open(folder.path()).unwrap();
        assert_eq!(fresh.retain(hour, &|_| false).unwrap(), 0);
        let settled = opened_before(hour, folder.path());
        assert_eq!(settled.retain(hour, &|_| false).unwrap(), 1);
    }

    #[test]
    fn only_dead_blobs_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let (live, dead) = (blobs.put(b"live").unwrap(), blobs.put(b"dead").unwrap());
        assert_eq!(
            blobs.retain(Duration::ZERO, &|hash| *hash == live).unwrap(),
            1
        );
        assert!(blobs.has(&live) && !blobs.has(&dead));
    }
}
