//! A worker's side of its session: each message made into the command that the leader would propose, and
//! its text into the feed that watchers read.

use conclave_coordinator_core::{
    State, payload,
    watch::{Positions, Texts},
};
use conclave_proto::v1::{
    AttemptFinished, AttemptKey, AttemptResult, Draft, Heartbeat, Hello, PrepareDone, Prepared,
    Progress, RegisterWorker, RenewLeases, TokenDelta, WorkerLease, WorkerMessage,
    attempt_finished, attempt_result::Result as Ended, command::Command as Body,
    worker_message::Message as Said,
};
use prost::{Message as _, bytes::Buf};

use super::history;
use crate::{Limits, Target};

/// Length-delimited `WorkerMessage`s.
pub const TARGET: Target = Target {
    name: "worker_messages",
    run,
    seeds,
    words: &["job-1", "w1", "i1", "m", "\x08\x01\x10\x01"],
    inputs: 8000,
    limits: Limits {
        memory: 64 << 20,
        ..Limits::SMALL
    },
};

fn run(mut input: &[u8]) {
    let mut state = State::new();
    for command in history::golden().into_iter().take(9) {
        let index = state.applied_index() + 1;
        state.apply(index, 1, &command);
    }
    let mut texts = Texts::default();
    let mut positions = Positions::new();
    for _ in 0..32 {
        if !input.has_remaining() {
            break;
        }
        let Ok(message) = WorkerMessage::decode_length_delimited(&mut input) else {
            break;
        };
        if let Some(Said::Progress(Progress {
            key: Some(key),
            delta: Some(delta),
        })) = &message.message
        {
            let delta = TokenDelta {
                agent: key.agent,
                attempt: key.attempt,
                ..delta.clone()
            };
            texts.push(delta);
            texts.read(&mut positions, usize::MAX);
        }
        if let Some(body) = command(message) {
            history::apply(&mut state, body);
        }
        history::lead(&mut state);
    }
    history::examine(&state);
}

/// As the leader's loop does it.
fn command(message: WorkerMessage) -> Option<Body> {
    Some(match message.message? {
        Said::Hello(hello) => {
            let finished = hello.finished.iter().filter_map(|r| r.key.clone());
            Body::RegisterWorker(RegisterWorker {
                running: hello.running.iter().cloned().chain(finished).collect(),
                worker_id: hello.worker_id,
                incarnation: hello.incarnation,
                models: hello.models,
                max_sequences: hello.max_sequences,
                kv_blocks: hello.kv_blocks,
                version: hello.version,
            })
        }
        Said::Prepared(prepared) => Body::PrepareDone(PrepareDone {
            prepared: Some(prepared),
        }),
        Said::Result(result) => {
            let outcome = match result.result? {
                Ended::Draft(draft) => {
                    attempt_finished::Result::Draft(payload::inline(draft.encode_to_vec()))
                }
                Ended::Error(error) => attempt_finished::Result::Error(error),
            };
            Body::AttemptFinished(AttemptFinished {
                key: Some(result.key?),
                incarnation: result.incarnation,
                result: Some(outcome),
                unix_ms: 5,
            })
        }
        Said::Heartbeat(_) => Body::RenewLeases(RenewLeases {
            leases: vec![WorkerLease {
                worker_id: "w1".into(),
                incarnation: "i1".into(),
            }],
        }),
        Said::Progress(_) | Said::Draining(_) => return None,
    })
}

fn seeds() -> Vec<Vec<u8>> {
    let key = || {
        Some(AttemptKey {
            job_id: "job-1".into(),
            agent: 1,
            attempt: 1,
        })
    };
    let delta = |offset, tokens| {
        Said::Progress(Progress {
            key: key(),
            delta: Some(TokenDelta {
                offset,
                tokens,
                text: "abc".into(),
                ..TokenDelta::default()
            }),
        })
    };
    let draft = Draft {
        answer: "yes".into(),
        canonical: "yes".into(),
        token_ids: vec![1, 2],
        ..Draft::default()
    };
    let said = [
        Said::Hello(Hello {
            worker_id: "w1".into(),
            incarnation: "i2".into(),
            max_sequences: 4,
            kv_blocks: 100,
            running: key().into_iter().collect(),
            ..Hello::default()
        }),
        Said::Prepared(Prepared {
            job_id: "job-1".into(),
            prompt_tokens: 40,
            model: "m".into(),
            ..Prepared::default()
        }),
        delta(0, 3),
        delta(3, 2),
        delta(2, 2),
        Said::Heartbeat(Heartbeat::default()),
        Said::Result(AttemptResult {
            key: key(),
            incarnation: "i1".into(),
            result: Some(Ended::Draft(draft)),
        }),
    ];
    let each: Vec<Vec<u8>> = said
        .into_iter()
        .map(|said| {
            let message = WorkerMessage {
                message: Some(said),
            };
            message.encode_length_delimited_to_vec()
        })
        .collect();
    let all = each.concat();
    [vec![all], each].concat()
}
