//! From the settings of a worker to models that can be run.

use std::path::PathBuf;
use std::sync::Arc;

use conclave_kernels::{Activation, Isa, KvDtype};

use crate::config::{ActivationKind, Config, IsaKind, KvKind, ModelConfig};
use crate::error::StartError;
use crate::model::{LoadOptions, Model, ModelError, pull};
use crate::model_backend::{KvSize, ModelBackend, RunOptions, process_pool};

/// Loads what is configured; weights are shared with other workers of the process. Blocking: seconds.
///
/// # Errors
/// [`StartError`] for the first model that cannot be run.
pub fn backends(config: &Config, max_waiting: usize) -> Result<Vec<Arc<ModelBackend>>, StartError> {
    let isa = isa(config.isa)?;
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
    let models = config.models.iter();
    models
        .map(|model| backend(model, activation, isa, threads, run).map(Arc::new))
        .collect()
}

fn backend(
    model: &ModelConfig,
    activation: Activation,
    isa: Isa,
    threads: usize,
    run: RunOptions,
) -> Result<ModelBackend, StartError> {
    let path = find(model)?;
    let options = LoadOptions {
        activation,
        isa,
        name: (!model.name.is_empty()).then(|| model.name.clone()),
    };
    let refused = |source| StartError::Model {
        path: path.clone(),
        source,
    };
    let loaded = Model::shared(&path, &options).map_err(refused)?;
    ModelBackend::new(loaded, isa, process_pool(threads), run).map_err(refused)
}

/// The file or folder: `path`, which may also be a name in the cache; without a `path`, the `name` there.
fn find(model: &ModelConfig) -> Result<PathBuf, StartError> {
    let asked = match model.path.as_os_str().is_empty() {
        true => PathBuf::from(&model.name),
        false => model.path.clone(),
    };
    if asked.exists() {
        return Ok(asked);
    }
    match asked.to_str().map(pull::resolve) {
        Some(Ok(path)) => Ok(path),
        Some(Err(source @ ModelError::NotPulled { .. })) => Err(StartError::Model {
            path: asked,
            source,
        }),
        Some(Err(_)) | None => Err(StartError::ModelMissing { path: asked }),
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
