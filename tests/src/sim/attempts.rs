//! What a worker does with attempts: at most once each, and a result that is kept until it is
//! acknowledged.

use conclave_proto::v1::{
    AttemptError, AttemptKey, AttemptResult, Draft, ErrorKind, Prepare, Prepared, Progress, Resend,
    Start, TokenDelta, WorkerMessage, attempt_result, worker_message::Message as FromWorker,
};
use conclave_worker_core::{EngineError, Request, SeqId, StopReason};

use super::{
    cx::{Cx, WorkerInput},
    mind::{self, Plan},
    worker::{CONTEXT, Worker},
};

/// A job whose question holds this fails with every attempt, but not for good.
pub(super) const POISON: &str = "poison";
/// A job whose question holds this is refused by the worker that looks at it.
pub(super) const INVALID: &str = "invalid";
/// A job whose question holds this fails for good with its first attempt.
pub(super) const HOPELESS: &str = "hopeless";
/// What a worker says of such an attempt.
const FOR_GOOD: &str = "hopeless";
/// Job, agent, attempt.
pub(super) type Key = (String, u32, u32);

/// An attempt with the engine.
pub(super) struct Live {
    pub seq: SeqId,
    pub start: Start,
    pub prompt: usize,
    pub ids: Vec<u32>,
    /// Tokens whose text was sent.
    pub sent: usize,
}

/// Whether an attempt that ended with these words was never to be tried again.
pub(super) fn is_for_good(error: &str) -> bool {
    error == FOR_GOOD
}

pub(super) fn key_of(key: &AttemptKey) -> Key {
    (key.job_id.clone(), key.agent, key.attempt)
}

pub(super) fn attempt_key(key: &Key) -> AttemptKey {
    AttemptKey {
        job_id: key.0.clone(),
        agent: key.1,
        attempt: key.2,
    }
}

fn failed(kind: ErrorKind, message: &str) -> attempt_result::Result {
    attempt_result::Result::Error(AttemptError {
        kind: kind as i32,
        message: message.into(),
    })
}

fn question(start: &Start) -> String {
    let last = start.messages.last();
    last.map(|m| m.content.clone()).unwrap_or_default()
}

impl Worker {
    pub(super) fn prepare(&mut self, session: u64, prepare: Prepare, cx: &mut Cx) {
        let spec = prepare.spec.unwrap_or_default();
        let start = Start {
            messages: spec.messages,
            ..Start::default()
        };
        let invalid = question(&start).contains(INVALID);
        let prepared = Prepared {
            job_id: prepare.job_id,
            error: if invalid {
                "the question is invalid".into()
            } else {
                String::new()
            },
            prompt_tokens: mind::prompt(&start).len() as u32,
            model_digest: vec![7; 32],
            numeric_class: "mock".into(),
            model: "mock".into(),
            context_tokens: CONTEXT,
            retry: cx.rng.below(16) == 0,
            ..Prepared::default()
        };
        let message = WorkerMessage {
            message: Some(FromWorker::Prepared(prepared)),
        };
        let took = cx.rng.between(1, 100);
        self.later(took, WorkerInput::Looked(session, Box::new(message)), cx);
    }

    /// At most once per attempt, whatever is sent twice.
    pub(super) fn start(&mut self, start: Start, cx: &mut Cx) {
        let Some(key) = start.key.as_ref().map(key_of) else {
            return;
        };
        if start.incarnation != self.incarnation() || self.live.contains_key(&key) {
            return;
        }
        if let Some(result) = self.results.get(&key).cloned() {
            return self.send_result(result, cx);
        }
        cx.ledger.started(&key, &self.worker_id(), self.boot);
        if self.draining {
            return self.keep(key, failed(ErrorKind::Drained, "drains"), cx);
        }
        let asked = question(&start);
        if asked.contains(HOPELESS) {
            return self.keep(key, failed(ErrorKind::Permanent, FOR_GOOD), cx);
        }
        if asked.contains(POISON) {
            return self.keep(key, failed(ErrorKind::Transient, "poisoned"), cx);
        }
        self.next_seq += 1;
        let seq = SeqId(self.next_seq);
        let Plan { request, script } = mind::plan(&start, seq);
        self.take_on(key, seq, start, request, cx);
        if self.by_seq.contains_key(&seq) {
            self.engine.runner_mut().script(seq, script);
        }
    }

