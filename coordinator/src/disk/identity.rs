//! Who this data folder is: one node of at most one cluster.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{CONDEMNED, REPLACE, write_atomically};

/// The layout of the data folder that this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process runs on it.
    #[error("the data folder {0} is in use by another process")]
    InUse(PathBuf),
    /// A later version of this program wrote it.
    #[error(
        "the data folder {folder} has format {found}; this build reads up to {FORMAT_VERSION}. \
         Run the version that wrote it, or a later one"
    )]
    Newer {
        /// The folder.
        folder: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It belongs to another cluster.
    #[error(
        "the data folder {folder} belongs to cluster {found}, not to {wanted}; \
         a member of another cluster needs an empty folder"
    )]
    OtherCluster {
        /// The folder.
        folder: PathBuf,
        /// The cluster that it is bound to.
        found: String,
        /// The cluster that was asked for.
        wanted: String,
    },
    /// `identity.json` is not what was written.
    #[error("{0} is damaged ({1}): restore that file from a backup; or {REPLACE}")]
    Damaged(PathBuf, String),
    /// It was found to have forgotten what it once held.
    #[error("the data folder {folder} must not be used any more: {why}")]
    Condemned {
        /// The folder.
        folder: PathBuf,
        /// What was found, and what to do.
        why: String,
    },
    /// There is a log and nothing that says whose.
    #[error(
        "the data folder {0} holds a raft log and no identity.json: restore that file from a \
         backup; or {REPLACE}"
    )]
    Lost(PathBuf),
    /// The file system refuses.
    #[error("data folder {0}: {1}")]
    Io(PathBuf, io::Error),
    /// The system gives no random bytes to mint an id from.
    #[error("no randomness for a node id: {0}")]
    Random(#[from] getrandom::Error),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    format_version: u32,
    node_id: u64,
    /// Empty until the node joins or creates a cluster.
    cluster_id: String,
    /// blake3 over the rest: a digit that flips would make this another node.
    /// Files of the first builds have none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    check: String,
}

impl Stored {
    fn checked(self) -> Self {
        Self {
            check: self.digest(),
            ..self
        }
    }

    fn digest(&self) -> String {
        let text = format!(
            "{} {} {}",
            self.format_version, self.node_id, self.cluster_id
        );
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }
}

/// The identity of an opened folder. Holds the folder's lock until dropped.
#[derive(Debug)]
pub struct Identity {
    folder: PathBuf,
    stored: Stored,
    _lock: File,
}

impl Identity {
    /// Opens `folder`, making it and minting a node id if there is none. Raft
    /// ids are never reused: a folder that was lost comes back as a new node.
    ///
    /// # Errors
    /// [`IdentityError`]: in use, of a newer format, damaged, lost beside a log,
    /// or IO.
    pub fn open(folder: &Path) -> Result<Self, IdentityError> {
        match Self::open_doubtful(folder)? {
            (identity, None) => Ok(identity),
            (_, Some(why)) => Err(IdentityError::Condemned {
                folder: folder.to_owned(),
                why,
            }),
        }
    }

    /// Opens a folder that may be condemned, and says why it is: no member of its cluster may run on
    /// it, but it may be all that is left of that cluster.
    ///
    /// # Errors
    /// As [`Identity::open`].
    pub fn open_doubtful(folder: &Path) -> Result<(Self, Option<String>), IdentityError> {
        let io = |e| IdentityError::Io(folder.to_owned(), e);
        fs::create_dir_all(folder).map_err(io)?;
        let lock = File::create(folder.join("LOCK")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(IdentityError::InUse(folder.to_owned())),
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        let doubt = fs::read(folder.join(CONDEMNED)).ok();
        let doubt = doubt.map(|why| String::from_utf8_lossy(&why).into_owned());
        let path = folder.join("identity.json");
        let stored = match fs::read(&path) {
            Ok(bytes) => parse(folder, &path, &bytes)?,
            // The identity is written before the log: it did not fail to come, it went.
            Err(e) if e.kind() == io::ErrorKind::NotFound && folder.join("raft").exists() => {
                return Err(IdentityError::Lost(folder.to_owned()));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let stored = Stored {
                    format_version: FORMAT_VERSION,
                    node_id: mint()?,
                    cluster_id: String::new(),
                    check: String::new(),
                }
                .checked();
                store(&path, &stored).map_err(io)?;
                stored
            }
            Err(e) => return Err(io(e)),
        };
        let identity = Self {
            folder: folder.to_owned(),
            stored,
            _lock: lock,
        };
        Ok((identity, doubt))
    }

    /// The raft id, never 0.
    pub fn node_id(&self) -> u64 {
        self.stored.node_id
    }

    /// The cluster that the folder is bound to; `None` while blank.
    pub fn cluster_id(&self) -> Option<&str> {
        Some(self.stored.cluster_id.as_str()).filter(|id| !id.is_empty())
    }

    /// Binds a blank folder to `cluster_id`, durably; again is no change.
    ///
    /// # Errors
    /// [`IdentityError::OtherCluster`] if it is bound to another, or IO.
    pub fn bind(&mut self, cluster_id: &str) -> Result<(), IdentityError> {
        match self.cluster_id() {
            Some(found) if found == cluster_id => return Ok(()),
            Some(found) => {
                return Err(IdentityError::OtherCluster {
                    folder: self.folder.clone(),
                    found: found.to_owned(),
                    wanted: cluster_id.to_owned(),
                });
            }
            None => {}
        }
        let stored = Stored {
            cluster_id: cluster_id.to_owned(),
            ..self.stored.clone()
        }
        .checked();
        store(&self.folder.join("identity.json"), &stored)
            .map_err(|e| IdentityError::Io(self.folder.clone(), e))?;
        self.stored = stored;
        Ok(())
    }

    /// Binds a folder whose member begins a new cluster to that one, durably.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn rebind(&mut self, cluster_id: &str) -> Result<(), IdentityError> {
        self.stored.cluster_id.clear();
        self.bind(cluster_id)
    }
}

