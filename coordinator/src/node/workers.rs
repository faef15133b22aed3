//! Worker sessions, on the leader's loop: hello, prompts, results, leases.

use std::time::{Duration, Instant};

use conclave_coordinator_core::{Reply, placement, view, worker::LEASE_TTL_MS};
use conclave_proto::v1::{
    AttemptFinished, DrainWorker, PrepareDone, Prepared, RegisterWorker, Resend, Welcome,
    attempt_finished, command::Command as Body, coordinator_message::Message as ToWorker,
};

use super::{
    lead::Lead,
    task::{Task, unix_ms},
    waiters::Waiter,
};
use crate::{
    dispatch::{Look, Outcome, SessionInput},
    metrics,
};

/// How long a job waits for a worker that serves its model, while others are
/// here: workers that a new leader inherits are given a lease to find it.
const MODEL: Duration = Duration::from_secs(3);
/// When another worker is asked after one could not look at a prompt.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Period of a worker's heartbeats, milliseconds.
const WORKER_BEAT_MS: u64 = 1_000;

impl Task {
    /// Has a worker look at the job's prompt.
    pub(super) fn prepare(&mut self, job_id: &str) {
        let Some(job) = self.state.job(job_id).filter(|job| job.needs_prepare()) else {
            return;
        };
        let (term, now) = (self.leadership.term, Instant::now());
        // Asked every tick: the spec is read from the disk only to be sent.
        if !self.sessions.may_look(job_id, now) {
            return;
        }
        let Some(lead) = &self.lead else { return };
        let mut prepare = None;
        let model = match lead.no_model.get(job_id) {
            Some((model, _)) => model.clone(),
            None => match view::prepare(&self.state, job, &self.blobs.local) {
                Err(missing) => return self.wait_for(&missing),
                Ok(built) => {
                    let spec = prepare.insert(built).spec.as_ref();
                    spec.map(|spec| spec.model.clone()).unwrap_or_default()
                }
            },
        };
        let build = || {
            let built = prepare.or_else(|| view::prepare(&self.state, job, &self.blobs.local).ok());
            built.map(ToWorker::Prepare)
        };
        let look = self.sessions.look(job_id, &model, term, now, build);
        // A worker that holds a lease and serves it is on its way here.
        let leased = self
            .state
            .workers()
            .any(|worker| worker.model(&model).is_some());
        let Some(lead) = &mut self.lead else { return };
        let Look::NoModel(served) = look else {
            lead.no_model.remove(job_id);
            return;
        };
        let begun = lead.begun + Duration::from_millis(LEASE_TTL_MS);
        let waiting = lead.no_model.entry(job_id.to_owned());
        let (_, since) = waiting.or_insert((model.clone(), now));
        if leased || now < begun || now - *since < MODEL {
            return;
        }
        lead.no_model.remove(job_id);
        let wanted = if model.is_empty() {
            "the job names no model and there are several".to_owned()
        } else {
            format!("no worker serves the model `{model}`")
        };
        let error = format!("{wanted}; served: {}", served.join(", "));
        let prepared = Prepared {
            job_id: job_id.to_owned(),
            error,
            ..Prepared::default()
        };
        let done = PrepareDone {
            prepared: Some(prepared),
        };
        self.own(Body::PrepareDone(done), Waiter::Nobody);
    }

    /// Something of a worker's session. Without the lead there are none.
    pub(super) fn session(&mut self, input: SessionInput) {
        let serving = self.lead.as_ref().is_some_and(Lead::serving);
        match input {
            SessionInput::Opened {
                session,
                hello,
                outbox,
                guard,
            } => {
                self.sessions.open(session, &hello, outbox, guard);
                if !serving {
                    return self.dismiss_workers();
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
                self.own(Body::RegisterWorker(register), Waiter::Hello { session });
                if hello.draining {
                    self.draining(session);
                }
            }
            SessionInput::Closed { session } => self.sessions.close(session),
            _ if !serving => {}
            SessionInput::Prepared { prepared, .. } => self.prepared(prepared),
            SessionInput::Finished {
                session,
                key,
                incarnation,
                outcome,
            } => {
                let Some(worker_id) = self.sessions.get(session).map(|s| s.worker_id.clone())
                else {
                    return;
                };
                let result = match outcome {
                    Outcome::Draft(draft) => attempt_finished::Result::Draft(draft),
                    Outcome::Error(error) => attempt_finished::Result::Error(error),
                };
                let finished = AttemptFinished {
                    key: Some(key.clone()),
                    incarnation,
                    result: Some(result),
                    unix_ms: unix_ms(),
                };
                self.own(
                    Body::AttemptFinished(finished),
                    Waiter::Result { worker_id, key },
                );
            }
            SessionInput::Alive {
                session,
                load,
                renew,
            } => self.alive(session, load, renew),
            SessionInput::Draining { session } => self.draining(session),
        }
    }

    fn draining(&mut self, session: u64) {
        let Some(session) = self.sessions.get(session) else {
            return;
        };
        let drain = DrainWorker {
            worker_id: session.worker_id.clone(),
            incarnation: session.incarnation.clone(),
        };
        self.own(Body::DrainWorker(drain), Waiter::Nobody);
    }

    fn prepared(&mut self, prepared: Prepared) {
        if prepared.retry {
            self.sessions
                .looked(&prepared.job_id, Some(Instant::now() + LOOK_AGAIN));
            return;
        }
        self.sessions.looked(&prepared.job_id, None);
        let done = PrepareDone {
            prepared: Some(prepared),
        };
        self.own(Body::PrepareDone(done), Waiter::Nobody);
    }

    fn alive(&mut self, session: u64, load: placement::Load, renew: bool) {
        let Some(known) = self.sessions.get_mut(session) else {
            return;
        };
        let freed = load.running + load.waiting < known.load.running + known.load.waiting;
        known.load = load;
        if !known.registered {
            return;
        }
        let (worker_id, incarnation) = (known.worker_id.clone(), known.incarnation.clone());
        let leased = self
            .state
            .worker(&worker_id)
            .is_some_and(|w| w.incarnation == incarnation);
        if !leased {
            // The lease ran out: the worker says hello again.
            return self.sessions.close(session);
        }
        let Some(lead) = &mut self.lead else { return };
        lead.place |= freed;
        if renew {
            lead.renew.insert(worker_id, incarnation);
        } else {
            metrics::lease_withheld();
        }
    }

    /// The worker is in the state: it may be spoken to.
    pub(super) fn welcome(&mut self, id: u64, reply: &Reply) {
        if *reply != Reply::Ok {
            tracing::warn!(?reply, "a worker was not registered");
            return self.sessions.close(id);
        }
        let term = self.leadership.term;
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.registered = true;
        tracing::info!(worker = session.worker_id, "worker registered");
        let running = std::mem::take(&mut session.running);
        let welcome = Welcome {
            heartbeat_ms: WORKER_BEAT_MS,
            lease_ttl_ms: LEASE_TTL_MS,
            leader: self.address.clone(),
            members: self.network.addresses().into_values().collect(),
        };
        self.sessions.send_to(id, term, ToWorker::Welcome(welcome));
        for key in running {
            // Text does not go through raft: a new leader asks for it.
            let resend = Resend {
                key: Some(key),
                offset: 0,
            };
            self.sessions.send_to(id, term, ToWorker::Resend(resend));
        }
        let unprepared: Vec<_> = self.state.unprepared().map(|job| job.id.clone()).collect();
        for job_id in unprepared {
            self.prepare(&job_id);
        }
    }
}
