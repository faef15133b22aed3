//! Files that appear in the cache whole, or not at all.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::PullError;

/// Longest wait for another process that fetches the same model.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// A file lock cannot be awaited with a deadline, only tried again.
const RETRY: Duration = Duration::from_millis(100);

const LOCK: &str = ".lock";

/// A model's folder, ours alone as long as this lives.
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

/// A file that was downloaded into a stage.
pub(super) struct Fetched {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Bytes that it should have.
    pub(super) bytes: u64,
    /// Its digest (hex), where the source names one.
    pub(super) sha256: Option<String>,
}

/// Takes what a download gives, counts and hashes it on its way to the disk.
pub(super) struct Sink<'a> {
    file: &'a mut File,
    hasher: Sha256,
}

impl Folder {
    /// Creates the folder of `name` and waits until no other process works in it.
    pub(super) fn lock(models: &Path, name: &str) -> Result<Folder, PullError> {
        let path = models.join(name);
        fs::create_dir_all(&path).map_err(|source| io_error(&path, source))?;
        let lock = path.join(LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock);
        let file = file.map_err(|source| io_error(&lock, source))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Folder { path, _lock: file }),
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => thread::sleep(RETRY),
                Err(TryLockError::WouldBlock) => {
                    let what = format!("another process that fetches {name}");
                    return Err(PullError::Timeout {
                        what,
                        seconds: PATIENCE.as_secs(),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io_error(&lock, source)),
            }
        }
    }

    /// The file `name`, made by `fetch` if it is not there: written beside, checked against `sha256` (hex),
    /// synced, then renamed.
    pub(super) fn fill(
        &self,
        name: &str,
        sha256: Option<&str>,
        fetch: impl FnOnce(&mut Sink<'_>) -> Result<(), PullError>,
    ) -> Result<PathBuf, PullError> {
        let target = self.path.join(name);
        if target.exists() {
            return Ok(target);
        }
        let io = |source| io_error(&target, source);
        let mut partial = NamedTempFile::with_prefix_in(".partial-", &self.path).map_err(io)?;
        let mut sink = Sink {
            file: partial.as_file_mut(),
            hasher: Sha256::new(),
        };
        fetch(&mut sink)?;
        let found = hex::encode(sink.hasher.finalize());
        if let Some(expected) = sha256.filter(|expected| *expected != found) {
            let problem = format!("its sha256 is {found}, not {expected}");
            return Err(PullError::Damaged {
                what: name.to_owned(),
                problem,
            });
        }
        partial.as_file().sync_all().map_err(io)?;
        share(partial.as_file()).map_err(io)?;
        partial.persist(&target).map_err(|error| io(error.error))?;
        self.sync().map_err(io)?;
        Ok(target)
    }

    /// The file `name`, made by `fetch` in a stage beside it if it is not there: checked, synced, then
    /// renamed. Nothing is copied, for it may be as large as the disk.
    pub(super) fn adopt(
        &self,
        name: &str,
        fetch: impl FnOnce(&Path) -> Result<Fetched, PullError>,
    ) -> Result<PathBuf, PullError> {
        let target = self.path.join(name);
        if target.exists() {
            return Ok(target);
        }
        let io = |source| io_error(&target, source);
        let stage = tempfile::Builder::new()
            .prefix(".partial-")
            .tempdir_in(&self.path)
            .map_err(io)?;
        let fetched = fetch(stage.path())?;
        let mut file = File::open(&fetched.path).map_err(io)?;
        let damaged = |problem| PullError::Damaged {
            what: name.to_owned(),
            problem,
        };
        let bytes = file.metadata().map_err(io)?.len();
        if bytes != fetched.bytes {
            let problem = format!("it has {bytes} bytes, not {}", fetched.bytes);
            return Err(damaged(problem));
        }
        if let Some(expected) = fetched.sha256 {
            let found = sha256(&mut file).map_err(io)?;
            if found != expected {
                return Err(damaged(format!("its sha256 is {found}, not {expected}")));
            }
        }
        file.sync_all().map_err(io)?;
        share(&file).map_err(io)?;
        fs::rename(&fetched.path, &target).map_err(io)?;
        self.sync().map_err(io)?;
        Ok(target)
    }

    /// Refuses to put a second GGUF file here: the name would stand for one of the two, whichever comes
    /// first in the alphabet.
    pub(super) fn refuse_second(&self, name: &str, file: &str) -> Result<(), PullError> {
        let is_gguf = |path: &Path| {
            path.extension()
                .is_some_and(|extension| extension == "gguf")
        };
        if !is_gguf(Path::new(file)) {
            return Ok(());
        }
        let entries = fs::read_dir(&self.path).map_err(|source| io_error(&self.path, source))?;
        let mut paths = entries.flatten().map(|entry| entry.path());
        match paths.find(|path| is_gguf(path) && !path.ends_with(file)) {
            None => Ok(()),
            Some(path) => Err(PullError::Occupied {
                name: name.to_owned(),
                held: path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                path,
            }),
        }
    }

    /// A rename is only durable once its folder is.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The digest of the rest of a file, in hex.
fn sha256(file: &mut File) -> io::Result<String> {
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// The model in the folder of `name`: its GGUF file, or the folder itself if it is of Hugging Face's form.
pub(super) fn cached(models: &Path, name: &str) -> Option<PathBuf> {
    let folder = models.join(name);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "gguf")
        })
        .collect();
    files.sort();
    let whole = folder.join("config.json").exists().then_some(folder);
    files.into_iter().next().or(whole)
}

