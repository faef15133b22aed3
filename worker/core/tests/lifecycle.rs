//! How sequences come, go, and are refused.

mod harness;

use conclave_worker_core::mock::{MockError, MockRunner, Script};
use conclave_worker_core::{
    Batch, Engine, EngineError, Event, Fork, Lifecycle, Limits, LimitsError, Next, Outcome, Report,
    Retention, Runner, SeqId, StepError, StopReason,
};
use harness::{World, limits, prompt, request};

#[test]
fn a_cancelled_sequence_frees_its_blocks_at_once() {
    let mut world = World::new(limits(16));
    world.submit(request(0, prompt(1, 100), 50)).unwrap();
    world.step();
    world.step();
    let available = |world: &World| world.engine.scheduler().pool().available();
    assert_eq!(available(&world), 9);
    let finished = world.cancel(SeqId(0)).unwrap();
    assert_eq!(
        (finished.reason, finished.generated),
        (StopReason::Cancelled, 2)
    );
    assert_eq!(available(&world), 16);
    assert!(!world.engine.has_work());
    assert_eq!(world.cancel(SeqId(0)), Err(EngineError::Unknown(SeqId(0))));
}

#[test]
fn a_cancelled_sequence_makes_room_in_the_queue() {
    let limits = Limits {
        max_waiting: 2,
        ..limits(16)
    };
    let mut world = World::new(limits);
    world.submit(request(0, prompt(1, 5), 5)).unwrap();
    world.submit(request(1, prompt(1, 5), 5)).unwrap();
    let third = request(2, prompt(1, 5), 5);
    assert_eq!(
        world.submit(third.clone()),
        Err(EngineError::QueueFull { limit: 2 })
    );
    world.cancel(SeqId(1)).unwrap();
    world.submit(third).unwrap();
    world.finish(100);
}

#[test]
fn preempted_sequences_do_not_fill_the_queue() {
    let limits = Limits {
        max_waiting: 1,
        ..limits(6)
    };
    let mut world = World::new(limits);
    for id in 0..2 {
        world
            .submit(request(id, prompt(id as u32, 20), 60))
            .unwrap();
        world.step();
    }
    while world.engine.stats().preemptions == 0 {
        world.step();
    }
    assert_eq!(
        world.engine.scheduler().lifecycle(SeqId(1)),
        Some(Lifecycle::Preempted)
    );
    world.submit(request(2, prompt(2, 20), 5)).unwrap();
    world.finish(500);
}

#[test]
fn the_longest_request_that_fits_is_accepted_and_ends() {
    let mut world = World::new(limits(4));
    // 64 slots, and the last token needs none.
    world.submit(request(0, prompt(1, 40), 25)).unwrap();
    let refused = world.submit(request(1, prompt(1, 40), 26));
    assert_eq!(refused, Err(EngineError::TooLong { need: 66, have: 65 }));
    world.submit(request(2, prompt(2, 1), 64)).unwrap();
    world.finish(1000);
    // Fills the pool; then finds all of itself there.
    for id in 3..5 {
        world.submit(request(id, prompt(1, 64), 1)).unwrap();
        world.finish(10);
    }
    assert_eq!(world.story(4).end.unwrap().cached_prompt_tokens, 63);
}

#[test]
fn a_request_beyond_the_models_context_is_refused() {
    let limits = Limits {
        max_context: 50,
        ..limits(64)
    };
    let mut world = World::new(limits);
    let refused = world.submit(request(0, prompt(1, 40), 11));
    assert_eq!(refused, Err(EngineError::TooLong { need: 51, have: 50 }));
    let refused = world.submit(request(0, prompt(1, 40), usize::MAX));
    let need = usize::MAX;
    assert_eq!(refused, Err(EngineError::TooLong { need, have: 50 }));
    world.submit(request(0, prompt(1, 40), 10)).unwrap();
    world.finish(100);
}

