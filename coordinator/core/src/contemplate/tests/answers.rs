//! What agents are asked, and how drafts become the answer.

use conclave_proto::v1::{
    Aggregator, ContemplationPolicy, ErrorKind, JobState, Role, StopReason, decide::Next,
};

use super::{super::*, answer, context};
use crate::payload::InlineOnly;
use crate::testkit::{World, choice, draft, question, width};
use expand::Expansion;

#[test]
fn proposers_share_a_prefix_and_differ_in_seed_and_tail() {
    let mut world = World::with_job(&question(width(8)));
    world.decide("j");
    let job = world.job("j");
    assert_eq!((job.state, job.agents.len()), (JobState::Proposing, 8));
    assert!(job.rounds[0].context.is_none());
    let mut seeds: Vec<u64> = job.agents.iter().map(|a| a.spec.seed).collect();
    let mut tails: Vec<&str> = job.agents.iter().map(|a| a.spec.tail.as_str()).collect();
    seeds.sort_unstable();
    seeds.dedup();
    tails.sort_unstable();
    tails.dedup();
    assert_eq!((seeds.len(), tails.len()), (8, 8));
    assert_eq!(
        job.agents[0].spec.seed,
        propose::seed(9, 0, Role::Proposer, 0)
    );
}

#[test]
fn a_seed_is_the_head_of_a_hash_over_job_round_role_and_index() {
    let input = [7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0];
    let head: [u8; 8] = blake3::hash(&input).as_bytes()[..8]
        .try_into()
        .expect("8 bytes");
    assert_eq!(
        propose::seed(7, 1, Role::Chair, 2),
        u64::from_le_bytes(head)
    );
}

#[test]
fn the_chair_reads_the_drafts_in_order_and_answers() {
    let mut world = World::with_job(&question(width(3)));
    world.go("j");
    for (agent, text) in [(3, "third"), (1, "first"), (2, "second")] {
        world.hand_in("j", agent, &draft(text, 1));
    }
    world.go("j");
    assert!(world.is_in("j", JobState::Aggregating));
    let text = context(&world);
    let at = |needle: &str| text.find(needle).expect(needle);
    assert!(at("[1] first") < at("[2] second") && at("[2] second") < at("[3] third"));
    assert_eq!(world.job("j").agents[3].spec.sources, [1, 2, 3]);
    world.hand_in("j", 4, &draft(" 42 ", 1));
    world.go("j");
    let job = world.job("j");
    assert_eq!((job.state, answer(&world)), (JobState::Done, "42"));
    let answer = job.answer.as_ref().expect("an answer");
    assert_eq!(
        (answer.aggregator(), answer.agent),
        (Aggregator::Synthesis, Some(4))
    );
    assert_eq!(answer.votes.len(), 3);
}

#[test]
fn order_of_arrival_changes_nothing() {
    let run = |order: [u32; 3]| {
        let mut world = World::with_job(&question(width(3)));
        world.go("j");
        for agent in order {
            world.hand_in("j", agent, &draft(&format!("a{agent}"), i64::from(agent)));
        }
        world.next("j").expect("a decision").next
    };
    assert_eq!(run([1, 2, 3]), run([3, 1, 2]));
}

#[test]
fn a_failing_chair_leaves_the_majority() {
    let mut world = World::with_job(&question(width(3)));
    world.go("j");
    for (agent, text) in [(1, "42"), (2, "41"), (3, "42")] {
        world.hand_in("j", agent, &draft(text, 1));
    }
    world.go("j");
    world.fail("j", 4, ErrorKind::Permanent);
    world.go("j");
    assert_eq!(
        (world.job("j").state, answer(&world)),
        (JobState::Degraded, "42")
    );
    assert!(world.job("j").message.contains("the chair failed (broke)"));
}

#[test]
fn majority_counts_canonical_forms_and_ties_go_to_confidence() {
    let mut world = World::with_job(&choice(width(4)));
    world.go("j");
    for (agent, text, confidence) in [(1, "yes", 5), (2, "no", 9), (3, "yes", 4), (4, "no", 1)] {
        world.hand_in("j", agent, &draft(text, confidence));
    }
    world.go("j");
    let answer = world.job("j").answer.clone().expect("an answer");
    assert_eq!((answer.text.as_str(), answer.agent), ("no", Some(2)));
    let votes: Vec<_> = answer
        .votes
        .iter()
        .map(|v| (v.canonical.as_str(), v.agents.clone()))
        .collect();
    assert_eq!(votes, [("yes", vec![1, 3]), ("no", vec![2, 4])]);
    assert_eq!(answer.votes[0].weight_micro, 2_000_000);
    let expansion = expand::of(world.job("j"), &InlineOnly);
    assert_eq!(expansion, Ok(Expansion::WouldHelp), "a tie");
}

