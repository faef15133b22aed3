//! Models that lie in a repository of the Hugging Face hub.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use hf_hub::api::sync::{ApiBuilder, ApiError};

use super::place::{Fetched, io_error};
use super::{Progress, PullError};

/// Longest download.
const PATIENCE: Duration = Duration::from_secs(12 * 60 * 60);

/// Longest time without a byte.
const SILENCE: Duration = Duration::from_secs(60);

/// Pieces of news that may wait to be heard.
const TELLS: usize = 16;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    repo: String,
    file: String,
}

impl Source {
    /// Reads `hf:<owner>/<repo>/<file>`; the file may lie in folders of the repository.
    pub(super) fn parse(text: &str) -> Result<Source, PullError> {
        let refuse = || PullError::Source(text.to_owned());
        let rest = text.strip_prefix("hf:").ok_or_else(refuse)?;
        let mut parts = rest.splitn(3, '/');
        let mut part = || {
            parts
                .next()
                .filter(|part| !part.is_empty())
                .ok_or_else(refuse)
        };
        let (owner, repo, file) = (part()?, part()?, part()?);
        if file.ends_with('/') || file.split('/').any(|part| part.starts_with('.')) {
            return Err(refuse());
        }
        Ok(Source {
            repo: format!("{owner}/{repo}"),
            file: file.to_owned(),
        })
    }

    /// What the file is called in the cache.
    pub(super) fn file_name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(&self.file)
    }

    /// Downloads it into `stage`. Bounded: a download that stands still is given up, and so is one without an
    /// end.
    pub(super) fn fetch(&self, stage: &Path, progress: Progress<'_>) -> Result<Fetched, PullError> {
        // The hub's client waits without a bound, so it waits on a thread of its own. One that was given up
        // ends with its connection or with the process.
        let (told, tells) = mpsc::sync_channel(TELLS);
        let (source, cache) = (self.clone(), stage.to_owned());
        thread::Builder::new()
            .name("download".to_owned())
            .spawn(move || {
                let done = source.download(&cache, &told);
                // Fails if nobody waits any more.
                let _ = told.send(Told::Done(done));
            })
            .map_err(|source| io_error(stage, source))?;
        let start = Instant::now();
        loop {
            let timeout = |bound: Duration| PullError::Timeout {
                what: self.what(),
                seconds: bound.as_secs(),
            };
            match tells.recv_timeout(SILENCE) {
                Ok(Told::Bytes { done, total }) => progress(done, total),
                Ok(Told::Done(fetched)) => return fetched,
                Err(RecvTimeoutError::Timeout) => return Err(timeout(SILENCE)),
                // The client asserts here and there.
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.failed("the hub's client panicked"));
                }
            }
            if start.elapsed() > PATIENCE {
                return Err(timeout(PATIENCE));
            }
        }
    }

    fn download(&self, cache: &Path, told: &SyncSender<Told>) -> Result<Fetched, PullError> {
        let hub = |error: ApiError| self.failed(error.to_string());
        let api = ApiBuilder::from_env().with_cache_dir(cache.to_owned());
        let api = api.with_progress(false).build().map_err(hub)?;
        let mut bytes = 0;
        let teller = Teller {
            told,
            done: 0,
            total: &mut bytes,
        };
        let link = api
            .model(self.repo.clone())
            .download_with_progress(&self.file, teller);
        let link = link.map_err(hub)?;
        // The link leads to a file named after its entity tag: of large files, the sha256.
        let path = link
            .canonicalize()
            .map_err(|source| io_error(&link, source))?;
        let tag = path.file_name().unwrap_or_default().to_string_lossy();
        let is_digest = tag.len() == 64 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
        Ok(Fetched {
            sha256: is_digest.then(|| tag.to_ascii_lowercase()),
            bytes,
            path,
        })
    }

    fn what(&self) -> String {
        format!("{} of {}", self.file, self.repo)
    }

    fn failed(&self, problem: impl Into<String>) -> PullError {
        PullError::Hub {
            what: self.what(),
            problem: problem.into(),
        }
    }
}

/// What the downloading thread tells.
enum Told {
    Bytes { done: u64, total: u64 },
    Done(Result<Fetched, PullError>),
}

struct Teller<'a> {
    told: &'a SyncSender<Told>,
    done: u64,
    total: &'a mut u64,
}

impl hf_hub::api::Progress for Teller<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        *self.total = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        // Fails if nobody waits any more; the client cannot be told to stop.
        let _ = self.told.send(Told::Bytes {
            done: self.done,
            total: *self.total,
        });
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_names_owner_repository_and_file() {
        let source = Source::parse("hf:owner/repo/sub/model.gguf").unwrap();
        assert_eq!(
            (&*source.repo, &*source.file),
            ("owner/repo", "sub/model.gguf")
        );
        assert_eq!(source.file_name(), "model.gguf");
        for text in [
            "owner/repo/file",
            "hf:owner/repo",
            "hf:/repo/f",
            "hf:o/r/../f",
            "hf:o/r/f/",
        ] {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }
}