/// Names of the folders that hold a model, in order.
pub(super) fn list(models: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(models) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| cached(models, name).is_some())
        .collect();
    names.sort();
    names
}

/// Temporary files are their owner's alone; a cache may be shared.
#[cfg(unix)]
fn share(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn share(_file: &File) -> io::Result<()> {
    Ok(())
}

pub(super) fn io_error(path: &Path, source: io::Error) -> PullError {
    PullError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn write(bytes: &'static [u8]) -> impl FnOnce(&mut Sink<'_>) -> Result<(), PullError> {
        move |sink| {
            sink.write_all(bytes)
                .map_err(|source| io_error(Path::new("test"), source))
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name());
        names
            .map(|name| name.into_string().unwrap())
            .filter(|name| name != LOCK)
            .collect()
    }

    #[test]
    fn a_checked_file_appears_and_is_not_fetched_again() {
        let models = tempfile::tempdir().unwrap();
        let folder = Folder::lock(models.path(), "m").unwrap();
        let path = folder.fill("a.gguf", Some(ABC), write(b"abc")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        let again = folder.fill("a.gguf", Some(ABC), |_| panic!("it is there"));
        assert_eq!(again.unwrap(), path);
        assert_eq!(cached(models.path(), "m"), Some(path));
        assert_eq!(list(models.path()), ["m"]);
    }

    #[test]
    fn a_damaged_or_broken_download_leaves_nothing() {
        let models = tempfile::tempdir().unwrap();
        let folder = Folder::lock(models.path(), "m").unwrap();
        let damaged = folder.fill("a.gguf", Some(ABC), write(b"abd")).unwrap_err();
        assert!(damaged.to_string().contains(ABC), "{damaged}");
        folder
            .fill("a.gguf", None, |_| Err(PullError::PythonAbsent))
            .unwrap_err();
        assert!(files(&models.path().join("m")).is_empty());
        assert_eq!(cached(models.path(), "m"), None);
    }

    #[test]
    fn a_staged_file_is_checked_and_moved() {
        let models = tempfile::tempdir().unwrap();
        let folder = Folder::lock(models.path(), "m").unwrap();
        let staged = |bytes, sha256: Option<&str>| {
            let sha256 = sha256.map(str::to_owned);
            move |stage: &Path| {
                let path = stage.join("blob");
                fs::write(&path, b"abc").unwrap();
                Ok(Fetched {
                    path,
                    bytes,
                    sha256,
                })
            }
        };
        let short = folder.adopt("a.gguf", staged(4, None)).unwrap_err();
        assert!(short.to_string().contains("3 bytes, not 4"), "{short}");
        let other = "0".repeat(64);
        let damaged = folder.adopt("a.gguf", staged(3, Some(&other)));
        assert!(damaged.unwrap_err().to_string().contains(ABC));
        assert!(files(&models.path().join("m")).is_empty());
        let path = folder.adopt("a.gguf", staged(3, Some(ABC))).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"abc");
        assert_eq!(files(&models.path().join("m")), ["a.gguf"]);
    }

    #[test]
    fn a_second_fetch_waits_for_the_first_and_finds_its_file() {
        let models = tempfile::tempdir().unwrap();
        let first = Folder::lock(models.path(), "m").unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| {
                let second = Folder::lock(models.path(), "m")?;
                second.fill("a.gguf", Some(ABC), |_| panic!("the first made it"))
            });
            first.fill("a.gguf", Some(ABC), write(b"abc")).unwrap();
            drop(first);
            assert!(second.join().unwrap().is_ok());
        });
    }
}
