//! What can be wrong with a model and what it was given.

use std::path::PathBuf;

use conclave_kernels::PackError;
use conclave_kernels::cuda::DeviceError;
use thiserror::Error;

/// Why a model could not be loaded or run.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The file cannot be opened, read or mapped.
    #[error("cannot read {path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No model goes by this name or lies at this path.
    #[error("no model {name:?}: neither a path nor one of {known}")]
    Unknown {
        /// As given.
        name: String,
        /// Names that would do.
        known: String,
    },
    /// The model is known but not in the cache.
    #[error("model {name:?} is not in the cache {cache}; run `conclave model pull {name}`", cache = cache.display())]
    NotPulled {
        /// As given.
        name: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The file does not begin as a GGUF file does.
    #[error("{path} is not a GGUF file: it begins with {magic:02x?}, not with \"GGUF\"", path = path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// Its first bytes, at most four.
        magic: Vec<u8>,
    },
    /// A GGUF version other than 2 and 3.
    #[error("GGUF version {version} is not supported (2 and 3 are)")]
    GgufVersion {
        /// As the file says.
        version: u32,
    },
    /// The file ends before what it declares.
    #[error("the file is truncated: {what} needs {need} bytes, {have} are there")]
    Truncated {
        /// What was being read.
        what: String,
        /// Bytes it takes.
        need: u64,
        /// Bytes left from where it begins.
        have: u64,
    },
    /// The file contradicts its own format.
    #[error("the file is malformed: {what}")]
    Malformed {
        /// Where and how.
        what: String,
    },
    /// The architecture is not one of those written here.
    #[error(
        "architecture {found:?} is not supported (GGUF files: llama; safetensors folders: llama, muse_glimmer, muse_spark)"
    )]
    Architecture {
        /// As the file says.
        found: String,
    },
    /// A tensor's numbers are stored in a way that no kernel reads.
    #[error("tensor {tensor}: type {found} is not supported")]
    TensorType {
        /// Its name.
        tensor: String,
        /// The type's name or number.
        found: String,
    },
    /// A tensor that the architecture needs is absent.
    #[error("tensor {tensor} is missing")]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor's shape contradicts the model's settings.
    #[error("tensor {tensor} has shape {found:?}, the settings ask for {expected:?}")]
    Shape {
        /// Its name.
        tensor: String,
        /// Rows first.
        found: Vec<u64>,
        /// Rows first.
        expected: Vec<u64>,
    },
    /// A setting that the architecture needs is absent.
    #[error("setting {key} is missing")]
    MissingSetting {
        /// Its key.
        key: String,
    },
    /// A setting has a value that cannot be, or that is not supported.
    #[error("setting {key}: {problem}")]
    Setting {
        /// Its key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// The kernels cannot take a tensor.
    #[error("tensor {tensor} cannot be packed: {source}")]
    Pack {
        /// Its name.
        tensor: String,
        /// Why.
        #[source]
        source: PackError,
    },
    /// The tokenizer cannot be built.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template cannot be read.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The architecture is written for the processor only.
    #[error("models of architecture {architecture} do not run on a GPU yet: use device = \"cpu\"")]
    NotOnDevice {
        /// Its name.
        architecture: &'static str,
    },
    /// What must lie on the device is more than it has free.
    #[error("{what} take {need_mib} MiB on {device}, which has {free_mib} MiB free: {fix}")]
    DeviceMemory {
        /// What was to be put there.
        what: &'static str,
        /// The device's name.
        device: String,
        /// MiB that it takes.
        need_mib: u64,
        /// MiB that are free.
        free_mib: u64,
        /// What to do.
        fix: &'static str,
    },
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(#[from] DeviceError),
    /// The batch asks for what cannot be computed.
    #[error("the batch cannot be run: {problem}")]
    Batch {
        /// What is wrong.
        problem: String,
    },
}

/// Why text could not become tokens.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The model file has no tokenizer, or one of an unknown kind.
    #[error("tokenizer: {0}")]
    Unsupported(String),
    /// The tokenizer's data contradict each other.
    #[error("tokenizer: {0}")]
    Malformed(String),
    /// The text cannot be encoded.
    #[error("text cannot be encoded: {0}")]
    Encode(String),
}

/// Why messages could not become a prompt.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the chat template is not valid: {0}")]
    Syntax(String),
    /// The model has no template.
    #[error("the model has no chat template")]
    Absent,
    /// The template refused the messages, or ran out of its limits.
    #[error("the chat template failed: {0}")]
    Render(String),
}
