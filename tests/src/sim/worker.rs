//! A worker: the engine of the core over its mock runner, behind a small session that keeps results
//! until they are acknowledged. It may hang with live signs of life, stand still, crash, restart.

use std::collections::{BTreeMap, VecDeque};

use conclave_proto::v1::{
    AttemptError, AttemptKey, AttemptResult, CoordinatorMessage, Draft, ErrorKind, Heartbeat,
    Hello, ModelInfo, Prepare, Prepared, Start, WorkerMessage, attempt_result,
    coordinator_message::Message as ToWorker, worker_message::Message as FromWorker,
};
use conclave_worker_core::{
    Engine, EngineError, Event as EngineEvent, Limits, Report, Request, SeqId, StopReason,
    mock::MockRunner,
};

use super::{
    cx::{Addr, Cx, Event, Wire, WorkerInput},
    mind::{self, Plan},
    sessions::BEAT_MS,
};

/// A job whose question holds this fails with every attempt, but not for good.
pub(super) const POISON: &str = "poison";
/// A job whose question holds this is refused by the worker that looks at it.
pub(super) const INVALID: &str = "invalid";
/// A job whose question holds this fails for good with its first attempt.
pub(super) const HOPELESS: &str = "hopeless";
/// Longest sequence, tokens.
pub(super) const CONTEXT: u32 = 4_096;

type Key = (String, u32, u32);

struct Live {
    seq: SeqId,
    start: Start,
    prompt: usize,
    ids: Vec<u32>,
    cached: usize,
}

/// A running worker process.
pub(super) struct Worker {
    pub number: u32,
    pub boot: u64,
    pub paused: bool,
    /// Makes no more steps, and says so to nobody.
    pub hung_since: Option<u64>,
    /// The session, its node, and when it opened.
    pub session: Option<(u64, u64, u64)>,
    engine: Engine<MockRunner>,
    report: Report,
    steps: u64,
    stepping: bool,
    term: u64,
    live: BTreeMap<Key, Live>,
    by_seq: BTreeMap<SeqId, Key>,
    results: BTreeMap<Key, AttemptResult>,
    next_seq: u64,
    leader: u64,
    draining: bool,
    inbox: VecDeque<WorkerInput>,
    step_ms: u64,
}

fn key_of(key: &AttemptKey) -> Key {
    (key.job_id.clone(), key.agent, key.attempt)
}

