use std::collections::BTreeMap;

use conclave_proto::v1::{Draft, Usage};

use super::*;
use crate::{
    payload::InlineOnly,
    testkit::{World, choice, draft, width},
};

fn limits(live_jobs: Option<u64>, tokens_per_minute: Option<u64>) -> Limits {
    Limits {
        live_jobs,
        running_agents: None,
        tokens_per_minute,
    }
}

fn gate(live_jobs: Option<u64>, tokens_per_minute: Option<u64>) -> Gate {
    let of = limits(live_jobs, tokens_per_minute);
    Gate::new(Quotas::new(of, BTreeMap::new()))
}

fn debt(gate: &Gate, world: &World) -> u64 {
    let mut debts = gate.debts(now(world).now_ms);
    debts
        .find(|(tenant, _)| *tenant == "t")
        .map_or(0, |(_, debt)| debt)
}

/// The world's moment, on a monotonic clock that began at 0.
fn now(world: &World) -> Now {
    Now {
        now_ms: world.now as u64,
        unix_ms: world.now,
    }
}

/// A draft that took so many tokens: one of the prompt, the rest generated; nine more were cached.
fn used(tokens: u64) -> Draft {
    let usage = Usage {
        prompt_tokens: 10,
        cached_tokens: 9,
        thought_tokens: tokens - 2,
        answer_tokens: 1,
    };
    Draft {
        usage: Some(usage),
        ..draft("yes", 1)
    }
}

#[test]
fn what_is_set_for_a_tenant_stands_for_the_default() {
    let own = Limits {
        running_agents: Some(7),
        ..Limits::default()
    };
    let quotas = Quotas::new(
        limits(Some(3), Some(50)),
        BTreeMap::from([("a".to_owned(), own)]),
    );
    let of_a = Limits {
        running_agents: Some(7),
        ..limits(Some(3), Some(50))
    };
    assert_eq!(quotas.of("a"), of_a);
    assert_eq!(quotas.of("b"), limits(Some(3), Some(50)));
    assert_eq!(quotas.named().collect::<Vec<_>>(), ["a"]);
    assert_eq!(Quotas::default().of("a"), Limits::default());
}

#[test]
fn jobs_that_have_not_ended_are_counted_and_so_are_submissions_under_way() {
    let mut world = World::new();
    world.register("w1", "i1", 8);
    let mut gate = gate(Some(2), None);
    let index = world.state.applied_index();
    assert_eq!(gate.admit("t", &world.state, now(&world)), Ok(()));
    gate.proposed("t", index + 1);
    assert_eq!(gate.admit("t", &world.state, now(&world)), Ok(()));
    gate.proposed("t", index + 2);
    let refusal = gate.admit("t", &world.state, now(&world)).unwrap_err();
    assert_eq!((refusal.quota(), refusal.retry_ms()), ("live_jobs", 1_000));
    assert_eq!(
        refusal.to_string(),
        "2 jobs of tenant `t` have not ended, its quota is 2 (live_jobs): come again once one has"
    );
    assert_eq!(
        gate.admit("u", &world.state, now(&world)),
        Ok(()),
        "its own"
    );
    // One is applied; the other turns out to be something else.
    world.submit("a", &choice(width(1)));
    assert!(gate.admit("t", &world.state, now(&world)).is_err());
    world.tick(10);
    assert_eq!(gate.admit("t", &world.state, now(&world)), Ok(()));
    world.submit("b", &choice(width(1)));
    assert!(gate.admit("t", &world.state, now(&world)).is_err());
    world.prepare("a");
    world.go("a");
    world.all_answer("a", "yes");
    world.go("a");
    assert!(world.job("a").is_final());
    assert_eq!(gate.admit("t", &world.state, now(&world)), Ok(()));
}

#[test]
fn a_tenant_that_may_have_no_job_is_not_told_to_wait_for_one() {
    let world = World::new();
    let refusal = gate(Some(0), None).admit("t", &world.state, now(&world));
    let text = refusal.unwrap_err().to_string();
    assert!(
        text.contains("its quota is 0") && !text.contains("once one"),
        "{text}"
    );
}

/// A world whose job `j` has handed in two drafts, and what they were.
fn spent(each: u64) -> (World, Vec<AttemptKey>) {
    let mut world = World::with_job(&choice(width(2)));
    world.go("j");
    let keys = vec![world.key("j", 1), world.key("j", 2)];
    world.hand_in("j", 1, &used(each));
    world.now += 1_000;
    world.hand_in("j", 2, &used(each));
    (world, keys)
}

