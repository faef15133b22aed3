//! Answers that can only be what was asked for: at each position of a constrained answer, the tokens
//! that its grammar lets through (llguidance).
//!
//! Every grammar allows one space in front, which the canonical form drops: models are trained to begin
//! an answer that follows "Final answer:" with it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory, regex_to_lark};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::answer::AnswerKind;
use crate::vocabulary::Vocabulary;

/// Compiled grammars kept for the next agent of a job.
const KEPT: usize = 32;
/// Longest explanation of what is wrong with a grammar, in bytes.
const MAX_PROBLEM: usize = 400;

/// Why a constraint could not be made or kept up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The model has nothing to end an answer with.
    #[error("the model has no end-of-generation token, so answers cannot be constrained")]
    NoEnd,
    /// The form asked for is valid in itself, but cannot be turned into masks.
    #[error("answer.{field} cannot be enforced: {problem}")]
    Unsupported {
        /// The job's field.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The grammar ran into a limit or a defect at some position.
    #[error("the answer's grammar failed: {0}")]
    Step(String),
}

/// Makes constraints for one vocabulary; shared by all workers of a process that serve the model.
pub struct Grammars {
    vocabulary: Arc<Vocabulary>,
    /// The token trie: tens of milliseconds, so only once it is needed.
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
    /// Least recently used first.
    kept: Mutex<Vec<(String, Matcher)>>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// For a model's tokens.
    pub fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self {
            vocabulary,
            factory: OnceLock::new(),
            kept: Mutex::new(Vec::new()),
        }
    }

    /// The constraint of an answer at its beginning; none for free text.
    ///
    /// # Errors
    /// [`GrammarError::NoEnd`], [`GrammarError::Unsupported`].
    pub fn constraint(&self, kind: &AnswerKind) -> Result<Option<Constraint>, GrammarError> {
        let Some((field, lark)) = lark(kind)? else {
            return Ok(None);
        };
        if let Some(matcher) = self.find(&lark) {
            return Ok(Some(Constraint { matcher }));
        }
        let factory = self
            .factory
            .get_or_init(|| factory(&self.vocabulary))
            .as_ref()
            .map_err(Clone::clone)?;
        let unsupported = |problem: String| GrammarError::Unsupported { field, problem };
        let parser = factory.create_parser(TopLevelGrammar::from_lark(lark.clone()));
        let matcher = Matcher::new(parser);
        if let Some(problem) = matcher.get_error() {
            return Err(unsupported(brief(&problem)));
        }
        let constraint = Constraint {
            matcher: matcher.deep_clone(),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((lark, matcher));
        Ok(Some(constraint))
    }

    fn find(&self, lark: &str) -> Option<Matcher> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(key, _)| key == lark)?;
        let entry = kept.remove(at);
        // Deep: agents run on several threads and must not share the lexer's lock.
        let matcher = entry.1.deep_clone();
        kept.push(entry);
        Some(matcher)
    }
}

fn factory(vocabulary: &Vocabulary) -> Result<ParserFactory, GrammarError> {
    let Some(&end) = vocabulary.ends().first() else {
        return Err(GrammarError::NoEnd);
    };
    let words: Vec<Vec<u8>> = (0..vocabulary.len() as u32)
        .map(|id| {
            let bytes = vocabulary.bytes(id);
            if vocabulary.is_special(id) {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
            } else {
                bytes.to_vec()
            }
        })
        .collect();
    let info = TokRxInfo::new(words.len() as u32, end);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(vocabulary.ends());
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env)
        .map_err(|error| GrammarError::Step(brief(&error.to_string())))?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}

/// The grammar of an answer as Lark, with the job's field that it comes from.
fn lark(kind: &AnswerKind) -> Result<Option<(&'static str, String)>, GrammarError> {
    Ok(match kind {
        AnswerKind::FreeText => None,
        AnswerKind::Choices(options) => {
            let options: Vec<String> = options
                .iter()
                .map(|option| Value::from(option.trim()).to_string())
                .collect();
            let body = options.join(" | ");
            Some(("choices", format!("start: ANSWER\nANSWER: \" \"? ({body})")))
        }
        AnswerKind::Regex { source, .. } => {
            let body = regex_to_lark(source, "");
            Some(("regex", format!("start: ANSWER\nANSWER: \" \"? /{body}/")))
        }
        AnswerKind::JsonSchema { schema, .. } => {
            let schema = enforceable(schema)?;
            let lark = format!("start: SPACE? answer\nSPACE: \" \"\nanswer: %json {schema}");
            Some(("json_schema", lark))
        }
    })
}

/// The schema with fixed spacing: a small model may otherwise spend its answer on white space.
fn enforceable(schema: &Value) -> Result<Value, GrammarError> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Object(_) => schema.clone(),
        _ => {
            return Err(GrammarError::Unsupported {
                field: "json_schema",
                problem: "no document can obey it".to_owned(),
            });
        }
    };
    schema["x-guidance"] = json!({
        "whitespace_flexible": false,
        "item_separator": ", ",
        "key_separator": ": ",
    });
    Ok(schema)
}

fn brief(problem: &str) -> String {
    let problem = problem.trim();
    let end = problem.floor_char_boundary(MAX_PROBLEM);
    problem[..end].to_owned()
}

/// Where an answer stands in its grammar.
pub struct Constraint {
    matcher: Matcher,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Constraint {
    /// The tokens that may follow. An end-of-generation token is among them only where the answer is
    /// complete.
    ///
    /// # Errors
    /// [`GrammarError::Step`].
    pub fn mask(&mut self) -> Result<SimpleVob, GrammarError> {
        let mask = self.matcher.compute_mask();
        mask.map_err(|error| GrammarError::Step(brief(&error.to_string())))
    }

    /// Takes a token that the mask let through and that is no end-of-generation token; true if nothing
    /// may follow it: the answer is complete.
    ///
    /// # Errors
    /// [`GrammarError::Step`].
    pub fn push(&mut self, token: u32) -> Result<bool, GrammarError> {
        let taken = self.matcher.consume_token(token);
        taken.map_err(|error| GrammarError::Step(brief(&error.to_string())))?;
        Ok(self.matcher.is_stopped())
    }
}

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
