//! Law 2: what is outstanding is carried out; what is lost is made anew.

use conclave_proto::v1::{AgentState, CreateCluster, JobState, RenewLeases, WorkerLease};

use super::*;
use crate::State;

#[test]
fn a_new_leader_serves_only_after_an_entry_of_its_own_term() {
    let world = World::with_job(&choice(width(2)));
    let mut desk = Desk::elected(world, settings());
    desk.leader = Leader::new(2, settings(), None, 0);
    assert_eq!(desk.serve(), None);
    assert!(!desk.leader.serving());
    assert_eq!(desk.acts(), []);
    let index = desk.world.state.applied_index() + 1;
    desk.world.state.skip(index, 2);
    assert_eq!(desk.serve(), Some(1), "the job is outstanding");
    assert_eq!(desk.serve(), None, "once");
    assert!(desk.run().contains(&Act::JobChanged { job_id: "j".into() }));
}

#[test]
fn a_leader_brings_a_job_to_its_workers_and_to_its_end() {
    let mut desk = Desk::at_work();
    let said = desk.run();
    assert_eq!(starts(&said), [(1, 1), (1, 2)]);
    let begins = |act: &&Act| matches!(act, Act::AttemptBegins { .. });
    assert_eq!(said.iter().filter(begins).count(), 2);
    desk.world.all_answer("j", "yes");
    desk.changed("j");
    assert!(desk.run().contains(&Act::JobEnded { job_id: "j".into() }));
    assert!(desk.world.is_in("j", JobState::Done));
}

#[test]
fn a_new_leader_takes_up_what_its_predecessor_left() {
    // Prepared, and nothing decided yet: no entry to come tells of it.
    let mut desk = Desk::of(World::with_job(&choice(width(2))));
    let said = desk.hello(1, "w1", "i1");
    assert_eq!(starts(&said), [(1, 1), (1, 2)]);
}

#[test]
fn a_new_leader_starts_what_its_predecessor_placed() {
    let mut world = World::with_job(&choice(width(2)));
    world.go("j");
    let mut desk = Desk::of(world);
    assert_eq!(starts(&desk.run()), [], "nobody is connected");
    // The worker says hello, and has not heard of one of them.
    let key = desk.world.key("j", 1);
    let running = vec![key];
    desk.leader.hello(
        1,
        Hello {
            running,
            ..hello("w1", "i1")
        },
    );
    let said = desk.run();
    assert_eq!(starts(&said), [(1, 2)]);
    let asked = |(_, m): &(u64, &ToWorker)| matches!(m, ToWorker::Resend(_));
    assert_eq!(sent(&said).iter().filter(|m| asked(m)).count(), 1);
}

#[test]
fn a_lost_decision_is_made_anew() {
    let mut desk = Desk::at_work();
    let job_id = "j".to_owned();
    assert_eq!(desk.lose(), [Purpose::Decide { job_id }]);
    assert_eq!(desk.acts(), [], "not before the next tick");
    assert!(!starts(&desk.pass(TICK_MS)).is_empty());
}

#[test]
fn a_decision_that_nothing_is_heard_of_is_made_anew() {
    let mut desk = Desk::at_work();
    let decides = |acts: &[Act]| {
        let decide = |body: &&&Body| matches!(body, Body::Decide(_));
        bodies(acts).iter().filter(decide).count()
    };
    assert_eq!(decides(&desk.acts()), 1);
    desk.changed("j");
    assert_eq!(decides(&desk.acts()), 0, "one at a time");
    let mut again = 0;
    for _ in 0..super::super::decisions::DECIDE_MS / TICK_MS {
        assert_eq!(again, 0);
        desk.tick(TICK_MS);
        again += decides(&desk.acts());
    }
    assert_eq!(again, 1);
}

#[test]
fn a_lost_placement_is_made_anew() {
    let mut desk = Desk::at_work();
    // The decision is taken; the placements that follow are lost.
    let decided = desk.acts();
    let [Act::JobChanged { .. }, Act::Propose { body, purpose }] = decided.as_slice() else {
        panic!("{decided:?}");
    };
    let applied = desk.world.apply(body.clone());
    desk.leader.effects(applied.effects);
    desk.leader.applied(purpose.clone(), &applied.reply);
    assert_eq!(desk.lose(), [Purpose::Place, Purpose::Place]);
    assert_eq!(desk.world.agents("j", AgentState::Queued), [1, 2]);
    // Time begins to move, and with it the state is asked: that is lost, too.
    desk.tick(TICK_MS);
    let [Purpose::Tick { number: 1 }, places @ ..] = &*desk.lose() else {
        panic!("no tick");
    };
    assert_eq!(places, [Purpose::Place, Purpose::Place]);
    assert_eq!(starts(&desk.pass(TICK_MS)), [(1, 1), (1, 2)]);
}

