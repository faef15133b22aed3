//! What clients ask a coordinator: what the API adds to their words, and linearizable reads.

use std::borrow::Cow;

use conclave_coordinator_core::{
    lead::Leader,
    node::Role,
    payload::{self, InlineOnly},
};
use conclave_proto::v1::command::Command as Body;

use super::{
    blobs::Purpose,
    coordinator::Coordinator,
    cx::{Addr, Ask, Cx, Told, Wire},
    waiters::{READ_MS, Waiter, Wanted},
};

/// Room that is kept for running jobs, bytes.
const RESERVE: u64 = 10_000;

impl Coordinator {
    pub(super) fn asked(&mut self, from: Addr, number: u64, ask: Ask, cx: &mut Cx) {
        let serving = self.leader.as_ref().is_some_and(Leader::serving);
        // A read is answered by every member that hears its leader.
        let follows = self.leadership.role != Role::Leader && self.leadership.leader_id != 0;
        let reads = matches!(ask, Ask::Get(_)) && follows;
        if !serving && !reads {
            let hint = Told::NotLeader(self.leadership.leader_id);
            return cx.send(self.addr(), from, Wire::Told(number, Box::new(hint)));
        }
        match ask {
            Ask::Propose(body) => {
                let body = self.stamped(body, cx);
                self.accept(body, from, number, cx);
            }
            Ask::Get(job_id) => {
                let applied = cx.ledger.highest;
                self.read(Wanted::Job(from, number, job_id, applied), cx);
            }
        }
    }

    /// Reads the state at a read point, if there is room to wait for one.
    pub(super) fn read(&mut self, wanted: Wanted, cx: &mut Cx) {
        if let Err(refused) = self.reads.add(wanted, cx.now + READ_MS) {
            self.refuse(refused, cx);
        }
    }

    /// Tells a client or a watcher that its read came to nothing.
    pub(super) fn refuse(&mut self, wanted: Wanted, cx: &mut Cx) {
        match wanted {
            Wanted::Job(from, number, ..) => {
                cx.send(self.addr(), from, Wire::Told(number, Box::new(Told::Busy)));
            }
            Wanted::Watch(stream) => self.end_watch(stream, cx),
            Wanted::Leader(..) => {}
        }
    }

    /// A submission's spec may have to travel apart; and there must be room for it.
    fn accept(&mut self, body: Body, from: Addr, number: u64, cx: &mut Cx) {
        match body {
            Body::SubmitJob(command) => {
                if self.disk.room.is_some_and(|room| room < RESERVE) {
                    cx.coverage
                        .hit("deeds", "a submission refused, disk reserve");
                    let busy = Box::new(Told::Busy);
                    return cx.send(self.addr(), from, Wire::Told(number, busy));
                }
                let spec = command.spec.as_ref().map(|s| payload::read(s, &InlineOnly));
                let bytes = spec.and_then(Result::ok).map(Cow::into_owned);
                let submit = Purpose::Submit(from, number, Box::new(command));
                self.with_payload(bytes.unwrap_or_default(), submit, cx);
            }
            mut other => {
                self.with_leader(cx, |leader, moment| leader.stamp(&mut other, moment));
                self.propose(other, Waiter::Call(from, number), 5_000, cx);
            }
        }
    }

    /// What the API adds to a caller's words: ids and times.
    fn stamped(&mut self, body: Body, cx: &Cx) -> Body {
        let now = self.unix_ms(cx);
        match body {
            Body::SubmitJob(mut c) => {
                self.minted += 1;
                c.job_id = format!("{:08x}-{}-{}", cx.now, self.id, self.minted);
                c.unix_ms = now;
                if c.deadline_unix_ms > 0 {
                    c.deadline_unix_ms += now;
                }
                Body::SubmitJob(c)
            }
            Body::CancelJob(c) => {
                Body::CancelJob(conclave_proto::v1::CancelJobCommand { unix_ms: now, ..c })
            }
            other => other,
        }
    }

    pub(super) fn serve_reads(&mut self, cx: &mut Cx) -> bool {
        let mut moved = false;
        for wanted in self.reads.ready(self.state.applied_index()) {
            match wanted {
                Wanted::Job(from, number, job_id, least) => {
                    cx.ledger.served(self.id, self.state.applied_index(), least);
                    if self.leader.is_none() {
                        cx.coverage.hit("deeds", "a read answered by a follower");
                    }
                    let job = self.state.job(&job_id).map(|j| (j.state, j.events.len()));
                    cx.send(
                        self.addr(),
                        from,
                        Wire::Told(number, Box::new(Told::Job(job))),
                    );
                }
                Wanted::Watch(stream) => self.watch_confirmed(stream, cx),
                Wanted::Leader(term, pause) => {
                    if let Some(leader) = self.leader_of(term) {
                        leader.confirmed(pause);
                        moved = true;
                    }
                }
            }
        }
        moved
    }
}
