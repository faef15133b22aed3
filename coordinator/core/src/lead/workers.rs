//! Worker sessions: hello, welcome, signs of life, results.

use conclave_proto::v1::{
    AttemptFinished, AttemptKey, DrainWorker, Heartbeat, Hello, RegisterWorker, Resend,
    attempt_finished, command::Command as Body, coordinator_message::Message as ToWorker,
};

use super::{Act, Leader, Moment, Purpose};
use crate::{effect::Reply, placement::Load};

/// What a sign of life was worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The lease is renewed with the next batch.
    Renews,
    /// The engine has work and makes no steps: the lease is left to run out.
    Withheld,
    /// The worker is not registered (any more).
    Unknown,
}

impl Leader {
    /// A worker opened a session. Older ones of the same worker are closed. Call it only while
    /// [`Leader::serving`]: else the worker is sent elsewhere. Of the results in `hello` only the
    /// keys are read: each is to be told by [`Leader::finished`].
    pub fn hello(&mut self, session: u64, hello: Hello) {
        for old in self.roster.of_worker(&hello.worker_id) {
            self.close(old);
        }
        self.roster.open(session, &hello);
        let finished = hello.finished.into_iter().filter_map(|r| r.key);
        let register = RegisterWorker {
            running: hello.running.into_iter().chain(finished).collect(),
            worker_id: hello.worker_id,
            incarnation: hello.incarnation,
            models: hello.models,
            max_sequences: hello.max_sequences,
            kv_blocks: hello.kv_blocks,
            version: hello.version,
        };
        self.propose(
            Body::RegisterWorker(register),
            Purpose::Register { session },
        );
    }

    /// The worker is in the state: it may be spoken to.
    pub(super) fn registered(&mut self, id: u64, reply: &Reply) {
        if *reply != Reply::Ok {
            return self.close(id);
        }
        let Some(session) = self.roster.get_mut(id) else {
            return;
        };
        session.registered = true;
        let running = std::mem::take(&mut session.running);
        self.acts.push(Act::Welcome { session: id });
        for key in running {
            // Text does not go through raft: a new leader asks for it.
            let resend = Resend {
                key: Some(key),
                offset: 0,
            };
            let message = ToWorker::Resend(resend);
            self.acts.push(Act::Send {
                session: id,
                message,
            });
        }
        self.look_round = true;
    }

    /// An attempt ended. A draft that is a blob is on a majority already.
    pub fn finished(
        &mut self,
        session: u64,
        key: AttemptKey,
        incarnation: String,
        result: attempt_finished::Result,
        moment: &Moment<'_>,
    ) {
        let unix_ms = self.believed(moment).wall_ms();
        let Some(worker_id) = self.roster.get(session).map(|s| s.worker_id.clone()) else {
            return;
        };
        let finished = AttemptFinished {
            key: Some(key.clone()),
            incarnation,
            result: Some(result),
            unix_ms,
        };
        self.propose(
            Body::AttemptFinished(finished),
            Purpose::Result { worker_id, key },
        );
    }

    /// A sign of life: the lease is renewed only if steps move while there is work (law 4).
    pub fn heartbeat(&mut self, id: u64, beat: &Heartbeat, moment: &Moment<'_>) -> Sign {
        let Some(session) = self.roster.get_mut(id) else {
            return Sign::Unknown;
        };
        let moved = session.steps.replace(beat.steps) != Some(beat.steps);
        let load = Load {
            running: beat.running,
            waiting: beat.waiting,
            kv_blocks_free: beat.kv_blocks_free,
        };
        let freed = load.running + load.waiting < session.load.running + session.load.waiting;
        let woke = session.stuck && (moved || !beat.has_work);
        session.stuck &= !woke;
        session.has_work = beat.has_work;
        session.load = load;
        if !session.registered {
            return Sign::Unknown;
        }
        let (worker_id, incarnation) = (session.worker_id.clone(), session.incarnation.clone());
        let leased = moment.state.worker(&worker_id);
        if leased.is_none_or(|worker| worker.incarnation != incarnation) {
            // The lease ran out: the worker says hello again.
            self.close(id);
            return Sign::Unknown;
        }
        if freed || woke {
            self.placements.ask();
        }
        if !moved && beat.has_work {
            return Sign::Withheld;
        }
        self.renew.insert(worker_id, incarnation);
        Sign::Renews
    }

    /// The worker takes nothing new from here on.
    pub fn draining(&mut self, session: u64) {
        if let Some(session) = self.roster.get_mut(session) {
            session.draining = true;
            self.look_round = true;
        }
    }

    /// Writes down workers that drain, until the state says so.
    pub(super) fn drain_workers(&mut self, moment: &Moment<'_>) {
        let unknown = |(id, incarnation): &(&str, &str)| {
            let worker = moment.state.worker(id);
            worker.is_some_and(|w| w.incarnation == *incarnation && !w.draining)
        };
        let drain = |(worker_id, incarnation): (&str, &str)| DrainWorker {
            worker_id: worker_id.to_owned(),
            incarnation: incarnation.to_owned(),
        };
        let drains: Vec<_> = self.roster.draining().filter(unknown).map(drain).collect();
        for drain in drains {
            self.propose(Body::DrainWorker(drain), Purpose::Nothing);
        }
    }

    /// The session's stream has ended.
    pub fn closed(&mut self, session: u64) {
        self.roster.close(session);
    }

    /// Closes a session.
    pub(super) fn close(&mut self, session: u64) {
        self.roster.close(session);
        self.acts.push(Act::Close { session });
    }

    /// Sends to one process of a worker, or to whichever there is; without a session nothing is
    /// sent, and the worker is reconciled when it says hello.
    pub(super) fn send(&mut self, worker_id: &str, incarnation: Option<&str>, message: ToWorker) {
        if let Some(session) = self.roster.find(worker_id, incarnation) {
            self.acts.push(Act::Send { session, message });
        }
    }
}
