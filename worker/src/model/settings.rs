//! Settings of a model, checked: they come from outside.

use super::ModelError;

/// Dimensions beyond this are no model but a damaged or hostile header.
const MAX_DIMENSION: u64 = 1 << 24;

/// Layers and experts beyond this likewise: what is kept of each would be more than the file.
const MAX_COUNT: u64 = 1 << 12;

/// The longest head that the attention kernel takes.
const MAX_HEAD_DIM: u64 = 256;

/// `theta^(-2i/dim)` for the rotated part of a head.
pub(super) fn base_frequencies(
    key: &str,
    rope_dim: u64,
    head_dim: u64,
    theta: f64,
) -> Result<Vec<f64>, ModelError> {
    if head_dim > MAX_HEAD_DIM {
        let problem = format!("heads of {head_dim} elements are not supported (up to 256 are)");
        return Err(setting("head_dim", problem));
    }
    if rope_dim == 0 || !rope_dim.is_multiple_of(2) || rope_dim > head_dim {
        return Err(setting(
            key,
            format!("{rope_dim} of {head_dim} elements cannot be rotated"),
        ));
    }
    if !(theta.is_finite() && theta > 0.0) {
        return Err(setting(key, format!("{theta} is no base of frequencies")));
    }
    Ok((0..rope_dim / 2)
        .map(|i| theta.powf(-2.0 * i as f64 / rope_dim as f64))
        .collect())
}

/// How many of `whole` elements each of `parts` heads has.
pub(super) fn divide(key: &str, whole: u64, parts: u64) -> Result<u64, ModelError> {
    if parts == 0 || !whole.is_multiple_of(parts) {
        return Err(setting(
            key,
            format!("{whole} elements do not divide among {parts} heads"),
        ));
    }
    Ok(whole / parts)
}

/// A dimension that a model can have.
pub(super) fn size(key: &str, value: u64) -> Result<usize, ModelError> {
    within(key, value, MAX_DIMENSION)
}

/// A number of layers or experts that a model can have.
pub(super) fn count(key: &str, value: u64) -> Result<usize, ModelError> {
    within(key, value, MAX_COUNT)
}

fn within(key: &str, value: u64, most: u64) -> Result<usize, ModelError> {
    match (1..=most).contains(&value) {
        true => Ok(value as usize),
        false => Err(setting(key, format!("{value} is not in 1..={most}"))),
    }
}

/// That a setting is absent.
pub(super) fn missing(key: &str) -> ModelError {
    ModelError::MissingSetting {
        key: key.to_owned(),
    }
}

/// That a setting cannot be so.
pub(super) fn setting(key: &str, problem: impl ToString) -> ModelError {
    ModelError::Setting {
        key: key.to_owned(),
        problem: problem.to_string(),
    }
}