#[test]
fn who_spends_more_than_a_minutes_worth_waits_until_it_is_paid_off() {
    let mut gate = gate(None, Some(600));
    let mut world = World::with_job(&choice(width(2)));
    assert_eq!(gate.admit("t", &world.state, now(&world)), Ok(()));
    world.go("j");
    let keys = [world.key("j", 1), world.key("j", 2)];
    world.hand_in("j", 1, &used(600));
    gate.accepted(&keys[..1], &world.state, &InlineOnly, now(&world));
    assert_eq!(
        gate.admit("t", &world.state, now(&world)),
        Ok(()),
        "all of it"
    );
    world.hand_in("j", 2, &used(25));
    gate.accepted(&keys[1..], &world.state, &InlineOnly, now(&world));
    let refusal = gate.admit("t", &world.state, now(&world)).unwrap_err();
    assert_eq!(refusal.retry_ms(), 2_500);
    assert!(
        refusal
            .to_string()
            .contains("has used 25 tokens more than its quota of 600 a minute"),
        "{refusal}"
    );
    assert!(
        refusal.to_string().ends_with("paid off in 3 s"),
        "{refusal}"
    );
    assert_eq!(
        gate.admit("u", &world.state, now(&world)),
        Ok(()),
        "its own"
    );
    world.now += 2_499;
    assert!(gate.admit("t", &world.state, now(&world)).is_err());
    world.now += 1;
    assert_eq!(gate.admit("t", &world.state, now(&world)), Ok(()));
}

#[test]
fn a_new_leader_knows_what_was_spent_in_the_last_minute() {
    let (mut world, keys) = spent(600);
    let mut of_old = gate(None, Some(600));
    // It was there all the time; the other comes to it now.
    let mut before = World::with_job(&choice(width(2)));
    before.go("j");
    assert_eq!(of_old.admit("t", &before.state, now(&before)), Ok(()));
    before.hand_in("j", 1, &used(600));
    of_old.accepted(&keys[..1], &before.state, &InlineOnly, now(&before));
    before.now += 1_000;
    before.hand_in("j", 2, &used(600));
    of_old.accepted(&keys[1..], &before.state, &InlineOnly, now(&before));
    let mut of_new = gate(None, Some(600));
    let old = of_old.admit("t", &world.state, now(&world)).unwrap_err();
    let new = of_new.admit("t", &world.state, now(&world)).unwrap_err();
    assert_eq!(old, new);
    assert_eq!(new.retry_ms(), 59_000);
    // What is longer ago than a full bucket takes to earn is not held against anybody.
    world.now += 61_000;
    let mut of_late = gate(None, Some(600));
    assert_eq!(of_late.admit("t", &world.state, now(&world)), Ok(()));
}

#[test]
fn a_new_leader_knows_a_debt_that_is_older_than_a_minute() {
    let (mut world, keys) = spent(3_000);
    let mut of_old = gate(None, Some(600));
    of_old.accepted(&keys, &world.state, &InlineOnly, now(&world));
    world.now += 120_000;
    let mut of_new = gate(None, Some(600));
    let old = of_old.admit("t", &world.state, now(&world)).unwrap_err();
    let new = of_new.admit("t", &world.state, now(&world)).unwrap_err();
    assert_eq!(old, new);
    assert!(new.retry_ms() > 400_000, "{new}");
}

#[test]
fn results_that_a_new_bucket_read_of_the_state_are_paid_for_once() {
    let (world, keys) = spent(400);
    let mut gate = gate(None, Some(600));
    gate.accepted(&keys, &world.state, &InlineOnly, now(&world));
    assert_eq!(debt(&gate, &world), 190, "800 less 600, and a second's 10");
}

#[test]
fn other_quotas_count_at_once_and_what_was_spent_stays_spent() {
    let (world, keys) = spent(600);
    let mut gate = gate(None, Some(600));
    gate.accepted(&keys, &world.state, &InlineOnly, now(&world));
    let before = debt(&gate, &world);
    gate.set(Quotas::new(limits(None, Some(1_200)), BTreeMap::new()));
    assert_eq!(debt(&gate, &world), before);
    gate.set(Quotas::default());
    assert_eq!(gate.admit("t", &world.state, now(&world)), Ok(()));
    assert_eq!(gate.buckets.len(), 0);
}

#[test]
fn tenants_that_owe_nothing_and_do_nothing_are_forgotten() {
    let (mut world, keys) = spent(600);
    let mut gate = gate(Some(9), Some(600));
    gate.accepted(&keys, &world.state, &InlineOnly, now(&world));
    let index = world.state.applied_index();
    for name in ["a", "b", "t"] {
        let _ = gate.admit(name, &world.state, now(&world));
        gate.proposed(name, index);
    }
    assert_eq!((gate.buckets.len(), gate.under_way.len()), (3, 3));
    gate.tidy(index, now(&world).now_ms);
    assert_eq!((gate.buckets.len(), gate.under_way.len()), (1, 0));
    world.now += 200_000;
    gate.tidy(index, now(&world).now_ms);
    assert_eq!(gate.buckets.len(), 0);
}
