//! What a coordinator passes on of a client's job: `Prepare` and `Start` at a worker.

use std::sync::{Arc, LazyLock};

use conclave_proto::v1::{
    AgentSpec, AnswerKind, JobSpec, Message, Prepare, Role, Sampling, Start, answer_kind::Kind,
};
use conclave_worker::{
    agent::AgentFactory,
    model::{LoadOptions, Model},
};
use conclave_worker_core::SeqId;
use prost::Message as _;

use super::model;
use crate::{Limits, Target};

/// The first byte says which message the rest is.
pub const TARGET: Target = Target {
    name: "prepare",
    run,
    seeds,
    words: &["user", "system", "assistant", "<|im_end|>", "ab", "[ab]+"],
    inputs: 10_000,
    limits: Limits {
        memory: 64 << 20,
        ..Limits::SMALL
    },
};

/// KV tokens of a worker.
const KV: usize = 4096;

fn factory() -> &'static AgentFactory {
    static ONE: LazyLock<Arc<AgentFactory>> = LazyLock::new(|| {
        let file = model::file(&model::gguf("gpt2"));
        let model = Model::load(file.path(), &LoadOptions::default());
        AgentFactory::new(model.expect("the seed is a model"), "class")
    });
    &ONE
}

fn run(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else {
        return;
    };
    if which % 2 == 0 {
        let Ok(prepare) = Prepare::decode(bytes) else {
            return;
        };
        let prepared = factory().prepare(&prepare, KV);
        assert_eq!(prepared.job_id, prepare.job_id);
        assert!(
            !prepared.error.is_empty() || prepared.retry || prepared.prompt_tokens as usize <= KV
        );
    } else {
        let Ok(start) = Start::decode(bytes) else {
            return;
        };
        match factory().request(&start, SeqId(1), 1) {
            Ok((request, _)) => assert!(!request.tokens.is_empty()),
            Err(error) => assert!(!error.message.is_empty()),
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let messages = vec![Message {
        role: "user".into(),
        content: "ab c".into(),
    }];
    let answer = Some(AnswerKind {
        kind: Some(Kind::Regex("[ab]+".into())),
    });
    let sampling = Some(Sampling {
        temperature: Some(0.5),
        ..Sampling::default()
    });
    let prepare = |answer| Prepare {
        job_id: "j".into(),
        spec: Some(JobSpec {
            messages: messages.clone(),
            sampling: sampling.clone(),
            answer,
            ..JobSpec::default()
        }),
        salt: vec![1; 32],
    };
    let start = Start {
        spec: Some(AgentSpec {
            agent: 1,
            role: Role::Proposer.into(),
            seed: 3,
            thought_tokens: 8,
            answer_tokens: 8,
            sampling: sampling.clone(),
            answer: answer.clone(),
            cue: "Final answer:".into(),
            tail: "a".into(),
            ..AgentSpec::default()
        }),
        messages: messages.clone(),
        context: "b".into(),
        salt: vec![1; 32],
        ..Start::default()
    };
    vec![
        [vec![0], prepare(None).encode_to_vec()].concat(),
        [vec![0], prepare(answer.clone()).encode_to_vec()].concat(),
        [vec![1], start.encode_to_vec()].concat(),
    ]
}
