//! Worker sessions on the leader: hello, prompts, results, leases.

use std::collections::BTreeMap;

use conclave_coordinator_core::{Reply, payload, payload::InlineOnly, placement::Load, view};
use conclave_proto::v1::{
    AttemptFinished, AttemptKey, AttemptResult, CoordinatorMessage, DrainWorker, Heartbeat, Hello,
    NotLeader, PrepareDone, Prepared, RegisterWorker, Resend, Welcome, attempt_finished,
    attempt_result, command::Command as Body, coordinator_message::Message as ToWorker,
    worker_message::Message as FromWorker,
};
use prost::Message as _;

use super::{
    coordinator::Coordinator,
    cx::{Addr, Cx, Wire},
    waiters::Waiter,
};

/// How long a worker may look at a prompt before another is asked, ms.
const LOOK_MS: u64 = 10_000;
/// Period of a worker's signs of life, ms.
pub(super) const BEAT_MS: u64 = 1_000;

/// One worker's open stream.
#[derive(Debug)]
pub(super) struct Session {
    pub worker_id: String,
    pub incarnation: String,
    pub registered: bool,
    load: Load,
    steps: Option<u64>,
    running: Vec<AttemptKey>,
    peer: Addr,
}

/// The sessions of a leader.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_id: BTreeMap<u64, Session>,
    /// Prompts under way: by job, the session and until when.
    looking: BTreeMap<String, (u64, u64)>,
    turn: usize,
}

impl Sessions {
    pub(super) fn all(&self) -> Vec<(u64, Addr)> {
        self.by_id.iter().map(|(id, s)| (*id, s.peer)).collect()
    }

    pub(super) fn close(&mut self, id: u64) {
        self.by_id.remove(&id);
        self.looking.retain(|_, (session, _)| *session != id);
    }

    pub(super) fn connected(&self, worker_id: &str, incarnation: &str) -> bool {
        self.find(worker_id, Some(incarnation)).is_some()
    }

    pub(super) fn loads(&self) -> BTreeMap<String, Load> {
        let registered = self.by_id.values().filter(|s| s.registered);
        registered.map(|s| (s.worker_id.clone(), s.load)).collect()
    }

    pub(super) fn retain_looks(&mut self, needed: impl Fn(&str) -> bool) {
        self.looking.retain(|job_id, _| needed(job_id));
    }

    /// The worker's session; of this process and registered, if one is named.
    fn find(&self, worker_id: &str, incarnation: Option<&str>) -> Option<u64> {
        let of = |s: &Session| {
            s.worker_id == worker_id
                && incarnation.is_none_or(|i| s.registered && s.incarnation == i)
        };
        self.by_id.iter().find(|(_, s)| of(s)).map(|(id, _)| *id)
    }
}

impl Coordinator {
    /// Sends to the worker's session; to any of its processes if none is named.
    pub(super) fn speak_to(
        &mut self,
        worker_id: &str,
        incarnation: Option<&str>,
        message: ToWorker,
        cx: &mut Cx,
    ) {
        if let Some(id) = self.sessions.find(worker_id, incarnation) {
            self.send_in(id, message, cx);
        }
    }

    fn send_in(&mut self, id: u64, message: ToWorker, cx: &mut Cx) {
        let Some(peer) = self.sessions.by_id.get(&id).map(|s| s.peer) else {
            return;
        };
        let message = CoordinatorMessage {
            term: self.leadership.term,
            message: Some(message),
        };
        cx.send(self.addr(), peer, Wire::Down(id, Box::new(message)));
    }

    pub(super) fn close_session(&mut self, id: u64, cx: &mut Cx) {
        if let Some(peer) = self.sessions.by_id.get(&id).map(|s| s.peer) {
            cx.send(self.addr(), peer, Wire::Close(id));
        }
        self.sessions.close(id);
    }

    /// Tells workers where to go, and closes their sessions.
    pub(super) fn dismiss_workers(&mut self, cx: &mut Cx) {
        let leader = self.leadership.leader_id.to_string();
        for (id, peer) in self.sessions.all() {
            let message = CoordinatorMessage {
                term: self.leadership.term,
                message: Some(ToWorker::NotLeader(NotLeader {
                    leader: leader.clone(),
                    members: Vec::new(),
                })),
            };
            cx.send(self.addr(), peer, Wire::Down(id, Box::new(message)));
            self.sessions.close(id);
        }
    }

