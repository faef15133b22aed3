//! When the disputed drafts of a job are read in full, and what becomes of its first answer.

use conclave_proto::v1::{
    Aggregator, Budget, ContemplationPolicy, Draft, ErrorKind, Expand, JobSpec, JobState, Role,
    Usage, audit_event::Event,
};

use super::{super::*, answer, context, roles};
use crate::{
    audit,
    payload::InlineOnly,
    testkit::{World, choice, draft, question, width},
    view,
};
use expand::Expansion;

fn expanding(count: u32, margin: f32) -> ContemplationPolicy {
    ContemplationPolicy {
        expand: Some(Expand {
            margin: Some(margin),
            confidence_below: None,
        }),
        ..width(count)
    }
}

/// Its proposers hand in these, in turn.
fn answered(spec: &JobSpec, drafts: &[Draft]) -> World {
    let mut world = World::with_job(spec);
    world.go("j");
    for (agent, draft) in (1..).zip(drafts) {
        world.hand_in("j", agent, draft);
    }
    world.go("j");
    world
}

fn thought(text: &str, answer: &str) -> Draft {
    spending(text.len() as u64 / 4, 5, text, answer)
}

fn spending(thought_tokens: u64, answer_tokens: u64, thought: &str, answer: &str) -> Draft {
    Draft {
        thought: thought.into(),
        usage: Some(Usage {
            thought_tokens,
            answer_tokens,
            ..Usage::default()
        }),
        ..draft(answer, 1_000_000)
    }
}

fn shown(world: &World) -> bool {
    let shown = view::job(world.job("j"), &InlineOnly, None).expect("inline");
    shown.expanded
}

/// Why decisions were made, as the audit chain has it.
fn reasons(world: &World) -> Vec<String> {
    let records = world.job("j").audit.records();
    let decided = records.iter().filter_map(|r| match audit::open(r)?.event {
        Some(Event::Decided(decided)) => Some(decided.reason),
        _ => None,
    });
    decided.collect()
}

#[test]
fn an_open_vote_has_the_disputed_drafts_read_in_full() {
    let long = "First it seems so. ".repeat(60);
    let mut world = answered(
        &choice(expanding(3, 0.5)),
        &[
            thought(&long, "yes"),
            thought("A careful proof of the contrary.", "no"),
            thought(&long, "yes"),
        ],
    );
    assert_eq!(roles(&world)[3..], [Role::Chair]);
    assert!(world.is_in("j", JobState::Aggregating));
    let context = context(&world);
    let disputed = "[2] A careful proof of the contrary.\nAnswer: no\n";
    assert!(context.contains(disputed), "{context}");
    let whole = context.matches("First it seems so.").count();
    assert!(whole < 60, "who voted for the answer stays compressed");
    let chair = &world.job("j").agents[3].spec;
    assert_eq!(chair.sources, [1, 2, 3]);
    assert!(chair.answer.is_some(), "its answer has the job's form");
    let why = reasons(&world).pop().expect("a reason");
    assert_eq!(
        why,
        "expands: the votes are open (66.6 % for the first form, a lead of 33.3 %); the first \
         answer, agent 1's, is superseded"
    );

    world.hand_in("j", 4, &draft("no", 1));
    world.go("j");
    assert!(world.is_in("j", JobState::Done));
    let last = world.job("j").answer.clone().expect("an answer");
    assert_eq!(
        (last.text.as_str(), last.aggregator(), last.agent),
        ("no", Aggregator::Synthesis, Some(4))
    );
    assert_eq!(last.votes.len(), 2, "as the drafts voted");
    assert!(shown(&world));
    assert_eq!(expand::of(world.job("j"), &InlineOnly), Ok(Expansion::Done));
}