#[test]
fn an_agent_that_waits_is_found_in_the_state_if_no_word_of_it_came() {
    let mut desk = Desk::at_work();
    let decided = desk.acts();
    let [Act::JobChanged { .. }, Act::Propose { body, purpose }] = decided.as_slice() else {
        panic!("{decided:?}");
    };
    let applied = desk.world.apply(body.clone());
    desk.leader.applied(purpose.clone(), &applied.reply);
    assert_eq!(desk.acts(), [], "what it came to was not heard");
    assert_eq!(starts(&desk.pass(TICK_MS)), [(1, 1), (1, 2)]);
}

#[test]
fn the_next_placement_waits_until_all_of_the_last_is_applied() {
    let mut desk = Desk::at_work();
    let mut assigns = Vec::new();
    while assigns.is_empty() {
        for act in desk.acts() {
            match act {
                Act::Propose {
                    body: Body::Assign(assign),
                    ..
                } => assigns.push(assign),
                Act::Propose { body, purpose } => {
                    let applied = desk.world.apply(body);
                    desk.leader.effects(applied.effects);
                    desk.leader.applied(purpose, &applied.reply);
                }
                _ => {}
            }
        }
    }
    assert_eq!(assigns.len(), 2);
    desk.leader.effects(vec![crate::Effect::Place]);
    assert_eq!(desk.acts(), []);
    desk.leader.applied(Purpose::Place, &Reply::Ok);
    assert_eq!(desk.acts(), []);
    desk.leader.applied(Purpose::Place, &Reply::Ok);
    assert_eq!(
        bodies(&desk.acts()).len(),
        2,
        "the state has neither of them"
    );
}

#[test]
fn an_assignment_that_came_too_late_is_made_anew() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    desk.hello(2, "w2", "i1");
    desk.submit("j", &choice(width(2)));
    desk.world.prepare("j");
    desk.world.decide("j");
    desk.leader.effects(vec![crate::Effect::Place]);
    let assigns = desk.acts();
    assert_eq!(bodies(&assigns).len(), 2, "both to w1");
    // In the log before them: the tick that takes the lease of w1. It held nothing.
    for _ in 0..6 {
        let lease = WorkerLease {
            worker_id: "w2".into(),
            incarnation: "i1".into(),
        };
        let leases = vec![lease];
        desk.world.apply(Body::RenewLeases(RenewLeases { leases }));
        let applied = desk.world.tick(1_000);
        desk.leader.effects(applied.effects);
    }
    assert!(desk.world.state.worker("w1").is_none());
    for act in assigns {
        if let Act::Propose { body, purpose } = act {
            let applied = desk.world.apply(body);
            assert_ne!(applied.reply, Reply::Ok);
            desk.leader.applied(purpose, &applied.reply);
        }
    }
    assert_eq!(starts(&desk.pass(TICK_MS)), [(2, 1), (2, 2)]);
}

#[test]
fn agents_that_wait_are_looked_at_even_if_nothing_asks() {
    let mut desk = Desk::empty();
    desk.hello(1, "w1", "i1");
    desk.submit("j", &choice(width(2)));
    desk.world.prepare("j");
    desk.world.decide("j");
    assert_eq!(starts(&desk.pass(1_000)), [(1, 1), (1, 2)]);
}

#[test]
fn the_first_leader_founds_the_cluster_until_it_is_founded() {
    let founding = CreateCluster {
        cluster_id: "c".into(),
        signing_seed: vec![1; 32],
        salt_key: vec![2; 32],
        unix_ms: 0,
    };
    let mut desk = Desk::empty();
    desk.world.state = State::new();
    desk.world.state.skip(1, 1);
    desk.leader = Leader::new(1, settings(), Some(founding), 0);
    desk.serve();
    assert_eq!(desk.lose(), [Purpose::Found]);
    let said = desk.pass(TICK_MS);
    assert_eq!(bodies(&said).len(), 1);
    assert_eq!(desk.world.state.cluster_id(), "c");
    assert_eq!(bodies(&desk.pass(5_000)).len(), 0, "once");
}
