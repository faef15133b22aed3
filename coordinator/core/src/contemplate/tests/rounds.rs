//! When rounds end, and what follows: quorum, agreement, deadline, budget.

use conclave_proto::v1::{
    AgentState, Budget, ContemplationPolicy, Distill, EarlyAgreement, ErrorKind, JobState,
    OnUnreachable, Role,
};

use super::{answer, context, roles};
use crate::{
    contemplate::agreement,
    payload::InlineOnly,
    testkit::{World, choice, draft, question, width},
};

fn was_early(world: &World) -> bool {
    agreement::was_early(world.job("j"), &InlineOnly).expect("all is inline")
}

#[test]
fn a_quorum_cancels_stragglers() {
    let policy = ContemplationPolicy {
        quorum: Some(2),
        ..width(4)
    };
    let mut world = World::with_job(&choice(policy));
    world.go("j");
    world.hand_in("j", 2, &draft("yes", 1));
    assert_eq!(world.next("j"), None);
    world.hand_in("j", 4, &draft("yes", 1));
    let decide = world.next("j").expect("the quorum is reached");
    assert_eq!(decide.cancel, [1, 3]);
    assert_eq!(decide.reason, "quorum of 2 of 4 drafts");
    world.go("j");
    assert_eq!(
        (world.job("j").state, answer(&world)),
        (JobState::Done, "yes")
    );
    assert!(!was_early(&world), "its quorum ended it");
}

#[test]
fn early_agreement_skips_refining() {
    let policy = ContemplationPolicy {
        refine_rounds: Some(2),
        early_agreement: Some(EarlyAgreement { drafts: 2 }),
        ..width(4)
    };
    let mut world = World::with_job(&choice(policy));
    world.go("j");
    world.hand_in("j", 1, &draft("yes", 1));
    world.hand_in("j", 2, &draft("no", 1));
    assert_eq!(world.next("j"), None);
    world.hand_in("j", 3, &draft("yes", 1));
    world.go("j");
    assert_eq!(
        (world.job("j").state, answer(&world)),
        (JobState::Done, "yes")
    );
    assert_eq!(world.agents("j", AgentState::Cancelled), [4]);
    assert!(was_early(&world));
}

#[test]
fn agreement_that_saves_nothing_is_not_called_early() {
    let policy = ContemplationPolicy {
        early_agreement: Some(EarlyAgreement { drafts: 2 }),
        ..width(2)
    };
    let mut world = World::with_job(&choice(policy));
    world.go("j");
    world.hand_in("j", 1, &draft("yes", 1));
    world.hand_in("j", 2, &draft("yes", 1));
    world.go("j");
    assert_eq!(world.job("j").state, JobState::Done);
    assert!(!was_early(&world));
}

#[test]
fn an_exact_job_decides_on_complete_rounds_only() {
    let policy = ContemplationPolicy {
        exact: true,
        early_agreement: Some(EarlyAgreement { drafts: 2 }),
        ..width(3)
    };
    let mut world = World::with_job(&choice(policy));
    world.go("j");
    world.hand_in("j", 1, &draft("yes", 1));
    world.hand_in("j", 2, &draft("yes", 1));
    assert_eq!(
        world.next("j"),
        None,
        "two of three agree, but the round is not complete"
    );
    world.hand_in("j", 3, &draft("no", 1));
    world.go("j");
    assert!(world.is_in("j", JobState::Done));
}

#[test]
fn refiners_read_the_workspace_and_the_answer_is_theirs() {
    let policy = ContemplationPolicy {
        refine_rounds: Some(1),
        ..width(2)
    };
    let mut world = World::with_job(&choice(policy));
    world.go("j");
    world.hand_in("j", 1, &draft("yes", 1));
    world.hand_in("j", 2, &draft("no", 1));
    world.go("j");
    assert!(world.is_in("j", JobState::Refining));
    assert_eq!(
        context(&world),
        "Drafts:\n[1] yes Steps: So 6 x 7 = 42.\n[2] no Steps: So 6 x 7 = 42."
    );
    assert_eq!(roles(&world)[2..], [Role::Refiner, Role::Refiner]);
    world.all_answer("j", "no");
    world.go("j");
    assert_eq!(
        (world.job("j").state, answer(&world)),
        (JobState::Done, "no")
    );
    assert_eq!(
        world
            .job("j")
            .answer
            .as_ref()
            .map(|a| a.votes[0].agents.clone()),
        Some(vec![3, 4])
    );
}

