//! Law 3: one machine's wall clock alone does not move replicated time by days.

use conclave_proto::v1::{Budget, SubmitJobCommand, Tick};

use super::*;
use crate::lead::{LEAP_MS, reached};

const WEEK_MS: i64 = 7 * 24 * 3_600_000;

/// An ended job `j`, its leader serves.
fn with_answer() -> World {
    let mut world = World::with_job(&choice(width(1)));
    world.go("j");
    world.all_answer("j", "yes");
    world.go("j");
    world
}

/// The members say that this is the time.
fn told(desk: &mut Desk, reached_ms: Option<i64>) {
    let moment = moment!(desk);
    desk.leader.clocks(reached_ms, &moment);
}

/// What a caller asks this node for, by the node's own clock.
fn submission(desk: &Desk, id: &str, deadline_ms: u64) -> Body {
    let budget = Budget {
        deadline_ms,
        ..Budget::default()
    };
    let spec = JobSpec {
        budget: Some(budget),
        ..choice(width(2))
    };
    let effective = crate::spec::effective(&spec, &crate::spec::Defaults::new(9)).expect("good");
    Body::SubmitJob(SubmitJobCommand {
        job_id: id.into(),
        tenant: "t".into(),
        idempotency_key: format!("key-{id}"),
        request_digest: vec![1],
        spec: Some(crate::payload::inline(prost::Message::encode_to_vec(
            &effective,
        ))),
        unix_ms: desk.world.now,
        deadline_unix_ms: desk.world.now + deadline_ms as i64,
    })
}

fn asks(acts: &[Act]) -> bool {
    acts.contains(&Act::AskClocks)
}

#[test]
fn time_is_where_a_majority_of_clocks_is() {
    let (right, fast) = (Some(100), Some(999));
    assert_eq!(reached(&[right]), right);
    assert_eq!(reached(&[fast, right]), right);
    assert_eq!(reached(&[fast, None]), None);
    assert_eq!(reached(&[fast, right, None]), right);
    assert_eq!(reached(&[fast, right, right]), right);
    assert_eq!(reached(&[fast, fast, right]), fast, "a majority");
    assert_eq!(reached(&[Some(1), right, right]), right, "a slow one");
    assert_eq!(reached(&[fast, fast, right, None, None]), right);
}

#[test]
fn a_clock_that_leaps_erases_nothing_and_does_not_move_time() {
    let mut desk = Desk::of(with_answer());
    desk.hello(1, "w1", "i1");
    desk.pass(1_000);
    let honest = desk.world.now;
    desk.world.now += WEEK_MS;
    assert!(asks(&desk.pass(TICK_MS)));
    told(&mut desk, Some(honest));
    desk.pass(30_000);
    assert!(desk.leader.doubts_clock().is_some());
    assert!(desk.world.state.job("j").is_some());
    // And age still counts, by the clock that does not leap.
    desk.pass(60_000);
    assert!(desk.world.state.job("j").is_none());
    // Set right, it is believed again.
    desk.world.now -= WEEK_MS;
    desk.pass(1_000);
    assert_eq!(desk.leader.doubts_clock(), None);
}

#[test]
fn ticks_of_a_leader_whose_clock_leaps_go_on_with_the_time_that_passed() {
    let mut desk = Desk::at_work();
    desk.pass(1_000);
    let before = desk.world.state.unix_ms();
    desk.world.now += WEEK_MS;
    let said = desk.pass(2_000);
    let ticks = bodies(&said);
    let tick = |body: &&&Body| matches!(body, Body::Tick(Tick { .. }));
    assert!(ticks.iter().filter(tick).count() >= 3);
    let moved = desk.world.state.unix_ms() - before;
    assert!((1_000..4_000).contains(&moved), "{moved} ms");
}

#[test]
fn time_runs_no_faster_for_what_callers_ask_while_the_clock_is_doubted() {
    let mut desk = Desk::at_work();
    desk.pass(1_000);
    let honest = desk.world.now;
    desk.world.now += WEEK_MS;
    desk.pass(TICK_MS);
    told(&mut desk, Some(honest));
    let before = desk.world.state.unix_ms();
    for n in 0..25 {
        desk.pass(400);
        let mut body = submission(&desk, &format!("n{n}"), 60_000);
        let moment = moment!(desk);
        desk.leader.stamp(&mut body, &moment);
        let applied = desk.world.apply(body);
        desk.leader.effects(applied.effects);
    }
    let moved = desk.world.state.unix_ms() - before;
    assert!((9_000..11_000).contains(&moved), "{moved} ms in 10 s");
}

#[test]
fn a_leader_that_is_behind_its_log_doubts_nothing_yet() {
    let mut world = with_answer();
    world.now += WEEK_MS;
    let mut desk = Desk::elected(world, settings());
    desk.leader = Leader::new(2, settings(), None, 0);
    assert_eq!(desk.acts(), [], "the state's time is an old one");
    let index = desk.world.state.applied_index() + 1;
    desk.world.state.skip(index, 2);
    assert_eq!(desk.acts(), [Act::AskClocks]);
}

#[test]
fn after_an_idle_week_a_new_leader_asks_once_and_serves() {
    let mut world = with_answer();
    world.now += WEEK_MS;
    let mut desk = Desk::elected(world, settings());
    assert_eq!(desk.serve(), None, "it might stamp a week too early");
    assert_eq!(desk.acts(), [Act::AskClocks]);
    let now = desk.world.now;
    told(&mut desk, Some(now - LEAP_MS / 2));
    assert!(desk.serve().is_some());
    assert_eq!(desk.leader.doubts_clock(), None);
    desk.pass(11_000);
    assert!(desk.world.state.job("j").is_none(), "old jobs go");
}

#[test]
fn a_leader_that_hears_of_no_clock_serves_in_the_end() {
    let mut world = with_answer();
    world.now += WEEK_MS;
    let mut desk = Desk::elected(world, settings());
    let mut asked = 0;
    let mut waited_ms = 0;
    while desk.serve().is_none() {
        assert!(waited_ms < 20_000);
        asked += usize::from(asks(&desk.acts()));
        told(&mut desk, None);
        desk.tick(TICK_MS);
        waited_ms += TICK_MS;
    }
    assert!((2..10).contains(&asked), "{asked}");
    assert!(desk.leader.doubts_clock().is_some());
}

#[test]
fn a_deadline_counts_from_replicated_time_if_the_clock_is_behind_it() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    // Led by a fast clock before.
    let ahead = Tick {
        elapsed_ms: 0,
        unix_ms: desk.world.now + 30_000,
        new_term: false,
    };
    desk.world.apply(Body::Tick(ahead));
    let mut body = submission(&desk, "j", 10_000);
    let moment = moment!(desk);
    desk.leader.stamp(&mut body, &moment);
    let applied = desk.world.apply(body);
    desk.leader.effects(applied.effects);
    desk.world.prepare("j");
    desk.changed("j");
    assert_eq!(starts(&desk.run()), [(1, 1), (1, 2)], "it has its 10 s");
}
