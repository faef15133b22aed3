//! What is the same is computed once, and what must not be shared is not.

mod harness;

use conclave_worker_core::mock::Script;
use conclave_worker_core::{Chain, Fork, Lifecycle, Limits, Request, Retention, SeqId};
use harness::{World, limits, prompt, request};

fn seeded(seed: u64) -> Script {
    Script {
        seed,
        ..Script::default()
    }
}

fn fork(id: u64, keep: usize, suffix: Vec<u32>, max_tokens: usize) -> Fork {
    Fork {
        id: SeqId(id),
        keep,
        suffix,
        max_tokens,
        arrival: id,
        retention: Retention::Context,
    }
}

/// How many leading blocks each entry of the last step shares with the one before it in the forest.
fn shared(world: &World) -> Vec<usize> {
    let branches = world.engine.batch().forest().iter();
    branches.map(|branch| branch.shared_blocks).collect()
}

#[test]
fn samples_of_one_prompt_submitted_together_cost_one_prefill() {
    let (samples, len, max_tokens) = (8, 200, 10);
    let limits = Limits {
        chunk_tokens: 32,
        step_tokens: 64,
        ..limits(256)
    };
    let mut world = World::new(limits);
    for id in 0..samples {
        world
            .submit_scripted(request(id, prompt(1, len), max_tokens), seeded(id))
            .unwrap();
    }
    world.step();
    let stats = world.engine.stats();
    assert_eq!((stats.running, stats.deferred), (1, samples as usize - 1));
    world.finish(1000);
    // One prefill; seven times the 8 tokens behind the last full block; the sampled tokens' own KV.
    let expected = len as u64 + (samples - 1) * 8 + samples * (max_tokens as u64 - 1);
    assert_eq!(world.engine.runner().computed(), expected);
    let stats = world.engine.stats();
    assert_eq!((stats.prefix_hits, stats.prefix_misses), (7 * 12, 12));
    for id in 1..samples {
        assert_eq!(world.story(id).end.unwrap().cached_prompt_tokens, 192);
    }
}

#[test]
fn a_prompt_of_whole_blocks_costs_each_further_sample_one_token() {
    let mut world = World::new(limits(64));
    for id in 0..4 {
        world
            .submit_scripted(request(id, prompt(1, 48), 1), seeded(id))
            .unwrap();
    }
    world.finish(100);
    assert_eq!(world.engine.runner().computed(), 48 + 3);
}

#[test]
fn blocks_that_come_to_be_equal_become_one() {
    let mut world = World::new(limits(64));
    for id in 0..4 {
        world
            .submit_scripted(request(id, prompt(1, 48), 10), seeded(id))
            .unwrap();
    }
    for _ in 0..3 {
        world.step();
    }
    // Each of the later ones had a copy of the third block, to compute the prompt's last token.
    assert_eq!(shared(&world), [0, 3, 3, 3]);
    world.finish(100);
}

#[test]
fn a_fork_inside_a_cached_block_leaves_it_in_the_cache() {
    let mut world = World::new(limits(64));
    world.submit(request(0, prompt(1, 40), 5)).unwrap();
    world.step();
    world
        .fork(SeqId(0), fork(1, 20, vec![7; 5], 5), seeded(1))
        .unwrap();
    world.cancel(SeqId(0)).unwrap();
    world.finish(100);
    let cached = world
        .engine
        .scheduler()
        .cached_prefix(&Chain::default(), &prompt(1, 40));
    assert_eq!(cached, 32);
}

#[test]
fn samples_go_on_when_the_one_that_prefills_is_cancelled() {
    let limits = Limits {
        chunk_tokens: 16,
        ..limits(64)
    };
    let mut world = World::new(limits);
    for id in 0..4 {
        world
            .submit_scripted(request(id, prompt(1, 100), 5), seeded(id))
            .unwrap();
    }
    world.step();
    world.step();
    assert_eq!(
        world.engine.scheduler().lifecycle(SeqId(1)),
        Some(Lifecycle::Waiting)
    );
    world.cancel(SeqId(0)).unwrap();
    world.step();
    // The next in line takes over where the first left off.
    assert_eq!(
        world.engine.scheduler().lifecycle(SeqId(1)),
        Some(Lifecycle::Running)
    );
    world.finish(100);
    assert_eq!(world.story(1).end.unwrap().cached_prompt_tokens, 32);
    assert_eq!(world.engine.runner().computed(), 100 + 2 * 4 + 3 * 4);
}

