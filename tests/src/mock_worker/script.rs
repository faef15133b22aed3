//! What a mock says: the simulator's own mock model, so that an attempt is a function of its `Start`.

use conclave_proto::v1::{Draft, Prepare, Prepared, Start, TokenDelta};
use conclave_worker_core::SeqId;

use crate::sim::mind;

use super::{CLASS, CONTEXT, MODEL_DIGEST};

/// One attempt's tokens, made when it starts; a mock's decoding only counts how many are out.
pub(super) struct Script {
    start: Start,
    prompt: usize,
    ids: Vec<u32>,
    /// The text of each token; of both phases together, the draft's thought and answer.
    pieces: Vec<String>,
    /// Tokens of the thought.
    thought: usize,
}

impl Script {
    pub(super) fn new(start: Start) -> Script {
        let plan = mind::plan(&start, SeqId(1));
        let prompt = &plan.request.tokens;
        let ids = plan.script.expected(prompt, plan.request.max_tokens);
        let draft = mind::draft(&start, prompt.len(), &ids, 0, false);
        let thought = draft.usage.map_or(0, |u| u.thought_tokens) as usize;
        let mut pieces = pieces(&draft.thought, thought);
        pieces.extend(self::pieces(&draft.answer, ids.len() - thought));
        Script {
            prompt: prompt.len(),
            start,
            ids,
            pieces,
            thought,
        }
    }

    /// Tokens until its end.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The text of tokens `from..to`, of one phase: up to the end of the thought if it begins in it.
    pub(super) fn delta(&self, from: usize, to: usize) -> TokenDelta {
        let thought = from < self.thought;
        let to = if thought { to.min(self.thought) } else { to };
        let key = self.start.key.clone().unwrap_or_default();
        TokenDelta {
            agent: key.agent,
            attempt: key.attempt,
            offset: from as u32,
            tokens: (to - from) as u32,
            text: self.pieces[from..to].concat(),
            thought,
            prompt_tokens: self.prompt as u32,
            ..TokenDelta::default()
        }
    }

    /// The draft of the first `produced` tokens.
    pub(super) fn draft(&self, produced: usize) -> Draft {
        let ids = &self.ids[..produced];
        let cut = produced < self.ids.len();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let seed = self.start.spec.as_ref().map_or(0, |spec| spec.seed);
        let mut logprobs = blake3::Hasher::new();
        logprobs.update(&seed.to_le_bytes()).update(&bytes);
        Draft {
            prompt_digest: blake3::hash(self.start.context.as_bytes())
                .as_bytes()
                .to_vec(),
            logprob_digest: logprobs.finalize().as_bytes().to_vec(),
            model_digest: MODEL_DIGEST.to_vec(),
            numeric_class: CLASS.into(),
            ..mind::draft(&self.start, self.prompt, ids, 0, cut)
        }
    }
}

/// `text` as the text of `count` tokens: a word each, or all of it as the first.
fn pieces(text: &str, count: usize) -> Vec<String> {
    let words: Vec<&str> = text.split(' ').collect();
    let word = |i: usize| match i {
        0 if words.len() == count => words[0].to_owned(),
        0 => text.to_owned(),
        _ if words.len() == count => format!(" {}", words[i]),
        _ => String::new(),
    };
    (0..count).map(word).collect()
}

/// The answer to `Prepare`: every job is fine.
pub(super) fn prepared(prepare: Prepare, model: &str) -> Prepared {
    let start = Start {
        messages: prepare.spec.unwrap_or_default().messages,
        ..Start::default()
    };
    Prepared {
        job_id: prepare.job_id,
        prompt_tokens: mind::prompt(&start).len() as u32,
        model_digest: MODEL_DIGEST.to_vec(),
        numeric_class: CLASS.into(),
        model: model.into(),
        context_tokens: CONTEXT,
        ..Prepared::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_proto::v1::{AgentSpec, AnswerKind, Choices, answer_kind::Kind};

    fn start(seed: u64) -> Start {
        Start {
            spec: Some(AgentSpec {
                seed,
                thought_tokens: 8,
                answer_tokens: 4,
                answer: Some(AnswerKind {
                    kind: Some(Kind::Choices(Choices {
                        options: vec!["red wine".into(), "blue".into()],
                    })),
                }),
                ..AgentSpec::default()
            }),
            ..Start::default()
        }
    }

    #[test]
    fn the_text_that_is_streamed_is_the_drafts() {
        for seed in 0..20 {
            let script = Script::new(start(seed));
            let (mut thought, mut answer, mut at) = (String::new(), String::new(), 0);
            while at < script.len() {
                let delta = script.delta(at, (at + 3).min(script.len()));
                let phase = if delta.thought {
                    &mut thought
                } else {
                    &mut answer
                };
                phase.push_str(&delta.text);
                at += delta.tokens as usize;
            }
            let draft = script.draft(script.len());
            assert_eq!((thought, answer), (draft.thought, draft.answer));
        }
    }

    #[test]
    fn equal_seeds_say_equal_things() {
        let draft = |seed| {
            let script = Script::new(start(seed));
            script.draft(script.len())
        };
        assert_eq!(draft(1), draft(1));
        assert_ne!(draft(1).token_ids, draft(2).token_ids);
    }
}
