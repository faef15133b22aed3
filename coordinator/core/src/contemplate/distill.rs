//! Drafts become workspace: at most κ tokens each, the final answer and its key steps.

use conclave_proto::v1::{
    AgentSpec, AgentState, Distill, Draft, JobState, Role, Sampling, decide::Next,
};

use super::{Step, budget, confidence, prompt, propose, round, situation::Situation};

/// Fewest tokens of workspace that still say something.
const LEAST_TOKENS: u32 = 8;
/// Tokens of the chat template, the instructions and the list's numbers, generously.
const FRAME_TOKENS: u32 = 128;
/// Most tokens of a draft that a distiller reads, as a multiple of what it may write.
const READ_FACTOR: u32 = 12;

/// A round of one distiller per draft; `None` if the policy distills without a model call, or the
/// budget does not pay for it.
pub(super) fn start(s: &Situation<'_>) -> Option<Step> {
    let drafts = s.pool();
    let count = drafts.len() as u32;
    let cost = u64::from(s.policy.workspace_tokens);
    if s.policy.distill != Distill::Agent || count < 2 || budget::affordable(s, count, cost) < count
    {
        return None;
    }
    let agents = drafts
        .iter()
        .zip(0..)
        .map(|((agent, draft), index)| distiller(s, index, agent.spec.agent, draft))
        .collect();
    let round = round::start(s, JobState::Distilling, String::new(), agents, count);
    Some(Step {
        reason: String::new(),
        votes: Vec::new(),
        next: Next::StartRound(round),
    })
}

fn distiller(s: &Situation<'_>, index: u32, source: u32, draft: &Draft) -> AgentSpec {
    let bytes = bytes_for(draft, s.policy.workspace_tokens * READ_FACTOR);
    let thought = tail_of(&draft.thought, bytes.saturating_sub(draft.answer.len()));
    AgentSpec {
        tail: prompt::distill(thought, head_of(&draft.answer, bytes)),
        thought_tokens: 0,
        answer_tokens: s.policy.workspace_tokens,
        // A summary is read off, not invented.
        sampling: Some(Sampling {
            temperature: Some(0.0),
            ..s.policy.sampling.clone()
        }),
        confidence: Some(confidence::never_stopping(s.policy.confidence)),
        answer: None,
        thinking_penalty: 0.0,
        sources: vec![source],
        cue: String::new(),
        ..propose::thinker(s, Role::Distiller, index)
    }
}

/// One entry per draft of the pool, in their order: the distiller's words where one handed them in,
/// else what is taken from the draft itself.
pub(super) fn workspace(s: &Situation<'_>) -> Vec<String> {
    let drafts = s.pool();
    let tokens = tokens_each(s, drafts.len() as u32);
    drafts
        .iter()
        .map(|(agent, draft)| match distilled(s, agent.spec.agent) {
            Some(summary) => head_of(summary.answer.trim(), bytes_for(summary, tokens)).to_owned(),
            None => extract(draft, tokens),
        })
        .collect()
}

/// What a distiller made of this agent's draft.
fn distilled<'b>(s: &'b Situation<'_>, source: u32) -> Option<&'b Draft> {
    let agent = s.job.agents.iter().rev().find(|a| {
        a.spec.role() == Role::Distiller
            && a.spec.sources == [source]
            && a.state == AgentState::Done
    })?;
    s.draft(agent.spec.agent)
        .filter(|d| !d.answer.trim().is_empty())
}

/// Tokens for each entry: the policy's, or fewer where the model's context would overflow.
fn tokens_each(s: &Situation<'_>, entries: u32) -> u32 {
    let wanted = s.policy.workspace_tokens;
    match room_each(s, s.policy.agent_tokens(), entries) {
        None => wanted,
        Some(each) => wanted.min(each).max(LEAST_TOKENS),
    }
}

/// Tokens for each of some entries in the model's context, beside the question and `taken` tokens; `None` if its
/// length is not known.
pub(super) fn room_each(s: &Situation<'_>, taken: u64, entries: u32) -> Option<u32> {
    let prepared = s.job.prepared.as_ref().filter(|p| p.context_tokens > 0)?;
    let taken = u64::from(prepared.prompt_tokens) + taken + u64::from(FRAME_TOKENS);
    let left = u64::from(prepared.context_tokens).saturating_sub(taken);
    // Each entry brings its number and line break.
    let each = (left / u64::from(entries.max(1))).saturating_sub(4);
    Some(u32::try_from(each).unwrap_or(u32::MAX))
}

/// A draft as it was handed in, or, if it is longer than so many tokens by estimate, its answer and the end of its
/// thought.
pub(super) fn in_full(draft: &Draft, tokens: u32) -> String {
    let room = bytes_for(draft, tokens);
    let answer = head_of(draft.answer.trim(), room);
    let thought = tail_of(draft.thought.trim(), room.saturating_sub(answer.len())).trim();
    match thought.is_empty() {
        true => answer.to_owned(),
        false => format!("{thought}\nAnswer: {answer}"),
    }
}

