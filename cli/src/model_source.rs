//! Which model a hosted worker serves, and where it comes from.
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use conclave_worker::{
    config::ActivationKind,
    device::DeviceKind,
    model::{
        ModelError,
        pull::{PullError, models_dir, pull, resolve},
    },
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::CliError;

/// The model that is fetched when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// Flags that name a model.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Model: a name (`conclave model list`), a GGUF file or a safetensors folder
    /// [default: smollm2-135m; of a running cluster its only one]
    #[arg(long, value_name = "NAME|PATH")]
    pub model: Option<String>,
    /// Rounding of activations in hosted workers; decides bits
    #[arg(long, value_enum, default_value = "int8")]
    pub activation: Activation,
    /// What hosted workers compute on: cpu, cuda (the first GPU) or cuda:N; decides bits
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceKind,
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
        let model = self.model.as_deref()?;
        is_path(model).then(|| Path::new(model))
    }

    /// The name to ask a running cluster for: empty, its only model, unless
    /// the user chose one.
    pub fn name_for_cluster(&self) -> Result<&str, CliError> {
        if let Some(path) = self.path() {
            return Err(CliError::usage(format!(
                "--model {}: a running cluster serves its own models; give a name that `conclave cluster workers` lists",
                path.display()
            )));
        }
        Ok(self.model.as_deref().unwrap_or_default())
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
        find(self.model.as_deref().unwrap_or(DEFAULT_MODEL)).await
    }
}

/// The model that `text` names, fetched if it is a known name and not here.
pub async fn find(text: &str) -> Result<Found, CliError> {
    let name = if is_path(text) {
        String::new()
    } else {
        text.to_owned()
    };
    let path = match resolve(text) {
        Ok(path) => path,
        Err(ModelError::NotPulled { .. }) => fetch(text, None).await?,
        Err(error) => {
            return Err(CliError::usage(format!(
                "{error}; or name a GGUF file or a safetensors folder"
            )));
        }
    };
    Ok(Found { path, name })
}

/// Fetches a model into the cache, with a progress bar on standard error.
pub async fn fetch(name: &str, from: Option<&str>) -> Result<PathBuf, CliError> {
    let models = models_dir().map_err(|error| CliError::usage(error.to_string()))?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style());
    bar.set_message(name.to_owned());
    let (name, from) = (name.to_owned(), from.map(str::to_owned));
    // Waits for a child process and the disk: not on the runtime's threads.
    tokio::task::spawn_blocking(move || {
        let progress = |done: u64, total: u64| {
            if total > 0 {
                bar.set_length(total);
            }
            bar.set_position(done);
        };
        let fetched = pull(&name, from.as_deref(), &models, &progress);
        bar.finish_and_clear();
        fetched
    })
    .await
    .map_err(|error| CliError::Hosting(format!("the download stopped: {error}")))?
    .map_err(|error| match error {
        PullError::Unknown { .. }
        | PullError::Name(_)
        | PullError::Source(_)
        | PullError::Registered(_)
        | PullError::Occupied { .. }
        | PullError::NoHome => CliError::usage(error.to_string()),
        error => CliError::Hosting(error.to_string()),
    })
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("fetching {msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
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
    fn a_running_cluster_is_asked_by_name_only() {
        let args = |model: Option<&str>| ModelArgs {
            model: model.map(str::to_owned),
            activation: Activation::Int8,
            device: DeviceKind::Cpu,
        };
        assert_eq!(args(None).name_for_cluster().unwrap(), "");
        // Named is meant, the default's name too: another model would answer otherwise.
        for name in [DEFAULT_MODEL, "other"] {
            assert_eq!(args(Some(name)).name_for_cluster().unwrap(), name);
        }
        assert!(matches!(
            args(Some("./m.gguf")).name_for_cluster(),
            Err(CliError::Usage(_))
        ));
    }

    #[test]
    fn names_and_paths_are_told_apart() {
        assert!(!is_path("smollm2-135m"));
        assert!(is_path("./smollm2-135m") && is_path("m.gguf") && is_path("/models/x"));
    }
}
