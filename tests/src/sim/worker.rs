//! A worker: the engine of the core over its mock runner, behind a small session that keeps results
//! until they are acknowledged. It may hang with live signs of life, stand still, crash, restart.

use std::collections::{BTreeMap, VecDeque};

use conclave_coordinator_core::lead::WORKER_BEAT_MS as BEAT_MS;
use conclave_proto::v1::{
    AttemptResult, CoordinatorMessage, Heartbeat, Hello, ModelInfo, WorkerMessage,
    coordinator_message::Message as ToWorker, worker_message::Message as FromWorker,
};
use conclave_worker_core::{
    Engine, Event as EngineEvent, Limits, Report, SeqId, fence::Fence, mock::MockRunner,
};

use super::{
    attempts::{Key, Live, attempt_key, key_of},
    cx::{Addr, Cx, Event, Wire, WorkerInput},
    invariants::Held,
};

/// Longest sequence, tokens.
pub(super) const CONTEXT: u32 = 4_096;
/// Sequences at a time, and blocks for them, as a worker says it has.
const SEQUENCES: u32 = 6;
const BLOCKS: u32 = 96;

/// A running worker process.
pub(super) struct Worker {
    pub number: u32,
    pub boot: u64,
    pub paused: bool,
    /// Makes no more steps, and says so to nobody.
    pub hung: bool,
    /// The session and its node.
    pub session: Option<(u64, u64)>,
    pub(super) engine: Engine<MockRunner>,
    report: Report,
    steps: u64,
    stepping: bool,
    fence: Fence,
    pub(super) live: BTreeMap<Key, Live>,
    pub(super) by_seq: BTreeMap<SeqId, Key>,
    pub(super) results: BTreeMap<Key, AttemptResult>,
    /// Text of attempts whose results are kept.
    pub(super) tails: BTreeMap<Key, Live>,
    pub(super) next_seq: u64,
    leader: u64,
    pub(super) draining: bool,
    inbox: VecDeque<WorkerInput>,
    step_ms: u64,
}

impl Worker {
    pub(super) fn boot(number: u32, cx: &mut Cx) -> Worker {
        let mut limits = Limits {
            blocks: BLOCKS,
            step_tokens: 256,
            chunk_tokens: 64,
            max_running: SEQUENCES as usize,
            max_waiting: 32,
            max_context: CONTEXT as usize,
        };
        if cx.short_workers {
            (limits.blocks, limits.max_running, limits.max_waiting) = (9, 4, 1);
        }
        let engine = Engine::new(limits, MockRunner::new(limits.blocks)).expect("limits above 0");
        let boot = cx.number();
        let dial = cx.rng.between(1, 300);
        cx.after(dial, Event::Worker(number, boot, WorkerInput::Dial));
        cx.after(BEAT_MS, Event::Worker(number, boot, WorkerInput::Beat));
        Worker {
            number,
            boot,
            paused: false,
            hung: false,
            session: None,
            engine,
            report: Report::default(),
            steps: 0,
            stepping: false,
            fence: Fence::default(),
            live: BTreeMap::new(),
            by_seq: BTreeMap::new(),
            results: BTreeMap::new(),
            tails: BTreeMap::new(),
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

    /// What it holds, and the most it may.
    pub(super) fn held(&self) -> Held {
        Held::default()
            .with("inputs waiting", self.inbox.len() as u64, 1_024)
            .with("attempts under way", self.live.len() as u64, 6 + 32)
            .with("results kept", self.results.len() as u64, 256)
            .with("texts kept", self.tails.len() as u64, 256)
    }

    /// It computes nothing, and every result has been acknowledged.
    pub(super) fn is_quiet(&self) -> bool {
        self.live.is_empty() && self.results.is_empty() && self.tails.is_empty()
    }

    pub(super) fn has_work(&self) -> bool {
        self.engine.has_work()
    }

    pub(super) fn later(&self, ms: u64, input: WorkerInput, cx: &mut Cx) {
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
        self.session = Some((session, node));
        let hello = Hello {
            worker_id: self.worker_id(),
            incarnation: self.incarnation(),
            models: vec![self.model()],
            max_sequences: SEQUENCES,
            kv_blocks: BLOCKS,
            version: "sim".into(),
            running: self.live.keys().map(attempt_key).collect(),
            finished: self.results.values().cloned().collect(),
            term: self.fence.term(),
            draining: self.draining,
            cluster_id: String::new(),
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
        if self.session.is_some_and(|(open, _)| open == session) {
            self.session = None;
            let wait = cx.rng.between(50, 500);
            self.later(wait, WorkerInput::Dial, cx);
        }
    }

    pub(super) fn say(&mut self, session: u64, message: WorkerMessage, cx: &mut Cx) {
        if let Some((open, node)) = self.session
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
        let Some((open, node)) = self.session else {
            return;
        };
        if open != session {
            return;
        }
        if self.fence.hear(message.term).is_err() {
            cx.coverage.hit("deeds", "a lower term refused by a worker");
            cx.cut(session, self.addr(), Addr::Node(node));
            return self.lost(session, cx);
        }
        match message.message {
            Some(ToWorker::Welcome(_)) => {
                self.leader = node;
                // There is room on the stream: text goes on where it was, whatever was lost meanwhile.
                for key in self.live.keys().cloned().collect::<Vec<_>>() {
                    self.say_text(&key, 1, cx);
                }
            }
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
                    self.tails.remove(&key_of(key));
                }
            }
            Some(ToWorker::Resend(resend)) => self.resend(resend, cx),
            None => {}
        }
    }

    pub(super) fn wake(&mut self, cx: &mut Cx) {
        if !self.stepping && self.engine.has_work() {
            self.stepping = true;
            self.later(self.step_ms, WorkerInput::Step, cx);
        }
    }

    pub(super) fn unhang(&mut self, cx: &mut Cx) {
        self.hung = false;
        self.wake(cx);
    }

    fn step(&mut self, cx: &mut Cx) {
        self.stepping = false;
        if self.hung {
            return cx.fault("engine hung with work");
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
        // Text is pulled when the stream has room: now and then, some of it.
        if cx.rng.below(3) == 0 {
            for key in self.live.keys().cloned().collect::<Vec<_>>() {
                self.say_text(&key, 1, cx);
            }
        }
        if self.steps.is_multiple_of(16) {
            let audit = self.engine.scheduler().audit();
            cx.ledger.engine(&self.worker_id(), audit.err());
        }
        self.wake(cx);
    }

    /// A sign of life; and what was not acknowledged is sent again now and then.
    fn beat(&mut self, cx: &mut Cx) {
        self.later(BEAT_MS, WorkerInput::Beat, cx);
        let Some((session, _)) = self.session else {
            return;
        };
        let stats = self.engine.stats();
        let beat = Heartbeat {
            steps: self.steps,
            has_work: self.engine.has_work(),
            running: stats.running as u32,
            waiting: stats.waiting as u32,
            kv_blocks_free: stats.blocks_free as u32,
            ..Heartbeat::default()
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
        if let Some((session, _)) = self.session {
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
