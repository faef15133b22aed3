//! Batch invariance on the real model: what a request generates, to the last bit of its
//! log-probabilities, depends on the request only.

mod engine_support;

use std::sync::Arc;

use conclave_worker::answer::AnswerKind;
use conclave_worker::confidence::ConfidencePolicy;
use conclave_worker::generation::{Bridge, Generation, GenerationSpec, Thought};
use conclave_worker::sampling::Sampling;
use conclave_worker::vocabulary::Vocabulary;
use conclave_worker_core::{Limits, Request, SeqId};

use engine_support::{Ended, Rig, model};

const SUBJECT: SeqId = SeqId(1000);
const QUESTION: &str = "<|im_start|>user\nA farmer has seventeen sheep. All but nine run away, and then a \
    neighbour brings back two of those that ran. How many sheep does the farmer have now, and why do \
    people so often get the first half of this wrong?<|im_end|>\n<|im_start|>assistant\n";

fn limits() -> Limits {
    Limits {
        blocks: 128,
        ..Limits::default()
    }
}

fn request(
    seq: SeqId,
    text: &str,
    seed: u64,
    thought: usize,
    answer: usize,
) -> (Request, Generation) {
    let model = model();
    let tokenizer = model.tokenizer();
    let tokens = (0..tokenizer.vocab_size() as u32)
        .map(|id| (tokenizer.token_bytes(id), tokenizer.is_special(id)));
    let vocabulary = Vocabulary::new(tokens, &model.info().end_of_generation);
    let prompt = tokenizer.encode(text, true).expect("tokens");
    let cue = tokenizer
        .encode("\n\nFinal answer:", false)
        .expect("tokens");
    let spec = GenerationSpec {
        prompt: prompt.clone(),
        seed,
        sampling: Sampling {
            temperature: 0.9,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.1,
        },
        thought: (thought > 0).then(|| Thought {
            tokens: thought,
            penalty: 0.5,
            close: Vec::new(),
            bridge: Bridge::new(&cue).expect("a cue"),
        }),
        answer_tokens: answer,
        stop: Vec::new(),
        confidence: ConfidencePolicy::default(),
        answer: AnswerKind::FreeText,
        constraint: None,
        cued: thought > 0,
    };
    let request = Request {
        max_tokens: spec.max_tokens(),
        arrival: seq.0,
        ..Request::new(seq, prompt, 1)
    };
    (request, Generation::new(spec, Arc::new(vocabulary)))
}

fn subject() -> (Request, Generation) {
    request(SUBJECT, QUESTION, 7, 10, 6)
}

/// The subject in an engine of its own.
fn alone(limits: Limits) -> Ended {
    let mut rig = Rig::new(limits);
    let (request, generation) = subject();
    rig.submit(request, generation);
    rig.finish(SUBJECT)
}

#[test]
fn the_same_request_gives_the_same_bits_in_any_company() {
    let expected = alone(limits());
    assert!(
        expected.finished.generated > 10,
        "too short to say anything"
    );
    assert_eq!(expected.finished.generated, expected.generation.ids().len());
    let bits = expected.bits();

    let crumbs = alone(Limits {
        chunk_tokens: 5,
        step_tokens: 13,
        ..limits()
    });
    assert_eq!(crumbs.bits(), bits, "chunked differently");

    let mut rig = Rig::new(limits());
    for other in 0..32 {
        let text = format!(
            "{other}: the {}",
            ["cat", "sea", "law", "old"][other as usize % 4]
        );
        let (request, generation) = request(SeqId(other), &text, other, 0, 4 + other as usize % 9);
        rig.submit(request, generation);
    }
    let (request, generation) = subject();
    rig.submit(request, generation);
    let crowded = rig.finish(SUBJECT);
    assert_eq!(crowded.bits(), bits, "among 32 others");

    // The same engine still has the subject's prompt in its cache.
    let (request, generation) = subject();
    rig.submit(request, generation);
    let again = rig.finish(SUBJECT);
    assert!(again.finished.cached_prompt_tokens > 0, "no prefix hit");
    assert_eq!(again.bits(), bits, "after a prefix hit");
}

#[test]
fn a_preempted_request_goes_on_with_the_same_bits() {
    let (request_of_subject, generation) = subject();
    let blocks = |tokens: usize| tokens.div_ceil(16) as u32;
    let prompt = blocks(request_of_subject.tokens.len());
    // Room for both prompts, not for what both generate.
    let tight = Limits {
        blocks: prompt + 2,
        ..limits()
    };
    let mut rig = Rig::new(tight);
    let (elder, elder_generation) = request(SeqId(1), "Once upon a time", 3, 0, 60);
    rig.submit(elder, elder_generation);
    rig.submit(request_of_subject, generation);
    let resumed = rig.finish(SUBJECT);
    assert!(resumed.preempted, "was never preempted");
    assert_eq!(resumed.bits(), alone(limits()).bits());
}
