//! Models that lie in a repository of the Hugging Face hub.

use std::fs::File;
use std::io;

use hf_hub::api::sync::ApiBuilder;

use super::place::{Sink, io_error};
use super::{Progress, PullError};

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

    /// Downloads it to `out`, by way of a temporary folder.
    pub(super) fn fetch(
        &self,
        out: &mut Sink<'_>,
        progress: Progress<'_>,
    ) -> Result<(), PullError> {
        let what = || format!("{} of {}", self.file, self.repo);
        let hub = |error: hf_hub::api::sync::ApiError| PullError::Hub {
            what: what(),
            problem: error.to_string(),
        };
        let temp = tempfile::tempdir().map_err(|source| io_error(&std::env::temp_dir(), source))?;
        let api = ApiBuilder::from_env().with_cache_dir(temp.path().to_owned());
        let api = api.with_progress(false).build().map_err(hub)?;
        let told = Told {
            progress,
            done: 0,
            total: 0,
        };
        let path = api
            .model(self.repo.clone())
            .download_with_progress(&self.file, told);
        let path = path.map_err(hub)?;
        let mut file = File::open(&path).map_err(|source| io_error(&path, source))?;
        io::copy(&mut file, out).map_err(|source| io_error(&path, source))?;
        Ok(())
    }
}

struct Told<'a> {
    progress: Progress<'a>,
    done: u64,
    total: u64,
}

impl hf_hub::api::Progress for Told<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        self.total = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.progress)(self.done, self.total);
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