fn parse(folder: &Path, path: &Path, bytes: &[u8]) -> Result<Stored, IdentityError> {
    let damaged = |e: serde_json::Error| IdentityError::Damaged(path.to_owned(), e.to_string());
    // The version alone first: a newer file may hold anything else.
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(damaged)?;
    let found = value
        .get("format_version")
        .and_then(serde_json::Value::as_u64)
        .unwrap_or(0);
    if found > u64::from(FORMAT_VERSION) {
        if let Some(was) = changed_version(&value) {
            let why = format!(
                "`format_version` says {found}, and the checksum that it was written with {was}"
            );
            return Err(IdentityError::Damaged(path.to_owned(), why));
        }
        let found = u32::try_from(found).unwrap_or(u32::MAX);
        return Err(IdentityError::Newer {
            folder: folder.to_owned(),
            found,
        });
    }
    let known = ["format_version", "node_id", "cluster_id", "check"];
    let strange = value
        .as_object()
        .and_then(|fields| fields.keys().find(|key| !known.contains(&key.as_str())))
        .cloned();
    let stored: Stored = serde_json::from_value(value).map_err(damaged)?;
    let unchecked = stored.check.is_empty();
    let why = match strange {
        // The key of the checksum itself may be what is damaged.
        Some(key) if unchecked => Some(format!("the field {key:?} is unknown")),
        _ if !unchecked && stored.check != stored.digest() => {
            Some("its checksum does not fit".to_owned())
        }
        _ => None,
    };
    if let Some(why) = why {
        return Err(IdentityError::Damaged(path.to_owned(), why));
    }
    if stored.node_id == 0 {
        return Err(IdentityError::Damaged(
            path.to_owned(),
            "node_id is 0".to_owned(),
        ));
    }
    Ok(stored)
}

/// The version that this build wrote, where another stands now and nothing else was changed: the checksum knows.
/// A file of a newer program has one of its own.
fn changed_version(value: &serde_json::Value) -> Option<u32> {
    let mut value = value.clone();
    *value.get_mut("format_version")? = 0.into();
    let stored: Stored = serde_json::from_value(value).ok()?;
    (1..=FORMAT_VERSION).find(|&format_version| {
        let written = Stored {
            format_version,
            ..stored.clone()
        };
        written.digest() == stored.check
    })
}

fn store(path: &Path, stored: &Stored) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(stored).map_err(io::Error::other)?;
    write_atomically(path, &text)
}

fn mint() -> Result<u64, IdentityError> {
    loop {
        // 63 bits: ids stay positive where a tool reads them as signed.
        let id = getrandom::u64()? >> 1;
        if id != 0 {
            return Ok(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_id_outlives_the_process_and_differs_between_folders() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = Identity::open(a.path()).unwrap().node_id();
        assert_eq!(Identity::open(a.path()).unwrap().node_id(), first);
        assert_ne!(Identity::open(b.path()).unwrap().node_id(), first);
    }

    #[test]
    fn a_second_opener_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::open(folder.path()).unwrap();
        assert!(matches!(
            Identity::open(folder.path()),
            Err(IdentityError::InUse(_))
        ));
        drop(first);
        Identity::open(folder.path()).unwrap();
    }

    #[test]
    fn a_bound_folder_refuses_another_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let mut identity = Identity::open(folder.path()).unwrap();
        identity.bind("one").unwrap();
        identity.bind("one").unwrap();
        drop(identity);
        let mut identity = Identity::open(folder.path()).unwrap();
        assert_eq!(identity.cluster_id(), Some("one"));
        let error = identity.bind("two").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("belongs to cluster one, not to two"),
            "{error}"
        );
    }

    #[test]
    fn a_log_without_its_identity_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(Identity::open(folder.path()).unwrap());
        fs::create_dir(folder.path().join("raft")).unwrap();
        let path = folder.path().join("identity.json");
        fs::remove_file(&path).unwrap();
        let error = Identity::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("restore that file"), "{error}");
        assert!(!path.exists(), "no new identity is minted");
    }

    #[test]
    fn a_changed_digit_of_the_format_is_damage_and_no_newer_program() {
        let folder = tempfile::tempdir().unwrap();
        drop(Identity::open(folder.path()).unwrap());
        let path = folder.path().join("identity.json");
        let written = fs::read_to_string(&path).unwrap();
        let changed = written.replace("\"format_version\": 1", "\"format_version\": 3");
        assert_ne!(written, changed);
        fs::write(&path, &changed).unwrap();
        let error = Identity::open(folder.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Damaged(..)), "{error}");
        assert!(
            error.to_string().contains("`format_version` says 3"),
            "{error}"
        );
        // Of a file that nothing vouches for, the version is all that is known.
        let unknown = changed.replace("\"check\": \"", "\"check\": \"0");
        fs::write(&path, unknown).unwrap();
        let error = Identity::open(folder.path()).unwrap_err();
        assert!(
            matches!(error, IdentityError::Newer { found: 3, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(Identity::open(folder.path()).unwrap());
        let path = folder.path().join("identity.json");
        let newer = br#"{"format_version": 2, "something": "else"}"#;
        fs::write(&path, newer).unwrap();
        let error = Identity::open(folder.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("has format 2; this build reads up to 1"),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), newer);
    }
}