#[test]
fn requests_without_sense_are_refused() {
    let mut world = World::new(limits(16));
    world.submit(request(0, prompt(1, 10), 5)).unwrap();
    let fork = Fork {
        id: SeqId(1),
        keep: 10,
        suffix: vec![],
        max_tokens: 5,
        arrival: 1,
        retention: Retention::Context,
    };
    let with_keep = |keep| Fork {
        keep,
        ..fork.clone()
    };
    let mut forked = |parent, fork| world.fork(SeqId(parent), fork, Script::default());
    assert_eq!(forked(7, fork.clone()), Err(EngineError::Unknown(SeqId(7))));
    assert_eq!(
        forked(0, with_keep(0)),
        Err(EngineError::BadFork { keep: 0, len: 10 })
    );
    assert_eq!(
        forked(0, with_keep(11)),
        Err(EngineError::BadFork { keep: 11, len: 10 })
    );
    let duplicate = Fork {
        id: SeqId(0),
        ..fork.clone()
    };
    assert_eq!(forked(0, duplicate), Err(EngineError::Duplicate(SeqId(0))));
    let refused = |world: &mut World, id, len, max| world.submit(request(id, prompt(1, len), max));
    assert_eq!(
        refused(&mut world, 0, 5, 5),
        Err(EngineError::Duplicate(SeqId(0)))
    );
    assert_eq!(refused(&mut world, 1, 0, 5), Err(EngineError::EmptyPrompt));
    assert_eq!(
        refused(&mut world, 1, 5, 0),
        Err(EngineError::NoTokensAsked)
    );
    world.finish(100);
}

#[test]
fn an_engine_needs_limits_of_at_least_one() {
    let limits = Limits {
        chunk_tokens: 0,
        ..Limits::default()
    };
    let refused = Engine::new(limits, MockRunner::new(1)).err();
    let name = "chunk_tokens";
    assert_eq!(refused, Some(LimitsError { name }));
}

#[test]
fn the_runner_may_stop_a_sequence_and_may_inject_tokens() {
    let mut world = World::new(limits(16));
    let script = Script {
        seed: 1,
        inject_at: Some((12, vec![7, 8, 9])),
        stop_at: Some((18, StopReason::StopString)),
    };
    world
        .submit_scripted(request(0, prompt(1, 10), 50), script)
        .unwrap();
    for _ in 0..3 {
        world.step();
    }
    assert_eq!(world.story(0).tokens[3..], [7, 8, 9]);
    // The sampled token and the three injected ones are computed together.
    assert_eq!(world.step().batch_tokens, 4);
    world.finish(100);
    let end = world.story(0).end.unwrap();
    assert_eq!((end.reason, end.generated), (StopReason::StopString, 9));
}

#[test]
fn injected_tokens_count_and_are_cut_where_the_budget_ends() {
    let mut world = World::new(limits(16));
    let script = Script {
        inject_at: Some((12, vec![7, 8, 9])),
        ..Script::default()
    };
    world
        .submit_scripted(request(0, prompt(1, 10), 5), script)
        .unwrap();
    world.finish(100);
    let story = world.story(0);
    assert_eq!(story.tokens[3..], [7, 8]);
    assert_eq!(story.end.unwrap().reason, StopReason::Length);
}

#[test]
fn decodes_are_served_before_prefills() {
    let limits = Limits {
        step_tokens: 8,
        chunk_tokens: 8,
        ..limits(64)
    };
    let mut world = World::new(limits);
    world.submit(request(1, prompt(1, 4), 50)).unwrap();
    world.step();
    // Earlier in line, but long.
    world.submit(request(0, prompt(2, 100), 5)).unwrap();
    for generated in 2..12 {
        let stats = world.step();
        assert_eq!(world.story(1).tokens.len(), generated);
        assert_eq!(stats.batch_tokens, 8);
    }
    world.finish(200);
}

#[test]
fn the_latest_arrival_is_preempted_and_the_lowest_priority_before_it() {
    let mut world = World::new(limits(12));
    for (id, priority) in [(0, 1), (1, 0), (2, 1)] {
        let mut request = request(id, prompt(id as u32, 20), 100);
        request.priority = priority;
        world.submit(request).unwrap();
    }
    let mut lost = Vec::new();
    while lost.len() < 2 {
        world.step();
        for id in [0, 1, 2] {
            if world.story(id).preempted > 0 && !lost.contains(&id) {
                lost.push(id);
            }
        }
    }
    assert_eq!(lost, [1, 2]);
    world.finish(1000);
    assert_eq!(world.story(0).preempted, 0);
}

#[test]
fn what_is_in_the_plan_is_not_preempted() {
    let mut world = World::new(limits(4));
    let script = Script {
        inject_at: Some((12, vec![7; 40])),
        ..Script::default()
    };
    world
        .submit_scripted(request(0, prompt(1, 10), 45), script)
        .unwrap();
    world.submit(request(1, prompt(2, 20), 20)).unwrap();
    // The first one's injected tokens take three more blocks; there is one, and the second decodes on
    // until it needs a block itself.
    while world.story(1).preempted == 0 {
        world.step();
    }
    assert_eq!(world.story(1).tokens.len(), 13);
    assert!(world.story(0).end.is_none());
    world.finish(200);
}

