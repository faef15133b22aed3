//! A device that fails, or is too small: what is said, what goes on, and that nothing stays behind on it.

mod device_support;
mod model_support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_cuda_emulator::Emulator;
use conclave_kernels::{Activation, Kernels, KvDtype, Pool};
use conclave_proto::v1;
use conclave_worker::backend::Backend as _;
use conclave_worker::engine_thread::{self, Command, SeqEvent};
use conclave_worker::model::{Device, Forward, LoadOptions, Model, ModelError};
use conclave_worker::model_backend::{KvSize, ModelBackend, RunOptions, process_pool};
use conclave_worker_core::{
    Batch, Engine, Limits, Next, Outcome, Report, Request, Runner, SeqId, StepError,
};
use device_support::{device, live, load, written};
use model_support::gguf::File;
use tempfile::TempDir;

const BLOCKS: usize = 40;
const MIB: u64 = 1024 * 1024;

fn file() -> (TempDir, std::path::PathBuf) {
    written(&File::llama(3, true))
}

fn try_load(path: &Path, device: Device) -> Result<Arc<Model>, ModelError> {
    let options = LoadOptions {
        device: Some(device),
        ..LoadOptions::default()
    };
    Model::load(path, &options)
}

fn forward(model: &Arc<Model>) -> Result<Forward, ModelError> {
    Forward::new(Arc::clone(model), kernels(), BLOCKS, KvDtype::F16)
}

fn kernels() -> Arc<Kernels> {
    Arc::new(Kernels::new(conclave_kernels::detect(), Pool::new(1)))
}

/// Goes on for ever; keeps the first logit of each row.
struct Talker {
    forward: Forward,
    seen: Vec<(SeqId, u32)>,
}

impl Runner for Talker {
    type Error = ModelError;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), ModelError> {
        let logits = self.forward.run(batch)?;
        for (index, entry) in batch.entries().filter(|entry| entry.sample).enumerate() {
            let bits = logits.row(index)[0].to_bits();
            self.seen.push((entry.seq, bits));
            out.push(Outcome {
                seq: entry.seq,
                token: bits % 250,
                logprob: 0.0,
                next: Next::Continue,
            });
        }
        Ok(())
    }

    fn release(&mut self, _seq: SeqId) {}
}

fn engine(forward: Forward) -> Engine<Talker> {
    let limits = Limits {
        blocks: BLOCKS as u32,
        max_context: 512,
        ..Limits::default()
    };
    let seen = Vec::new();
    Engine::new(limits, Talker { forward, seen }).unwrap()
}

fn request(seq: u64) -> Request {
    let tokens = (0..20).map(|i| (i * 7 + seq as u32) % 250).collect();
    Request::new(SeqId(seq), tokens, 12)
}

/// A whole life: two sequences, to their end.
fn talk(engine: &mut Engine<Talker>, first: u64) -> Vec<(SeqId, u32)> {
    let mut report = Report::default();
    for seq in [first, first + 1] {
        engine.submit(request(seq)).unwrap();
    }
    while engine.has_work() {
        engine.step(&mut report).unwrap();
    }
    std::mem::take(&mut engine.runner_mut().seen)
}

#[test]
fn a_step_takes_no_memory_of_the_device_once_it_is_warm() {
    let (_folder, path) = file();
    let emulator = Emulator::new();
    let model = load(&path, Activation::Int8, Some(device(&emulator)));
    let mut engine = engine(forward(&model).unwrap());
    let first = talk(&mut engine, 0);
    let (held, taken, launched) = (live(&emulator), emulator.allocated(), emulator.launches());
    assert_eq!(talk(&mut engine, 0), first);
    assert_eq!((live(&emulator), emulator.allocated()), (held, taken));
    assert!(emulator.launches() > launched);
}

