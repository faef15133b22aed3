//! The form of a check file.

use std::path::Path;

use serde::Deserialize;

use super::CheckError;
use crate::model::ChatMessage;

/// A check file. Fields that are not listed here are comments.
#[derive(Clone, Debug, Deserialize)]
pub struct Fixture {
    /// The model that the reference ran.
    #[serde(default)]
    pub model: String,
    /// What the reference is.
    #[serde(default)]
    pub source: String,
    /// What to agree on.
    pub cases: Vec<Case>,
}

/// A prompt and what the reference did with it.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// A bare prompt; a case has it or `messages`.
    pub prompt: Option<String>,
    /// A chat, which the model's template renders.
    pub messages: Option<Vec<ChatMessage>>,
    /// The rendered chat.
    pub rendered: Option<String>,
    /// The prompt's token ids.
    pub prompt_ids: Vec<u32>,
    /// The tokens that the reference chose.
    pub greedy_ids: Vec<u32>,
    /// For each of them, the likeliest tokens given the prompt and those before: id, log-probability.
    pub top5: Vec<Vec<(u32, f64)>>,
}

impl Fixture {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`CheckError::Io`], [`CheckError::Form`].
    pub fn read(path: &Path) -> Result<Fixture, CheckError> {
        let io = |source| CheckError::Io {
            path: path.to_owned(),
            source,
        };
        let form = |problem: String| CheckError::Form {
            path: path.to_owned(),
            problem,
        };
        let text = std::fs::read_to_string(path).map_err(io)?;
        let fixture: Fixture =
            serde_json::from_str(&text).map_err(|error| form(error.to_string()))?;
        if fixture.cases.is_empty() {
            return Err(form("it has no cases".to_owned()));
        }
        for (index, case) in fixture.cases.iter().enumerate() {
            case.check()
                .map_err(|problem| form(format!("case {index}: {problem}")))?;
        }
        Ok(fixture)
    }
}

impl Case {
    fn check(&self) -> Result<(), String> {
        if self.prompt.is_some() == self.messages.is_some() {
            return Err("needs `prompt` or `messages`, and not both".to_owned());
        }
        if self.prompt_ids.is_empty() {
            return Err("`prompt_ids` is empty".to_owned());
        }
        if self.top5.len() != self.greedy_ids.len() {
            let (top, greedy) = (self.top5.len(), self.greedy_ids.len());
            return Err(format!("`top5` has {top} positions, `greedy_ids` {greedy}"));
        }
        if self
            .top5
            .iter()
            .flatten()
            .any(|(_, logprob)| !logprob.is_finite())
        {
            return Err("`top5` has a log-probability that is no number".to_owned());
        }
        Ok(())
    }

    /// Whether a model can run the case.
    pub(super) fn fits(&self, vocab: usize, context: usize) -> Result<(), String> {
        let ids = self.prompt_ids.iter().chain(&self.greedy_ids);
        let ids = ids.chain(self.top5.iter().flatten().map(|(id, _)| id));
        if let Some(id) = ids.copied().find(|id| *id as usize >= vocab) {
            return Err(format!("token {id} is not among the model's {vocab}"));
        }
        if self.tokens() > context {
            let tokens = self.tokens();
            return Err(format!(
                "{tokens} tokens are more than the model's context of {context}"
            ));
        }
        Ok(())
    }

    /// Prompt and continuation.
    pub(super) fn tokens(&self) -> usize {
        self.prompt_ids.len() + self.greedy_ids.len()
    }

    /// A short line that tells the case from others.
    pub(super) fn title(&self) -> String {
        let chat = self.messages.as_ref().and_then(|messages| messages.last());
        let text = match (&self.prompt, chat) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(last)) => format!("{}: {}", last.role, last.content),
            (None, None) => String::new(),
        };
        let mut line: String = text.escape_debug().take(40).collect();
        if text.chars().count() > 40 {
            line.replace_range(line.char_indices().nth(39).map_or(0, |(at, _)| at).., "…");
        }
        line
    }
}
