//! Numbers of a job or an agent, checked. What is unset is neutral here: defaults are filled in where a
//! job is accepted.

use std::fmt::Display;
use std::ops::Bound::{Excluded, Included};
use std::ops::RangeBounds;

use conclave_proto::v1;

use crate::confidence::ConfidencePolicy;
use crate::sampling::Sampling;

use super::AgentError;

fn within<T: PartialOrd + Display + Copy>(
    name: &str,
    value: T,
    range: impl RangeBounds<T>,
    words: &str,
) -> Result<T, AgentError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(AgentError::Setting(format!(
        "{name}: {value} is not in {words}"
    )))
}

/// How tokens are drawn, its stop strings checked.
pub(super) fn sampling(proto: Option<&v1::Sampling>) -> Result<Sampling, AgentError> {
    let Some(proto) = proto else {
        return Ok(Sampling {
            temperature: 1.0,
            ..Sampling::GREEDY
        });
    };
    within("sampling.stop", proto.stop.len(), ..=8, "0..=8 strings")?;
    for stop in &proto.stop {
        within("sampling.stop", stop.len(), 1..=64, "1..=64 bytes")?;
    }
    let temperature = proto.temperature.unwrap_or(1.0);
    let top_k = proto.top_k.unwrap_or(0);
    let top_p = proto.top_p.unwrap_or(1.0);
    let min_p = proto.min_p.unwrap_or(0.0);
    let penalty = proto.repetition_penalty.unwrap_or(1.0);
    Ok(Sampling {
        temperature: within("sampling.temperature", temperature, 0.0..=5.0, "0..=5")?,
        top_k: within("sampling.top_k", top_k, 0..=1024, "0..=1024")? as usize,
        top_p: within(
            "sampling.top_p",
            top_p,
            (Excluded(0.0), Included(1.0)),
            "(0, 1]",
        )?,
        min_p: within("sampling.min_p", min_p, 0.0..1.0, "[0, 1)")?,
        repetition_penalty: within(
            "sampling.repetition_penalty",
            penalty,
            // Logits are divided by it: below, they leave what a float can hold.
            0.01..=10.0,
            "0.01..=10",
        )?,
    })
}

/// What is measured of an agent's confidence.
pub(super) fn confidence(
    proto: Option<&v1::ConfidencePolicy>,
) -> Result<ConfidencePolicy, AgentError> {
    let default = ConfidencePolicy::default();
    let Some(proto) = proto else {
        return Ok(default);
    };
    let top_k = proto.top_k.map_or(default.top_k, |k| k as usize);
    let window = proto
        .window
        .map_or(default.window, |window| window as usize);
    Ok(ConfidencePolicy {
        top_k: within("confidence.top_k", top_k, 1..=20, "1..=20")?,
        window: within("confidence.window", window, 1..=4096, "1..=4096")?,
        stop_below: proto
            .stop_below
            .map(|bar| within("confidence.stop_below", bar, -1e6..=1e6, "finite numbers"))
            .transpose()?,
    })
}

/// Thought tokens, answer tokens and thinking penalty of a job's agents.
pub(super) fn budget(spec: &v1::JobSpec) -> Result<(usize, usize, f32), AgentError> {
    let budget = spec.budget.unwrap_or_default();
    let thought = match spec.mode() {
        v1::Mode::Instant => budget.thought_tokens.unwrap_or(0),
        _ => budget.thought_tokens.unwrap_or(192),
    };
    let answer = answer_tokens(budget.answer_tokens.unwrap_or(128))?;
    let penalty = penalty(budget.thinking_penalty.unwrap_or(0.0))?;
    Ok((thought as usize, answer, penalty))
}

/// The most tokens of an answer.
pub(super) fn answer_tokens(tokens: u32) -> Result<usize, AgentError> {
    within("answer_tokens", tokens as usize, 1.., "1 or more")
}

/// The pull towards the end of a thought.
pub(super) fn penalty(penalty: f32) -> Result<f32, AgentError> {
    within("thinking_penalty", penalty, 0.0..=10.0, "0..=10")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut v1::Sampling)) -> Result<Sampling, AgentError> {
        let mut proto = v1::Sampling::default();
        change(&mut proto);
        sampling(Some(&proto))
    }

    #[test]
    fn unset_sampling_is_neutral() {
        let neutral = Sampling {
            temperature: 1.0,
            ..Sampling::GREEDY
        };
        assert_eq!(with(|_| ()).expect("fine"), neutral);
        assert_eq!(sampling(None).expect("fine"), neutral);
    }

    #[test]
    fn out_of_range_is_refused_by_name() {
        let refused = [
            ("temperature", with(|s| s.temperature = Some(-0.1))),
            ("temperature", with(|s| s.temperature = Some(f32::NAN))),
            ("top_k", with(|s| s.top_k = Some(1025))),
            ("top_p", with(|s| s.top_p = Some(0.0))),
            ("top_p", with(|s| s.top_p = Some(1.1))),
            ("min_p", with(|s| s.min_p = Some(1.0))),
            (
                "repetition_penalty",
                with(|s| s.repetition_penalty = Some(0.0)),
            ),
            (
                "repetition_penalty",
                with(|s| s.repetition_penalty = Some(f32::INFINITY)),
            ),
            ("stop", with(|s| s.stop = vec![String::new()])),
            ("stop", with(|s| s.stop = vec!["x".to_owned(); 9])),
        ];
        for (name, result) in refused {
            let message = result.expect_err(name).to_string();
            assert!(
                message.starts_with(&format!("sampling.{name}")),
                "{message}"
            );
        }
    }

    #[test]
    fn a_refusal_names_the_value_that_was_given() {
        let message =
            |result: Result<Sampling, AgentError>| result.expect_err("refused").to_string();
        let top_p = message(with(|s| s.top_p = Some(-0.25)));
        assert_eq!(top_p, "sampling.top_p: -0.25 is not in (0, 1]");
        let penalty = message(with(|s| s.repetition_penalty = Some(0.001)));
        assert_eq!(
            penalty,
            "sampling.repetition_penalty: 0.001 is not in 0.01..=10"
        );
    }

    #[test]
    fn confidence_has_defaults_and_bounds() {
        let default = confidence(Some(&v1::ConfidencePolicy::default())).expect("fine");
        assert_eq!(default, ConfidencePolicy::default());
        let wide = v1::ConfidencePolicy {
            window: Some(5000),
            ..Default::default()
        };
        assert!(confidence(Some(&wide)).is_err());
    }

    #[test]
    fn an_instant_job_does_not_think() {
        let mut spec = v1::JobSpec::default();
        spec.set_mode(v1::Mode::Instant);
        assert_eq!(budget(&spec).expect("fine"), (0, 128, 0.0));
        spec.set_mode(v1::Mode::Thinking);
        assert_eq!(budget(&spec).expect("fine"), (192, 128, 0.0));
        spec.budget = Some(v1::Budget {
            answer_tokens: Some(0),
            ..Default::default()
        });
        assert!(budget(&spec).is_err());
    }
}
