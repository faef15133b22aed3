//! What a sequence says depends on the sequence only.

mod harness;

use conclave_worker_core::mock::Script;
use conclave_worker_core::{Fork, Limits, Retention, SeqId, StopReason};
use harness::{World, limits, prompt, request};
use proptest::prelude::*;

const ID: u64 = 100;

/// Runs the request of interest after `before` has set the scene; returns tokens and log-probability bits.
fn run(limits: Limits, before: impl FnOnce(&mut World)) -> (Vec<u32>, Vec<u32>, World) {
    let mut world = World::new(limits);
    before(&mut world);
    let script = Script {
        seed: 7,
        inject_at: Some((60, vec![1, 2, 3])),
        ..Script::default()
    };
    world
        .submit_scripted(request(ID, prompt(1, 50), 40), script)
        .unwrap();
    world.finish(5_000);
    let story = world.story(ID);
    (story.tokens.clone(), story.logprobs.clone(), world)
}

fn alone() -> (Vec<u32>, Vec<u32>) {
    let (tokens, logprobs, _) = run(limits(64), |_| {});
    assert_eq!((tokens.len(), logprobs.len()), (40, 37));
    (tokens, logprobs)
}

#[test]
fn neighbours_change_nothing() {
    let (tokens, logprobs, world) = run(limits(512), |world| {
        for id in 0..32 {
            let kind = id as u32 % 5;
            world
                .submit(request(id, prompt(kind, 20 + id as usize), 30))
                .unwrap();
        }
    });
    assert_eq!((tokens, logprobs), alone());
    assert_eq!(world.engine.stats().preemptions, 0);
}

#[test]
fn chunking_changes_nothing() {
    for (chunk_tokens, step_tokens) in [(1, 1), (3, 7), (16, 16), (17, 64), (64, 512)] {
        let limits = Limits {
            chunk_tokens,
            step_tokens,
            ..limits(64)
        };
        let (tokens, logprobs, _) = run(limits, |_| {});
        assert_eq!((tokens, logprobs), alone(), "chunks of {chunk_tokens}");
    }
}

#[test]
fn preemption_changes_nothing() {
    // Room for it and a half.
    let (tokens, logprobs, world) = run(limits(9), |world| {
        for id in 0..3 {
            world
                .submit(request(id, prompt(id as u32 + 5, 20), 60))
                .unwrap();
        }
    });
    assert!(world.story(ID).preempted > 0, "the scene did not preempt");
    assert_eq!((tokens, logprobs), alone());
}

#[test]
fn a_prefix_hit_changes_nothing() {
    let (tokens, logprobs, world) = run(limits(64), |world| {
        world.submit(request(1, prompt(1, 50), 3)).unwrap();
        world.finish(100);
    });
    assert_eq!(world.story(ID).end.unwrap().cached_prompt_tokens, 48);
    assert_eq!((tokens, logprobs), alone());
}

#[derive(Clone, Debug)]
enum Op {
    Submit {
        kind: u32,
        len: usize,
        max_tokens: usize,
        priority: u8,
        salt: u64,
        script: Script,
    },
    Fork {
        parent: usize,
        keep: usize,
        suffix: usize,
        max_tokens: usize,
        thought: bool,
        seed: u64,
    },
    Cancel(usize),
    Step(usize),
    Fail,
}

fn script() -> impl Strategy<Value = Script> {
    let stop = prop::option::weighted(0.3, (1..90usize, Just(StopReason::EndOfText)));
    let injected = prop::collection::vec(0..9u32, 0..20);
    let inject = prop::option::weighted(0.4, (1..90usize, injected));
    (0..4u64, stop, inject).prop_map(|(seed, stop_at, inject_at)| Script {
        seed,
        stop_at,
        inject_at,
    })
}

fn op() -> impl Strategy<Value = Op> {
    // Lengths cluster on block borders, where the mistakes are.
    let len = prop_oneof![1..60usize, (1..5usize).prop_map(|blocks| blocks * 16)];
    let submit = (0..3u32, len, 1..40usize, 0..2u8, 0..2u64, script());
    let fork = (
        0..32usize,
        1..80usize,
        0..20usize,
        1..40usize,
        any::<bool>(),
        0..4u64,
    );
    prop_oneof![
        8 => submit.prop_map(|(kind, len, max_tokens, priority, salt, script)| Op::Submit {
            kind, len, max_tokens, priority, salt, script,
        }),
        4 => fork.prop_map(|(parent, keep, suffix, max_tokens, thought, seed)| Op::Fork {
            parent, keep, suffix, max_tokens, thought, seed,
        }),
        2 => (0..32usize).prop_map(Op::Cancel),
        8 => (1..12usize).prop_map(Op::Step),
        1 => Just(Op::Fail),
    ]
}

fn some_limits() -> impl Strategy<Value = Limits> {
    (6..40u32, 1..80usize, 1..40usize, 1..10usize, 1..20usize).prop_map(
        |(blocks, step_tokens, chunk_tokens, max_running, max_waiting)| Limits {
            blocks,
            step_tokens,
            chunk_tokens,
            max_running,
            max_waiting,
            max_context: 200,
        },
    )
}

fn apply(world: &mut World, id: u64, op: Op) {
    let live = |at: usize, world: &World| {
        let unended = world
            .stories
            .iter()
            .filter(|(_, story)| story.end.is_none());
        let ids: Vec<SeqId> = unended.map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| ids[at % ids.len()])
    };
    match op {
        Op::Submit {
            kind,
            len,
            max_tokens,
            priority,
            salt,
            script,
        } => {
            let mut request = request(id, prompt(kind, len), max_tokens);
            (request.priority, request.salt) = (priority, salt);
            if kind == 0 {
                request.retention = Retention::Thought;
            }
            // Refusals are part of the game; the harness forgets refused requests.
            let _ = world.submit_scripted(request, script);
        }
        Op::Fork {
            parent,
            keep,
            suffix,
            max_tokens,
            thought,
            seed,
        } => {
            let Some(parent) = live(parent, world) else {
                return;
            };
            let len = world.engine.scheduler().tokens(parent).unwrap().len();
            let fork = Fork {
                id: SeqId(id),
                keep: keep.min(len),
                suffix: prompt(9, suffix),
                max_tokens,
                arrival: id,
                retention: if thought {
                    Retention::Thought
                } else {
                    Retention::Context
                },
            };
            let script = Script {
                seed,
                ..Script::default()
            };
            let _ = world.fork(parent, fork, script);
        }
        Op::Cancel(at) => {
            if let Some(id) = live(at, world) {
                world.cancel(id).unwrap();
            }
        }
        Op::Fail => world.fail(),
        Op::Step(steps) => {
            for _ in 0..steps {
                world.step();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// The harness compares every sequence with the mock's expectation and checks the scheduler's
    /// invariants (reference counts equal holders, no block lost, …) after every call.
    #[test]
    fn whatever_happens_every_accepted_request_ends_and_says_the_right_thing(
        limits in some_limits(),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut world = World::new(limits);
        for (id, op) in (0..).zip(ops) {
            apply(&mut world, id, op);
        }
        world.finish(50_000);
    }
}
