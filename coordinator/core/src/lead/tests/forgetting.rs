//! Ended jobs are forgotten by age and by bytes, oldest first; others never.

use conclave_proto::v1::{AgentState, CancelJobCommand};

use super::*;
use crate::payload;

/// Jobs `a` to `d`, a second apart: all but `d` have ended, `c` has an attempt that has not
/// reported, `d` runs.
fn world() -> World {
    let mut world = World::new();
    world.register("w1", "i1", 8);
    for id in ["a", "b", "c", "d"] {
        world.now += 1_000;
        world.submit(id, &choice(width(2)));
        world.prepare(id);
        world.go(id);
        match id {
            "a" | "b" => {
                world.all_answer(id, "yes");
                world.go(id);
            }
            "c" => {
                world.apply(Body::CancelJob(CancelJobCommand {
                    job_id: id.into(),
                    unix_ms: world.now,
                    ..CancelJobCommand::default()
                }));
            }
            _ => assert_eq!(world.agents(id, AgentState::Running), [1, 2]),
        }
    }
    world
}

fn forgotten(settings: Settings, after_ms: i64) -> Vec<String> {
    let world = world();
    let now = world.state.job("a").expect("it is kept").ended_unix_ms + after_ms;
    super::super::retention::due(&world.state, &settings, now, 256)
}

#[test]
fn retention_by_age_forgets_the_oldest_first_and_never_a_live_or_unsealed_job() {
    assert_eq!(forgotten(settings(), 59_999), Vec::<String>::new());
    assert_eq!(forgotten(settings(), 60_000), ["a"]);
    assert_eq!(forgotten(settings(), i64::MAX / 2), ["a", "b"]);
}

#[test]
fn retention_by_bytes_forgets_the_oldest_first_and_never_a_live_or_unsealed_job() {
    let world = world();
    let newest: u64 = world.job("b").payloads().map(payload::length).sum();
    let keeping = |retention_bytes| Settings {
        retention_bytes,
        ..settings()
    };
    assert_eq!(forgotten(keeping(newest * 2), 0), Vec::<String>::new());
    assert_eq!(forgotten(keeping(newest), 0), ["a"]);
    assert_eq!(forgotten(keeping(newest - 1), 0), ["a", "b"]);
    assert_eq!(forgotten(keeping(0), 0), ["a", "b"]);
}

#[test]
fn the_oldest_are_those_that_ended_first_whatever_their_ids_say() {
    let mut world = world();
    // The clock was set back: what is submitted now has a smaller id than all before.
    world.now = 0;
    world.submit("0", &choice(width(1)));
    world.prepare("0");
    world.go("0");
    world.all_answer("0", "yes");
    world.go("0");
    let newest: u64 = world.job("0").payloads().map(payload::length).sum();
    let keeping = Settings {
        retention_bytes: newest,
        ..settings()
    };
    let due = super::super::retention::due(&world.state, &keeping, world.now, 256);
    assert_eq!(due, ["a", "b"], "the newest answer stays");
}

#[test]
fn one_command_forgets_so_many_and_each_once() {
    let world = world();
    let all = Settings {
        retention_bytes: 0,
        retention_ms: 0,
        ..settings()
    };
    let due = |most| super::super::retention::due(&world.state, &all, world.now, most);
    assert_eq!(due(256), ["a", "b"]);
    assert_eq!(due(1), ["a"]);
}

#[test]
fn an_idle_cluster_forgets_what_grew_old() {
    let mut world = World::with_job(&choice(width(1)));
    world.go("j");
    world.all_answer("j", "yes");
    world.go("j");
    let mut desk = Desk::of(world);
    desk.hello(1, "w1", "i1");
    desk.pass(55_000);
    assert!(desk.world.state.job("j").is_some());
    let said = desk.pass(20_000);
    assert!(desk.world.state.job("j").is_none());
    assert_eq!(bodies(&said).len(), 1, "and says it once");
}

#[test]
fn jobs_that_end_faster_than_a_batch_a_period_are_forgotten_too() {
    let mut world = World::with_job(&choice(width(1)));
    for n in 0..600 {
        let id = format!("over-{n}");
        world.submit(&id, &choice(width(1)));
        world.apply(Body::CancelJob(CancelJobCommand {
            job_id: id,
            unix_ms: world.now,
            ..CancelJobCommand::default()
        }));
    }
    let none = Settings {
        retention_bytes: 0,
        ..settings()
    };
    let mut desk = Desk::with(world, none);
    desk.pass(11_000);
    assert_eq!(desk.world.state.all_jobs().count(), 1, "the live one");
}
