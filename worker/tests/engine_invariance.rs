//! Batch invariance on the real model and on one of each other family: what a request generates, to the last bit
//! of its log-probabilities, depends on the request only.

mod engine_support;
mod muse_support;

use std::sync::Arc;

use conclave_worker::answer::AnswerKind;
use conclave_worker::confidence::ConfidencePolicy;
use conclave_worker::generation::{Bridge, Generation, GenerationSpec, Thought};
use conclave_worker::model::{LoadOptions, Model};
use conclave_worker::sampling::Sampling;
use conclave_worker::vocabulary::Vocabulary;
use conclave_worker_core::{Limits, Request, SeqId};

use engine_support::{Ended, Rig, model};

/// The default model, and those of the other families.
fn models() -> impl Iterator<Item = (&'static str, Arc<Model>)> {
    let muse = muse_support::NAMES.into_iter().map(|name| {
        let folder = muse_support::folder(name);
        let model = Model::load(folder.path(), &LoadOptions::default());
        (name, model.expect("a model"))
    });
    std::iter::once(("llama", model())).chain(muse)
}

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
    model: &Model,
    seq: SeqId,
    text: &str,
    seed: u64,
    thought: usize,
    answer: usize,
) -> (Request, Generation) {
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

fn subject(model: &Model) -> (Request, Generation) {
    request(model, SUBJECT, QUESTION, 7, 10, 6)
}

/// The subject in an engine of its own.
fn alone(model: &Arc<Model>, limits: Limits) -> Ended {
    let mut rig = Rig::on(Arc::clone(model), limits);
    let (request, generation) = subject(model);
    rig.submit(request, generation);
    rig.finish(SUBJECT)
}

#[test]
fn the_same_request_gives_the_same_bits_in_any_company() {
    for (name, model) in models() {
        let expected = alone(&model, limits());
        assert!(
            expected.finished.generated > 10,
            "{name}: too short to say anything"
        );
        assert_eq!(expected.finished.generated, expected.generation.ids().len());
        let bits = expected.bits();

        let crumbs = Limits {
            chunk_tokens: 5,
            step_tokens: 13,
            ..limits()
        };
        let crumbs = alone(&model, crumbs);
        assert_eq!(crumbs.bits(), bits, "{name}, chunked differently");

        let mut rig = Rig::on(Arc::clone(&model), limits());
        for other in 0..32 {
            let text = format!(
                "{other}: the {}",
                ["cat", "sea", "law", "old"][other as usize % 4]
            );
            let answer = 4 + other as usize % 9;
            let (request, generation) = request(&model, SeqId(other), &text, other, 0, answer);
            rig.submit(request, generation);
        }
        let (request, generation) = subject(&model);
        rig.submit(request, generation);
        let crowded = rig.finish(SUBJECT);
        assert_eq!(crowded.bits(), bits, "{name}, among 32 others");

        // The same engine still has the subject's prompt in its cache.
        let (request, generation) = subject(&model);
        rig.submit(request, generation);
        let again = rig.finish(SUBJECT);
        assert!(again.finished.cached_prompt_tokens > 0, "no prefix hit");
        assert_eq!(again.bits(), bits, "{name}, after a prefix hit");
    }
}

#[test]
fn agents_of_one_prompt_give_the_bits_that_each_gives_alone() {
    for (name, model) in models() {
        let agent = |seed: u64| request(&model, SeqId(seed), QUESTION, seed, 6, 6);
        let mut together = Rig::on(Arc::clone(&model), limits());
        for seed in 0..6 {
            let (request, generation) = agent(seed);
            together.submit(request, generation);
        }
        let mut shared = 0;
        let mut ended: Vec<Ended> = together.finish_all((0..6).map(SeqId));
        for (seed, ended) in (0..6).zip(ended.drain(..)) {
            shared += usize::from(ended.finished.cached_prompt_tokens > 0);
            let mut rig = Rig::on(Arc::clone(&model), limits());
            let (request, generation) = agent(seed);
            rig.submit(request, generation);
            assert_eq!(
                ended.bits(),
                rig.finish(SeqId(seed)).bits(),
                "{name}, seed {seed}"
            );
        }
        assert_eq!(shared, 5, "{name}: all but the first find the prompt");
    }
}

#[test]
fn a_preempted_request_goes_on_with_the_same_bits() {
    for (name, model) in models() {
        let (request_of_subject, generation) = subject(&model);
        let blocks = |tokens: usize| tokens.div_ceil(16) as u32;
        let prompt = blocks(request_of_subject.tokens.len());
        // Room for both prompts, not for what both generate.
        let tight = Limits {
            blocks: prompt + 2,
            ..limits()
        };
        let mut rig = Rig::on(Arc::clone(&model), tight);
        let (elder, elder_generation) = request(&model, SeqId(1), "Once upon a time", 3, 0, 60);
        rig.submit(elder, elder_generation);
        rig.submit(request_of_subject, generation);
        let resumed = rig.finish(SUBJECT);
        assert!(resumed.preempted, "{name} was never preempted");
        assert_eq!(resumed.bits(), alone(&model, limits()).bits(), "{name}");
    }
}
