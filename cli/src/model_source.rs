//! Which model a hosted worker serves, and where it comes from.
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use conclave_worker::config::ActivationKind;

use crate::{cache, error::CliError};

/// The model that is fetched when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// Flags that name a model.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Model: a name (`conclave model list`), a GGUF file or a safetensors folder
    #[arg(long, value_name = "NAME|PATH", default_value = DEFAULT_MODEL)]
    pub model: String,
    /// Rounding of activations in hosted workers; decides bits
    #[arg(long, value_enum, default_value = "int8")]
    pub activation: Activation,
}

/// Rounding of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Activation {
    /// To 8 bits, per block of 32: fast.
    Int8,
    /// Not at all.
    F32,
}

/// A model on this machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The file or folder.
    pub path: PathBuf,
    /// The name that jobs ask for; empty: from the file.
    pub name: String,
}

impl ModelArgs {
    /// The path, if the user gave one.
    pub fn path(&self) -> Option<&Path> {
        is_path(&self.model).then(|| Path::new(&self.model))
    }

    /// The name to ask a running cluster for: empty, its only model, unless
    /// the user chose one.
    pub fn name_for_cluster(&self) -> &str {
        if self.model == DEFAULT_MODEL {
            ""
        } else {
            &self.model
        }
    }

    /// As the worker's configuration says it.
    pub fn activation(&self) -> ActivationKind {
        match self.activation {
            Activation::Int8 => ActivationKind::Int8,
            Activation::F32 => ActivationKind::F32,
        }
    }

    /// The model on this machine, fetched if it is a known name.
    pub async fn find(&self) -> Result<Found, CliError> {
        find(&self.model).await
    }
}

/// The model that `text` names, fetched if it is a known name and not here.
pub async fn find(text: &str) -> Result<Found, CliError> {
    if is_path(text) {
        let path = PathBuf::from(text);
        if !path.exists() {
            return Err(CliError::usage(format!(
                "there is no model at {text}: name a GGUF file, a safetensors folder, or one of `conclave model list`"
            )));
        }
        return Ok(Found {
            path,
            name: String::new(),
        });
    }
    let path = cache::folder("models")?.join("smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf");
    Ok(Found {
        path,
        name: text.to_owned(),
    })
}

/// Whether the text names a place rather than a model: it has a separator, an
/// ending, or something lies there.
pub fn is_path(text: &str) -> bool {
    text.contains('/') || text.ends_with(".gguf") || Path::new(text).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_told_apart() {
        assert!(!is_path("smollm2-135m"));
        assert!(is_path("./smollm2-135m") && is_path("m.gguf") && is_path("/models/x"));
    }
}
