//! A step in steady state allocates nothing: plan, forward pass, sampling, text, completion. What reporting
//! allocates is counted to the piece.

mod muse_support;

use std::alloc::System;
use std::path::Path;
use std::sync::Arc;

use conclave_kernels::{Kernels, KvDtype, Pool};
use conclave_worker::answer::AnswerKind;
use conclave_worker::confidence::ConfidencePolicy;
use conclave_worker::generation::{Bridge, Generation, GenerationSpec, Thought};
use conclave_worker::model::{Forward, LoadOptions, Model};
use conclave_worker::runner::ModelRunner;
use conclave_worker::sampling::Sampling;
use conclave_worker::vocabulary::Vocabulary;
use conclave_worker_core::{Engine, Event, Limits, Report, Request, SeqId};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const AGENTS: u64 = 8;
const PROMPT: u32 = 284;
/// Until every buffer has met its largest step: sampling grows with how flat a row is.
const WARM_UP: usize = 40;
/// More than two blocks, so that blocks are taken, filled and named.
const STEPS: usize = 40;

fn engine(model: &Arc<Model>) -> Engine<ModelRunner> {
    let pool = Pool::new(2);
    let kernels = Arc::new(Kernels::new(conclave_kernels::detect(), Arc::clone(&pool)));
    let forward = Forward::new(Arc::clone(model), kernels, 256, KvDtype::F16);
    let runner = ModelRunner::new(forward.expect("room for the cache"), pool);
    let limits = Limits {
        blocks: 256,
        ..Limits::default()
    };
    Engine::new(limits, runner).expect("valid limits")
}

/// A thinking agent with everything that costs memory but a grammar: thought, stop string, penalty, nucleus.
fn generation(model: &Model, prompt: &[u32], seed: u64) -> Generation {
    let tokenizer = model.tokenizer();
    let tokens = (0..tokenizer.vocab_size() as u32)
        .map(|id| (tokenizer.token_bytes(id), tokenizer.is_special(id)));
    let spec = GenerationSpec {
        prompt: prompt.to_vec(),
        seed,
        sampling: Sampling {
            temperature: 0.7,
            top_p: 0.95,
            repetition_penalty: 1.05,
            ..Sampling::GREEDY
        },
        thought: Some(Thought {
            tokens: 64,
            penalty: 0.01,
            close: Vec::new(),
            bridge: Bridge::new(&[198]).expect("an id"),
        }),
        answer_tokens: 64,
        stop: vec!["\n\nQuestion:".to_owned()],
        confidence: ConfidencePolicy::default(),
        answer: AnswerKind::FreeText,
        constraint: None,
        cued: false,
    };
    // Without end-of-generation tokens nobody ends early.
    Generation::new(spec, Arc::new(Vocabulary::new(tokens, &[])))
}

/// The default model, and those of the other families, one after another: allocations of all threads are counted.
#[test]
fn a_decode_step_of_eight_agents_allocates_nothing() {
    let path =
        conclave_worker::model::pull::resolve("smollm2-135m").expect("`make test` fetches it");
    steps_allocate_nothing("smollm2-135m", &path);
    for name in muse_support::NAMES {
        steps_allocate_nothing(name, muse_support::folder(name).path());
    }
}

fn steps_allocate_nothing(name: &str, path: &Path) {
    let model = Model::load(path, &LoadOptions::default()).expect("a model");
    let vocab = model.info().vocab_size as u32;
    let prompt = (0..PROMPT).map(|i| (1000 + i * 37 % 20_000) % vocab);
    let prompt: Vec<u32> = prompt.collect();
    let mut engine = engine(&model);
    for seq in 0..AGENTS {
        let generation = generation(&model, &prompt, seq);
        let request = Request::new(SeqId(seq), prompt.clone(), generation.max_tokens());
        engine.runner_mut().admit(SeqId(seq), generation);
        engine.submit(request).expect("a request that fits");
    }
    let mut report = Report::default();
    let mut steady = 0;
    for _ in 0..1000 {
        let region = Region::new(COUNTED);
        engine.step(&mut report).expect("a step");
        let made = region.change();
        let mut bridged = false;
        for event in &report.events {
            // What a bridge injects is a list of its own, once in a generation.
            bridged |= matches!(event, Event::Injected { .. });
        }
        steady += usize::from(engine.batch().total_tokens() == AGENTS as usize);
        if steady > WARM_UP && !bridged {
            let (new, grown) = (made.allocations, made.reallocations);
            assert_eq!((new, grown), (0, 0), "{name}, steady step {steady}");
        }
        // The boundary: each delta that leaves for the watchers owns its text.
        let region = Region::new(COUNTED);
        let mut texts = 0;
        for seq in (0..AGENTS).map(SeqId) {
            let Some(generation) = engine.runner_mut().generation(seq) else {
                continue;
            };
            while let Some(delta) = generation.take_delta() {
                texts += usize::from(!delta.text.is_empty());
            }
        }
        assert_eq!(region.change().allocations, texts, "one text a delta");
        if steady == WARM_UP + STEPS {
            return;
        }
    }
    panic!("{name} is never steady");
}
