//! The form of an answer.

use std::collections::BTreeSet;

use conclave_proto::v1::{AnswerKind, answer_kind::Kind};

use super::SpecError;

const MAX_CHOICES: usize = 64;
const MAX_CHOICE_BYTES: usize = 256;
const MAX_REGEX_BYTES: usize = 4 * 1024;
/// What checking a pattern may allocate, bytes.
const REGEX_PROGRAM_BYTES: usize = 1 << 20;
const MAX_SCHEMA_BYTES: usize = 64 * 1024;

/// Nothing masks tokens.
pub(super) fn is_free_text(kind: &AnswerKind) -> bool {
    matches!(kind.kind, None | Some(Kind::FreeText(_)))
}

/// Checks the kind; none means free text.
pub(super) fn effective(kind: Option<&AnswerKind>) -> Result<AnswerKind, SpecError> {
    let kind = kind.and_then(|k| k.kind.clone());
    match &kind {
        None | Some(Kind::FreeText(_)) => {
            return Ok(AnswerKind {
                kind: Some(Kind::FreeText(true)),
            });
        }
        Some(Kind::Choices(choices)) => check_choices(&choices.options)?,
        Some(Kind::Regex(regex)) => {
            sized("answer.regex", regex, MAX_REGEX_BYTES)?;
            check_regex(regex)?;
        }
        Some(Kind::JsonSchema(schema)) => {
            sized("answer.json_schema", schema, MAX_SCHEMA_BYTES)?;
            check_schema(schema)?;
        }
    }
    Ok(AnswerKind { kind })
}

fn check_choices(options: &[String]) -> Result<(), SpecError> {
    let wrong = |problem: String| Err(SpecError::new("answer.choices", problem));
    if !(2..=MAX_CHOICES).contains(&options.len()) {
        return wrong(format!(
            "{} options; give 2 to {MAX_CHOICES}",
            options.len()
        ));
    }
    if options
        .iter()
        .any(|o| o.trim().is_empty() || o.len() > MAX_CHOICE_BYTES)
    {
        return wrong(format!("an option has 1 to {MAX_CHOICE_BYTES} bytes"));
    }
    if options.iter().collect::<BTreeSet<_>>().len() != options.len() {
        return wrong("an option stands there twice".into());
    }
    Ok(())
}

/// The syntax alone: whether it can be masked by is for the worker to say.
fn check_regex(text: &str) -> Result<(), SpecError> {
    let built = regex::RegexBuilder::new(text)
        .size_limit(REGEX_PROGRAM_BYTES)
        .build();
    match built {
        // A long program is no wrong syntax.
        Ok(_) | Err(regex::Error::CompiledTooBig(_)) => Ok(()),
        Err(error) => Err(SpecError::new("answer.regex", error.to_string())),
    }
}

/// That it is JSON and may be a schema at all: an object or a boolean.
fn check_schema(text: &str) -> Result<(), SpecError> {
    use serde_json::Value;
    let wrong = |problem: String| Err(SpecError::new("answer.json_schema", problem));
    match serde_json::from_str(text) {
        Ok(Value::Object(_) | Value::Bool(_)) => Ok(()),
        Ok(_) => wrong("a schema is a JSON object, or `true`".to_owned()),
        Err(error) => wrong(format!("not JSON: {error}")),
    }
}

fn sized(field: &str, text: &str, limit: usize) -> Result<(), SpecError> {
    if text.trim().is_empty() {
        return Err(SpecError::new(
            field,
            "empty: leave `answer` out for free text",
        ));
    }
    if text.len() > limit {
        return Err(SpecError::new(
            field,
            format!("{} bytes; the limit is {limit}", text.len()),
        ));
    }
    Ok(())
}
