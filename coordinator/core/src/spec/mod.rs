//! From what a caller submits to the effective spec: limits, defaults, contradictions.
//!
//! What needs a tokenizer, a regex engine or a schema compiler is checked by the worker that
//! prepares the job.

mod answer;
mod policy;
mod sampling;

use conclave_proto::v1::{JobSpec, Mode};

pub use policy::{EXPAND_MARGIN, Policy};

/// A spec that cannot be run (INVALID_ARGUMENT). The message names the field and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecError {
    /// The field, as in `contemplation.proto`.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl SpecError {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> SpecError {
        SpecError {
            field: field.into(),
            problem: problem.into(),
        }
    }
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

/// What `required_features` may name.
pub const FEATURES: &[&str] = &[
    "audit",
    "budget",
    "choices",
    "confidence",
    "deadline",
    "distill",
    "early_agreement",
    "exact",
    "expand",
    "json_schema",
    "quorum",
    "refine",
    "regex",
    "review",
    "synthesis",
    "watch_cursor",
];

const MAX_MESSAGES: usize = 1024;
const MAX_LABELS: usize = 16;
const MAX_LABEL_BYTES: usize = 128;
const MAX_MODEL_BYTES: usize = 256;

/// Checks a spec and fills in every default.
///
/// # Errors
/// The first field that cannot be run as asked.
pub fn effective(spec: &JobSpec, defaults: &Defaults) -> Result<JobSpec, SpecError> {
    let mode = match Mode::try_from(spec.mode) {
        Ok(Mode::Unspecified) => Mode::Contemplating,
        Ok(mode) => mode,
        Err(_) => {
            return Err(SpecError::new(
                "mode",
                format!(
                    "{} is no mode: INSTANT, THINKING or CONTEMPLATING",
                    spec.mode
                ),
            ));
        }
    };
    if spec.model.len() > MAX_MODEL_BYTES {
        return Err(SpecError::new(
            "model",
            format!("the name is over {MAX_MODEL_BYTES} bytes"),
        ));
    }
    messages(spec, defaults)?;
    features(spec)?;
    labels(spec)?;
    let kind = answer::effective(spec.answer.as_ref())?;
    let free_text = answer::is_free_text(&kind);
    let sampling = sampling::effective(spec.sampling.as_ref(), free_text)?;
    let budget = policy::effective_budget(spec.budget.as_ref(), mode)?;
    let policy = policy::effective_policy(spec.policy.as_ref(), mode, free_text)?;
    let mut spec = spec.clone();
    spec.mode = mode as i32;
    spec.answer = Some(kind);
    spec.sampling = Some(sampling);
    spec.budget = Some(budget);
    spec.policy = Some(policy);
    spec.seed.get_or_insert(defaults.seed);
    policy::check_together(&spec)?;
    Ok(spec)
}

fn messages(spec: &JobSpec, defaults: &Defaults) -> Result<(), SpecError> {
    let Some(last) = spec.messages.last() else {
        return Err(SpecError::new(
            "messages",
            "empty: give at least the user's question",
        ));
    };
    if spec.messages.len() > MAX_MESSAGES {
        return Err(SpecError::new(
            "messages",
            format!("more than {MAX_MESSAGES} turns"),
        ));
    }
    for (i, message) in spec.messages.iter().enumerate() {
        if !matches!(message.role.as_str(), "system" | "user" | "assistant") {
            return Err(SpecError::new(
                format!("messages[{i}].role"),
                format!("\"{}\" is none of system, user, assistant", message.role),
            ));
        }
    }
    let at = spec.messages.len() - 1;
    if last.role != "user" {
        return Err(SpecError::new(
            format!("messages[{at}].role"),
            format!("the last turn must be the user's, not the {}'s", last.role),
        ));
    }
    if last.content.trim().is_empty() {
        return Err(SpecError::new(
            format!("messages[{at}].content"),
            "the question is empty",
        ));
    }
    let bytes: usize = spec.messages.iter().map(|m| m.content.len()).sum();
    if bytes > defaults.max_prompt_bytes {
        return Err(SpecError::new(
            "messages",
            format!(
                "{bytes} bytes; the limit is {}: shorten them",
                defaults.max_prompt_bytes
            ),
        ));
    }
    Ok(())
}

fn features(spec: &JobSpec) -> Result<(), SpecError> {
    match spec
        .required_features
        .iter()
        .find(|f| !FEATURES.contains(&f.as_str()))
    {
        Some(unknown) => Err(SpecError::new(
            "required_features",
            format!(
                "this server has no \"{unknown}\"; it has {}",
                FEATURES.join(", ")
            ),
        )),
        None => Ok(()),
    }
}

fn labels(spec: &JobSpec) -> Result<(), SpecError> {
    if spec.labels.len() > MAX_LABELS {
        return Err(SpecError::new(
            "labels",
            format!("{} labels; at most {MAX_LABELS}", spec.labels.len()),
        ));
    }
    for (key, value) in &spec.labels {
        if key.is_empty() || key.len() > MAX_LABEL_BYTES || value.len() > MAX_LABEL_BYTES {
            return Err(SpecError::new(
                "labels",
                format!("key and value of a label have 1 (value: 0) to {MAX_LABEL_BYTES} bytes"),
            ));
        }
    }
    Ok(())
}

/// A number that has to lie in a range, with the range in the message.
fn in_range<T: PartialOrd + std::fmt::Display>(
    field: &str,
    value: T,
    low: T,
    high: T,
) -> Result<T, SpecError> {
    if value >= low && value <= high {
        Ok(value)
    } else {
        Err(SpecError::new(
            field,
            format!("{value} is outside {low} to {high}"),
        ))
    }
}

#[cfg(test)]
mod tests;