#[test]
fn nobody_is_started_on_blocks_that_a_prefill_still_needs() {
    let limits = Limits {
        chunk_tokens: 16,
        ..limits(16)
    };
    let mut world = World::new(limits);
    world.submit(request(0, prompt(1, 160), 2)).unwrap();
    world.submit(request(1, prompt(2, 128), 2)).unwrap();
    world.finish(100);
    assert_eq!(world.engine.stats().preemptions, 0);
}

#[test]
fn nobody_is_started_when_its_cached_blocks_are_all_that_is_left() {
    let mut world = World::new(limits(16));
    world.submit(request(0, prompt(1, 128), 1)).unwrap();
    world.finish(10);
    world.submit(request(1, prompt(2, 96), 20)).unwrap();
    world.step();
    world
        .submit(request(2, [prompt(1, 128), prompt(3, 32)].concat(), 2))
        .unwrap();
    world.finish(100);
    assert_eq!(world.engine.stats().preemptions, 0);
    assert_eq!(world.story(2).end.unwrap().cached_prompt_tokens, 128);
}

#[test]
fn a_large_request_at_the_head_of_the_queue_is_not_starved_by_small_ones() {
    let mut world = World::new(limits(16));
    world.submit(request(0, prompt(1, 100), 20)).unwrap();
    world.step();
    world.submit(request(1, prompt(2, 200), 20)).unwrap();
    for id in 2..200 {
        world.submit(request(id, prompt(3, 5), 20)).unwrap();
        world.step();
        if world.story(1).end.is_some() {
            break;
        }
    }
    assert!(
        world.steps < 80,
        "the large request waited {} steps",
        world.steps
    );
    world.finish(5000);
}

#[test]
fn a_failed_batch_ends_its_sequences_and_no_others() {
    let limits = Limits {
        max_running: 2,
        ..limits(16)
    };
    let mut engine = Engine::new(limits, MockRunner::new(16)).unwrap();
    for id in 0..3 {
        engine
            .submit(request(id, prompt(id as u32, 20), 5))
            .unwrap();
    }
    let mut report = Report::default();
    engine.step(&mut report).unwrap();
    engine.runner_mut().fail_next(true);
    assert_eq!(
        engine.step(&mut report),
        Err(StepError::Runner(MockError::Asked))
    );
    let failed = report.events.iter().filter(
        |event| matches!(event, Event::Finished(finished) if finished.reason == StopReason::Failed),
    );
    assert_eq!(failed.count(), 2);
    engine.scheduler().audit().unwrap();
    assert_eq!(engine.scheduler().pool().available(), 16);
    let mut said = 0;
    while engine.has_work() {
        engine.step(&mut report).unwrap();
        let tokens = report
            .events
            .iter()
            .filter(|event| matches!(event, Event::Token { .. }));
        said += tokens.count();
    }
    assert_eq!(said, 5);
}

/// Breaks the contract in a way of one's choice.
struct Liar(fn(&mut Vec<Outcome>));

impl Runner for Liar {
    type Error = std::convert::Infallible;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), Self::Error> {
        out.extend(batch.entries().map(|entry| Outcome {
            seq: entry.seq,
            token: 1,
            logprob: 0.0,
            next: Next::Continue,
        }));
        (self.0)(out);
        Ok(())
    }

    fn release(&mut self, _: SeqId) {}
}

#[test]
fn outcomes_that_are_missing_swapped_or_extra_are_errors() {
    let step = |lie| {
        let mut engine = Engine::new(limits(16), Liar(lie)).unwrap();
        engine.submit(request(0, prompt(0, 5), 5)).unwrap();
        engine.submit(request(1, prompt(1, 5), 5)).unwrap();
        let result = engine.step(&mut Report::default());
        engine.scheduler().audit().unwrap();
        assert_eq!(engine.has_work(), result.is_ok());
        result
    };
    assert_eq!(step(|_| {}), Ok(()));
    let missing = |seq| Err(StepError::OutcomeMissing { seq: SeqId(seq) });
    assert_eq!(step(|out| out.truncate(1)), missing(1));
    assert_eq!(step(|out| out.swap(0, 1)), missing(0));
    let extra = Err(StepError::OutcomeUnexpected { seq: SeqId(0) });
    assert_eq!(step(|out| out.push(out[0].clone())), extra);
}
