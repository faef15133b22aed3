//! How tokens are drawn.

use conclave_proto::v1::Sampling;

use super::{SpecError, in_range};

const MAX_STOPS: usize = 8;
const MAX_STOP_BYTES: usize = 64;

/// Checks the ranges and fills in the defaults. Free text gets a light repetition penalty, which
/// keeps small models out of loops; constrained answers get none, since their form repeats.
pub(super) fn effective(
    sampling: Option<&Sampling>,
    free_text: bool,
) -> Result<Sampling, SpecError> {
    let mut sampling = sampling.cloned().unwrap_or_default();
    let temperature = *sampling.temperature.get_or_insert(0.7);
    in_range("sampling.temperature", temperature, 0.0, 5.0)?;
    let top_k = *sampling.top_k.get_or_insert(0);
    in_range("sampling.top_k", top_k, 0, 1024)?;
    let top_p = *sampling.top_p.get_or_insert(0.95);
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(SpecError::new(
            "sampling.top_p",
            format!("{top_p} is not above 0 and at most 1"),
        ));
    }
    let min_p = *sampling.min_p.get_or_insert(0.0);
    if !(0.0..1.0).contains(&min_p) {
        return Err(SpecError::new(
            "sampling.min_p",
            format!("{min_p} is not at least 0 and below 1"),
        ));
    }
    let penalty = *sampling
        .repetition_penalty
        .get_or_insert(if free_text { 1.1 } else { 1.0 });
    // As the worker has it: logits are divided by it, and must stay finite.
    in_range("sampling.repetition_penalty", penalty, 0.01, 10.0)?;
    if sampling.stop.len() > MAX_STOPS {
        return Err(SpecError::new(
            "sampling.stop",
            format!("{} strings; at most {MAX_STOPS}", sampling.stop.len()),
        ));
    }
    if sampling
        .stop
        .iter()
        .any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES)
    {
        return Err(SpecError::new(
            "sampling.stop",
            format!("a stop string has 1 to {MAX_STOP_BYTES} bytes"),
        ));
    }
    Ok(sampling)
}
