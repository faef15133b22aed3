//! A model on a device gives the logits of the processor's path to the last bit, whatever a step is made of.

mod device_support;
mod model_support;

use std::sync::Arc;

use conclave_cuda_emulator::Emulator;
use conclave_kernels::{Activation, Kernels, KvDtype, Pool};
use conclave_worker::model::{Forward, Model, ModelError};
use conclave_worker_core::{
    Batch, Engine, Event, Fork, Limits, Next, Outcome, Report, Request, Retention, Runner, SeqId,
    StopReason,
};
use device_support::{device, load, written};
use model_support::TYPES;
use model_support::gguf::File;

/// Says what a row's logits make likeliest and keeps the bits of all of them.
struct Greedy {
    forward: Forward,
    rows: Vec<(SeqId, Vec<u32>)>,
    copies: usize,
}

impl Runner for Greedy {
    type Error = ModelError;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), ModelError> {
        self.copies += batch.copies().len();
        let logits = self.forward.run(batch)?;
        for (index, entry) in batch.entries().filter(|entry| entry.sample).enumerate() {
            let row = logits.row(index);
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
            out.push(Outcome {
                seq: entry.seq,
                token: best.unwrap_or(0) as u32,
                logprob: 0.0,
                next: Next::Continue,
            });
            let bits = row.iter().map(|logit| logit.to_bits()).collect();
            self.rows.push((entry.seq, bits));
        }
        Ok(())
    }

    fn release(&mut self, _seq: SeqId) {}
}

/// What is asked of an engine, step by step.
struct Scene {
    limits: Limits,
    kv: KvDtype,
    /// Prompt, tokens to generate, and before which step it comes.
    requests: Vec<(Vec<u32>, usize, usize)>,
    /// Of the first request, before the step of this number: how many of its tokens are kept.
    fork: Option<(usize, usize)>,
}

/// What a scene showed.
#[derive(PartialEq)]
struct Seen {
    rows: Vec<(SeqId, Vec<u32>)>,
    copies: usize,
    cached: usize,
}

impl Scene {
    fn new(requests: Vec<(Vec<u32>, usize, usize)>) -> Scene {
        Scene {
            limits: Limits {
                blocks: 64,
                max_context: 512,
                ..Limits::default()
            },
            kv: KvDtype::F16,
            requests,
            fork: None,
        }
    }

    fn play(&self, model: &Arc<Model>) -> Seen {
        let kernels = Arc::new(Kernels::new(conclave_kernels::detect(), Pool::new(2)));
        let blocks = self.limits.blocks as usize;
        let forward = Forward::new(Arc::clone(model), kernels, blocks, self.kv).unwrap();
        let runner = Greedy {
            forward,
            rows: Vec::new(),
            copies: 0,
        };
        let mut engine = Engine::new(self.limits, runner).unwrap();
        let mut report = Report::default();
        let mut cached = 0;
        let last = self.requests.iter().map(|(_, _, step)| *step).max();
        for step in 0.. {
            for (id, (prompt, tokens, at)) in (1..).zip(&self.requests) {
                if *at == step {
                    let request = Request::new(SeqId(id), prompt.clone(), *tokens);
                    engine.submit(request).unwrap();
                }
            }
            if let Some((_, keep)) = self.fork.filter(|(at, _)| *at == step) {
                let fork = Fork {
                    id: SeqId(100),
                    keep,
                    suffix: vec![9, 8],
                    max_tokens: 3,
                    arrival: 7,
                    retention: Retention::Context,
                };
                engine.fork(SeqId(1), fork).unwrap();
            }
            if !engine.has_work() && Some(step) > last {
                break;
            }
            engine.step(&mut report).unwrap();
            for event in &report.events {
                match event {
                    Event::Started { cached_tokens, .. } => cached += cached_tokens,
                    Event::Finished(ended) => assert_eq!(ended.reason, StopReason::Length),
                    _ => {}
                }
            }
        }
        let runner = engine.runner_mut();
        Seen {
            rows: std::mem::take(&mut runner.rows),
            copies: runner.copies,
            cached,
        }
    }
}

fn prompt(first: u32, count: u32) -> Vec<u32> {
    (first..first + count).map(|i| i * 37 % 250).collect()
}

