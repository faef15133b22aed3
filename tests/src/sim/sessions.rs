//! Worker sessions of a coordinator: streams; their words go to the leader.

use std::collections::BTreeMap;

use conclave_coordinator_core::lead::Sign;
use conclave_proto::v1::{
    AttemptResult, CoordinatorMessage, Heartbeat, Hello, NotLeader, Payload, WorkerMessage,
    attempt_finished, attempt_result, coordinator_message::Message as ToWorker,
    worker_message::Message as FromWorker,
};
use prost::Message as _;

use super::{
    blobs::Purpose,
    coordinator::Coordinator,
    cx::{Addr, Cx, Wire},
};

/// Open streams, and who is at the other end.
pub(super) type Sessions = BTreeMap<u64, Addr>;

impl Coordinator {
    pub(super) fn send_in(&mut self, id: u64, message: ToWorker, cx: &mut Cx) {
        let Some(peer) = self.sessions.get(&id) else {
            return;
        };
        let message = CoordinatorMessage {
            term: self.leadership.term,
            message: Some(message),
        };
        cx.send(self.addr(), *peer, Wire::Down(id, Box::new(message)));
    }

    pub(super) fn close_session(&mut self, id: u64, cx: &mut Cx) {
        if let Some(peer) = self.sessions.remove(&id) {
            cx.send(self.addr(), peer, Wire::Close(id));
        }
    }

    /// The stream is gone.
    pub(super) fn lost_session(&mut self, id: u64) {
        self.sessions.remove(&id);
        if let Some(leader) = &mut self.leader {
            leader.closed(id);
        }
    }

    /// Tells workers where to go, and closes their sessions.
    pub(super) fn dismiss_workers(&mut self, cx: &mut Cx) {
        let leader = self.leadership.leader_id.to_string();
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            let message = ToWorker::NotLeader(NotLeader {
                leader: leader.clone(),
                ..NotLeader::default()
            });
            self.send_in(id, message, cx);
        }
        self.sessions.clear();
    }

    pub(super) fn hello(&mut self, id: u64, peer: Addr, mut hello: Hello, cx: &mut Cx) {
        self.sessions.insert(id, peer);
        let Some(leader) = self.leader.as_mut().filter(|l| l.serving()) else {
            return self.dismiss_workers(cx);
        };
        let finished = hello.finished.clone();
        // As the shell does: the results follow one by one.
        for result in &mut hello.finished {
            result.result = None;
        }
        leader.hello(id, hello);
        for result in finished {
            self.result(id, result, cx);
        }
    }

    pub(super) fn hear(&mut self, id: u64, message: WorkerMessage, cx: &mut Cx) {
        let serving = self.leader.as_mut().filter(|l| l.serving());
        let Some(leader) = serving.filter(|_| self.sessions.contains_key(&id)) else {
            return;
        };
        match message.message {
            Some(FromWorker::Prepared(prepared)) => leader.prepared(prepared, cx.now),
            Some(FromWorker::Result(result)) => self.result(id, result, cx),
            Some(FromWorker::Heartbeat(beat)) => {
                let sign = self.with_leader(cx, |l, moment| l.heartbeat(id, &beat, moment));
                match sign {
                    Some(Sign::Renews) => self.renewed(id, beat, cx),
                    Some(Sign::Withheld) => cx.coverage.hit("deeds", "lease withheld"),
                    Some(Sign::Unknown) | None => {}
                }
            }
            Some(FromWorker::Draining(_)) => leader.draining(id),
            Some(FromWorker::Progress(progress)) => self.progress(id, progress, cx),
            Some(FromWorker::Hello(_)) | None => {}
        }
    }

    /// The lease of the session's process is to be renewed.
    fn renewed(&self, id: u64, beat: Heartbeat, cx: &mut Cx) {
        let Some(Addr::Worker(number)) = self.sessions.get(&id) else {
            return;
        };
        if let Some(leased) = self.state.worker(&format!("w{number}")) {
            let (term, process) = (self.leadership.term, &leased.incarnation);
            cx.ledger.renewed(term, process, beat.steps, beat.has_work);
        }
    }

    fn result(&mut self, id: u64, mut result: AttemptResult, cx: &mut Cx) {
        match result.result.take() {
            Some(attempt_result::Result::Draft(draft)) => {
                let draft = draft.encode_to_vec();
                self.with_payload(draft, Purpose::Draft(id, Box::new(result)), cx);
            }
            Some(attempt_result::Result::Error(error)) => {
                self.hand_in(id, result, attempt_finished::Result::Error(error), cx);
            }
            None => {}
        }
    }

    /// The draft of a result may be named now.
    pub(super) fn finished(&mut self, id: u64, result: AttemptResult, draft: Payload, cx: &mut Cx) {
        self.hand_in(id, result, attempt_finished::Result::Draft(draft), cx);
    }

    fn hand_in(
        &mut self,
        id: u64,
        result: AttemptResult,
        outcome: attempt_finished::Result,
        cx: &mut Cx,
    ) {
        let Some(key) = result.key else { return };
        self.with_leader(cx, |leader, moment| {
            leader.finished(id, key, result.incarnation, outcome, moment);
        });
    }

    /// What came on the session could not be taken: it ends, and the worker says hello again.
    pub(super) fn break_session(&mut self, id: u64, cx: &mut Cx) {
        self.close_session(id, cx);
        if let Some(leader) = &mut self.leader {
            leader.closed(id);
        }
    }
}