#[test]
fn a_clear_vote_and_a_job_that_did_not_ask_are_left_alone() {
    let drafts = ["yes", "yes", "no"].map(|text| draft(text, 1));
    for policy in [expanding(3, 0.2), width(3)] {
        let world = answered(&choice(policy), &drafts);
        assert!(world.is_in("j", JobState::Done));
        assert!(!shown(&world));
        let expansion = expand::of(world.job("j"), &InlineOnly);
        assert_eq!(expansion, Ok(Expansion::None));
    }
}

#[test]
fn it_happens_once_and_a_chair_of_synthesis_is_another_one() {
    let policy = ContemplationPolicy {
        aggregator: Aggregator::Synthesis as i32,
        ..expanding(2, 1.0)
    };
    let mut world = answered(&choice(policy), &[draft("yes", 1), draft("no", 1)]);
    assert!(!shown(&world), "the first chair is no expansion");
    world.hand_in("j", 3, &draft("yes", 1));
    world.go("j");
    assert!(shown(&world));
    assert!(context(&world).contains("[2] So 6 x 7 = 42.\nAnswer: no"));
    world.hand_in("j", 4, &draft("no", 1));
    world.go("j");
    assert!(world.is_in("j", JobState::Done), "not a third time");
    assert_eq!(answer(&world), "no");
}

#[test]
fn a_chair_that_fails_over_them_leaves_the_first_answer() {
    let policy = ContemplationPolicy {
        aggregator: Aggregator::Synthesis as i32,
        ..expanding(2, 1.0)
    };
    let mut world = answered(&choice(policy), &[draft("yes", 1), draft("no", 1)]);
    world.hand_in("j", 3, &draft("no", 1));
    world.go("j");
    world.fail("j", 4, ErrorKind::Permanent);
    world.go("j");
    assert!(world.is_in("j", JobState::Degraded));
    assert_eq!(answer(&world), "no", "the first chair's");
    assert_eq!(
        world.job("j").message,
        "the chair failed (broke) over the drafts in full: the first answer stands"
    );
}

#[test]
fn free_text_is_expanded_by_its_lowest_confidence_and_shows_every_draft() {
    let expand = Some(Expand {
        margin: None,
        confidence_below: Some(0.5),
    });
    let weak = |text: &str, lowest: i64| Draft {
        lowest_window_micro: lowest,
        ..draft(text, 1_000_000)
    };
    for (lowest, expands) in [(499_999, true), (500_000, false)] {
        let policy = ContemplationPolicy { expand, ..width(2) };
        let drafts = [weak("Forty-two.", 900_000), weak("Six.", 900_000)];
        let mut world = answered(&question(policy), &drafts);
        world.hand_in("j", 3, &weak("It is 42.", lowest));
        world.go("j");
        assert_eq!(shown(&world), expands, "{lowest}");
        if expands {
            let context = context(&world);
            assert!(context.contains("Answer: Forty-two.") && context.contains("Answer: Six."));
            let why = reasons(&world).pop().expect("a reason");
            assert!(why.contains("0.500 nats, below 0.5"), "{why}");
        }
    }
}

#[test]
fn what_the_budget_or_the_context_has_no_room_for_is_not_expanded() {
    let with = |total_tokens, answer_tokens| JobSpec {
        budget: Some(Budget {
            total_tokens,
            thought_tokens: Some(20),
            answer_tokens: Some(answer_tokens),
            ..Budget::default()
        }),
        ..choice(expanding(2, 0.5))
    };
    let taking = |tokens| ["yes", "no"].map(|text| spending(tokens, 0, "So it is.", text));
    // One who reads them may take 10 and 8.
    let broke = answered(&with(56, 8), &taking(20));
    let paid = answered(&with(56, 8), &taking(19));
    // A context of 4,096 tokens.
    let full = answered(&with(0, 3_900), &taking(20));
    assert_eq!(
        [&broke, &paid, &full].map(shown),
        [false, true, false],
        "{} {}",
        broke.job("j").message,
        full.job("j").message
    );
    assert!(broke.is_in("j", JobState::Done) && full.is_in("j", JobState::Done));
}
