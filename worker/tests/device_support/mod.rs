//! Small models on the emulator.
#![allow(dead_code)] // Each test file uses its part.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use conclave_cuda_emulator::Emulator;
use conclave_kernels::Activation;
use conclave_kernels::cuda::Driver;
use conclave_worker::model::{Device, LoadOptions, Model};
use tempfile::TempDir;

use crate::model_support::gguf::File;

/// An emulator as what a model is loaded onto.
pub fn device(emulator: &Arc<Emulator>) -> Device {
    Device::new(Arc::clone(emulator) as Arc<dyn Driver>)
}

/// Bytes that were taken from it and not given back.
pub fn live(emulator: &Emulator) -> u64 {
    let memory = emulator.memory().unwrap();
    memory.total - memory.free
}

/// A file in a folder of its own.
pub fn written(file: &File) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    std::fs::write(&path, file.encode().0).unwrap();
    (folder, path)
}

/// Loads it for the processor, or for a device.
pub fn load(path: &Path, activation: Activation, device: Option<Device>) -> Arc<Model> {
    let options = LoadOptions {
        activation,
        device,
        ..LoadOptions::default()
    };
    Model::load(path, &options).unwrap()
}
