//! Laws 1 and 6: attempts lost with a worker that drained count as failures before log version 3,
//! and not from it on.

use conclave_proto::{
    LOG_VERSION,
    v1::{AgentState, DrainWorker, SetLogVersion, command::Command as Body},
};

use super::tick::MAX_TICK_MS;
use crate::{
    agent::{KILLED_DRAINS_VERSION, MAX_FAILURES},
    snapshot,
    testkit::{World, choice, width},
    worker::LEASE_TTL_MS,
};

/// How a worker is lost.
#[derive(Debug, Clone, Copy)]
enum End {
    LeaseRanOut,
    RegisteredAnew,
}

/// A cluster at this log version whose worker `w1`, at work on both agents of job `j`, drains.
fn draining(log_version: u32) -> World {
    let mut world = World::with_job(&choice(width(2)));
    world.apply(Body::SetLogVersion(SetLogVersion { log_version }));
    world.go("j");
    drain(&mut world, "i1");
    world
}

fn drain(world: &mut World, incarnation: &str) {
    world.apply(Body::DrainWorker(DrainWorker {
        worker_id: "w1".into(),
        incarnation: incarnation.into(),
    }));
}

fn lose(world: &mut World, end: End, next: &str) {
    match end {
        End::LeaseRanOut => {
            (0..LEASE_TTL_MS / MAX_TICK_MS).for_each(|_| drop(world.tick(MAX_TICK_MS)));
            assert!(world.state.worker("w1").is_none());
        }
        End::RegisteredAnew => drop(world.register("w1", next, 8)),
    }
}

fn failures(world: &World) -> Vec<u32> {
    world.job("j").agents.iter().map(|a| a.failures).collect()
}

#[test]
fn a_worker_killed_while_it_drains_counts_against_nobody_from_version_3_on() {
    for end in [End::LeaseRanOut, End::RegisteredAnew] {
        for version in 1..=LOG_VERSION {
            let mut world = draining(version);
            assert_eq!(world.state.log_version(), version);
            lose(&mut world, end, "i2");
            let each = u32::from(version < KILLED_DRAINS_VERSION);
            assert_eq!(failures(&world), [each; 2], "{end:?} at version {version}");
            assert_eq!(world.agents("j", AgentState::Queued), [1, 2]);
        }
    }
}

#[test]
fn no_number_of_killed_drains_poisons_an_agent_and_a_crash_still_counts() {
    let mut world = draining(KILLED_DRAINS_VERSION);
    for round in 2..MAX_FAILURES + 4 {
        let next = format!("i{round}");
        lose(&mut world, End::RegisteredAnew, &next);
        world.place();
        assert_eq!(world.agents("j", AgentState::Running), [1, 2]);
        drain(&mut world, &next);
    }
    assert_eq!(failures(&world), [0, 0]);
    lose(&mut world, End::RegisteredAnew, "fresh");
    world.place();
    // This one does not drain.
    lose(&mut world, End::LeaseRanOut, "");
    assert_eq!(failures(&world), [1, 1]);
}

/// Digests of the state that one log comes to, from log version 1 on. A change here means that two programs
/// apply one log differently: it needs a log version of its own.
const GOLDEN: [&str; LOG_VERSION as usize] = [
    "a329e5eb38f109ff18b4003b214303f145d5244965e7d57251d01471fb5f6372",
    "16813145d8e75d97ee7af49941581c3921a97d35c8e4da6ab34ed444730582e2",
    "398abf38a3ac7ef3d2e2c8e6a5bda3a5ba08e52088672d701424819b20cd3784",
];

#[test]
fn one_log_comes_to_the_same_state_as_ever_at_every_version() {
    let digest = |version| {
        let mut world = draining(version);
        lose(&mut world, End::RegisteredAnew, "i2");
        world.place();
        drain(&mut world, "i2");
        lose(&mut world, End::LeaseRanOut, "");
        world.register("w2", "i1", 8);
        world.go("j");
        world.all_answer("j", "yes");
        world.go("j");
        let (manifest, _) = snapshot::encode(&world.state);
        manifest.digest.iter().map(|b| format!("{b:02x}")).collect()
    };
    let digests: Vec<String> = (1..=LOG_VERSION).map(digest).collect();
    assert_eq!(digests, GOLDEN);
}
