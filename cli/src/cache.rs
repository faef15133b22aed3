//! Where this user's files are kept: models and audit records.
use std::{env, fs, path::PathBuf};

use crate::error::CliError;

/// A folder of the cache, created if need be: under `CONCLAVE_CACHE`, else
/// `XDG_CACHE_HOME/conclave`, else `~/.cache/conclave`.
pub fn folder(name: &str) -> Result<PathBuf, CliError> {
    let path = root(|key| {
        env::var_os(key)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    })
    .ok_or_else(|| CliError::usage("there is no home folder to keep files in: set CONCLAVE_CACHE"))?
    .join(name);
    fs::create_dir_all(&path).map_err(|source| CliError::file(&path, source))?;
    Ok(path)
}

fn root(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("CONCLAVE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("conclave")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/conclave")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_variable_wins() {
        let only = |known: &'static [(&'static str, &'static str)]| {
            move |key: &str| {
                known
                    .iter()
                    .find(|(k, _)| *k == key)
                    .map(|(_, value)| PathBuf::from(value))
            }
        };
        assert_eq!(root(only(&[])), None);
        assert_eq!(
            root(only(&[("HOME", "/h")])),
            Some("/h/.cache/conclave".into())
        );
        assert_eq!(
            root(only(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")])),
            Some("/x/conclave".into())
        );
        assert_eq!(
            root(only(&[("CONCLAVE_CACHE", "/c"), ("HOME", "/h")])),
            Some("/c".into())
        );
    }
}