#[test]
fn what_was_reserved_is_enough_for_every_step() {
    let (_folder, path) = file();
    let emulator = Emulator::new();
    let model = load(&path, Activation::Int8, Some(device(&emulator)));
    let before = live(&emulator);
    let mut forward = forward(&model).unwrap();
    assert_eq!(live(&emulator) - before, forward.cache_bytes() as u64);
    let limits = Limits::default();
    forward
        .reserve(limits.step_tokens, limits.max_running)
        .unwrap();
    let taken = emulator.allocated();
    talk(&mut engine(forward), 0);
    assert_eq!(emulator.allocated(), taken, "a step took more");
    drop(model);
    assert_eq!(live(&emulator), 0);
}

#[test]
fn a_failed_launch_ends_its_step_and_the_next_ones_give_the_same_bits() {
    let (_folder, path) = file();
    let emulator = Emulator::new();
    let host = load(&path, Activation::Int8, None);
    let expected = talk(&mut engine(forward(&host).unwrap()), 0);
    let model = load(&path, Activation::Int8, Some(device(&emulator)));
    let mut engine = engine(forward(&model).unwrap());
    assert_eq!(talk(&mut engine, 0), expected);
    let (held, mut report) = (live(&emulator), Report::default());
    for after in [0, 1, 2, 3, 5, 8, 13, 21, 34] {
        engine.submit(request(50)).unwrap();
        emulator.fail_after(after);
        let error = loop {
            match engine.step(&mut report) {
                Ok(()) => assert!(engine.has_work(), "nothing failed"),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, StepError::Runner(ModelError::Device(_))),
            "{error:?}"
        );
        assert!(!engine.has_work(), "the sequence lives on");
        emulator.recover();
        engine.runner_mut().seen.clear();
        assert_eq!(talk(&mut engine, 0), expected, "after {after} launches");
        assert_eq!(live(&emulator), held, "after {after} launches");
        let stats = engine.stats();
        assert_eq!(stats.blocks_free + stats.blocks_cached, stats.blocks_total);
    }
    drop((engine, model));
    assert_eq!(live(&emulator), 0);
}

#[test]
fn wherever_an_allocation_fails_nothing_stays_behind() {
    let (_folder, path) = file();
    let emulator = Emulator::new();
    let whole = || -> Result<(), ModelError> {
        let model = try_load(&path, device(&emulator))?;
        let mut forward = forward(&model)?;
        forward.reserve(64, 8)?;
        talk(&mut engine(forward), 0);
        Ok(())
    };
    whole().unwrap();
    assert_eq!(live(&emulator), 0);
    let count = emulator.allocated();
    assert!(count > 10, "{count}");
    for after in 0..count {
        emulator.refuse_after(after);
        let error = whole().unwrap_err();
        assert!(
            matches!(
                error,
                ModelError::DeviceMemory { .. } | ModelError::Device(_)
            ),
            "{error}"
        );
        assert_eq!(live(&emulator), 0, "after {after} allocations: {error}");
    }
    emulator.recover();
    whole().unwrap();
}

#[test]
fn a_device_without_room_is_refused_with_what_to_set() {
    let (_folder, path) = file();
    let emulator = Emulator::with_memory(MIB / 8);
    let error = try_load(&path, device(&emulator)).unwrap_err().to_string();
    assert!(
        error.contains("weights") && error.contains("0 MiB free"),
        "{error}"
    );
    let emulator = Emulator::with_memory(3 * MIB);
    let model = try_load(&path, device(&emulator)).unwrap();
    let held = live(&emulator);
    for blocks in [BLOCKS, 4] {
        let refused = Forward::new(Arc::clone(&model), kernels(), blocks, KvDtype::F16);
        let refused = refused.and_then(|mut forward| forward.reserve(512, 64));
        let error = refused.unwrap_err().to_string();
        assert!(
            error.contains("`kv_memory_mib`") && error.contains("MiB free"),
            "{error}"
        );
        assert_eq!(live(&emulator), held);
    }
}