#[test]
fn confidence_weighs_votes_and_best_of_takes_one() {
    for (aggregator, expected) in [
        (Aggregator::ConfidenceWeighted, "no"),
        (Aggregator::BestOf, "no"),
        (Aggregator::Majority, "yes"),
    ] {
        let policy = ContemplationPolicy {
            aggregator: aggregator as i32,
            ..width(3)
        };
        let mut world = World::with_job(&choice(policy));
        world.go("j");
        for (agent, text, confidence) in [(1, "yes", 2), (2, "no", 9), (3, "yes", 3)] {
            world.hand_in("j", agent, &draft(text, confidence));
        }
        world.go("j");
        assert_eq!(answer(&world), expected, "{aggregator:?}");
    }
}

#[test]
fn a_job_without_one_draft_fails_and_says_why() {
    let mut world = World::with_job(&question(width(2)));
    world.go("j");
    world.fail("j", 1, ErrorKind::Permanent);
    world.fail("j", 2, ErrorKind::Permanent);
    world.go("j");
    assert!(world.is_in("j", JobState::Failed));
    assert!(
        world
            .job("j")
            .message
            .ends_with("no agent handed in a draft that counts: broke")
    );
}

#[test]
fn an_invalid_constrained_draft_never_answers() {
    let mut world = World::with_job(&choice(width(2)));
    world.go("j");
    let invalid = conclave_proto::v1::Draft {
        valid: false,
        ..draft("maybe", 9)
    };
    world.hand_in("j", 1, &invalid);
    world.hand_in("j", 2, &draft("no", 1));
    world.go("j");
    assert_eq!(
        (world.job("j").state, answer(&world)),
        (JobState::Done, "no")
    );
}

#[test]
fn a_weak_branch_counts_for_the_quorum_but_does_not_vote() {
    let mut world = World::with_job(&choice(width(3)));
    world.go("j");
    for agent in [1, 2] {
        let stop = StopReason::LowConfidence as i32;
        let weak = conclave_proto::v1::Draft {
            stop,
            ..draft("yes", 1)
        };
        world.hand_in("j", agent, &weak);
    }
    world.hand_in("j", 3, &draft("no", 1));
    world.go("j");
    assert_eq!(
        (world.job("j").state, answer(&world)),
        (JobState::Done, "no")
    );
}

#[test]
fn one_agent_needs_no_chair() {
    for mode in [
        conclave_proto::v1::Mode::Instant,
        conclave_proto::v1::Mode::Thinking,
    ] {
        let spec = conclave_proto::v1::JobSpec {
            mode: mode as i32,
            policy: None,
            ..question(width(1))
        };
        let mut world = World::with_job(&spec);
        world.go("j");
        let spec = &world.job("j").agents[0].spec;
        let instant = mode == conclave_proto::v1::Mode::Instant;
        assert_eq!(
            (spec.thought_tokens == 0, spec.cue.is_empty()),
            (instant, instant)
        );
        world.all_answer("j", "42");
        world.go("j");
        assert_eq!(
            (world.job("j").state, answer(&world)),
            (JobState::Done, "42")
        );
    }
}

#[test]
fn a_review_holds_the_answer_back() {
    let policy = ContemplationPolicy {
        review: true,
        ..width(1)
    };
    let mut world = World::with_job(&choice(policy));
    world.go("j");
    world.all_answer("j", "yes");
    assert!(matches!(
        world.next("j").and_then(|d| d.next),
        Some(Next::AwaitReview(_))
    ));
    world.decide("j");
    assert!(world.is_in("j", JobState::AwaitingReview));
    assert_eq!(world.next("j"), None);
}

#[test]
fn a_workspace_shrinks_to_the_models_context() {
    let mut world = World::with_job(&question(width(8)));
    world.go("j");
    let long = conclave_proto::v1::Draft {
        answer: "word ".repeat(200),
        usage: Some(conclave_proto::v1::Usage {
            answer_tokens: 200,
            ..Default::default()
        }),
        ..draft("", 1)
    };
    for agent in 1..=8 {
        world.hand_in("j", agent, &long);
    }
    let roomy = world.next("j").expect("the chair");
    world
        .state
        .jobs
        .get_mut("j")
        .and_then(|j| j.prepared.as_mut())
        .expect("prepared")
        .context_tokens = 700;
    let tight = world.next("j").expect("the chair");
    let length = |decide: &Decide| match &decide.next {
        Some(Next::StartRound(round)) => round.context.as_ref().map_or(0, crate::payload::length),
        _ => 0,
    };
    assert!(
        length(&roomy) > 8 * 90 * 4 && length(&tight) < 8 * 45 * 5,
        "{} {}",
        length(&roomy),
        length(&tight)
    );
}
