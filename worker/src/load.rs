//! From the settings of a worker to models that can be run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use conclave_kernels::{Activation, Isa, KvDtype};

use crate::config::{ActivationKind, Config, IsaKind, KvKind, ModelConfig};
use crate::device;
use crate::error::StartError;
use crate::model::{LoadOptions, Model, ModelError, pull};
use crate::model_backend::{KvSize, ModelBackend, RunOptions, process_pool};

/// Loads what is configured; weights are shared with other workers of the process. Blocking: seconds.
///
/// # Errors
/// [`StartError`] for the first model that cannot be run.
pub fn backends(config: &Config, max_waiting: usize) -> Result<Vec<Arc<ModelBackend>>, StartError> {
    let isa = isa(config.isa)?;
    let device = device::open(config.device)?;
    let run = RunOptions {
        kv: match config.kv_dtype {
            KvKind::F16 => KvDtype::F16,
            KvKind::F32 => KvDtype::F32,
        },
        kv_size: match config.kv_blocks {
            0 => KvSize::Bytes(config.kv_memory_mib as usize * 1024 * 1024),
            blocks => KvSize::Blocks(blocks),
        },
        max_sequences: config.max_sequences as usize,
        max_waiting,
        step_tokens: config.step_tokens as usize,
    };
    let activation = match config.activation {
        ActivationKind::Int8 => Activation::Int8,
        ActivationKind::F32 => Activation::F32,
    };
    let threads = config.threads as usize;
    let options = LoadOptions {
        activation,
        isa,
        device,
        name: None,
    };
    let models = config.models.iter();
    let backends = models
        .map(|model| backend(model, &options, threads, run).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(device) = &options.device {
        let free_mib = device.memory().map(|memory| memory.free >> 20).ok();
        tracing::info!(
            device = device.name(),
            free_mib,
            "the models are on the device"
        );
    }
    Ok(backends)
}

fn backend(
    model: &ModelConfig,
    options: &LoadOptions,
    threads: usize,
    run: RunOptions,
) -> Result<ModelBackend, StartError> {
    let (path, name) = find(model, pull::models_dir().ok().as_deref())?;
    let options = LoadOptions {
        name,
        ..options.clone()
    };
    let refused = |source| StartError::Model {
        path: path.clone(),
        source,
    };
    let loaded = Model::shared(&path, &options).map_err(refused)?;
    ModelBackend::new(loaded, options.isa, process_pool(threads), run).map_err(refused)
}

/// The file or folder, and the name to serve it by: `path`, which may also be a name in the cache `models`;
/// without a `path`, the `name` there. A model that was asked for by its name in the cache goes by that name, not by
/// what its file says: one model, one name. `None`: the file's.
fn find(
    model: &ModelConfig,
    models: Option<&Path>,
) -> Result<(PathBuf, Option<String>), StartError> {
    let name = (!model.name.is_empty()).then(|| model.name.clone());
    let asked = match model.path.as_os_str().is_empty() {
        true => PathBuf::from(&model.name),
        false => model.path.clone(),
    };
    if asked.exists() {
        return Ok((asked, name));
    }
    let resolved = |text| (text, pull::resolve_in(text, models));
    match asked.to_str().map(resolved) {
        Some((text, Ok(path))) => Ok((path, name.or_else(|| Some(text.to_owned())))),
        Some((_, Err(source @ ModelError::NotPulled { .. }))) => Err(StartError::Model {
            path: asked,
            source,
        }),
        Some((_, Err(_))) | None => Err(StartError::ModelMissing { path: asked }),
    }
}

fn isa(kind: IsaKind) -> Result<Isa, StartError> {
    let asked = match kind {
        IsaKind::Auto => return Ok(conclave_kernels::detect()),
        IsaKind::Portable => Isa::Portable,
        IsaKind::Avx2 => Isa::Avx2,
        IsaKind::Avx512 => Isa::Avx512,
    };
    match asked.available() {
        true => Ok(asked),
        false => Err(StartError::Isa {
            asked: asked.name(),
            has: conclave_kernels::detect().name(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_asked_for_by_its_name_in_the_cache_goes_by_that_name() {
        let models = tempfile::tempdir().unwrap();
        let file = models.path().join("mine/weights.gguf");
        std::fs::create_dir(models.path().join("mine")).unwrap();
        std::fs::write(&file, b"GGUF").unwrap();
        let found = |name: &str, path: &Path| {
            let model = ModelConfig {
                name: name.to_owned(),
                path: path.to_owned(),
            };
            find(&model, Some(models.path())).unwrap()
        };
        let named = |name: &str| (file.clone(), Some(name.to_owned()));
        assert_eq!(found("mine", Path::new("")), named("mine"));
        assert_eq!(found("", Path::new("mine")), named("mine"));
        assert_eq!(found("other", Path::new("mine")), named("other"));
        assert_eq!(found("", &file), (file.clone(), None));
    }
}