#[test]
fn workers_of_a_process_share_what_is_on_the_device() {
    let (_folder, path) = file();
    let emulator = Emulator::new();
    let options = LoadOptions {
        device: Some(device(&emulator)),
        ..LoadOptions::default()
    };
    let first = Model::shared(&path, &options).unwrap();
    let held = live(&emulator);
    let second = Model::shared(&path, &options).unwrap();
    assert!(Arc::ptr_eq(&first, &second) && live(&emulator) == held);
    // In the processor's memory it is another one.
    let host = Model::shared(&path, &LoadOptions::default()).unwrap();
    assert!(host.device().is_none() && host.family().is_some() && first.family().is_none());
    drop((first, second));
    assert_eq!(live(&emulator), 0);
}

fn backend(model: Arc<Model>) -> Arc<ModelBackend> {
    let options = RunOptions {
        kv: KvDtype::F16,
        kv_size: KvSize::Blocks(BLOCKS as u32),
        max_sequences: 4,
        max_waiting: 32,
        step_tokens: 64,
    };
    let isa = conclave_kernels::detect();
    Arc::new(ModelBackend::new(model, isa, process_pool(2), options).unwrap())
}

fn start(agent: u32) -> v1::Start {
    v1::Start {
        spec: Some(v1::AgentSpec {
            agent,
            answer_tokens: 6,
            ..v1::AgentSpec::default()
        }),
        messages: vec![v1::Message {
            role: "user".to_owned(),
            content: "hello".to_owned(),
        }],
        ..v1::Start::default()
    }
}

/// Runs one agent on an engine thread; whether it handed in a draft. `None`: the thread has ended.
fn agent(
    engine: &mut engine_thread::EngineHandle<conclave_worker::generation::Generation>,
    backend: &ModelBackend,
    seq: u64,
) -> Option<bool> {
    let (request, plan) = backend.plan(SeqId(seq), &start(1)).unwrap();
    let (model, commands) = (0, &engine.commands);
    let command = Command::Start {
        model,
        request,
        plan,
    };
    commands.blocking_send(command).ok()?;
    loop {
        for event in engine.events.blocking_recv()?.events {
            if let SeqEvent::Ended { outcome, .. } = event {
                return Some(outcome.is_ok());
            }
        }
    }
}

#[test]
fn a_worker_recovers_with_its_device_and_ends_without_it() {
    let (_folder, path) = file();
    let emulator = Emulator::new();
    let model = load(&path, Activation::Int8, Some(device(&emulator)));
    let weights = live(&emulator);
    let backend = backend(model);
    let mut engine = engine_thread::spawn(vec![Arc::clone(&backend)], 4, "w").unwrap();
    assert_eq!(agent(&mut engine, &backend, 1), Some(true));
    // One failed step: that agent is lost, the next one is not.
    emulator.fail_after(3);
    assert_eq!(agent(&mut engine, &backend, 2), Some(false));
    emulator.recover();
    assert_eq!(agent(&mut engine, &backend, 3), Some(true));
    // The device goes and comes back: the engine is built anew.
    emulator.fail_after(0);
    emulator.refuse_after(0);
    for seq in 4..8 {
        assert_eq!(agent(&mut engine, &backend, seq), Some(false));
    }
    emulator.recover();
    assert_eq!(agent(&mut engine, &backend, 8), Some(true));
    // It goes for good.
    emulator.fail_after(0);
    emulator.refuse_after(0);
    let gone = (9..60).find(|seq| agent(&mut engine, &backend, *seq).is_none());
    assert!(gone.is_some(), "the engine goes on without a device");
    let deadline = Instant::now() + Duration::from_secs(20);
    // The thread tells nobody that it has ended.
    while engine.status.alive() {
        assert!(Instant::now() < deadline, "the thread lives");
        std::thread::yield_now();
    }
    engine.thread.join().unwrap();
    assert_eq!(
        live(&emulator),
        weights,
        "the engine's memory is still taken"
    );
    drop(backend);
    assert_eq!(live(&emulator), 0);
}
