//! Laws 3 and 4: replicated time, leases, deadlines.

use conclave_proto::v1::{Budget, Tick};

use super::*;
use crate::{lead::Sign, worker::LEASE_TTL_MS};

fn ticks(acts: &[Act]) -> Vec<Tick> {
    let tick = |body: &&Body| match body {
        Body::Tick(tick) => Some(*tick),
        _ => None,
    };
    bodies(acts).iter().filter_map(tick).collect()
}

#[test]
fn nothing_is_proposed_on_an_idle_cluster() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    desk.pass(1_000);
    for second in 0..120 {
        desk.beat(1, second, false);
        assert_eq!(bodies(&desk.pass(1_000)), Vec::<&Body>::new());
    }
    assert_eq!(desk.world.state.lease_clock_ms(), 0);
}

#[test]
fn a_worker_that_left_is_forgotten_while_nothing_else_happens() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    desk.leader.closed(1);
    desk.pass(LEASE_TTL_MS + 1_000);
    assert!(desk.world.state.worker("w1").is_none());
    assert_eq!(bodies(&desk.pass(5_000)).len(), 0, "then time rests");
}

#[test]
fn a_new_leader_gives_leases_a_full_time_to_live() {
    let mut world = World::with_job(&choice(width(1)));
    world.go("j");
    (0..5).for_each(|_| drop(world.tick(1_000)));
    let left = |desk: &Desk| {
        let worker = desk.world.state.worker("w1").expect("it holds a lease");
        worker.expires_ms - desk.world.state.lease_clock_ms()
    };
    let mut desk = Desk::of(world);
    assert_eq!(left(&desk), 1_000);
    // Even if the first try is lost.
    assert_eq!(desk.lose(), [Purpose::FullLeases]);
    desk.tick(TICK_MS);
    let said = desk.run();
    assert!(ticks(&said)[0].new_term && ticks(&said)[0].elapsed_ms == 0);
    assert_eq!(left(&desk), LEASE_TTL_MS);
    let later = ticks(&desk.pass(2_000));
    assert!(later.iter().all(|tick| !tick.new_term), "once a term");
}

#[test]
fn time_moves_by_what_passed_and_one_tick_by_so_much_at_most() {
    let mut desk = Desk::at_work();
    let said = ticks(&desk.pass(2_000));
    let elapsed: Vec<u64> = said.iter().map(|tick| tick.elapsed_ms).collect();
    assert_eq!(elapsed, [0, 500, 500, 500]);
    // It stands still for a minute, and is confirmed.
    desk.tick(60_000);
    let Some(Act::Confirm { pause }) = desk.acts().pop() else {
        panic!("it asks");
    };
    desk.leader.confirmed(pause);
    let said = ticks(&desk.pass(TICK_MS));
    assert_eq!(said[0].elapsed_ms, 1_000, "not a minute");
    assert!(desk.world.state.worker("w1").is_some());
}

#[test]
fn renewals_are_batched_and_go_before_the_tick() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    desk.hello(2, "w2", "i1");
    desk.submit("j", &choice(width(4)));
    desk.pass(500);
    for steps in 0..20 {
        desk.beat(1, steps, true);
        desk.beat(2, steps, true);
    }
    let said = desk.pass(500);
    let [Body::RenewLeases(renew), Body::Tick(_)] = bodies(&said)[..] else {
        panic!("{said:?}");
    };
    let ids: Vec<_> = renew.leases.iter().map(|l| l.worker_id.as_str()).collect();
    assert_eq!(ids, ["w1", "w2"]);
}

#[test]
fn an_engine_with_work_and_no_steps_loses_its_lease() {
    let mut desk = Desk::at_work();
    desk.run();
    assert_eq!(desk.beat(1, 7, true), Sign::Renews);
    let mut seconds = 0;
    while desk.world.state.worker("w1").is_some() {
        assert_eq!(desk.beat(1, 7, true), Sign::Withheld);
        desk.pass(1_000);
        seconds += 1;
    }
    assert!((6..9).contains(&seconds), "{seconds} s");
    assert_eq!(desk.beat(1, 8, true), Sign::Unknown, "it says hello again");
    assert_eq!(desk.run(), [Act::Close { session: 1 }]);
}

#[test]
fn a_new_session_is_no_step() {
    let mut desk = Desk::at_work();
    desk.run();
    assert_eq!(desk.beat(1, 7, true), Sign::Renews);
    assert_eq!(desk.beat(1, 7, true), Sign::Withheld);
    for session in 2..5 {
        desk.leader.closed(session - 1);
        desk.hello(session, "w1", "i1");
        assert_eq!(desk.beat(session, 7, true), Sign::Withheld);
    }
    desk.leader.closed(4);
    desk.hello(5, "w1", "i2");
    assert_eq!(desk.beat(5, 7, true), Sign::Renews, "another process");
}

#[test]
fn a_process_that_lost_its_lease_gets_nothing_before_it_makes_a_step() {
    let mut desk = Desk::at_work();
    desk.run();
    desk.beat(1, 7, true);
    while desk.world.state.worker("w1").is_some() {
        desk.beat(1, 7, true);
        desk.pass(1_000);
    }
    assert_eq!(desk.beat(1, 7, true), Sign::Unknown);
    let mut said = desk.hello(2, "w1", "i1");
    for _ in 0..3 {
        assert_eq!(desk.beat(2, 7, true), Sign::Withheld);
        said.extend(desk.pass(1_000));
    }
    assert_eq!(starts(&said), [], "its engine hangs");
    assert_eq!(desk.beat(2, 8, true), Sign::Renews);
    assert_eq!(starts(&desk.run()), [(2, 1), (2, 2)]);
}

#[test]
fn an_engine_that_moves_or_rests_keeps_its_lease() {
    let mut desk = Desk::at_work();
    desk.run();
    for second in 0..20 {
        let (steps, has_work) = (second.min(10), second < 10);
        assert_eq!(desk.beat(1, steps, has_work), Sign::Renews);
        desk.pass(1_000);
    }
    assert!(desk.world.state.worker("w1").is_some());
}

#[test]
fn a_deadline_is_noticed_by_the_leaders_clock() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    let budget = Budget {
        deadline_ms: 700,
        ..Budget::default()
    };
    desk.submit(
        "j",
        &JobSpec {
            budget: Some(budget),
            ..choice(width(2))
        },
    );
    desk.world.prepare("j");
    desk.changed("j");
    desk.pass(600);
    assert!(!desk.world.job("j").is_final());
    desk.pass(200);
    assert!(desk.world.job("j").is_final());
}

#[test]
fn a_deadline_comes_although_the_wall_clock_was_put_back() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    let budget = Budget {
        deadline_ms: 2_000,
        ..Budget::default()
    };
    desk.submit(
        "j",
        &JobSpec {
            budget: Some(budget),
            ..choice(width(2))
        },
    );
    desk.world.prepare("j");
    desk.changed("j");
    desk.pass(1_000);
    // Replicated time, which never goes back, is hours ahead of this leader's clock now.
    desk.world.now -= 5 * 3_600_000;
    desk.pass(500);
    assert!(!desk.world.job("j").is_final(), "not before its time");
    desk.pass(2_500);
    assert!(desk.world.job("j").is_final(), "and not hours later");
}
