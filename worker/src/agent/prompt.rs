//! Messages to token ids, such that nothing a user writes becomes a mark of the model's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

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
    /// Where a mark stands in `marks`.
    numbers: BTreeMap<String, usize>,
    /// Lengths of the marks that begin with a byte, longest first; one entry for each byte.
    lengths: Vec<Vec<usize>>,
    /// Bytes of the longest token.
    longest_token: usize,
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
        marks.dedup();
        let mut lengths = vec![Vec::new(); 256];
        for mark in &marks {
            if let Some(&first) = mark.as_bytes().first() {
                lengths[usize::from(first)].push(mark.len());
            }
        }
        for lengths in &mut lengths {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        let numbers = marks.iter().cloned().zip(0..).collect();
        let tokens = (0..vocabulary.len() as u32).map(|id| vocabulary.bytes(id).len());
        Self {
            numbers,
            lengths,
            longest_token: tokens.max().unwrap_or(0),
            marks,
        }
    }

    /// Refuses, without looking at it, a conversation of more bytes than the longest context can stand for.
    pub fn check_size(&self, messages: &[ChatMessage], context: usize) -> Result<(), AgentError> {
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        let most = context.saturating_mul(self.longest_token);
        if bytes > most {
            return Err(AgentError::TooManyBytes {
                bytes,
                most,
                context,
            });
        }
        Ok(())
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
        // A mark that is written often is encoded once.
        let mut encoded: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (index, part) in rendered.split(STAND_IN).enumerate() {
            // Every other part is the number of a mark.
            let number = part.parse::<usize>().ok().filter(|_| index % 2 == 1);
            match number.and_then(|number| Some((number, self.marks.get(number)?))) {
                Some((number, mark)) => {
                    let text = match encoded.entry(number) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(new) => new.insert(tokenizer.encode(mark, false)?),
                    };
                    ids.extend_from_slice(text);
                }
                None if part.is_empty() => {}
                None => ids.extend(tokenizer.encode(part, true)?),
            }
        }
        let vocab = model.info().vocab_size;
        match ids.iter().find(|id| **id as usize >= vocab) {
            // One such token would fail the step of every neighbour.
            Some(&id) => Err(AgentError::NoSuchToken { id, vocab }),
            None => Ok(ids),
        }
    }

    /// Puts stand-ins in the place of marks, the longest that begins at a place. One pass, whatever the
    /// content: a user decides how many marks there are.
    fn disarm(&self, content: &str) -> String {
        let mut safe = String::with_capacity(content.len());
        let (mut copied, mut at) = (0, 0);
        while let Some(&first) = content.as_bytes().get(at) {
            let lengths = &self.lengths[usize::from(first)];
            let found = lengths.iter().find_map(|&length| {
                let number = self.numbers.get(content.get(at..at + length)?)?;
                Some((length, number))
            });
            let Some((length, number)) = found else {
                at += 1;
                continue;
            };
            safe.push_str(&content[copied..at]);
            safe.push(STAND_IN);
            safe.push_str(&number.to_string());
            safe.push(STAND_IN);
            at += length;
            copied = at;
        }
        safe.push_str(&content[copied..]);
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
    fn the_longest_mark_at_a_place_wins() {
        let marks = ["<a>", "<a><b>", "<b>", "é>"].map(str::as_bytes);
        let vocabulary = Vocabulary::new(marks.map(|mark| (mark, true)), &[]);
        let prompter = Prompter::new(&vocabulary);
        let safe = prompter.disarm("é<a><b><a><b");
        let number = |mark: &str| prompter.numbers[mark];
        let (long, short) = (number("<a><b>"), number("<a>"));
        let s = STAND_IN;
        assert_eq!(safe, format!("é{s}{long}{s}{s}{short}{s}<b"));
    }

    #[test]
    fn a_prompt_of_nothing_but_marks_is_disarmed_in_one_pass() {
        // Many marks that begin alike, and a text of them: quadratic work would take minutes here.
        let marks: Vec<String> = (0..500).map(|n| format!("<|reserved_{n}|>")).collect();
        let tokens = marks.iter().map(|mark| (mark.as_bytes(), true));
        let prompter = Prompter::new(&Vocabulary::new(tokens, &[]));
        let hostile = "<|reserved_7|>".repeat(200_000);
        let began = std::time::Instant::now();
        let safe = prompter.disarm(&hostile);
        assert_eq!(safe.matches(STAND_IN).count(), 400_000);
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }

    #[test]
    fn more_bytes_than_a_context_stands_for_are_refused() {
        let prompter = Prompter::new(&tiny::vocabulary());
        let longest = "</think>".len();
        let turns = |bytes| [ChatMessage::new("user", "x".repeat(bytes))];
        assert!(prompter.check_size(&turns(4 * longest), 4).is_ok());
        let refused = prompter.check_size(&turns(4 * longest + 1), 4);
        let message = refused.expect_err("too long").to_string();
        assert!(
            message.contains("33 bytes") && message.contains("32"),
            "{message}"
        );
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