/// Bytes that so many tokens of this draft take, by the draft's own ratio.
fn bytes_for(draft: &Draft, tokens: u32) -> usize {
    let bytes = (draft.thought.len() + draft.answer.len()) as u64;
    let counted = draft
        .usage
        .as_ref()
        .map_or(0, |u| u.thought_tokens + u.answer_tokens);
    let (bytes, counted) = if bytes == 0 || counted == 0 {
        (4, 1)
    } else {
        (bytes, counted)
    };
    usize::try_from(u64::from(tokens) * bytes / counted).unwrap_or(usize::MAX)
}

/// Final answer and key sentences of a draft, within so many tokens by estimate.
fn extract(draft: &Draft, tokens: u32) -> String {
    let room = bytes_for(draft, tokens);
    let mut text = head_of(draft.answer.trim(), room).to_owned();
    let steps = key_sentences(&draft.thought, room.saturating_sub(text.len() + 8));
    if !steps.is_empty() {
        text.push_str(" Steps: ");
        text.push_str(&steps.join(" "));
    }
    text
}

/// The sentences that say most, in their order, in so many bytes.
fn key_sentences(thought: &str, room: usize) -> Vec<&str> {
    let sentences: Vec<&str> = split_sentences(thought);
    let mut ranked: Vec<usize> = (0..sentences.len()).collect();
    // Later sentences win ties: they build on what came before.
    ranked.sort_by_key(|&i| std::cmp::Reverse((score(sentences[i]), i)));
    let mut chosen = Vec::new();
    let mut left = room;
    for i in ranked {
        let cost = sentences[i].len() + 1;
        if cost <= left {
            left -= cost;
            chosen.push(i);
        }
    }
    chosen.sort_unstable();
    chosen.into_iter().map(|i| sentences[i]).collect()
}

fn split_sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let breaks = chars.peek().is_none_or(|(_, next)| next.is_whitespace());
        if c == '\n' || (matches!(c, '.' | '!' | '?') && breaks) {
            let end = at + c.len_utf8();
            sentences.push(text[start..end].trim());
            start = end;
        }
    }
    sentences.push(text[start..].trim());
    sentences.retain(|s| s.len() > 2);
    sentences
}

/// How much a sentence says about the way to the answer.
fn score(sentence: &str) -> u32 {
    const SIGNS: [&str; 9] = [
        "therefore",
        "thus",
        "hence",
        "because",
        "so ",
        "answer",
        "result",
        "must",
        "=",
    ];
    let lower = sentence.to_lowercase();
    let signs = SIGNS.iter().filter(|sign| lower.contains(*sign)).count() as u32;
    2 * signs + u32::from(lower.bytes().any(|b| b.is_ascii_digit()))
}

/// The first bytes of a text, cut between characters.
fn head_of(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The last bytes of a text, cut between characters.
fn tail_of(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::Usage;

    use super::*;

    fn draft(thought: &str, answer: &str, tokens: u64) -> Draft {
        Draft {
            thought: thought.into(),
            answer: answer.into(),
            usage: Some(Usage {
                answer_tokens: tokens,
                ..Usage::default()
            }),
            ..Draft::default()
        }
    }

    #[test]
    fn the_answer_comes_first_and_key_sentences_in_their_order() {
        let thought = "Let me see. We know 6 = 2 * 3. Nice weather. Therefore the answer is 6.";
        let text = extract(&draft(thought, " 6 ", 40), 30);
        assert_eq!(
            text,
            "6 Steps: We know 6 = 2 * 3. Therefore the answer is 6."
        );
    }

    #[test]
    fn a_draft_in_full_loses_the_beginning_of_its_thought_first() {
        let whole = draft("One. Two. Three.", " 6 ", 17);
        assert_eq!(in_full(&whole, 100), "One. Two. Three.\nAnswer: 6");
        assert_eq!(in_full(&whole, 8), "Three.\nAnswer: 6");
        assert_eq!(in_full(&draft("", "6", 1), 100), "6");
    }

    #[test]
    fn an_entry_keeps_to_its_tokens() {
        let long = "So the result is 42. ".repeat(50);
        let whole = draft(&long, &"x".repeat(1000), 512);
        let bytes = bytes_for(&whole, 32);
        assert!(
            extract(&whole, 32).len() <= bytes + 8,
            "within {bytes} bytes"
        );
    }

    #[test]
    fn cuts_fall_between_characters() {
        assert_eq!(head_of("aé", 2), "a");
        assert_eq!(tail_of("éa", 2), "a");
        assert_eq!(tail_of("abc", 9), "abc");
    }

    #[test]
    fn sentences_end_at_stops_before_space_and_at_lines() {
        assert_eq!(
            split_sentences("Is 3.5 it? Yes!\nGood"),
            ["Is 3.5 it?", "Yes!", "Good"]
        );
    }
}
