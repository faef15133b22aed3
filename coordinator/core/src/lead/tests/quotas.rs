//! What tenants may have, at a leader's desk.

use std::collections::BTreeMap;

use conclave_proto::v1::{AgentState, ErrorKind};

use super::*;
use crate::{
    quota::{Limits, Quotas},
    testkit::draft,
};

fn running(most: u64) -> Quotas {
    let limits = Limits {
        running_agents: Some(most),
        ..Limits::default()
    };
    Quotas::new(
        Limits::default(),
        BTreeMap::from([("a".to_owned(), limits)]),
    )
}

/// A desk with one worker of so many sequences, and so many decided jobs of two agents for each of
/// these tenants.
fn desk(sequences: u32, quotas: Quotas, tenants: &[(&str, usize)]) -> Desk {
    let mut desk = Desk::with(
        World::new(),
        Settings {
            quotas,
            ..settings()
        },
    );
    let hello = Hello {
        max_sequences: sequences,
        ..hello("w1", "i1")
    };
    desk.leader.hello(1, hello);
    desk.run();
    for (tenant, jobs) in tenants {
        for number in 0..*jobs {
            let id = format!("{tenant}-{number:05}");
            desk.world.submit_as(tenant, &id, &choice(width(2)));
            desk.world.prepare(&id);
            desk.world.decide(&id);
        }
    }
    desk
}

fn placed(desk: &Desk, tenant: &str) -> u64 {
    desk.world.state.share(tenant).running_agents
}

#[test]
fn agents_above_a_tenants_quota_wait_and_follow_as_others_end() {
    let mut desk = desk(8, running(3), &[("a", 4), ("b", 1)]);
    desk.pass(1_000);
    assert_eq!((placed(&desk, "a"), placed(&desk, "b")), (3, 2));
    let key = desk.world.key("a-00000", 1);
    desk.world.hand_in("a-00000", 1, &draft("yes", 1));
    desk.pass(1_000);
    assert_eq!(placed(&desk, "a"), 3, "another one began");
    assert_eq!(desk.world.agents("a-00001", AgentState::Running), [1, 2]);
    assert_eq!(desk.world.key("a-00000", 1), key);
    desk.leader.set_quotas(running(6));
    desk.run();
    assert_eq!(placed(&desk, "a"), 6, "more as soon as more is allowed");
    desk.leader.set_quotas(running(1));
    desk.pass(2_000);
    assert_eq!(placed(&desk, "a"), 6, "what runs is not ended for it");
}

#[test]
fn an_assignment_that_is_late_does_not_come_on_top_of_a_quota() {
    let mut desk = desk(8, running(2), &[("a", 2)]);
    desk.tick(TICK_MS);
    let late = desk.acts();
    let assigns = |acts: &[Act]| {
        bodies(acts)
            .into_iter()
            .filter(|b| matches!(b, Body::Assign(_)))
            .count()
    };
    assert_eq!(assigns(&late), 2, "{late:?}");
    // They are in the log, and not heard of in time. Meanwhile an older job has agents that wait.
    let purposes = late.iter().cloned().filter_map(purpose);
    purposes.for_each(|purpose| desk.leader.failed(purpose));
    desk.world.submit_as("a", "a", &choice(width(2)));
    desk.world.prepare("a");
    desk.world.decide("a");
    for _ in 0..20 {
        desk.tick(TICK_MS);
        let acts = desk.acts();
        assert_eq!(assigns(&acts), 0, "{acts:?}");
        let ticks = acts.into_iter().filter_map(purpose);
        ticks.for_each(|purpose| desk.leader.failed(purpose));
    }
    // They commit after all, and behind them the next tick.
    for body in bodies(&late) {
        let applied = desk.world.apply(body.clone());
        desk.leader.effects(applied.effects);
    }
    desk.pass(3_000);
    assert_eq!(placed(&desk, "a"), 2);
    desk.world.hand_in("a-00000", 1, &draft("yes", 1));
    desk.pass(1_000);
    assert_eq!(
        desk.world.agents("a", AgentState::Running),
        [1],
        "the next in turn"
    );
}

#[test]
fn an_attempt_that_was_lost_waits_for_its_quota_again() {
    let mut desk = desk(8, running(2), &[("a", 2)]);
    desk.pass(1_000);
    desk.world.fail("a-00000", 1, ErrorKind::Transient);
    desk.pass(1_000);
    assert_eq!(placed(&desk, "a"), 2);
}

#[test]
fn a_lone_agent_goes_before_a_flood_that_came_first() {
    let mut desk = desk(4, Quotas::default(), &[("a", 5_000)]);
    desk.pass(1_000);
    assert_eq!(placed(&desk, "a"), 4);
    assert_eq!(desk.world.state.share("a").queued_agents, 9_996);
    desk.world.submit_as("b", "b", &choice(width(1)));
    desk.world.prepare("b");
    desk.world.decide("b");
    desk.pass(1_000);
    assert_eq!(placed(&desk, "b"), 0, "there is no room");
    desk.world.hand_in("a-00000", 1, &draft("yes", 1));
    desk.pass(1_000);
    assert_eq!(
        (placed(&desk, "a"), placed(&desk, "b")),
        (3, 1),
        "the first place is its own"
    );
}

#[test]
fn tenants_that_wait_get_equal_shares() {
    let mut desk = desk(12, Quotas::default(), &[("a", 50), ("b", 50), ("c", 1)]);
    desk.pass(1_000);
    let shares = ["a", "b", "c"].map(|tenant| placed(&desk, tenant));
    // A turn is a job: two agents here.
    assert_eq!(shares.iter().sum::<u64>(), 12);
    assert_eq!(shares[2], 2);
    assert!(shares[0].abs_diff(shares[1]) <= 2, "{shares:?}");
}

#[test]
fn what_results_used_is_held_against_submissions() {
    let limits = Limits {
        tokens_per_minute: Some(60),
        ..Limits::default()
    };
    let quotas = Quotas::new(limits, BTreeMap::new());
    let mut desk = Desk::with(
        World::new(),
        Settings {
            quotas,
            ..settings()
        },
    );
    desk.hello(1, "w1", "i1");
    desk.submit("j", &choice(width(5)));
    desk.world.prepare("j");
    desk.changed("j");
    desk.pass(500);
    let admit = |desk: &mut Desk| {
        let moment = moment!(desk);
        desk.leader.admit("t", &moment)
    };
    assert_eq!(admit(&mut desk), Ok(()));
    for agent in 1..=5 {
        // 19 tokens each: 15 generated, 4 of the prompt.
        let key = desk.world.key("j", agent);
        let result = attempt_result(&draft("yes", 1));
        let moment = moment!(desk);
        desk.leader.finished(1, key, "i1".into(), result, &moment);
        desk.run();
    }
    assert_eq!(desk.world.agents("j", AgentState::Done).len(), 5);
    let refusal = admit(&mut desk).unwrap_err();
    assert_eq!(refusal.quota(), "tokens_per_minute");
    desk.pass(refusal.retry_ms() + TICK_MS);
    assert_eq!(admit(&mut desk), Ok(()));
}

fn attempt_result(
    draft: &conclave_proto::v1::Draft,
) -> conclave_proto::v1::attempt_finished::Result {
    use prost::Message as _;
    let draft = crate::payload::inline(draft.encode_to_vec());
    conclave_proto::v1::attempt_finished::Result::Draft(draft)
}
