//! What files say now. They are read again every few seconds and compared by their bytes: times of files
//! say nothing after a symlink was swapped, which is how Kubernetes renews a mounted secret.

use std::{
    error::Error,
    fmt::Display,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, Weak},
    time::Duration,
};

use metrics::{Unit, counter, describe_counter};

/// Period of looking at the files.
pub const LOOK: Duration = Duration::from_secs(5);
/// The longest file of credentials, bytes.
const LONGEST: u64 = 16 << 20;
/// Counts what changed and could not be used, by the label `what`.
const FAILURES: &str = "conclave_credentials_reload_failures_total";

/// A value made from files; it changes with them.
#[derive(Debug)]
pub struct Watched<T> {
    now: RwLock<Arc<T>>,
    refused: RwLock<Option<Refused>>,
}

/// Files that changed and cannot be used as they are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// All that are read together.
    pub files: Vec<PathBuf>,
    /// What is wrong, in words that show no secret.
    pub why: String,
}

impl Refused {
    /// The files, as people write them.
    pub fn paths(&self) -> Vec<String> {
        let files = self.files.iter();
        files.map(|path| path.display().to_string()).collect()
    }
}

impl<T> Watched<T> {
    /// A value that stays.
    pub fn fixed(value: T) -> Arc<Self> {
        Arc::new(Self {
            now: RwLock::new(Arc::new(value)),
            refused: RwLock::default(),
        })
    }

    /// What the files said when they were last right.
    pub fn now(&self) -> Arc<T> {
        self.now
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Why the files cannot be used as they are now, and what they said before counts; `None`: they can.
    pub fn refused(&self) -> Option<Refused> {
        self.refused
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Why files give no value at the start.
#[derive(Debug, thiserror::Error)]
pub enum FirstError<E> {
    /// A file cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// They do not parse.
    #[error(transparent)]
    Parse(E),
}

/// The bytes of files, each whole.
type Contents = Vec<Vec<u8>>;

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads `files`, and again when they change, for as long as the value is held. What `parse` refuses
    /// leaves the value as it was; one WARN and a counter tell of it. `what` names them in both.
    ///
    /// # Errors
    /// [`FirstError`] if they are wrong now.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn follow<E, P>(
        what: &'static str,
        files: Vec<PathBuf>,
        parse: P,
    ) -> Result<Arc<Self>, FirstError<E>>
    where
        E: Error + 'static,
        P: Fn(&[Vec<u8>]) -> Result<T, E> + Send + Sync + 'static,
    {
        describe(what);
        let contents = read(&files).map_err(|(path, source)| FirstError::Read { path, source })?;
        let first = parse(&contents).map_err(FirstError::Parse)?;
        let watched = Self::fixed(first);
        let follower = Follower {
            what,
            value: Arc::downgrade(&watched),
            seen: Ok(contents),
            files,
            parse,
        };
        tokio::spawn(follower.run(LOOK));
        Ok(watched)
    }

    fn set(&self, value: T) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }

    fn refuse(&self, refused: Option<Refused>) {
        *self.refused.write().unwrap_or_else(PoisonError::into_inner) = refused;
    }
}

fn describe(what: &'static str) {
    describe_counter!(
        FAILURES,
        Unit::Count,
        "Files of credentials that changed and could not be used, by what they hold; the old go on"
    );
    counter!(FAILURES, "what" => what).increment(0);
}

/// Looks at the files until nobody holds the value.
struct Follower<T, P> {
    what: &'static str,
    value: Weak<Watched<T>>,
    files: Vec<PathBuf>,
    /// What was tried last: each change is tried, and told, once.
    seen: Result<Contents, String>,
    parse: P,
}