#[test]
fn distillers_write_the_workspace_and_a_failed_one_is_replaced_by_extraction() {
    let policy = ContemplationPolicy {
        distill: Distill::Agent as i32,
        ..width(2)
    };
    let mut world = World::with_job(&question(policy));
    world.go("j");
    world.all_answer("j", "42");
    world.go("j");
    assert!(world.is_in("j", JobState::Distilling));
    assert_eq!(roles(&world)[2..], [Role::Distiller, Role::Distiller]);
    assert_eq!(world.job("j").agents[3].spec.sources, [2]);
    world.hand_in("j", 3, &draft("in short, 42", 1));
    world.fail("j", 4, ErrorKind::Permanent);
    world.go("j");
    assert!(world.is_in("j", JobState::Aggregating));
    assert_eq!(
        context(&world),
        "Drafts:\n[1] in short, 42\n[2] 42 Steps: So 6 x 7 = 42."
    );
    world.all_answer("j", "42");
    world.go("j");
    assert_eq!(world.job("j").message, "");
    assert!(
        world.is_in("j", JobState::Done),
        "the workspace was whole all the same"
    );
}

#[test]
fn an_exact_job_that_lost_a_distiller_says_so() {
    let policy = ContemplationPolicy {
        distill: Distill::Agent as i32,
        exact: true,
        ..width(2)
    };
    let mut world = World::with_job(&question(policy));
    world.go("j");
    world.all_answer("j", "42");
    world.go("j");
    world.hand_in("j", 3, &draft("in short, 42", 1));
    world.fail("j", 4, ErrorKind::Permanent);
    world.go("j");
    world.all_answer("j", "42");
    world.go("j");
    assert!(world.is_in("j", JobState::Degraded));
    assert_eq!(world.job("j").message, "distiller 4 failed (broke)");
}

#[test]
fn an_unreachable_quorum_degrades_or_fails_by_policy() {
    for (on_unreachable, state) in [
        (OnUnreachable::Degrade, JobState::Degraded),
        (OnUnreachable::Fail, JobState::Failed),
    ] {
        let policy = ContemplationPolicy {
            on_unreachable: on_unreachable as i32,
            ..width(3)
        };
        let mut world = World::with_job(&choice(policy));
        world.go("j");
        world.fail("j", 2, ErrorKind::Permanent);
        world.decide("j");
        if on_unreachable == OnUnreachable::Degrade {
            world.hand_in("j", 1, &draft("yes", 1));
            world.hand_in("j", 3, &draft("yes", 1));
            world.go("j");
        }
        let job = world.job("j");
        assert_eq!(job.state, state, "{}", job.message);
        assert!(job.message.contains("broke"), "{}", job.message);
    }
}

#[test]
fn the_deadline_aggregates_what_there_is() {
    let budget = Budget {
        deadline_ms: 500,
        ..Budget::default()
    };
    let spec = conclave_proto::v1::JobSpec {
        budget: Some(budget),
        ..question(width(3))
    };
    let mut world = World::with_job(&spec);
    world.go("j");
    world.hand_in("j", 2, &draft("42", 1));
    assert_eq!(world.next("j"), None);
    world.now += 500;
    world.go("j");
    assert_eq!(
        (world.job("j").state, answer(&world)),
        (JobState::Degraded, "42")
    );
    assert_eq!(world.job("j").message, "the deadline passed");
    assert_eq!(world.agents("j", AgentState::Cancelled), [1, 3]);
}

#[test]
fn a_deadline_before_any_draft_fails_even_while_preparing() {
    let budget = Budget {
        deadline_ms: 500,
        ..Budget::default()
    };
    let spec = conclave_proto::v1::JobSpec {
        budget: Some(budget),
        ..question(width(3))
    };
    let mut world = World::new();
    world.submit("j", &spec);
    assert_eq!(world.next("j"), None);
    world.now += 500;
    world.decide("j");
    assert!(world.is_in("j", JobState::Failed));
    assert!(world.job("j").message.starts_with("the deadline passed"));
}

#[test]
fn a_budget_pays_for_as_many_as_it_can_and_keeps_the_chairs_share() {
    // Three proposers at 320 and the chair at 224.
    let budget = Budget {
        total_tokens: 3 * 320 + 224,
        ..Budget::default()
    };
    let spec = conclave_proto::v1::JobSpec {
        budget: Some(budget),
        ..question(width(8))
    };
    let mut world = World::with_job(&spec);
    world.go("j");
    assert_eq!(world.job("j").agents.len(), 3);
    world.all_answer("j", "42");
    world.go("j");
    assert!(world.is_in("j", JobState::Aggregating));
    world.all_answer("j", "42");
    world.go("j");
    assert!(world.is_in("j", JobState::Degraded));
    assert_eq!(
        world.job("j").message,
        "the token budget paid for 3 of 8 proposers"
    );
}

#[test]
fn what_agents_did_not_use_comes_back() {
    // After two proposers used 15 tokens each, one refiner is affordable again.
    let budget = Budget {
        total_tokens: 640,
        ..Budget::default()
    };
    let policy = ContemplationPolicy {
        refine_rounds: Some(2),
        ..width(2)
    };
    let spec = conclave_proto::v1::JobSpec {
        budget: Some(budget),
        ..choice(policy)
    };
    let mut world = World::with_job(&spec);
    world.go("j");
    world.all_answer("j", "yes");
    world.go("j");
    assert_eq!(roles(&world)[2..], [Role::Refiner]);
}