#[test]
fn a_shorter_prompt_joins_as_soon_as_its_part_is_there() {
    let limits = Limits {
        chunk_tokens: 16,
        ..limits(64)
    };
    let mut world = World::new(limits);
    let long = prompt(1, 160);
    world.submit(request(0, long.clone(), 2)).unwrap();
    world
        .submit(request(1, [&long[..32], &[7; 9]].concat(), 2))
        .unwrap();
    world.step();
    assert_eq!(world.engine.stats().deferred, 1);
    world.step();
    world.step();
    assert_eq!(world.engine.stats().running, 2);
    world.finish(100);
    assert_eq!(world.story(1).end.unwrap().cached_prompt_tokens, 32);
}

#[test]
fn one_that_waits_for_blocks_holds_up_nobody() {
    let limits = Limits {
        chunk_tokens: 16,
        ..limits(64)
    };
    let mut world = World::new(limits);
    world.submit(request(0, prompt(1, 160), 2)).unwrap();
    world.submit(request(1, prompt(1, 160), 2)).unwrap();
    world.submit(request(2, prompt(2, 10), 2)).unwrap();
    world.step();
    assert_eq!(
        world.engine.scheduler().lifecycle(SeqId(2)),
        Some(Lifecycle::Running)
    );
    world.finish(100);
}

#[test]
fn forks_of_a_running_sequence_start_at_once_on_its_blocks() {
    let mut world = World::new(limits(64));
    world
        .submit_scripted(request(0, prompt(1, 40), 30), seeded(0))
        .unwrap();
    world.step();
    let computed = world.engine.runner().computed();
    for id in 1..8 {
        world
            .fork(SeqId(0), fork(id, 40, vec![], 30), seeded(id))
            .unwrap();
    }
    assert_eq!(world.engine.stats().running, 8);
    world.step();
    // Each computes one token: the children the prompt's last, the parent its own first.
    assert_eq!(world.engine.runner().computed(), computed + 8);
    // Two full blocks in common; of the third each has a copy, but for the last to write it.
    assert_eq!(world.engine.batch().copies().len(), 7);
    assert_eq!(shared(&world), [0, 2, 2, 2, 2, 2, 2, 2]);
    world.finish(100);
}

#[test]
fn a_fork_may_keep_generated_tokens_and_add_its_own() {
    let mut world = World::new(limits(64));
    world.submit(request(0, prompt(1, 20), 30)).unwrap();
    for _ in 0..15 {
        world.step();
    }
    world
        .fork(SeqId(0), fork(1, 30, vec![5; 40], 10), seeded(1))
        .unwrap();
    world
        .fork(SeqId(0), fork(2, 35, vec![], 10), seeded(2))
        .unwrap();
    world.finish(200);
    assert_eq!(world.story(1).end.unwrap().cached_prompt_tokens, 30);
    assert_eq!(world.story(2).end.unwrap().cached_prompt_tokens, 34);
}

#[test]
fn a_fork_of_a_sequence_in_the_queue_costs_no_second_prefill() {
    let mut world = World::new(limits(64));
    world.submit(request(0, prompt(1, 100), 5)).unwrap();
    world
        .fork(SeqId(0), fork(1, 100, vec![], 5), seeded(1))
        .unwrap();
    world.finish(100);
    assert_eq!(world.engine.runner().computed(), 100 + 4 + 4 + 4);
}

#[test]
fn a_fork_does_not_overtake_the_queue() {
    let mut world = World::new(limits(8));
    world.submit(request(0, prompt(1, 20), 5)).unwrap();
    world.step();
    world.submit(request(1, prompt(2, 100), 5)).unwrap();
    world
        .fork(SeqId(0), fork(2, 20, vec![], 5), seeded(2))
        .unwrap();
    assert_eq!(
        world.engine.scheduler().lifecycle(SeqId(2)),
        Some(Lifecycle::Waiting)
    );
    world.finish(100);
}

