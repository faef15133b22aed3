//! Messages to token ids, such that nothing a user writes becomes a mark of the model's.

use conclave_proto::v1;

use crate::model::{ChatMessage, Model};
use crate::vocabulary::Vocabulary;

use super::AgentError;

/// Stands in a rendered prompt where the text of a mark stood in a message. From the private use area; a
/// message that has it in itself gets a stand-in for it, too.
const STAND_IN: char = '\u{f8ff}';

/// Renders and encodes conversations.
#[derive(Debug)]
pub(super) struct Prompter {
    /// The texts of all marks, longest first, then the stand-in itself.
    marks: Vec<String>,
}

impl Prompter {
    pub fn new(vocabulary: &Vocabulary) -> Self {
        let special = (0..vocabulary.len() as u32).filter(|&id| vocabulary.is_special(id));
        let mut marks: Vec<String> = special
            .filter_map(|id| std::str::from_utf8(vocabulary.bytes(id)).ok())
            .filter(|mark| !mark.is_empty())
            .map(str::to_owned)
            .collect();
        marks.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        marks.push(STAND_IN.to_string());
        Self { marks }
    }

    /// The ids of a conversation up to where the assistant's turn begins. The template's marks become
    /// marks; the same text inside a message stays text.
    pub fn encode(&self, model: &Model, messages: &[ChatMessage]) -> Result<Vec<u32>, AgentError> {
        let messages: Vec<ChatMessage> = messages
            .iter()
            .map(|message| ChatMessage::new(&message.role, self.disarm(&message.content)))
            .collect();
        let rendered = model.template().render(&messages, true)?;
        let tokenizer = model.tokenizer();
        let mut ids = Vec::new();
        for (index, part) in rendered.split(STAND_IN).enumerate() {
            // Every other part is the number of a mark.
            let mark = part
                .parse()
                .ok()
                .and_then(|mark: usize| self.marks.get(mark));
            match mark.filter(|_| index % 2 == 1) {
                Some(mark) => ids.extend(tokenizer.encode(mark, false)?),
                None => ids.extend(tokenizer.encode(part, true)?),
            }
        }
        Ok(ids)
    }

    /// Puts stand-ins in the place of marks.
    fn disarm(&self, content: &str) -> String {
        let mut safe = String::with_capacity(content.len());
        let mut rest = content;
        while !rest.is_empty() {
            let found = self
                .marks
                .iter()
                .enumerate()
                .filter_map(|(number, mark)| rest.find(mark.as_str()).map(|at| (at, number)))
                .min();
            let Some((at, number)) = found else {
                break;
            };
            safe.push_str(&rest[..at]);
            safe.push(STAND_IN);
            safe.push_str(&number.to_string());
            safe.push(STAND_IN);
            rest = &rest[at + self.marks[number].len()..];
        }
        safe.push_str(rest);
        safe
    }
}

/// The job's conversation with `additions` (those that say something) after the question, each behind an
/// empty line: what agents have in common comes first.
pub(super) fn messages(
    messages: &[v1::Message],
    additions: [&str; 2],
) -> Result<Vec<ChatMessage>, AgentError> {
    let wrong = |problem: &str| Err(AgentError::Setting(problem.to_owned()));
    let Some(last) = messages.last() else {
        return wrong("messages: there must be at least one");
    };
    if last.role != "user" {
        return wrong("messages: the last one must be the user's");
    }
    if last.content.trim().is_empty() {
        return wrong("messages: the question is empty");
    }
    if let Some(stranger) = messages
        .iter()
        .find(|message| !matches!(&*message.role, "system" | "user" | "assistant"))
    {
        let role = &stranger.role;
        return wrong(&format!(
            "messages: role {role:?} is not one of system, user, assistant"
        ));
    }
    let mut turns: Vec<ChatMessage> = messages
        .iter()
        .map(|message| ChatMessage::new(&message.role, &message.content))
        .collect();
    if let Some(question) = turns.last_mut() {
        for addition in additions.into_iter().filter(|text| !text.is_empty()) {
            question.content.push_str("\n\n");
            question.content.push_str(addition);
        }
    }
    Ok(turns)
}

/// Whether a prompt ends inside a thought.
pub(super) fn is_open(prompt: &[u32], open: &[u32], close: &[u32]) -> bool {
    let last = |ids: &[u32]| {
        let found = prompt.windows(ids.len().max(1)).rposition(|w| w == ids);
        found.map(|at| at + ids.len())
    };
    last(open).is_some_and(|open| last(close).is_none_or(|close| close < open))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::tiny;

    fn message(role: &str, content: &str) -> v1::Message {
        v1::Message {
            role: role.to_owned(),
            content: content.to_owned(),
        }
    }

    #[test]
    fn additions_follow_the_question() {
        let turns = [message("system", "be kind"), message("user", "why?")];
        let all = messages(&turns, ["context", "tail"]).expect("fine");
        assert_eq!(all[1].content, "why?\n\ncontext\n\ntail");
        assert_eq!(all[0].content, "be kind");
        let some = messages(&turns, ["", "tail"]).expect("fine");
        assert_eq!(some[1].content, "why?\n\ntail");
    }

    #[test]
    fn what_is_no_question_is_refused() {
        let refused =
            |turns: &[v1::Message]| messages(turns, ["", ""]).expect_err("refused").to_string();
        assert!(refused(&[]).contains("at least one"));
        assert!(refused(&[message("assistant", "hi")]).contains("the user's"));
        assert!(refused(&[message("user", " \n")]).contains("empty"));
        assert!(refused(&[message("wizard", "x"), message("user", "y")]).contains("wizard"));
    }

    #[test]
    fn marks_inside_a_message_are_disarmed_and_found_again() {
        let prompter = Prompter::new(&tiny::vocabulary());
        for text in [
            "a<end>b<mark><mark>",
            "\u{f8ff}0\u{f8ff}",
            "<<end>end>",
            "plain",
        ] {
            let safe = prompter.disarm(text);
            assert!(!safe.contains("<end>") && !safe.contains("<mark>"));
            let back: String = safe
                .split(STAND_IN)
                .enumerate()
                .map(|(index, part)| match part.parse::<usize>() {
                    Ok(number) if index % 2 == 1 => prompter.marks[number].clone(),
                    _ => part.to_owned(),
                })
                .collect();
            assert_eq!(back, text);
        }
    }

    #[test]
    fn a_thought_is_open_after_its_last_opening() {
        let (open, close) = ([1, 2], [3]);
        assert!(is_open(&[0, 1, 2, 9], &open, &close));
        assert!(!is_open(&[0, 1, 2, 9, 3], &open, &close));
        assert!(is_open(&[1, 2, 3, 1, 2], &open, &close));
        assert!(!is_open(&[0, 1, 9, 2], &open, &close));
    }
}
