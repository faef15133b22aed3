//! Agents on a device hand in the drafts that they hand in on the processor: thoughts, answers, ids, confidences.

mod device_support;
mod model_support;

use std::collections::BTreeMap;
use std::sync::Arc;

use conclave_cuda_emulator::Emulator;
use conclave_kernels::{Activation, KvDtype};
use conclave_proto::v1::{self, answer_kind::Kind};
use conclave_worker::backend::{AgentRunner as _, Backend as _};
use conclave_worker::model::Model;
use conclave_worker::model_backend::{KvSize, ModelBackend, RunOptions, process_pool};
use conclave_worker::replay::{ReplayCase, ReplayResult, replay_on};
use conclave_worker_core::{Engine, Event, Report, SeqId};
use device_support::{device, load, written};
use model_support::gguf::File;

fn backend(model: Arc<Model>) -> ModelBackend {
    let options = RunOptions {
        kv: KvDtype::F16,
        kv_size: KvSize::Blocks(96),
        max_sequences: 4,
        max_waiting: 32,
        step_tokens: 64,
    };
    let isa = conclave_kernels::detect();
    ModelBackend::new(model, isa, process_pool(2), options).unwrap()
}

fn start(agent: u32, spec: v1::AgentSpec) -> v1::Start {
    let content = "hello, who is there? Say it in a few words and not more than that.";
    v1::Start {
        spec: Some(v1::AgentSpec {
            agent,
            seed: 40 + u64::from(agent),
            tail: format!("You are number {agent}."),
            ..spec
        }),
        messages: vec![v1::Message {
            role: "user".to_owned(),
            content: content.to_owned(),
        }],
        ..v1::Start::default()
    }
}

/// Thinkers and agents whose answers are of a kind, more than run side by side.
fn starts() -> Vec<v1::Start> {
    let options = ["yes", "no"].map(str::to_owned).to_vec();
    let kinds = [
        None,
        Some(Kind::Choices(v1::Choices { options })),
        Some(Kind::Regex("[0-9]{1,4}".to_owned())),
    ];
    let of = |agent: u32| {
        let kind = kinds[agent as usize % kinds.len()].clone();
        let spec = v1::AgentSpec {
            thought_tokens: 6 * (agent % 2),
            answer_tokens: 6 + agent,
            answer: kind.map(|kind| v1::AnswerKind { kind: Some(kind) }),
            ..v1::AgentSpec::default()
        };
        start(agent, spec)
    };
    (0..6).map(of).collect()
}

/// What they hand in, and the text that watchers saw.
fn drafts(backend: &ModelBackend, starts: &[v1::Start]) -> BTreeMap<SeqId, (v1::Draft, String)> {
    let mut engine = Engine::new(backend.limits(), backend.runner().unwrap()).unwrap();
    for (seq, start) in (0..).map(SeqId).zip(starts) {
        let (request, plan) = backend.plan(seq, start).unwrap();
        engine.runner_mut().admit(seq, plan);
        engine.submit(request).unwrap();
    }
    let (mut report, mut drafts) = (Report::default(), BTreeMap::new());
    while engine.has_work() {
        engine.step(&mut report).unwrap();
        for event in &report.events {
            let Event::Finished(finished) = event else {
                continue;
            };
            let runner = engine.runner_mut();
            let mut text = String::new();
            while let Some(delta) = runner.take_delta(finished.seq) {
                text += &delta.text;
            }
            let draft = runner.finish(finished).unwrap().unwrap();
            drafts.insert(finished.seq, (draft, text));
        }
    }
    drafts
}

#[test]
fn agents_hand_in_the_same_drafts() {
    let (_folder, path) = written(&File::llama(3, true));
    for activation in [Activation::Int8, Activation::F32] {
        let emulator = Emulator::new();
        let host = backend(load(&path, activation, None));
        let there = backend(load(&path, activation, Some(device(&emulator))));
        assert!(there.model().numeric_class.contains("-cuda-"));
        let starts = starts();
        let (mut expected, seen) = (drafts(&host, &starts), drafts(&there, &starts));
        assert_eq!(expected.len(), starts.len());
        let said: usize = expected
            .values()
            .map(|(draft, _)| draft.token_ids.len())
            .sum();
        assert!(said > 50, "{said} tokens are too few to say anything");
        for (draft, _) in expected.values_mut() {
            // All else must be equal: ids, digest of log-probabilities, confidence, text, usage.
            draft.numeric_class = there.model().numeric_class;
        }
        assert_eq!(expected, seen);

        let case = |(start, (draft, _)): (&v1::Start, &(v1::Draft, String))| ReplayCase {
            spec: start.spec.clone().unwrap(),
            messages: start.messages.clone(),
            draft: draft.clone(),
            ..ReplayCase::default()
        };
        let cases: Vec<_> = starts.iter().zip(expected.values()).map(case).collect();
        for replayed in replay_on(&there, &cases, &mut |_| {}).unwrap() {
            let identical = matches!(replayed.result, ReplayResult::Identical { .. });
            assert!(identical, "{replayed:?}");
        }
    }
}
