use conclave_proto::v1::{
    Aggregator, AnswerKind, Budget, Choices, ContemplationPolicy, EarlyAgreement, Expand, Message,
    Sampling, answer_kind::Kind,
};

use super::*;

fn question(mode: Mode) -> JobSpec {
    JobSpec {
        mode: mode as i32,
        messages: vec![Message {
            role: "user".into(),
            content: "Why?".into(),
        }],
        ..JobSpec::default()
    }
}

fn with_policy(policy: ContemplationPolicy) -> JobSpec {
    JobSpec {
        policy: Some(policy),
        ..question(Mode::Contemplating)
    }
}

fn refused(spec: &JobSpec) -> String {
    effective(spec, &Defaults::new(1))
        .expect_err("must be refused")
        .to_string()
}

fn policy_of(spec: &JobSpec) -> Policy {
    Policy::of(&effective(spec, &Defaults::new(7)).expect("is fine"))
}

#[test]
fn modes_have_their_defaults() {
    let instant = policy_of(&question(Mode::Instant));
    assert_eq!((instant.width, instant.thought_tokens), (1, 0));
    assert_eq!(instant.aggregator, Aggregator::Majority);
    let thinking = policy_of(&question(Mode::Thinking));
    assert_eq!((thinking.width, thinking.thought_tokens), (1, 192));
    let many = policy_of(&question(Mode::Unspecified));
    assert_eq!((many.width, many.quorum, many.seed), (8, 8, 7));
    assert_eq!(many.aggregator, Aggregator::Synthesis);
    assert_eq!((many.answer_tokens, many.workspace_tokens), (128, 96));
}

#[test]
fn constrained_answers_are_voted_on() {
    let kind = Kind::Choices(Choices {
        options: vec!["yes".into(), "no".into()],
    });
    let answer = Some(AnswerKind { kind: Some(kind) });
    let policy = policy_of(&JobSpec {
        answer,
        ..question(Mode::Contemplating)
    });
    assert_eq!(policy.aggregator, Aggregator::Majority);
    assert_eq!(policy.sampling.repetition_penalty, Some(1.0));
}

#[test]
fn a_penalty_that_every_worker_would_refuse_is_refused_first() {
    let with = |penalty: f32| {
        let sampling = Some(Sampling {
            repetition_penalty: Some(penalty),
            ..Default::default()
        });
        let spec = JobSpec {
            sampling,
            ..question(Mode::Instant)
        };
        effective(&spec, &Defaults::new(7))
    };
    assert!(with(0.01).is_ok() && with(10.0).is_ok());
    for penalty in [0.0, 0.001, -1.0, 10.5, f32::NAN] {
        let error = with(penalty).expect_err("is out of range").to_string();
        assert!(
            error.contains("sampling.repetition_penalty") && error.contains(&penalty.to_string()),
            "{error}"
        );
    }
}

#[test]
fn an_effective_spec_is_its_own_effective_spec() {
    let once = effective(&question(Mode::Contemplating), &Defaults::new(3)).expect("is fine");
    assert_eq!(effective(&once, &Defaults::new(4)).expect("is fine"), once);
}

#[test]
fn prompts_are_checked() {
    let said = |role: &str, content: &str| JobSpec {
        messages: vec![Message {
            role: role.into(),
            content: content.into(),
        }],
        ..JobSpec::default()
    };
    assert!(refused(&JobSpec::default()).starts_with("messages: empty"));
    assert!(refused(&said("user", "  \n")).contains("the question is empty"));
    assert!(refused(&said("assistant", "Hi")).contains("must be the user's"));
    assert!(refused(&said("robot", "Hi")).contains("\"robot\" is none of"));
    assert!(refused(&said("user", &"x".repeat(300_000))).contains("the limit is 262144"));
}

#[test]
fn contradictory_policies_name_the_field() {
    let policy = ContemplationPolicy::default;
    let quorum = with_policy(ContemplationPolicy {
        width: Some(4),
        quorum: Some(5),
        ..policy()
    });
    assert_eq!(
        refused(&quorum),
        "policy.quorum: 5 drafts of 4 agents cannot come: choose 1 to 4"
    );
    let early = ContemplationPolicy {
        width: Some(4),
        early_agreement: Some(EarlyAgreement { drafts: 5 }),
        ..policy()
    };
    assert!(refused(&with_policy(early)).starts_with("policy.early_agreement.drafts"));
    let exact = ContemplationPolicy {
        exact: true,
        ..policy()
    };
    let late = JobSpec {
        budget: Some(Budget {
            deadline_ms: 5,
            ..Budget::default()
        }),
        ..with_policy(exact.clone())
    };
    assert!(refused(&late).starts_with("budget.deadline_ms"));
    let part = ContemplationPolicy {
        width: Some(4),
        quorum: Some(3),
        ..exact.clone()
    };
    assert!(refused(&with_policy(part)).starts_with("policy.quorum"));
    let loose = ContemplationPolicy {
        allow_inexact: true,
        ..exact
    };
    assert!(refused(&with_policy(loose)).starts_with("policy.allow_inexact"));
    let wide = ContemplationPolicy {
        width: Some(65),
        ..policy()
    };
    assert_eq!(
        refused(&with_policy(wide)),
        "policy.width: 65 is outside 1 to 64"
    );
    let instant = JobSpec {
        policy: Some(ContemplationPolicy {
            width: Some(2),
            ..policy()
        }),
        ..question(Mode::Instant)
    };
    assert!(refused(&instant).contains("one agent"));
}

