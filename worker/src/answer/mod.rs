//! The form of an answer: what a job may ask for, whether an answer has it, and the canonical form that
//! votes count.

mod extract;
mod json;

use std::sync::Arc;

use conclave_proto::v1;
use regex::{Regex, RegexBuilder};
use serde_json::Value;

/// Longest canonical form, in bytes; of a longer one its blake3 is counted.
pub const CANONICAL_BYTES: usize = 1024;
/// Most choices.
const MAX_CHOICES: usize = 1024;
/// Longest regular expression or schema, in bytes.
const MAX_SOURCE: usize = 64 * 1024;

/// What form an answer takes.
#[derive(Clone, Debug)]
pub enum AnswerKind {
    /// Any text; its final answer is looked for by [`AnswerKind::judge`].
    FreeText,
    /// One of these, as they are written here.
    Choices(Vec<String>),
    /// All of the answer matches.
    Regex {
        /// As the job wrote it.
        source: String,
        /// The same, anchored at both ends.
        whole: Regex,
    },
    /// A JSON document.
    JsonSchema {
        /// What it must obey.
        schema: Value,
        /// The schema, compiled.
        validator: Arc<jsonschema::Validator>,
    },
}

/// Why no answer could have the form that a job asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerKindError {
    /// No choice to choose from.
    #[error("answer.choices: there must be at least one option")]
    NoChoice,
    /// Too many to choose from.
    #[error("answer.choices: {0} options are more than {MAX_CHOICES}")]
    ManyChoices(usize),
    /// An option without a visible character.
    #[error("answer.choices: option {0} is blank")]
    BlankChoice(usize),
    /// Two options that differ by spaces at their ends at most.
    #[error("answer.choices: option {0:?} is there twice")]
    SameChoice(String),
    /// Longer than the limit.
    #[error("answer.{field}: {bytes} bytes are more than {MAX_SOURCE}")]
    TooLong {
        /// `regex` or `json_schema`.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// Not a regular expression.
    #[error("answer.regex is not valid: {0}")]
    Regex(String),
    /// Not JSON.
    #[error("answer.json_schema is not JSON: {0}")]
    Json(String),
    /// JSON, but not a schema.
    #[error("answer.json_schema is not a valid schema: {0}")]
    Schema(String),
}

/// What is thought of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The form that votes count; empty if there is none.
    pub canonical: String,
    /// Whether the answer has the form asked for. A free text has it if it says anything.
    pub valid: bool,
}

impl AnswerKind {
    /// Reads what a job asks for; absent is free text.
    ///
    /// # Errors
    /// What is wrong, by the name of the job's field.
    pub fn read(kind: Option<&v1::AnswerKind>) -> Result<Self, AnswerKindError> {
        use v1::answer_kind::Kind;
        match kind.and_then(|kind| kind.kind.as_ref()) {
            None | Some(Kind::FreeText(_)) => Ok(Self::FreeText),
            Some(Kind::Choices(choices)) => Self::choices(&choices.options),
            Some(Kind::Regex(source)) => Self::regex(source),
            Some(Kind::JsonSchema(source)) => Self::json_schema(source),
        }
    }

    fn choices(options: &[String]) -> Result<Self, AnswerKindError> {
        if options.is_empty() {
            return Err(AnswerKindError::NoChoice);
        }
        if options.len() > MAX_CHOICES {
            return Err(AnswerKindError::ManyChoices(options.len()));
        }
        let mut sorted: Vec<&str> = options.iter().map(|option| option.trim()).collect();
        if let Some(blank) = sorted.iter().position(|option| option.is_empty()) {
            return Err(AnswerKindError::BlankChoice(blank));
        }
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(AnswerKindError::SameChoice(pair[0].to_owned()));
        }
        Ok(Self::Choices(options.to_vec()))
    }

    fn regex(source: &str) -> Result<Self, AnswerKindError> {
        check_length("regex", source)?;
        let compile = |source: &str| {
            RegexBuilder::new(source)
                .size_limit(4 << 20)
                .build()
                .map_err(|error| AnswerKindError::Regex(error.to_string()))
        };
        if source.is_empty() {
            return Err(AnswerKindError::Regex("it is empty".to_owned()));
        }
        // Alone first: brackets that only match those put around it are an error.
        compile(source)?;
        let whole = compile(&format!(r"\A(?:{source})\z"))?;
        let source = source.to_owned();
        Ok(Self::Regex { source, whole })
    }

    fn json_schema(source: &str) -> Result<Self, AnswerKindError> {
        check_length("json_schema", source)?;
        let schema: Value = serde_json::from_str(source)
            .map_err(|error| AnswerKindError::Json(error.to_string()))?;
        // Patterns run in linear time; references stay inside the document.
        let validator = jsonschema::options()
            .with_pattern_options(jsonschema::PatternOptions::regex())
            .build(&schema)
            .map_err(|error| {
                let path = error.instance_path().to_string();
                let at = if path.is_empty() { "/" } else { &path };
                AnswerKindError::Schema(format!("{error} (at {at})"))
            })?;
        Ok(Self::JsonSchema {
            schema,
            validator: Arc::new(validator),
        })
    }

    /// Whether tokens are masked while the answer is written.
    pub fn is_constrained(&self) -> bool {
        !matches!(self, Self::FreeText)
    }

    /// Judges an answer. `cued` tells that a cue like "Final answer:" came right before it; of free text
    /// the first line then counts, else the last.
    pub fn judge(&self, answer: &str, cued: bool) -> Judgement {
        let trimmed = answer.trim();
        let canonical = match self {
            Self::FreeText => Some(extract::canonical(trimmed, cued)).filter(|c| !c.is_empty()),
            Self::Choices(options) => options
                .iter()
                .find(|option| option.trim() == trimmed)
                .map(|option| option.trim().to_owned()),
            Self::Regex { whole, .. } => [trimmed, answer]
                .into_iter()
                .find(|text| whole.is_match(text))
                .map(str::to_owned),
            Self::JsonSchema { validator, .. } => serde_json::from_str::<Value>(trimmed)
                .ok()
                .filter(|value| validator.is_valid(value))
                .map(|value| json::canonical(&value)),
        };
        Judgement {
            valid: canonical.is_some(),
            canonical: canonical.map(bounded).unwrap_or_default(),
        }
    }
}

fn check_length(field: &'static str, source: &str) -> Result<(), AnswerKindError> {
    let bytes = source.len();
    if bytes > MAX_SOURCE {
        return Err(AnswerKindError::TooLong { field, bytes });
    }
    Ok(())
}

fn bounded(canonical: String) -> String {
    if canonical.len() <= CANONICAL_BYTES {
        return canonical;
    }
    format!("blake3:{}", blake3::hash(canonical.as_bytes()).to_hex())
}

#[cfg(test)]
mod tests;