    fn take_on(&mut self, key: Key, seq: SeqId, start: Start, request: Request, cx: &mut Cx) {
        let prompt = request.tokens.len();
        match self.engine.submit(request) {
            Ok(()) => {}
            Err(EngineError::QueueFull { .. }) => {
                return self.keep(key, failed(ErrorKind::Transient, "the queue is full"), cx);
            }
            Err(error) => {
                return self.keep(key, failed(ErrorKind::Permanent, &error.to_string()), cx);
            }
        }
        self.by_seq.insert(seq, key.clone());
        let live = Live {
            seq,
            start,
            prompt,
            ids: Vec::new(),
            sent: 0,
        };
        self.live.insert(key, live);
        self.wake(cx);
    }

    pub(super) fn cancel(&mut self, key: &Key, cx: &mut Cx) {
        if let Some(seq) = self.live.get(key).map(|l| l.seq) {
            if let Ok(finished) = self.engine.cancel(seq) {
                self.ended(seq, finished.reason, finished.cached_prompt_tokens, cx);
            }
        } else if let Some(result) = self.results.get(key).cloned() {
            self.send_result(result, cx);
        } else {
            let result = failed(ErrorKind::Transient, "cancelled before it began");
            self.keep(key.clone(), result, cx);
        }
    }

    pub(super) fn ended(&mut self, seq: SeqId, reason: StopReason, cached: usize, cx: &mut Cx) {
        let Some(key) = self.by_seq.remove(&seq) else {
            return;
        };
        self.say_text(&key, usize::MAX, cx);
        let Some(live) = self.live.remove(&key) else {
            return;
        };
        let result = if reason == StopReason::Failed {
            failed(ErrorKind::Transient, "the step failed")
        } else {
            let cut = reason == StopReason::Cancelled;
            let draft: Draft = mind::draft(&live.start, live.prompt, &live.ids, cached, cut);
            attempt_result::Result::Draft(draft)
        };
        self.tails.insert(key.clone(), live);
        self.keep(key, result, cx);
    }

    /// Keeps a result until it is acknowledged, and sends it.
    fn keep(&mut self, key: Key, result: attempt_result::Result, cx: &mut Cx) {
        let result = AttemptResult {
            key: Some(attempt_key(&key)),
            incarnation: self.incarnation(),
            result: Some(result),
        };
        self.results.insert(key, result.clone());
        self.send_result(result, cx);
    }

    pub(super) fn send_result(&mut self, result: AttemptResult, cx: &mut Cx) {
        if let Some((session, _)) = self.session {
            let message = WorkerMessage {
                message: Some(FromWorker::Result(result)),
            };
            self.say(session, message, cx);
        }
    }

    /// Sends the text that the leader has not got: so many pieces at most, each of one phase.
    pub(super) fn say_text(&mut self, key: &Key, pieces: usize, cx: &mut Cx) {
        let Some((session, _)) = self.session else {
            return;
        };
        for _ in 0..pieces {
            let live = self.live.get_mut(key).or_else(|| self.tails.get_mut(key));
            let Some(delta) = live.and_then(|live| next_piece(live, key)) else {
                return;
            };
            let progress = Progress {
                key: Some(attempt_key(key)),
                delta: Some(delta),
            };
            let message = WorkerMessage {
                message: Some(FromWorker::Progress(progress)),
            };
            self.say(session, message, cx);
        }
    }

    /// The text is sent again from this token on.
    pub(super) fn resend(&mut self, resend: Resend, cx: &mut Cx) {
        let Some(key) = resend.key.as_ref().map(key_of) else {
            return;
        };
        if let Some(live) = self.live.get_mut(&key).or_else(|| self.tails.get_mut(&key)) {
            live.sent = live.sent.min(resend.offset as usize);
            self.say_text(&key, usize::MAX, cx);
        }
    }
}

/// Tokens of one piece of text, at most.
const PIECE: usize = 6;

/// The next piece of an attempt's text.
fn next_piece(live: &mut Live, key: &Key) -> Option<TokenDelta> {
    let thought = live.start.spec.as_ref().map_or(0, |s| s.thought_tokens) as usize;
    let first = live.sent;
    let phase = if first < thought { thought } else { usize::MAX };
    let end = live.ids.len().min(first + PIECE).min(phase);
    let ids = live.ids.get(first..end).filter(|ids| !ids.is_empty())?;
    let text: String = ids.iter().map(|id| format!("{id:x} ")).collect();
    live.sent = end;
    Some(TokenDelta {
        agent: key.1,
        attempt: key.2,
        offset: first as u32,
        tokens: (end - first) as u32,
        text,
        thought: first < thought,
        prompt_tokens: live.prompt as u32,
        ..TokenDelta::default()
    })
}
