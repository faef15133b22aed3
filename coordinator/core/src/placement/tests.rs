use std::collections::BTreeMap;

use conclave_proto::v1::{AgentState, ContemplationPolicy, ErrorKind, Replay};

use super::*;
use crate::{
    payload::InlineOnly,
    testkit::{World, choice, question, width},
};

fn suggest(world: &World, loads: &[(&str, Load)]) -> Vec<(u32, String)> {
    let loads: BTreeMap<String, Load> = loads
        .iter()
        .map(|(id, load)| ((*id).to_owned(), *load))
        .collect();
    let placed = place(&world.state, &loads, &Quotas::default(), &InlineOnly);
    assert_eq!(placed.missing, [], "all is inline");
    placed
        .assigns
        .into_iter()
        .map(|a| (a.agent, a.worker_id))
        .collect()
}

fn idle() -> Load {
    Load::default()
}

#[test]
fn a_round_stays_together_where_it_fits() {
    let mut world = World::with_job(&question(width(8)));
    world.register("w0", "i", 4);
    world.decide("j");
    let placed = suggest(&world, &[("w0", idle()), ("w1", idle())]);
    assert_eq!(placed.len(), 8);
    assert!(
        placed.iter().all(|(_, worker)| worker == "w1"),
        "only w1 has 8 places: {placed:?}"
    );
}

#[test]
fn what_does_not_fit_goes_elsewhere_or_waits() {
    let mut world = World::new();
    world.register("w1", "i", 4);
    world.register("w2", "i", 2);
    world.submit("j", &question(width(8)));
    world.prepare("j");
    world.decide("j");
    let placed = suggest(&world, &[("w1", idle()), ("w2", idle())]);
    let on = |worker: &str| placed.iter().filter(|(_, w)| w == worker).count();
    assert_eq!((on("w1"), on("w2")), (4, 2));
}

#[test]
fn kv_blocks_bound_a_worker() {
    let mut world = World::with_job(&question(width(8)));
    // One proposer takes 320 tokens = 20 blocks, its tail 2 and one open; the prompt takes 2.
    world
        .state
        .workers
        .get_mut("w1")
        .expect("registered")
        .kv_blocks = 2 + 3 * 24;
    world.decide("j");
    assert_eq!(suggest(&world, &[("w1", idle())]).len(), 3);
}

#[test]
fn a_job_too_large_for_every_worker_is_still_offered() {
    let mut world = World::with_job(&question(width(2)));
    world
        .state
        .workers
        .get_mut("w1")
        .expect("registered")
        .kv_blocks = 1;
    world.decide("j");
    assert_eq!(suggest(&world, &[("w1", idle())]).len(), 1);
}

#[test]
fn drained_unconnected_and_unleased_workers_get_nothing() {
    let mut world = World::with_job(&question(width(2)));
    world.register("w2", "i", 8);
    world.decide("j");
    world
        .state
        .workers
        .get_mut("w1")
        .expect("registered")
        .draining = true;
    assert_eq!(suggest(&world, &[("w1", idle())]), []);
    assert_eq!(suggest(&world, &[("w3", idle())]), []);
    let placed = suggest(&world, &[("w1", idle()), ("w2", idle())]);
    assert!(placed.iter().all(|(_, worker)| worker == "w2"));
}

#[test]
fn the_least_loaded_of_equals_is_taken() {
    let mut world = World::with_job(&question(width(2)));
    world.register("w2", "i", 8);
    world.decide("j");
    let busy = Load {
        running: 3,
        ..idle()
    };
    let placed = suggest(&world, &[("w1", busy), ("w2", idle())]);
    assert!(
        placed.iter().all(|(_, worker)| worker == "w2"),
        "{placed:?}"
    );
}

#[test]
fn a_retry_avoids_the_worker_that_failed_but_keeps_its_class() {
    let mut world = World::with_job(&choice(width(2)));
    world.go("j");
    world.register("w2", "i", 8);
    world.register_as("w0", "i", 8, "b");
    world.fail("j", 1, ErrorKind::Transient);
    let all = [("w0", idle()), ("w1", idle()), ("w2", idle())];
    assert_eq!(suggest(&world, &all), [(1, "w2".to_owned())]);
}

#[test]
fn without_its_class_a_job_waits_unless_it_allows_another() {
    for (allow_inexact, expected) in [(false, 0), (true, 1)] {
        let policy = ContemplationPolicy {
            allow_inexact,
            ..width(1)
        };
        let mut world = World::with_job(&choice(policy));
        world.go("j");
        world.register_as("w2", "i", 8, "b");
        world.fail("j", 1, ErrorKind::Transient);
        world.state.workers.remove("w1");
        assert_eq!(suggest(&world, &[("w2", idle())]).len(), expected);
        world.place();
        let inexact = world.job("j").replay == Replay::Inexact;
        assert_eq!(inexact, allow_inexact);
    }
}

#[test]
fn one_round_never_mixes_classes() {
    let mut world = World::new();
    world.register_as("w1", "i", 2, "a");
    world.register_as("w2", "i", 2, "b");
    world.submit("j", &question(width(4)));
    world.prepare("j");
    world.go("j");
    let job = world.job("j");
    assert_eq!(world.agents("j", AgentState::Running).len(), 2);
    let mut classes: Vec<&str> = job
        .agents
        .iter()
        .filter(|a| a.state == AgentState::Running)
        .map(|a| a.numeric_class.as_str())
        .collect();
    classes.dedup();
    assert_eq!(classes.len(), 1);
}

#[test]
fn a_heartbeat_that_lags_keeps_nobody_waiting() {
    let mut world = World::with_job(&choice(width(2)));
    world.decide("j");
    let stale = Load {
        running: 8,
        ..idle()
    };
    assert_eq!(suggest(&world, &[("w1", stale)]).len(), 2);
}

#[test]
fn a_job_without_its_spec_holds_up_no_other() {
    let mut world = World::with_job(&choice(width(1)));
    world.go("j");
    world.register_as("w2", "i", 8, "b");
    world.fail("j", 1, ErrorKind::Transient);
    // Its class is gone, so its policy is asked for: in a blob that is not here.
    world.state.workers.remove("w1");
    let hash = vec![7; 32];
    world.state.jobs.get_mut("j").expect("it is there").spec = conclave_proto::v1::Payload {
        body: Some(conclave_proto::v1::payload::Body::Blob(
            conclave_proto::v1::BlobRef {
                hash: hash.clone(),
                length: 1,
            },
        )),
    };
    world.submit("k", &choice(width(1)));
    world.prepare("k");
    world.decide("k");
    let loads = BTreeMap::from([("w2".to_owned(), idle())]);
    let placed = place(&world.state, &loads, &Quotas::default(), &InlineOnly);
    assert_eq!(placed.missing, [MissingBlob::Absent { hash }]);
    let jobs: Vec<&str> = placed.assigns.iter().map(|a| a.job_id.as_str()).collect();
    assert_eq!(jobs, ["k"]);
}