/// The scene on the processor and on a device; what it showed, which was the same.
fn same(scene: &Scene, host: &Arc<Model>, device: &Arc<Model>, what: &str) -> Seen {
    let (expected, seen) = (scene.play(host), scene.play(device));
    assert_eq!(expected.rows.len(), seen.rows.len(), "{what}");
    for (index, (expected, seen)) in expected.rows.iter().zip(&seen.rows).enumerate() {
        assert_eq!(expected.0, seen.0, "{what}: row {index}");
        let differs = expected.1.iter().zip(&seen.1).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what}: row {index} of {:?}", seen.0);
    }
    assert!(expected == seen, "{what}");
    seen
}

/// One model in both places.
fn pair(ty: u32, activation: Activation) -> (Arc<Model>, Arc<Model>) {
    let (_folder, path) = written(&File::llama(ty, ty != 14));
    let emulator = Emulator::new();
    (
        load(&path, activation, None),
        load(&path, activation, Some(device(&emulator))),
    )
}

#[test]
fn every_weight_type_activation_and_cache_has_the_same_bits() {
    let scene = |kv| Scene {
        kv,
        ..Scene::new(vec![(prompt(0, 19), 3, 0), (prompt(50, 5), 4, 1)])
    };
    for (name, ty) in TYPES {
        for activation in [Activation::F32, Activation::Int8] {
            let (host, device) = pair(ty, activation);
            for kv in [KvDtype::F16, KvDtype::F32] {
                let what = format!("{name} {activation:?} {kv:?}");
                let seen = same(&scene(kv), &host, &device, &what);
                assert_eq!(seen.rows.len(), 7);
            }
        }
    }
}

#[test]
fn prompts_in_chunks_and_beyond_a_span_have_the_same_bits() {
    let (host, device) = pair(3, Activation::Int8);
    let requests = vec![(prompt(0, 270), 2, 0), (prompt(3, 33), 4, 0)];
    let whole = same(&Scene::new(requests.clone()), &host, &device, "whole");
    for chunk in [7, 16, 100] {
        let mut scene = Scene::new(requests.clone());
        scene.limits.chunk_tokens = chunk;
        scene.limits.step_tokens = chunk + 3;
        let seen = same(&scene, &host, &device, &format!("chunks of {chunk}"));
        let of = |seen: &Seen, seq| -> Vec<Vec<u32>> {
            let rows = seen.rows.iter().filter(|(id, _)| *id == SeqId(seq));
            rows.map(|(_, bits)| bits.clone()).collect()
        };
        for seq in [1, 2] {
            assert!(of(&seen, seq) == of(&whole, seq), "chunks of {chunk}");
        }
    }
}

#[test]
fn a_crowd_that_shares_a_prompt_has_the_same_bits() {
    let (host, device) = pair(12, Activation::Int8);
    let shared = prompt(0, 50);
    let mut requests = Vec::new();
    for agent in 0..6 {
        let own = prompt(100 + agent, agent + 1);
        requests.push(([shared.clone(), own].concat(), 5, agent as usize));
    }
    let seen = same(&Scene::new(requests), &host, &device, "a crowd");
    assert!(seen.cached > 0, "nobody found the prompt in the cache");
    assert_eq!(seen.rows.len(), 30);
}

#[test]
fn a_fork_copies_its_last_block_and_has_the_same_bits() {
    let (host, device) = pair(8, Activation::F32);
    for kv in [KvDtype::F16, KvDtype::F32] {
        let scene = Scene {
            kv,
            fork: Some((3, 22)),
            ..Scene::new(vec![(prompt(0, 23), 8, 0)])
        };
        let seen = same(&scene, &host, &device, "a fork");
        assert!(seen.copies > 0, "nothing was copied");
    }
}

#[test]
fn sequences_that_were_preempted_have_the_same_bits() {
    let (host, device) = pair(2, Activation::Int8);
    let mut scene = Scene::new(vec![(prompt(0, 30), 30, 0), (prompt(7, 30), 30, 0)]);
    scene.limits.blocks = 5;
    same(&scene, &host, &device, "preempted");
}

#[test]
fn the_class_of_a_device_is_its_own_and_the_model_is_told_alike() {
    let (host, device) = pair(3, Activation::Int8);
    assert!(device.info().numeric_class.contains("-cuda-int8"));
    assert_ne!(host.info().numeric_class, device.info().numeric_class);
    assert_eq!(host.info().digest, device.info().digest);
    assert_eq!(host.weight_bytes(), device.weight_bytes());
    assert!(host.device().is_none() && device.device().is_some());
}
