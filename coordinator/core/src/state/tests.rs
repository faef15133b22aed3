//! Law 2: whatever happened, a leader that knows nothing but the state brings every job to its end.

use conclave_proto::v1::{JobState, ReviewJobCommand, Verdict};
use proptest::prelude::*;

use super::*;
use crate::snapshot;
use crate::testkit::{
    World, choice, draft,
    history::{carry_out, step},
    width,
};

/// Carries out what the state asks for until nothing is left; only `outstanding` is looked at.
fn take_over(world: &mut World) {
    world.register("fresh", "i", 8);
    for _ in 0..10_000 {
        let effects = world.state.outstanding();
        if effects.is_empty() {
            return;
        }
        let before = world.state.clone();
        for effect in effects {
            obey(world, effect);
        }
        if world.state == before {
            // Everything waits for a worker that is gone: its lease must run out.
            world.tick(1_000);
            world.register("fresh", "i", 8);
        }
    }
    panic!("still outstanding: {:?}", world.state.outstanding());
}

fn obey(world: &mut World, effect: Effect) {
    match effect {
        Effect::Prepare { job_id } => drop(world.prepare(&job_id)),
        Effect::Place => world.place(),
        Effect::JobChanged { job_id } => world.decide(&job_id),
        Effect::Start { worker_id, key, .. } | Effect::Cancel { worker_id, key, .. } => {
            if worker_id == "fresh" {
                world.hand_in(&key.job_id, key.agent, &draft("yes", 1));
            }
        }
        other => panic!("{other:?} is no duty of a new leader"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_new_leader_brings_every_job_to_its_end(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new();
        world.register("w0", "i0", 3);
        for step in steps {
            carry_out(&mut world, step);
        }
        take_over(&mut world);
        for job in world.state.all_jobs() {
            let held = job.state == JobState::AwaitingReview;
            prop_assert!(held || !job.is_active(), "{} is {:?}", job.id, job.state);
        }
    }
}

#[test]
fn outstanding_is_flat_in_finished_jobs() {
    let mut world = World::new();
    world.register("w1", "i1", 8);
    for i in 0..20 {
        let id = format!("j{i}");
        world.submit(&id, &choice(width(1)));
        world.prepare(&id);
        world.go(&id);
        world.all_answer(&id, "yes");
        world.go(&id);
    }
    assert_eq!(
        (
            world.state.active_jobs().count(),
            world.state.all_jobs().count()
        ),
        (0, 20)
    );
    assert_eq!(world.state.outstanding(), []);
    assert_eq!(
        world.state.jobs("t").next_back().map(|j| j.id.as_str()),
        Some("j9")
    );
}

#[test]
fn what_is_saved_shares_the_jobs_that_do_not_change() {
    let mut world = World::new();
    world.submit("a", &choice(width(1)));
    world.submit("b", &choice(width(1)));
    let (before, clone) = (snapshot::encode(&world.state), world.state.to_save());
    world.prepare("a");
    assert!(std::ptr::eq(
        clone.job("b").unwrap(),
        world.state.job("b").unwrap()
    ));
    assert_ne!(clone.job("a"), world.state.job("a"));
    assert_eq!(snapshot::encode(&clone), before);
}

#[test]
fn a_submission_survives_its_leader_before_any_worker_came() {
    let mut world = World::new();
    world.submit("j", &choice(width(2)));
    let job_id = String::from("j");
    assert_eq!(
        world.state.outstanding(),
        [
            Effect::Prepare {
                job_id: job_id.clone()
            },
            Effect::JobChanged { job_id }
        ]
    );
}

#[test]
fn a_review_is_nobodys_duty_but_the_reviewers() {
    let policy = conclave_proto::v1::ContemplationPolicy {
        review: true,
        ..width(1)
    };
    let mut world = World::with_job(&choice(policy));
    world.go("j");
    world.all_answer("j", "yes");
    world.go("j");
    assert_eq!(world.state.outstanding(), []);
    let verdict = Verdict::Approve as i32;
    let review = ReviewJobCommand {
        job_id: "j".into(),
        verdict,
        ..Default::default()
    };
    world.apply(Body::ReviewJob(review));
    assert!(!world.job("j").is_active());
}
