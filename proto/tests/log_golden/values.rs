//! The messages that commands, records and audit events are made of.

use conclave_proto::v1::*;

pub fn inline(text: &str) -> Option<Payload> {
    Some(Payload {
        body: Some(payload::Body::Inline(text.into())),
    })
}

pub fn blob() -> Option<Payload> {
    Some(Payload {
        body: Some(payload::Body::Blob(BlobRef {
            hash: vec![0xb1; 32],
            length: 20_000,
        })),
    })
}

pub fn key() -> AttemptKey {
    AttemptKey {
        job_id: "job-1".into(),
        agent: 2,
        attempt: 3,
    }
}

pub fn model() -> ModelInfo {
    ModelInfo {
        name: "m".into(),
        digest: vec![0xd1; 32],
        numeric_class: "q4/avx2".into(),
        context_tokens: 4096,
    }
}

pub fn prepared() -> Prepared {
    Prepared {
        job_id: "job-1".into(),
        error: "too long".into(),
        prompt_tokens: 40,
        model_digest: vec![0xd1; 32],
        numeric_class: "q4/avx2".into(),
        model: "m".into(),
        checkpoints: vec![vec![1; 16], vec![2; 16]],
        context_tokens: 4096,
        retry: true,
    }
}

pub fn agent_spec() -> AgentSpec {
    AgentSpec {
        agent: 2,
        role: Role::Refiner as i32,
        round: 1,
        index: 4,
        seed: 0x0123_4567_89ab_cdef,
        tail: "be brief".into(),
        thought_tokens: 192,
        answer_tokens: 128,
        sampling: Some(Sampling {
            temperature: Some(0.5),
            top_k: Some(40),
            top_p: Some(0.25),
            min_p: Some(0.125),
            repetition_penalty: Some(1.5),
            stop: vec!["END".into()],
        }),
        confidence: Some(ConfidencePolicy {
            top_k: Some(5),
            window: Some(32),
            stop_below: Some(2.0),
        }),
        answer: Some(AnswerKind {
            kind: Some(answer_kind::Kind::Regex("yes|no".into())),
        }),
        thinking_penalty: 0.75,
        sources: vec![1, 2, 300],
        cue: "So:".into(),
    }
}

pub fn answer() -> Answer {
    Answer {
        text: "Yes.".into(),
        canonical: "yes".into(),
        aggregator: Aggregator::Majority as i32,
        votes: vec![vote()],
        agent: Some(1),
        edited: true,
    }
}

pub fn vote() -> Vote {
    Vote {
        canonical: "yes".into(),
        agents: vec![1, 3],
        weight_micro: -2_000_000,
    }
}