    pub(super) fn hello(&mut self, id: u64, peer: Addr, hello: Hello, cx: &mut Cx) {
        let serving = self.lead.as_ref().is_some_and(|l| l.serving);
        let old: Vec<u64> = self
            .sessions
            .by_id
            .iter()
            .filter(|(_, s)| s.peer == peer)
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            self.close_session(id, cx);
        }
        let session = Session {
            worker_id: hello.worker_id.clone(),
            incarnation: hello.incarnation.clone(),
            registered: false,
            load: Load::default(),
            steps: None,
            running: hello.running.clone(),
            peer,
        };
        self.sessions.by_id.insert(id, session);
        if !serving {
            return self.dismiss_workers(cx);
        }
        let finished = hello.finished.iter().filter_map(|r| r.key.clone());
        let register = RegisterWorker {
            running: hello.running.iter().cloned().chain(finished).collect(),
            worker_id: hello.worker_id,
            incarnation: hello.incarnation,
            models: hello.models,
            max_sequences: hello.max_sequences,
            kv_blocks: hello.kv_blocks,
            version: hello.version,
        };
        self.own(Body::RegisterWorker(register), Waiter::Hello(id), cx);
        if hello.draining {
            self.draining(id, cx);
        }
        for result in hello.finished {
            self.result(id, result, cx);
        }
    }

    pub(super) fn welcome(&mut self, id: u64, reply: &Reply, cx: &mut Cx) {
        if *reply != Reply::Ok {
            return self.close_session(id, cx);
        }
        let Some(session) = self.sessions.by_id.get_mut(&id) else {
            return;
        };
        session.registered = true;
        let running = std::mem::take(&mut session.running);
        self.send_in(id, ToWorker::Welcome(Welcome::default()), cx);
        for key in running {
            let resend = Resend {
                key: Some(key),
                offset: 0,
            };
            self.send_in(id, ToWorker::Resend(resend), cx);
        }
    }

    pub(super) fn hear(
        &mut self,
        id: u64,
        message: conclave_proto::v1::WorkerMessage,
        cx: &mut Cx,
    ) {
        if !self.sessions.by_id.contains_key(&id) || !self.lead.as_ref().is_some_and(|l| l.serving)
        {
            return;
        }
        match message.message {
            Some(FromWorker::Prepared(prepared)) => self.prepared(prepared, cx),
            Some(FromWorker::Result(result)) => self.result(id, result, cx),
            Some(FromWorker::Heartbeat(beat)) => self.alive(id, &beat, cx),
            Some(FromWorker::Draining(_)) => self.draining(id, cx),
            Some(FromWorker::Progress(_) | FromWorker::Hello(_)) | None => {}
        }
    }

    fn draining(&mut self, id: u64, cx: &mut Cx) {
        let Some(session) = self.sessions.by_id.get(&id) else {
            return;
        };
        let drain = DrainWorker {
            worker_id: session.worker_id.clone(),
            incarnation: session.incarnation.clone(),
        };
        self.own(Body::DrainWorker(drain), Waiter::Nobody, cx);
    }

    fn result(&mut self, id: u64, result: AttemptResult, cx: &mut Cx) {
        let Some(worker_id) = self.sessions.by_id.get(&id).map(|s| s.worker_id.clone()) else {
            return;
        };
        let Some(key) = result.key else { return };
        let outcome = match result.result {
            Some(attempt_result::Result::Draft(draft)) => {
                attempt_finished::Result::Draft(payload::inline(draft.encode_to_vec()))
            }
            Some(attempt_result::Result::Error(error)) => attempt_finished::Result::Error(error),
            None => return,
        };
        let finished = AttemptFinished {
            key: Some(key.clone()),
            incarnation: result.incarnation,
            result: Some(outcome),
            unix_ms: self.unix_ms(cx),
        };
        self.own(
            Body::AttemptFinished(finished),
            Waiter::Result(worker_id, key),
            cx,
        );
    }

    /// A sign of life: a lease is renewed only if steps move while there is work (law 4).
    fn alive(&mut self, id: u64, beat: &Heartbeat, cx: &mut Cx) {
        let Some(session) = self.sessions.by_id.get_mut(&id) else {
            return;
        };
        let moved = session.steps.replace(beat.steps) != Some(beat.steps);
        let load = Load {
            running: beat.running,
            waiting: beat.waiting,
            kv_blocks_free: beat.kv_blocks_free,
        };
        let freed = load.running + load.waiting < session.load.running + session.load.waiting;
        session.load = load;
        if !session.registered {
            return;
        }
        let (worker_id, incarnation) = (session.worker_id.clone(), session.incarnation.clone());
        let leased = self.state.worker(&worker_id);
        if leased.is_none_or(|w| w.incarnation != incarnation) {
            return self.close_session(id, cx);
        }
        let Some(lead) = &mut self.lead else { return };
        lead.place |= freed;
        if moved || !beat.has_work {
            cx.ledger.renewed(id, beat.steps, beat.has_work);
            lead.renew.insert(worker_id, incarnation);
        } else {
            cx.coverage.hit("deeds", "lease withheld");
        }
    }

    fn prepared(&mut self, prepared: Prepared, cx: &mut Cx) {
        if prepared.retry {
            if let Some((_, until)) = self.sessions.looking.get_mut(&prepared.job_id) {
                *until = cx.now + 200;
            }
            return;
        }
        self.sessions.looking.remove(&prepared.job_id);
        let done = PrepareDone {
            prepared: Some(prepared),
        };
        self.own(Body::PrepareDone(done), Waiter::Nobody, cx);
    }

    /// Asks a worker to look at the job's prompt, each in its turn.
    pub(super) fn prepare(&mut self, job_id: &str, cx: &mut Cx) {
        let Some(job) = self.state.job(job_id).filter(|job| job.needs_prepare()) else {
            return;
        };
        let under_way = self.sessions.looking.get(job_id);
        if under_way.is_some_and(|(_, until)| *until > cx.now) {
            return;
        }
        let able = |(id, s): (&u64, &Session)| s.registered.then_some(*id);
        let able: Vec<u64> = self.sessions.by_id.iter().filter_map(able).collect();
        let Ok(prepare) = view::prepare(&self.state, job, &InlineOnly) else {
            return;
        };
        if able.is_empty() {
            return;
        }
        let id = able[self.sessions.turn % able.len()];
        self.sessions.turn += 1;
        let look = (id, cx.now + LOOK_MS);
        self.sessions.looking.insert(job_id.to_owned(), look);
        self.send_in(id, ToWorker::Prepare(prepare), cx);
    }
}