#[test]
fn what_is_generated_is_never_public() {
    let mut world = World::new(limits(64));
    let mut tenants = request(0, prompt(1, 32), 33);
    (tenants.salt, tenants.public_tokens) = (1, 1000);
    world.submit(tenants).unwrap();
    world.finish(100);
    let tokens = [prompt(1, 32), world.story(0).tokens.clone()].concat();
    let public = Chain {
        public_tokens: 1000,
        ..Chain::default()
    };
    assert_eq!(world.engine.scheduler().cached_prefix(&public, &tokens), 32);
}

#[test]
fn trust_regions_and_domains_share_nothing_but_the_public_prefix() {
    let mut world = World::new(limits(64));
    let base = request(0, prompt(1, 64), 1);
    let others = [
        (1, 1, 0, 0),
        (2, 0, 1, 0),
        (3, 2, 0, 40),
        (4, 3, 0, 40),
        (5, 3, 0, 40),
    ];
    world.submit(base.clone()).unwrap();
    world.finish(10);
    let mut cached = Vec::new();
    for (id, salt, chain_domain, public_tokens) in others {
        let request = Request {
            id: SeqId(id),
            salt,
            chain_domain,
            public_tokens,
            ..base.clone()
        };
        world.submit(request).unwrap();
        world.finish(10);
        cached.push(world.story(id).end.unwrap().cached_prompt_tokens);
    }
    assert_eq!(cached, [0, 0, 32, 32, 63]);
}

#[test]
fn what_a_fork_adds_is_never_public() {
    let mut world = World::new(limits(64));
    let mut parent = request(0, prompt(1, 40), 8);
    (parent.salt, parent.public_tokens) = (1, 40);
    world.submit(parent.clone()).unwrap();
    world.step();
    world
        .fork(SeqId(0), fork(1, 16, prompt(2, 30), 1), seeded(1))
        .unwrap();
    world.finish(100);
    let scheduler = world.engine.scheduler();
    let tokens = [&parent.tokens[..16], &prompt(2, 30)].concat();
    let public = Chain {
        public_tokens: 40,
        ..Chain::default()
    };
    let tenant = Chain {
        salt: 1,
        public_tokens: 16,
        ..Chain::default()
    };
    assert_eq!(scheduler.cached_prefix(&public, &tokens), 16);
    assert_eq!(scheduler.cached_prefix(&tenant, &tokens), 32);
}

#[test]
fn thoughts_leave_the_cache_before_older_prompts() {
    let mut world = World::new(limits(12));
    let mut thinker = request(0, prompt(1, 33), 64);
    thinker.retention = Retention::Thought;
    world.submit(thinker.clone()).unwrap();
    world.finish(100);
    let said = [thinker.tokens.clone(), world.story(0).tokens.clone()].concat();
    let cached = |world: &World| {
        world
            .engine
            .scheduler()
            .cached_prefix(&Chain::default(), &said)
    };
    assert_eq!(cached(&world), 96);
    // Takes the free blocks and all thoughts, though the thinker's prompt is older.
    world.submit(request(1, prompt(2, 160), 1)).unwrap();
    world.finish(100);
    assert_eq!(cached(&world), 32);
    assert_eq!(world.engine.stats().evictions, 4);
}

#[test]
fn jobs_that_share_a_preamble_branch_from_it_and_their_agents_from_each_job() {
    let mut world = World::new(limits(256));
    let preamble = prompt(9, 32);
    for job in 0..2u32 {
        let question = [&preamble[..], &prompt(job, 32), &[7; 5]].concat();
        for agent in 0..3 {
            let id = u64::from(job) * 3 + agent;
            world
                .submit_scripted(request(id, question.clone(), 30), seeded(id))
                .unwrap();
        }
    }
    while world.engine.stats().running < 6 {
        world.step();
    }
    world.step();
    assert_eq!(shared(&world), [0, 4, 4, 2, 4, 4]);
    world.finish(1000);
}
