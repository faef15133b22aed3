//! What a mock worker makes of an attempt: a prompt of tokens, a script for the mock runner, and a
//! draft of what it generated. All of it a function of the `Start` message, so that an exact job has
//! one answer.

use conclave_proto::v1::{Draft, Start, StopReason, Usage, answer_kind::Kind};
use conclave_worker_core::{self as engine, Request, SeqId, mock::Script};

use super::rng::mix;

/// Put between thought and answer.
const CUE: [u32; 2] = [31_000, 31_001];

/// An attempt as the engine takes it.
pub(crate) struct Plan {
    pub request: Request,
    pub script: Script,
}

/// Four bytes of text are a token.
fn tokens(text: &str, into: &mut Vec<u32>) {
    for four in text.as_bytes().chunks(4) {
        let token = four.iter().fold(0, |t, b| t << 8 | u32::from(*b));
        into.push(token % 30_000);
    }
}

/// Prompt tokens that all agents of a job share.
pub(crate) fn prompt(start: &Start) -> Vec<u32> {
    let mut prompt = Vec::new();
    for message in &start.messages {
        tokens(&message.content, &mut prompt);
    }
    prompt
}

/// The attempt as a request.
pub(crate) fn plan(start: &Start, seq: SeqId) -> Plan {
    let spec = start.spec.clone().unwrap_or_default();
    let mut prompt = prompt(start);
    tokens(&start.context, &mut prompt);
    tokens(&spec.tail, &mut prompt);
    let thought = spec.thought_tokens as usize;
    let budget = thought + spec.answer_tokens as usize;
    let first = prompt.len();
    // Some stop before their budget ends, but never within the thought.
    let early = mix(spec.seed).is_multiple_of(3) && spec.answer_tokens > 3;
    let script = Script {
        seed: spec.seed,
        stop_at: early.then_some((first + budget - 2, engine::StopReason::EndOfText)),
        inject_at: (thought > 3).then(|| (first + thought - 3, CUE.to_vec())),
    };
    let salt = start
        .salt
        .iter()
        .take(8)
        .fold(0, |s, b| s << 8 | u64::from(*b));
    let request = Request {
        salt,
        arrival: seq.0,
        ..Request::new(seq, prompt, budget.max(1))
    };
    Plan { request, script }
}

/// What was generated, as a draft. `cached` is the only field that depends on a worker's past.
pub(crate) fn draft(start: &Start, prompt: usize, ids: &[u32], cached: usize, cut: bool) -> Draft {
    let spec = start.spec.clone().unwrap_or_default();
    let thought = ids.len().min(spec.thought_tokens as usize);
    let sum = ids.iter().fold(spec.seed, |s, id| mix(s ^ u64::from(*id)));
    let words = |ids: &[u32]| {
        let words: Vec<String> = ids.iter().map(|id| format!("w{}", id % 97)).collect();
        words.join(" ")
    };
    let answer = match spec.answer.as_ref().and_then(|a| a.kind.as_ref()) {
        Some(Kind::Choices(choices)) if !choices.options.is_empty() => {
            choices.options[(sum % choices.options.len() as u64) as usize].clone()
        }
        _ => words(&ids[thought..]),
    };
    Draft {
        thought: words(&ids[..thought]),
        canonical: answer.clone(),
        answer,
        valid: !cut,
        confidence_micro: (sum % 20_000_000) as i64,
        lowest_window_micro: 0,
        usage: Some(Usage {
            prompt_tokens: prompt as u64,
            cached_tokens: cached as u64,
            thought_tokens: thought as u64,
            answer_tokens: (ids.len() - thought) as u64,
        }),
        stop: if cut {
            StopReason::Cancelled
        } else {
            StopReason::End
        } as i32,
        token_ids: ids.to_vec(),
        ..Draft::default()
    }
}