fn attempt_key(key: &Key) -> AttemptKey {
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
    pub(super) fn boot(number: u32, cx: &mut Cx) -> Worker {
        let limits = Limits {
            blocks: 96,
            step_tokens: 256,
            chunk_tokens: 64,
            max_running: 6,
            max_waiting: 32,
            max_context: CONTEXT as usize,
        };
        let engine = Engine::new(limits, MockRunner::new(limits.blocks)).expect("limits above 0");
        let boot = cx.number();
        let dial = cx.rng.between(1, 300);
        cx.after(dial, Event::Worker(number, boot, WorkerInput::Dial));
        cx.after(BEAT_MS, Event::Worker(number, boot, WorkerInput::Beat));
        Worker {
            number,
            boot,
            paused: false,
            hung_since: None,
            session: None,
            engine,
            report: Report::default(),
            steps: 0,
            stepping: false,
            term: 0,
            live: BTreeMap::new(),
            by_seq: BTreeMap::new(),
            results: BTreeMap::new(),
            next_seq: 0,
            leader: 0,
            draining: false,
            inbox: VecDeque::new(),
            step_ms: cx.rng.between(2, 40),
        }
    }

    fn addr(&self) -> Addr {
        Addr::Worker(self.number)
    }

    pub(super) fn worker_id(&self) -> String {
        format!("w{}", self.number)
    }

    pub(super) fn incarnation(&self) -> String {
        format!("i{}", self.boot)
    }

    pub(super) fn has_work(&self) -> bool {
        self.engine.has_work()
    }

    fn later(&self, ms: u64, input: WorkerInput, cx: &mut Cx) {
        cx.after(ms, Event::Worker(self.number, self.boot, input));
    }

    /// Something happens; while the process stands still, it waits.
    pub(super) fn take(&mut self, input: WorkerInput, nodes: &[u64], cx: &mut Cx) {
        if self.paused {
            return self.inbox.push_back(input);
        }
        match input {
            WorkerInput::Dial => self.dial(nodes, cx),
            WorkerInput::Beat => self.beat(cx),
            WorkerInput::Step => self.step(cx),
            WorkerInput::Lost(session) => self.lost(session, cx),
            WorkerInput::Wire(Wire::Close(session)) => self.lost(session, cx),
            WorkerInput::Wire(Wire::Down(session, message)) => self.hear(session, *message, cx),
            WorkerInput::Wire(_) => {}
            WorkerInput::Looked(session, message) => self.say(session, *message, cx),
        }
    }

    pub(super) fn resume(&mut self, nodes: &[u64], cx: &mut Cx) {
        self.paused = false;
        for input in std::mem::take(&mut self.inbox) {
            self.take(input, nodes, cx);
        }
    }

    /// Says hello to the leader, or to whoever may know it.
    fn dial(&mut self, nodes: &[u64], cx: &mut Cx) {
        if self.session.is_some() {
            return;
        }
        let known = nodes.contains(&self.leader).then_some(self.leader);
        let Some(node) = known.or_else(|| cx.rng.pick(nodes)) else {
            return self.later(500, WorkerInput::Dial, cx);
        };
        // The next try goes elsewhere, unless this one is welcomed.
        self.leader = 0;
        let session = cx.number();
        self.session = Some((session, node, cx.now));
        let hello = Hello {
            worker_id: self.worker_id(),
            incarnation: self.incarnation(),
            models: vec![self.model()],
            max_sequences: 6,
            kv_blocks: 96,
            version: "sim".into(),
            running: self.live.keys().map(attempt_key).collect(),
            finished: self.results.values().cloned().collect(),
            term: self.term,
            draining: self.draining,
        };
        cx.send(
            self.addr(),
            Addr::Node(node),
            Wire::Hello(session, Box::new(hello)),
        );
    }

    fn model(&self) -> ModelInfo {
        ModelInfo {
            name: "mock".into(),
            digest: vec![7; 32],
            numeric_class: "mock".into(),
            context_tokens: CONTEXT,
        }
    }

    fn lost(&mut self, session: u64, cx: &mut Cx) {
        if self.session.is_some_and(|(open, ..)| open == session) {
            self.session = None;
            let wait = cx.rng.between(50, 500);
            self.later(wait, WorkerInput::Dial, cx);
        }
    }

    fn say(&mut self, session: u64, message: WorkerMessage, cx: &mut Cx) {
        if let Some((open, node, _)) = self.session
            && open == session
        {
            cx.send(
                self.addr(),
                Addr::Node(node),
                Wire::Up(session, Box::new(message)),
            );
        }
    }

    fn hear(&mut self, session: u64, message: CoordinatorMessage, cx: &mut Cx) {
        let Some((open, node, _)) = self.session else {
            return;
        };
        if open != session {
            return;
        }
        if message.term < self.term {
            cx.coverage.hit("deeds", "a lower term refused by a worker");
            cx.cut(session, self.addr(), Addr::Node(node));
            return self.lost(session, cx);
        }
        self.term = message.term;
        match message.message {
            Some(ToWorker::Welcome(_)) => self.leader = node,
            Some(ToWorker::NotLeader(hint)) => {
                self.lost(session, cx);
                self.leader = hint.leader.parse().unwrap_or(0);
            }
            Some(ToWorker::Prepare(prepare)) => self.prepare(session, prepare, cx),
            Some(ToWorker::Start(start)) => self.start(start, cx),
            Some(ToWorker::Cancel(cancel)) => {
                if let Some(key) = cancel.key {
                    self.cancel(&key_of(&key), cx);
                }
            }
            Some(ToWorker::Ack(ack)) => {
                for key in &ack.keys {
                    self.results.remove(&key_of(key));
                }
            }
            Some(ToWorker::Resend(_)) | None => {}
        }
    }

    fn prepare(&mut self, session: u64, prepare: Prepare, cx: &mut Cx) {
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
    fn start(&mut self, start: Start, cx: &mut Cx) {
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
            return self.keep(key, failed(ErrorKind::Permanent, "hopeless"), cx);
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
            cached: 0,
        };
        self.live.insert(key, live);
        self.wake(cx);
    }

    fn cancel(&mut self, key: &Key, cx: &mut Cx) {
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

    fn wake(&mut self, cx: &mut Cx) {
        if !self.stepping && self.engine.has_work() {
            self.stepping = true;
            self.later(self.step_ms, WorkerInput::Step, cx);
        }
    }

    pub(super) fn unhang(&mut self, cx: &mut Cx) {
        self.hung_since = None;
        self.wake(cx);
    }

    fn step(&mut self, cx: &mut Cx) {
        self.stepping = false;
        if self.hung_since.is_some() {
            return;
        }
        if self.engine.step(&mut self.report).is_err() {
            cx.coverage.hit("deeds", "engine step failed");
        }
        self.steps += 1;
        for event in std::mem::take(&mut self.report.events) {
            match event {
                EngineEvent::Token { seq, token, .. } => {
                    if let Some(live) = self.by_seq.get(&seq).and_then(|k| self.live.get_mut(k)) {
                        live.ids.push(token);
                    }
                }
                EngineEvent::Injected { seq, tokens } => {
                    if let Some(live) = self.by_seq.get(&seq).and_then(|k| self.live.get_mut(k)) {
                        live.ids.extend(tokens);
                    }
                }
                EngineEvent::Preempted { .. } => cx.coverage.hit("deeds", "sequence preempted"),
                EngineEvent::Started { .. } => {}
                EngineEvent::Finished(f) => {
                    self.ended(f.seq, f.reason, f.cached_prompt_tokens, cx);
                }
            }
        }
        if self.steps.is_multiple_of(16) {
            let audit = self.engine.scheduler().audit();
            cx.ledger.engine(&self.worker_id(), audit.err());
        }
        self.wake(cx);
    }

    fn ended(&mut self, seq: SeqId, reason: StopReason, cached: usize, cx: &mut Cx) {
        let Some(key) = self.by_seq.remove(&seq) else {
            return;
        };
        let Some(mut live) = self.live.remove(&key) else {
            return;
        };
        live.cached = cached;
        let result = if reason == StopReason::Failed {
            failed(ErrorKind::Transient, "the step failed")
        } else {
            let cut = reason == StopReason::Cancelled;
            let draft: Draft = mind::draft(&live.start, live.prompt, &live.ids, live.cached, cut);
            attempt_result::Result::Draft(draft)
        };
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

    fn send_result(&mut self, result: AttemptResult, cx: &mut Cx) {
        if let Some((session, ..)) = self.session {
            let message = WorkerMessage {
                message: Some(FromWorker::Result(result)),
            };
            self.say(session, message, cx);
        }
    }

    /// A sign of life; and what was not acknowledged is sent again now and then.
    fn beat(&mut self, cx: &mut Cx) {
        self.later(BEAT_MS, WorkerInput::Beat, cx);
        let Some((session, ..)) = self.session else {
            return;
        };
        let stats = self.engine.stats();
        let beat = Heartbeat {
            steps: self.steps,
            has_work: self.engine.has_work(),
            running: stats.running as u32,
            waiting: stats.waiting as u32,
            kv_blocks_free: stats.blocks_free as u32,
        };
        let message = WorkerMessage {
            message: Some(FromWorker::Heartbeat(beat)),
        };
        self.say(session, message, cx);
        if cx.rng.below(5) == 0 {
            for result in self.results.values().cloned().collect::<Vec<_>>() {
                self.send_result(result, cx);
            }
        }
    }

    /// Takes nothing new from here on.
    pub(super) fn drain(&mut self, cx: &mut Cx) {
        self.draining = true;
        if let Some((session, ..)) = self.session {
            let message = WorkerMessage {
                message: Some(FromWorker::Draining(conclave_proto::v1::Draining {})),
            };
            self.say(session, message, cx);
        }
    }

    /// The next batch of the runner fails.
    pub(super) fn fail_step(&mut self) {
        self.engine.runner_mut().fail_next(true);
    }
}
