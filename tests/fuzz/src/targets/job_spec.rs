//! `JobSpec`s of clients: decoding, the checks that fill in defaults, and the job's first steps.

use conclave_coordinator_core::{
    State, payload,
    spec::{self, Defaults},
};
use conclave_proto::v1::{
    AnswerKind, Budget, Choices, JobSpec, Message, Mode, PrepareDone, Prepared, Sampling,
    SubmitJobCommand, answer_kind::Kind, command::Command as Body,
};
use prost::Message as _;

use super::history;
use crate::{Limits, Target};

/// An encoded spec.
pub const TARGET: Target = Target {
    name: "job_spec",
    run,
    seeds,
    words: &[
        "user",
        "system",
        "assistant",
        "quorum",
        "\x1a\x00",
        "yes",
        "no",
    ],
    inputs: 40_000,
    limits: Limits::SMALL,
};

fn run(input: &[u8]) {
    let Ok(asked) = JobSpec::decode(input) else {
        return;
    };
    let defaults = Defaults::new(7);
    let effective = match spec::effective(&asked, &defaults) {
        Ok(effective) => effective,
        Err(error) => {
            assert!(!error.field.is_empty() && !error.problem.is_empty());
            return;
        }
    };
    assert_eq!(
        spec::effective(&effective, &defaults).as_ref(),
        Ok(&effective),
        "an effective spec is its own effective spec"
    );
    let mut state = State::new();
    let submit = SubmitJobCommand {
        job_id: "j".into(),
        tenant: "t".into(),
        idempotency_key: "k".into(),
        request_digest: vec![1; 32],
        spec: Some(payload::inline(effective.encode_to_vec())),
        unix_ms: 1,
        ..SubmitJobCommand::default()
    };
    history::apply(&mut state, Body::SubmitJob(submit));
    let prepared = Prepared {
        job_id: "j".into(),
        prompt_tokens: 40,
        model: "m".into(),
        ..Prepared::default()
    };
    let done = PrepareDone {
        prepared: Some(prepared),
    };
    history::apply(&mut state, Body::PrepareDone(done));
    history::lead(&mut state);
    history::examine(&state);
}

fn seeds() -> Vec<Vec<u8>> {
    let question = || Message {
        role: "user".into(),
        content: "why?".into(),
    };
    let plain = JobSpec {
        messages: vec![question()],
        ..JobSpec::default()
    };
    let modes = [Mode::Instant, Mode::Thinking, Mode::Contemplating].map(|mode| JobSpec {
        mode: mode.into(),
        seed: Some(3),
        ..plain.clone()
    });
    let kinds = [
        Kind::Choices(Choices {
            options: vec!["yes".into(), "no".into()],
        }),
        Kind::Regex("[a-z]+".into()),
        Kind::JsonSchema("{\"type\":\"object\"}".into()),
    ]
    .map(|kind| JobSpec {
        answer: Some(AnswerKind { kind: Some(kind) }),
        sampling: Some(Sampling {
            temperature: Some(0.5),
            ..Sampling::default()
        }),
        ..plain.clone()
    });
    let bounded = JobSpec {
        budget: Some(Budget::default()),
        required_features: vec!["quorum".into(), "exact".into()],
        ..plain.clone()
    };
    // A full policy: the effective spec says every default.
    let full = spec::effective(&plain, &Defaults::new(7)).expect("a plain spec is fine");
    let all = modes.into_iter().chain(kinds).chain([plain, bounded, full]);
    all.map(|spec| spec.encode_to_vec()).collect()
}