#[test]
fn budgets_must_pay_for_one_agent() {
    let with = |budget| JobSpec {
        budget: Some(budget),
        ..question(Mode::Contemplating)
    };
    let none = Budget {
        answer_tokens: Some(0),
        ..Budget::default()
    };
    assert!(refused(&with(none)).starts_with("budget.answer_tokens: 0 leaves no answer"));
    let little = Budget {
        total_tokens: 300,
        ..Budget::default()
    };
    assert!(refused(&with(little)).contains("below the 544 tokens"));
    let enough = Budget {
        total_tokens: 544,
        ..Budget::default()
    };
    assert_eq!(policy_of(&with(enough)).total_tokens, 544);
}

#[test]
fn sampling_ranges_hold_and_nan_is_refused() {
    let with = |sampling| JobSpec {
        sampling: Some(sampling),
        ..question(Mode::Instant)
    };
    for temperature in [-0.1, 5.1, f32::NAN, f32::INFINITY] {
        let sampling = Sampling {
            temperature: Some(temperature),
            ..Sampling::default()
        };
        assert!(refused(&with(sampling)).starts_with("sampling.temperature"));
    }
    for (top_p, min_p) in [(0.0, 0.0), (1.1, 0.0), (0.5, 1.0), (f32::NAN, 0.0)] {
        let sampling = Sampling {
            top_p: Some(top_p),
            min_p: Some(min_p),
            ..Sampling::default()
        };
        refused(&with(sampling));
    }
    let stops = Sampling {
        stop: vec!["x".into(); 9],
        ..Sampling::default()
    };
    assert!(refused(&with(stops)).starts_with("sampling.stop"));
}

#[test]
fn answer_kinds_are_bounded() {
    let with = |kind| JobSpec {
        answer: Some(AnswerKind { kind: Some(kind) }),
        ..question(Mode::Instant)
    };
    let choices = |options: Vec<String>| with(Kind::Choices(Choices { options }));
    assert!(refused(&choices(vec!["one".into()])).contains("give 2 to 64"));
    assert!(refused(&choices(vec!["a".into(); 65])).contains("65 options"));
    assert!(refused(&choices(vec!["a".into(), "a".into()])).contains("twice"));
    assert!(refused(&with(Kind::Regex(String::new()))).starts_with("answer.regex"));
    assert!(refused(&with(Kind::Regex("(a".into()))).contains("unclosed group"));
    assert!(refused(&with(Kind::JsonSchema("{\"type\":".into()))).contains("not JSON"));
    assert!(refused(&with(Kind::JsonSchema("3".into()))).contains("a schema is"));
    assert!(refused(&with(Kind::JsonSchema("x".repeat(70_000)))).contains("the limit"));
}

#[test]
fn an_expansion_that_cannot_be_judged_names_the_field() {
    let expand = |margin, confidence_below| {
        Some(Expand {
            margin,
            confidence_below,
        })
    };
    for (width, expand, field) in [
        (1, expand(None, Some(0.5)), "policy.expand: one agent"),
        (
            4,
            expand(None, None),
            "policy.expand.confidence_below: free text",
        ),
        (
            4,
            expand(None, Some(0.0)),
            "policy.expand.confidence_below: 0 is no",
        ),
        (
            4,
            expand(None, Some(f32::NAN)),
            "policy.expand.confidence_below: NaN",
        ),
        (
            4,
            expand(Some(0.5), Some(0.5)),
            "policy.expand.margin: free text",
        ),
    ] {
        let policy = ContemplationPolicy {
            width: Some(width),
            expand,
            ..ContemplationPolicy::default()
        };
        let problem = refused(&with_policy(policy));
        assert!(problem.starts_with(field), "{problem}");
    }
}

#[test]
fn unknown_features_are_refused_with_the_known_ones() {
    let required_features = vec!["telepathy".to_owned()];
    let error = refused(&JobSpec {
        required_features,
        ..question(Mode::Instant)
    });
    assert!(
        error.contains("telepathy") && error.contains("early_agreement"),
        "{error}"
    );
}