impl<T: Send + Sync + 'static, E: Error, P> Follower<T, P>
where
    P: Fn(&[Vec<u8>]) -> Result<T, E> + Send + Sync + 'static,
{
    async fn run(mut self, every: Duration) {
        let mut look = tokio::time::interval(every);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        look.tick().await;
        while self.value.strong_count() > 0 {
            look.tick().await;
            // A file system that hangs holds up this task and nothing else.
            let Ok(back) = tokio::task::spawn_blocking(move || self.looked()).await else {
                return;
            };
            self = back;
        }
    }

    fn looked(mut self) -> Self {
        let found = read(&self.files).map_err(told);
        // Files that are being replaced one after another are left alone until they rest.
        if found != self.seen && found == read(&self.files).map_err(told) {
            self.take(found);
        }
        self
    }

    fn take(&mut self, found: Result<Contents, String>) {
        let parsed = match &found {
            Ok(contents) => (self.parse)(contents).map_err(|error| error.to_string()),
            Err(why) => Err(why.clone()),
        };
        self.seen = found;
        let Some(watched) = self.value.upgrade() else {
            return;
        };
        match parsed {
            Ok(value) => {
                watched.set(value);
                watched.refuse(None);
                tracing::info!(
                    what = self.what,
                    "credentials changed: the new ones are used from now on"
                );
            }
            Err(why) => {
                counter!(FAILURES, "what" => self.what).increment(1);
                tracing::warn!(
                    what = self.what,
                    why = why.as_str(),
                    "credentials changed and cannot be used: the old ones go on; mend the files"
                );
                let files = self.files.clone();
                watched.refuse(Some(Refused { files, why }));
            }
        }
    }
}

fn told((path, error): (PathBuf, impl Display)) -> String {
    format!("{}: {error}", path.display())
}

pub(crate) fn read(files: &[PathBuf]) -> Result<Contents, (PathBuf, io::Error)> {
    let one = |path: &PathBuf| read_one(path).map_err(|error| (path.clone(), error));
    files.iter().map(one).collect()
}

fn read_one(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("longer than {LONGEST} bytes: no file of credentials"),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, num::ParseIntError, os::unix::fs::symlink, str};

    use super::*;

    fn number(contents: &[Vec<u8>]) -> Result<u32, ParseIntError> {
        str::from_utf8(&contents[0])
            .unwrap_or_default()
            .trim()
            .parse()
    }

    type Parse = fn(&[Vec<u8>]) -> Result<u32, ParseIntError>;

    /// A follower whose looks the test takes itself.
    fn follower(path: &Path) -> (Arc<Watched<u32>>, Follower<u32, Parse>) {
        let files = vec![path.to_owned()];
        let contents = read(&files).unwrap();
        let value = Watched::fixed(number(&contents).unwrap());
        let follower = Follower {
            what: "a test",
            value: Arc::downgrade(&value),
            seen: Ok(contents),
            files,
            parse: number as Parse,
        };
        (value, follower)
    }

    #[test]
    fn a_swapped_link_is_a_change_though_no_time_moved() {
        let folder = tempfile::tempdir().unwrap();
        for generation in ["1", "2"] {
            fs::create_dir(folder.path().join(generation)).unwrap();
            fs::write(folder.path().join(generation).join("file"), generation).unwrap();
        }
        let data = folder.path().join("data");
        symlink("1", &data).unwrap();
        let (value, follower) = follower(&data.join("file"));
        let follower = follower.looked();
        assert_eq!(*value.now(), 1);
        symlink("2", folder.path().join("new")).unwrap();
        fs::rename(folder.path().join("new"), &data).unwrap();
        follower.looked();
        assert_eq!(*value.now(), 2);
    }

    #[test]
    fn what_does_not_parse_or_is_gone_leaves_the_old_value() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "1").unwrap();
        let (value, mut follower) = follower(file.path());
        fs::write(file.path(), "nonsense").unwrap();
        follower = follower.looked();
        assert_eq!(*value.now(), 1);
        let refused = value.refused().unwrap();
        assert_eq!(refused.files, [file.path()]);
        assert!(refused.why.contains("invalid digit"), "{refused:?}");
        // Tried once: the same bytes are not told of again.
        assert_eq!(follower.seen, Ok(vec![b"nonsense".to_vec()]));
        fs::remove_file(file.path()).unwrap();
        follower = follower.looked();
        assert!(follower.seen.is_err());
        assert_eq!(*value.now(), 1);
        assert!(value.refused().is_some());
        fs::write(file.path(), "3").unwrap();
        follower.looked();
        assert_eq!((*value.now(), value.refused()), (3, None));
    }

    #[test]
    fn files_that_are_wrong_at_the_start_are_refused() {
        let missing = Watched::follow("a test", vec!["/nowhere/at-all".into()], number);
        assert!(missing.unwrap_err().to_string().contains("/nowhere/at-all"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let wrong = Watched::follow("a test", vec![file.path().to_owned()], number);
        assert!(matches!(wrong, Err(FirstError::Parse(_))));
    }
}
